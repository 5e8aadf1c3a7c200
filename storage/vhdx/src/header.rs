//! The headers (2.2.2): two, of which the valid one with the higher number counts, so that a torn update leaves the
//! other.

use vireo_vdisk::Medium;

use crate::bytes::{Fields, checksum, put, seal};
use crate::error::damaged;
use crate::{Guid, MIB, Result, VhdxError};

/// Where each is, and its size, in bytes.
pub const PLACES: [u64; 2] = [64 << 10, 128 << 10];
pub const SIZE: usize = 4096;
const SIGNATURE: &[u8; 4] = b"head";
/// "vhdxfile", at the start of the file (2.2.1).
pub const FILE: &[u8; 8] = b"vhdxfile";
/// Longest log that is taken into memory, in bytes.
const MOST_LOG: u64 = 64 * MIB;

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The higher one counts.
    pub number: u64,
    /// Changes before the file is first changed after an opening.
    pub file_write: Guid,
    /// Changes before the disk's contents are. A child's link to its parent names it.
    pub data_write: Guid,
    /// Entries of the log with this identity count; zero: none does.
    pub log: Guid,
    /// Where the log is, and its length, in bytes.
    pub log_at: u64,
    /// See above.
    pub log_len: u64,
}

impl Header {
    /// A right one of its bytes.
    pub fn parse(b: &[u8; SIZE]) -> Option<Self> {
        let right = b[..4] == *SIGNATURE && b.u32(4) == checksum(b, 4) && b.u16(66) == 1;
        right.then(|| Self {
            number: b.u64(8),
            file_write: Guid(b.array(16)),
            data_write: Guid(b.array(32)),
            log: Guid(b.array(48)),
            log_len: b.u32(68).into(),
            log_at: b.u64(72),
        })
    }

    fn bytes(&self) -> [u8; SIZE] {
        let mut b = [0; SIZE];
        put(&mut b, 0, SIGNATURE);
        put(&mut b, 8, &self.number.to_le_bytes());
        put(&mut b, 16, &self.file_write.0);
        put(&mut b, 32, &self.data_write.0);
        put(&mut b, 48, &self.log.0);
        // Version of the log 0, of the format 1.
        put(&mut b, 66, &1u16.to_le_bytes());
        put(&mut b, 68, &(self.log_len as u32).to_le_bytes());
        put(&mut b, 72, &self.log_at.to_le_bytes());
        seal(&mut b, 4);
        b
    }

    /// The one that counts of an image.
    pub fn read(medium: &dyn Medium) -> Result<Self> {
        let mut found: Option<Self> = None;
        for at in PLACES {
            let mut b = [0; SIZE];
            medium.read(at, &mut b).map_err(VhdxError::io("read a header"))?;
            let header = Self::parse(&b);
            if header.is_some_and(|h| found.is_none_or(|f| h.number > f.number)) {
                found = header;
            }
        }
        let Some(h) = found else { return damaged("neither of its headers is right") };
        let len = medium.len().map_err(VhdxError::io("find the end of the VHDX"))?;
        if h.log_at < MIB
            || h.log_at.checked_add(h.log_len).is_none_or(|end| end > len)
            || !h.log_at.is_multiple_of(MIB)
            || !h.log_len.is_multiple_of(MIB)
        {
            return damaged(format!("its log is {} bytes at {}", h.log_len, h.log_at));
        }
        if h.log_len == 0 || h.log_len > MOST_LOG {
            return Err(VhdxError::Unsupported(format!("a log of {} bytes", h.log_len)));
        }
        Ok(h)
    }

    /// Makes it the one that counts, durably.
    pub fn write(&mut self, medium: &dyn Medium) -> Result<()> {
        let Some(number) = self.number.checked_add(1) else {
            return damaged("its header cannot be changed once more");
        };
        self.number = number;
        let at = PLACES[(self.number % 2) as usize];
        medium.write(at, &self.bytes()).map_err(VhdxError::io("write a header"))?;
        medium.flush().map_err(VhdxError::io("flush a header"))
    }

    /// Writes both, of a new image.
    pub fn write_first(&mut self, medium: &dyn Medium) -> Result<()> {
        (0..2).try_for_each(|_| self.write(medium))
    }
}
