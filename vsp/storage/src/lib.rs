//! The storage service provider: a SCSI controller on VMBus, whose driver (storvsc) guests have.
//!
//! Owns the protocol between driver and controller, versions 2.0 to 6.2, its channels and who serves them, and which units are on
//! a controller ([`Controller`]), which may change while the guest runs. What a command does is its unit's business
//! (`vireo-scsi`).
//!
//! # Who waits for whom
//! Each channel has a thread that takes requests out of the guest's ring and starts them. Requests end on the disks' threads,
//! which write completions; so a disk that is slow keeps nobody waiting but those who asked for it.
//!
//! Where a controller has one disk only, that disk's thread serves the channels as well (`vireo_block::Executor`): a request then
//! costs one wake-up less, and requests that end together are told together. That is a fifth to a quarter more requests a second
//! on a file. It is not done for several disks: a thread may be held up in the kernel, by a file system that does not answer.
//!
//! Source: the driver of Linux (drivers/scsi/storvsc_drv.c).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod channel;
mod controller;
mod protocol;
mod provider;
#[cfg(test)]
mod tests;

pub use controller::{Controller, LUNS, UnitError};
pub use provider::Provider;
