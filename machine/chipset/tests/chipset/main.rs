//! The standard board on simulated time, driven through its ports as a guest drives it.

mod interrupts;
mod msix;
mod pci;
mod pci_bars;
mod rig;
mod rtc;
mod state;
mod system;
mod timers;
mod uart;
