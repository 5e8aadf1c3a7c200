//! The storage service provider: a SCSI controller on VMBus, whose driver (storvsc) guests have.
//!
//! Owns the protocol between driver and controller, versions 2.0 to 6.2, its channels and their threads, and which units are on
//! a controller ([`Controller`]), which may change while the guest runs. What a command does is its unit's business
//! (`vireo-scsi`).
//!
//! # Who waits for whom
//! Each channel has a thread that takes requests out of the guest's ring and starts them. Requests end on the disks' threads,
//! which write completions; so a disk that is slow keeps nobody waiting but those who asked for it.
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
