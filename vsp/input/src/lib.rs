//! The input service providers: a keyboard and a mouse on VMBus, whose drivers (hyperv-keyboard, hid-hyperv) guests have.
//!
//! Owns both protocols, the keyboard's 1.0 and the mouse's 2.0, and what the mouse says of itself as a HID. Which keys are pressed and
//! where the pointer is comes by the seams of `vireo-screen`, from any thread; what a guest does not take is lost, never waited for.
//!
//! Source: the drivers of Linux (drivers/input/serio/hyperv-keyboard.c, drivers/hid/hid-hyperv.c); USB HID 1.11 for descriptors.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod keyboard;
mod line;
mod mouse;
#[cfg(test)]
mod tests;

pub use keyboard::SyntheticKeyboard;
pub use mouse::SyntheticMouse;
