//! Disks of a running machine, as device models see them: requests go in, completions come back, guest memory is the buffer.
//!
//! Owns the seam between service providers and disks ([`BlockDevice`], [`Request`], [`Buffer`]), and the disks that are nothing
//! but memory ([`RamDisk`], [`Null`]), for tests and for measuring what is above a disk, and those that stand before any other:
//! [`Limited`], which does only so much in a second, and [`Faulty`], which fails as it is told. Never opens a file, and knows
//! no format and no bus.
#![warn(missing_docs)]

mod buffer;
mod device;
mod executor;
mod faulty;
mod limited;
mod ram;
mod request;

pub use buffer::{Buffer, HostBuffer};
pub use device::{BlockDevice, BlockInfo};
pub use executor::{Executor, Task};
pub use faulty::{Fate, Faulty};
pub use limited::{Limited, Limits};
pub use ram::{Null, RamDisk};
pub use request::{BlockError, Completion, Operation, Request};
