//! Machines in which Linux's own drivers try a device: a Debian kernel on the software engine, in the test's own process, so that
//! state can be saved and restored, and the machine reset, while the driver is at work.
//!
//! For the tests of devices (`make drivers`). It knows no device.
#![forbid(unsafe_code)]

mod initrd;
mod machine;
mod text;

pub use machine::{Machine, Setup};
pub use text::Text;

use std::time::Duration;

/// Far beyond what a run takes: a guest that hangs is ended.
pub const LIMIT: Duration = Duration::from_secs(180);
