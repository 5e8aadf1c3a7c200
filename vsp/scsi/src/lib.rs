//! SCSI: what a logical unit makes of the commands that a guest sends it, whatever bus they come by.
//!
//! Owns the commands of a disk ([`ScsiDisk`]: SPC-4, SBC-3) and of a CD drive ([`cd`]: MMC-5), sense data, and unit attentions. A unit turns a [`Command`] into
//! requests of its [`vireo_block::BlockDevice`], and into an [`Outcome`] when they are done; it never waits. It knows neither the
//! bus nor which other units there are.
//!
//! Sources: SPC-4 (T10/1731-D r37), SBC-3 (T10/BSR INCITS 514 r36).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
pub mod cd;
mod command;
mod data;
mod disk;
mod inquiry;
mod mode;
mod sense;
#[cfg(test)]
mod tests;
mod trim;

pub use cd::ScsiCd;
pub use command::{Command, LogicalUnit, Outcome, opcode};
pub use data::fill;
pub use disk::ScsiDisk;
pub use sense::Sense;
