//! A request and its end.

use std::fmt;
use std::io;

use crate::{BlockInfo, Buffer};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The disk to the buffers.
    Read,
    /// The buffers to the disk.
    Write {
        /// It is durable before it completes (force unit access).
        fua: bool,
    },
    /// All that was completed before this was submitted becomes durable.
    Flush,
    /// The range is not needed any more: it may read as anything that was there, or as zeros.
    Unmap,
    /// The range reads as zeros from now on.
    WriteZeroes,
}

/// Told of a request's end, once, on any thread: by then all buffers hold what was read, and the dirty log knows it.
pub type Completion = Box<dyn FnOnce(Result<(), BlockError>) + Send>;

/// One request. Those in flight may complete in any order.
pub struct Request {
    /// What is to be done.
    pub operation: Operation,
    /// Start of the range, in bytes; a multiple of the disk's sector size. 0 for a flush.
    pub at: u64,
    /// Length of the range, in bytes; as above.
    pub len: u64,
    /// For reads and writes: memory of `len` bytes, together. Nothing for others.
    pub buffers: Vec<Buffer>,
    /// Told of its end.
    pub done: Completion,
}

impl Request {
    /// Ends it.
    pub fn complete(self, result: Result<(), BlockError>) {
        (self.done)(result);
    }

    /// Whether a disk that is as said can do it.
    ///
    /// # Errors
    /// It is not on the disk, or not of whole sectors; buffers of another length; a change of a disk that is read-only.
    pub fn check(&self, disk: &BlockInfo) -> Result<(), BlockError> {
        let sector = u64::from(disk.sector);
        let inside = self.at.checked_add(self.len).is_some_and(|end| end <= disk.size);
        if !inside || !self.at.is_multiple_of(sector) || !self.len.is_multiple_of(sector) {
            return Err(BlockError::OutOfRange { at: self.at, len: self.len, size: disk.size });
        }
        let moved: u64 = self.buffers.iter().map(|b| b.len() as u64).sum();
        let wanted =
            if matches!(self.operation, Operation::Read | Operation::Write { .. }) { self.len } else { 0 };
        if moved != wanted {
            return Err(BlockError::Buffers { have: moved, need: wanted });
        }
        if disk.read_only && !matches!(self.operation, Operation::Read | Operation::Flush) {
            return Err(BlockError::ReadOnly);
        }
        Ok(())
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} bytes at {}", self.operation, self.len, self.at)
    }
}

/// Why a request failed. Nothing is known of what it was to change.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// A range that is not on the disk, or not of whole sectors.
    #[error("{len} bytes at {at} are no sectors of a disk of {size} bytes")]
    OutOfRange {
        /// Its start, in bytes.
        at: u64,
        /// Its length, in bytes.
        len: u64,
        /// The disk's size, in bytes.
        size: u64,
    },
    /// Memory that is not as long as the range.
    #[error("the buffers have {have} bytes, the request needs {need}")]
    Buffers {
        /// Their length in bytes.
        have: u64,
        /// What it must be.
        need: u64,
    },
    /// A change of a disk that is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The file system below the image is full.
    #[error("no space is left below the disk's image")]
    NoSpace,
    /// The disk was taken away.
    #[error("the disk is gone")]
    Gone,
    /// The host's storage failed.
    #[error("{0}")]
    Io(#[source] io::Error),
    /// The image is damaged, or refuses.
    #[error("{0}")]
    Image(String),
}

impl From<io::Error> for BlockError {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::Io(e),
        }
    }
}
