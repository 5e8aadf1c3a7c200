//! The bytes below a format.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes that an image is written on. What was written is read back at once; it is durable only after
/// [`Medium::flush`], and until then any part of it, in any order, may be.
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

    /// Makes a range zero, and gives back the space that it takes, where the system can do that. What of it lies beyond
    /// the end is left as it is.
    ///
    /// # Errors
    /// Those of the system. Part of it may be zero.
    fn punch(&self, at: u64, len: u64) -> io::Result<()>;

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
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        use rustix::fs::FallocateFlags as How;
        let len = len.min(self.len()?.saturating_sub(at));
        if len == 0 {
            return Ok(());
        }
        match rustix::fs::fallocate(&self.0, How::PUNCH_HOLE | How::KEEP_SIZE, at, len) {
            Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(self, at, len),
            other => Ok(other?),
        }
    }
    fn flush(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

/// Where no hole can be made.
fn write_zeros(medium: &dyn Medium, at: u64, len: u64) -> io::Result<()> {
    let zeros = vec![0; len.min(1 << 20) as usize];
    let mut done = 0;
    while done < len {
        let part = &zeros[..(len - done).min(1 << 20) as usize];
        medium.write(at + done, part)?;
        done += part.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::trial::peer::Folder;

    #[test]
    fn a_hole_is_zero_and_takes_no_space() {
        let folder = Folder::new("medium-punch");
        let path = folder.join("a");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let before = file.metadata().unwrap().blocks();
        let medium = FileMedium::new(file);
        medium.punch(4096, 512 << 10).unwrap();
        medium.punch((1 << 20) - 512, 1 << 40).unwrap();
        medium.punch(1 << 30, 4096).unwrap();
        let found = fs::read(&path).unwrap();
        let zeros = found.iter().filter(|b| **b == 0).count();
        assert_eq!(
            (found.len(), zeros, found[4095], found[4096 + (512 << 10)]),
            (1 << 20, (512 << 10) + 512, 7, 7)
        );
        assert!(fs::metadata(&path).unwrap().blocks() < before, "the file system here makes no holes");
        write_zeros(&medium, 0, (1 << 20) - 1).unwrap();
        assert!(fs::read(&path).unwrap().iter().all(|b| *b == 0));
    }
}
