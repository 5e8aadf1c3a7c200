//! The standard board on simulated time, driven through its ports as a guest drives it.

mod interrupts;
mod pci;
mod rig;
mod rtc;
mod state;
mod system;
mod timers;
mod uart;
