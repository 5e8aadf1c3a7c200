//! Guest RAM: one memory file per virtual machine (and one for each frame buffer), and the accessors through which the host touches it.
//!
//! Owns the memory file and its mapping, the layout of RAM around the holes of the address space, and every
//! access of devices, loaders and DMA to it: each write tells the registered [`WriteObserver`] (the partition,
//! which marks the dirty log and drops translated code). It never interprets what it copies, never makes a Rust
//! reference to guest memory (guests and devices race on it by right, so access is by raw pointer), and knows
//! neither the numbers of the address map (the chipset's) nor an engine.
//!
//! Own code rather than the `vm-memory` crate: that brings a dirty bitmap per region, a second truth beside the
//! partition's log, with no place to tell the engine about changed code, and its type parameters spread into
//! every signature. What is needed here is one mapping and a bounds check.

#![warn(missing_docs)]

mod access;
mod device;
mod error;
mod layout;
mod mapping;
mod slice;

pub use access::{GuestInt, GuestMemory, WriteObserver};
pub use device::DeviceMemory;
pub use error::MemoryError;
pub use layout::{Holes, MIN_SIZE, RamLayout, RamSpan, SIZE_STEP};
pub use slice::{GuestSlice, read_pieces};
