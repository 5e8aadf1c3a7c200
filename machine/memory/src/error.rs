//! What can go wrong with guest memory.

use crate::{MIN_SIZE, SIZE_STEP};

/// A failed request for, or access to, guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// An access that is not wholly inside one span of RAM.
    #[error("guest-physical {gpa:#x}, {len} bytes, is not RAM")]
    NotRam {
        /// First guest-physical address of the access.
        gpa: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// An atomic access whose address is not a multiple of its size.
    #[error("atomic access to guest-physical {gpa:#x} is not aligned to {size} bytes")]
    Unaligned {
        /// Guest-physical address of the access.
        gpa: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// A size no machine can have.
    #[error(
        "memory of {asked} bytes is not possible: it takes a multiple of {} MiB, at least {} MiB",
        SIZE_STEP >> 20, MIN_SIZE >> 20
    )]
    BadSize {
        /// The size asked for, in bytes.
        asked: u64,
    },
    /// More than the host can give now.
    #[error(
        "asked for {} MiB of memory, the host has {} MiB available: free some or ask for less",
        asked >> 20, available >> 20
    )]
    HostShort {
        /// The size asked for, in bytes.
        asked: u64,
        /// What the host has, in bytes.
        available: u64,
    },
    /// A system call failed.
    #[error("cannot {step} {} MiB of guest memory: {source}", size >> 20)]
    Host {
        /// What was attempted.
        step: &'static str,
        /// Size of the guest memory in bytes.
        size: u64,
        /// What the host said.
        source: std::io::Error,
    },
}
