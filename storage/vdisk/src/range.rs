//! Ranges of a disk.

use std::ops::Range;

/// A range that is not on the disk, or not of whole sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {at} are no sectors of a disk of {size} bytes")]
pub struct OutOfRange {
    /// Its start, in bytes.
    pub at: u64,
    /// Its length, in bytes.
    pub len: u64,
    /// The disk's size, in bytes.
    pub size: u64,
}

/// Looks whether a range is on a disk of `size` bytes, and of whole sectors.
///
/// # Errors
/// It is not.
pub fn check_range(at: u64, len: u64, size: u64, sector: u64) -> Result<(), OutOfRange> {
    let inside = at.checked_add(len).is_some_and(|end| end <= size);
    match inside && at.is_multiple_of(sector) && len.is_multiple_of(sector) {
        true => Ok(()),
        false => Err(OutOfRange { at, len, size }),
    }
}

/// The part of a range that is in one block of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The block.
    pub block: u64,
    /// Bytes in it.
    pub range: Range<u64>,
}

impl Piece {
    /// Its length, in bytes.
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Where it starts on the disk, whose blocks have `block` bytes.
    pub fn start(&self, block: u64) -> u64 {
        self.block * block + self.range.start
    }

    /// Whether it is a whole block, or all that a disk of `size` bytes has of it.
    pub fn is_whole(&self, block: u64, size: u64) -> bool {
        self.range.start == 0 && (self.range.end == block || self.block * block + self.range.end == size)
    }

    /// Its sectors, counted from the block's first. Their size in bytes is `sector`.
    pub fn sectors(&self, sector: u64) -> Range<u64> {
        self.range.start / sector..self.range.end / sector
    }
}

/// A range of a disk by its blocks, of `block` bytes each.
pub fn pieces(at: u64, len: u64, block: u64) -> impl Iterator<Item = Piece> {
    let end = at + len;
    let mut next = at;
    std::iter::from_fn(move || {
        let start = next;
        if start >= end {
            return None;
        }
        next = end.min((start / block + 1) * block);
        Some(Piece { block: start / block, range: start % block..start % block + (next - start) })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_those_of_the_blocks() {
        let found: Vec<_> = pieces(3072, 6144, 4096).map(|p| (p.block, p.range)).collect();
        assert_eq!(found, [(0, 3072..4096), (1, 0..4096), (2, 0..1024)]);
        let whole: Vec<_> =
            pieces(3072, 6144, 4096).map(|p| (p.start(4096), p.is_whole(4096, 9216))).collect();
        assert_eq!(whole, [(3072, false), (4096, true), (8192, true)]);
        assert!(pieces(8192, 1024, 4096).all(|p| !p.is_whole(4096, 12288)));
        assert_eq!(pieces(4096, 0, 4096).count(), 0);
        assert_eq!(pieces(512, 1024, 4096).next().map(|p| (p.bytes(), p.sectors(512))), Some((1024, 1..3)));
    }
}
