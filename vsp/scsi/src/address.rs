//! Which blocks a command is about (SBC-3, 5).

use crate::opcode::*;
use crate::{Command, Sense};

/// A run of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The first.
    pub first: u64,
    /// How many.
    pub count: u64,
}

impl Blocks {
    /// The blocks that a command with an address names.
    pub fn of(c: &Command) -> Self {
        let (first, count) = match c.cdb[0] {
            READ_6 | WRITE_6 => {
                let count = if c.cdb[4] == 0 { 256 } else { c.cdb[4].into() };
                ((c.be32(0) & 0x1f_ffff).into(), count)
            }
            READ_12 | WRITE_12 | WRITE_VERIFY_12 | VERIFY_12 => (c.be32(2).into(), c.be32(6).into()),
            READ_16 | WRITE_16 | WRITE_VERIFY_16 | VERIFY_16 | WRITE_SAME_16 | SYNCHRONIZE_CACHE_16 => {
                (c.be64(2), c.be32(10).into())
            }
            _ => (c.be32(2).into(), c.be16(7).into()),
        };
        Self { first, count }
    }

    /// Where they are, in bytes: start and length.
    ///
    /// # Errors
    /// They are not all on a disk of `size` bytes.
    pub fn bytes(self, sector: u32, size: u64) -> Result<(u64, u64), Sense> {
        let sector = u64::from(sector);
        let at = self.first.checked_mul(sector);
        let len = self.count.checked_mul(sector);
        match (at, len) {
            (Some(at), Some(len)) if at.checked_add(len).is_some_and(|end| end <= size) => Ok((at, len)),
            _ => Err(Sense::OUT_OF_RANGE),
        }
    }
}

/// Whether what this command writes has to be on the medium before it ends: FUA, or since it is to be verified there.
pub fn forces_unit_access(c: &Command) -> bool {
    match c.cdb[0] {
        WRITE_6 => false,
        WRITE_VERIFY_10 | WRITE_VERIFY_12 | WRITE_VERIFY_16 => true,
        _ => c.cdb[1] & 1 << 3 != 0,
    }
}

/// Whether this command asks for protection information (RDPROTECT, WRPROTECT, VRPROTECT), which no disk here has: SBC-3 wants it
/// refused then (5.9 for READ (10), and the same for each of the others).
pub fn asks_for_protection(c: &Command) -> bool {
    let can = matches!(
        c.cdb[0],
        READ_10
            | READ_12
            | READ_16
            | WRITE_10
            | WRITE_12
            | WRITE_16
            | WRITE_VERIFY_10
            | WRITE_VERIFY_12
            | WRITE_VERIFY_16
            | VERIFY_10
            | VERIFY_12
            | VERIFY_16
            | WRITE_SAME_10
            | WRITE_SAME_16
    );
    can && c.cdb[1] >> 5 != 0
}
