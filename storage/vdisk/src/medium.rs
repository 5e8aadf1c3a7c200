//! The bytes below a format.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that an image is written on. What was written is read back at once; it is durable only after [`Medium::flush`], and
/// until then any part of it, in any order, may be.
pub trait Medium: Send + Sync {
    /// Length in bytes.
    ///
    /// # Errors
    /// Those of the system.
    fn len(&self) -> io::Result<u64>;

    /// Whether there is nothing.
    ///
    /// # Errors
    /// Those of the system.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads all of `to`.
    ///
    /// # Errors
    /// Those of the system; `UnexpectedEof` if it does not reach so far.
    fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()>;

    /// Writes all of `from`; beyond the end it extends.
    ///
    /// # Errors
    /// Those of the system. Part of it may have been written.
    fn write(&self, at: u64, from: &[u8]) -> io::Result<()>;

    /// Cuts, or extends by zeros.
    ///
    /// # Errors
    /// Those of the system.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes durable what was written, and the length.
    ///
    /// # Errors
    /// Those of the system: then nothing is known of what was written since the last flush that succeeded.
    fn flush(&self) -> io::Result<()>;
}

/// A file, or a block device.
pub struct FileMedium(File);

impl FileMedium {
    /// An open one.
    pub fn new(file: File) -> Self {
        Self(file)
    }
}

impl Medium for FileMedium {
    fn len(&self) -> io::Result<u64> {
        // Of a block device `metadata` says zero.
        Ok(rustix::fs::seek(&self.0, rustix::fs::SeekFrom::End(0))?)
    }
    fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(to, at)
    }
    fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.0.write_all_at(from, at)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
