//! The video service provider: a frame buffer on VMBus, whose driver (hyperv_fb, hyperv_drm) guests have.
//!
//! Owns the protocol between driver and device, versions 3.2 to 3.5, and where the frame buffer is. The driver says that: in RAM of
//! its own, or at an address in the PCI hole, where it is then given 8 MiB or more of the device's ([`vireo_board::Window`]). What is seen is
//! the screen's business (`vireo-screen`).
//!
//! # Who waits for whom
//! A window moves while the vCPUs stand still. A vCPU may be waiting for the channel's thread to end, so a thread of its own moves
//! the window, and answers the driver then.
//!
//! Source: the drivers of Linux (drivers/video/fbdev/hyperv_fb.c, drivers/gpu/drm/hyperv).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod edid;
mod frame;
mod mover;
mod pci;
pub mod protocol;
mod provider;
#[cfg(test)]
mod tests;

pub use provider::Provider;
