//! End-to-end tests: the `vireo` command with real guests, and tests of the house itself.
//!
//! This library is what those tests (and the bench) drive machines with: processes under a deadline, guests from
//! `guests/`, command lines for `vireo` and for QEMU, and the reading of kernel logs. It runs commands as a user would
//! and never reaches into a crate.
#![forbid(unsafe_code)]

mod guest;
mod kernel_log;
mod machine;
mod picture;
mod process;
mod share;
mod vireo;

pub use guest::{Guest, GuestRun};
pub use kernel_log::complaints;
pub use machine::{Machine, vireo_does, vireo_says};
pub use picture::Picture;
pub use process::{Failure, Process};
pub use share::HostShare;
pub use vireo::vireo;

use std::path::PathBuf;

/// The root of the source tree.
pub fn source_root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
