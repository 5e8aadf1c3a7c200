//! The emulated chipset of a PC: interrupt controllers, timers, clock, serial port, keyboard controller, ACPI
//! fixed hardware, PCI configuration space, and the port and memory buses they sit on.
//!
//! It owns the devices' registers, the map of the board ([`layout`]) and guest time ([`clock`]). It knows no
//! processor, no guest RAM and no host file: those come in through the traits of [`lines`] and [`clock`]. It
//! never owns the local APIC, which belongs to the engine.
//!
//! A board makes [`Seams`], builds a [`Chipset`] from them, and sends it every port and memory access.
//!
//! Locks: each device has one. A device may drive its interrupt line under it, so the order is device, then
//! interrupt controller, then the board's sink; a sink never calls back. Timer callbacks hold no lock when
//! they enter a device.
#![forbid(unsafe_code)]

pub mod acpi;
pub mod bus;
mod calendar;
mod chipset;
pub mod clock;
mod counter;
pub mod i8042;
pub mod ioapic;
pub mod layout;
pub mod lines;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod post;
pub mod rtc;
pub mod simulated;
pub mod state;
pub mod timer_thread;
pub mod uart;

pub use chipset::{Chipset, ChipsetBuilder, ChipsetError, ChipsetState, Seams};
pub use state::RestoreError;
