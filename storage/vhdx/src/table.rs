//! The block table (2.5): an entry for each block of the disk, and after each chunk of blocks one for the bitmap of its
//! sectors.

use crate::{MIB, Metadata};

/// What an entry says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// The parent's, or zero without one.
    NotHere,
    /// Zero, whatever the parent has: undefined, zero, or unmapped.
    Zero,
    /// All of it is here, at this offset.
    Here(u64),
    /// The bitmap says what is here, and the rest is the parent's.
    PartlyHere(u64),
}

/// Why an entry is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadEntry;

const STATE: u64 = 7;
/// The entry of a block that is nowhere.
pub const NOT_HERE: u64 = 0;
/// Entries of blocks that are zero: because they were cleared, or are not needed.
pub const ZERO: u64 = 2;
pub const UNMAPPED: u64 = 3;
const HERE: u64 = 6;
const PARTLY_HERE: u64 = 7;
/// Bits of the offset, which is a multiple of this.
const OFFSET: u64 = !(MIB - 1);

impl Block {
    /// What an entry of a block says.
    pub fn of(entry: u64) -> Result<Self, BadEntry> {
        let at = entry & OFFSET;
        match entry & STATE {
            0 => Ok(Self::NotHere),
            1..=3 => Ok(Self::Zero),
            HERE => Ok(Self::Here(at)),
            PARTLY_HERE => Ok(Self::PartlyHere(at)),
            _ => Err(BadEntry),
        }
    }

    /// The entry of a block that is here, partly or in whole.
    pub fn entry(at: u64, whole: bool) -> u64 {
        at | if whole { HERE } else { PARTLY_HERE }
    }

    /// Where a bitmap is, by its entry.
    pub fn bitmap_of(entry: u64) -> Result<Option<u64>, BadEntry> {
        match entry & STATE {
            0 => Ok(None),
            HERE => Ok(Some(entry & OFFSET)),
            _ => Err(BadEntry),
        }
    }

    /// The entry of a bitmap.
    pub fn bitmap_entry(at: u64) -> u64 {
        at | HERE
    }
}

/// How the table is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of a block.
    pub block: u64,
    /// Bytes of a sector.
    pub sector: u64,
    /// Blocks in a chunk.
    ratio: u64,
    /// Blocks of the disk.
    blocks: u64,
    differencing: bool,
}

/// Sectors that one bitmap is of.
const CHUNK: u64 = 1 << 23;

impl Layout {
    /// That of an image.
    pub fn of(m: &Metadata) -> Self {
        let (block, sector) = (u64::from(m.block), u64::from(m.sector));
        let blocks = m.size.div_ceil(block);
        Self { block, sector, ratio: CHUNK * sector / block, blocks, differencing: m.parent.is_some() }
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// How many entries there are.
    pub fn entries(&self) -> u64 {
        match self.differencing {
            true => self.blocks.div_ceil(self.ratio) * (self.ratio + 1),
            false => self.blocks + (self.blocks - 1) / self.ratio,
        }
    }

    /// The entry of a block.
    pub fn of_block(&self, block: u64) -> u64 {
        block + block / self.ratio
    }

    /// The block that an entry is of. `None`: it is a bitmap's.
    pub fn block_of(&self, entry: u64) -> Option<u64> {
        let (chunk, n) = (entry / (self.ratio + 1), entry % (self.ratio + 1));
        (n < self.ratio).then(|| chunk * self.ratio + n)
    }

    /// The entry of the bitmap with a block's sectors.
    pub fn of_bitmap(&self, block: u64) -> u64 {
        block / self.ratio * (self.ratio + 1) + self.ratio
    }

    /// The bit in its bitmap of a block's first sector.
    pub fn first_bit(&self, block: u64) -> u64 {
        block % self.ratio * (self.block / self.sector)
    }
}
