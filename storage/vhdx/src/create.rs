//! New images.

use vireo_vdisk::Medium;

use crate::header::{FILE, Header};
use crate::metadata::{Metadata, ParentLink};
use crate::region::{Region, Regions};
use crate::table::{Block, Layout};
use crate::{Guid, MIB, Result, VhdxError};

/// Largest disk: 64 TiB.
pub const MAX_SIZE: u64 = 64 << 40;
/// Blocks have this size unless something else is asked for, in bytes.
pub const DEFAULT_BLOCK: u32 = 2 << 20;
/// Sizes that blocks can have.
pub(crate) const BLOCKS: std::ops::RangeInclusive<u32> = 1 << 20..=256 << 20;
/// The name that a new image says made it.
const CREATOR: &str = "Vireo";
const LOG_AT: u64 = MIB;
const LOG_LEN: u64 = MIB;
const METADATA: Region = Region { at: 2 * MIB, len: MIB };
const TABLE_AT: u64 = 3 * MIB;
/// The block table has room for a disk so many times as large.
const ROOM: u64 = 4;
/// Entries of the table that are written at once.
const ENTRIES: u64 = 64 << 10;

/// How a new image stores its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of it.
    Fixed,
    /// Blocks, once they are written.
    Dynamic,
    /// Sectors, once they are written; the others are the parent's.
    Differencing(ParentLink),
}

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVhdx {
    /// Size of the disk, in bytes.
    pub size: u64,
    /// How it is stored.
    pub kind: Kind,
    /// Bytes of a block.
    pub block: u32,
    /// Size of a sector of the disk, in bytes: 512 or 4096.
    pub sector: u32,
    /// Size of a sector of the disk below that it tells of, in bytes: 512 or 4096.
    pub physical_sector: u32,
    /// The disk's identity: its own, or that of the disk that it is another version of.
    pub id: Guid,
    /// A number of chance, unique in the world.
    pub random: Guid,
}

impl NewVhdx {
    /// Writes the image on an empty medium, durably. The payload of a fixed one is zero by being nothing yet.
    ///
    /// # Errors
    /// Sizes that cannot be; those of the medium.
    pub fn create(&self, medium: &dyn Medium) -> Result<()> {
        let metadata = self.metadata()?;
        let layout = Layout::of(&metadata);
        // With room for the disk to grow.
        let room = Metadata { size: (self.size * ROOM).min(MAX_SIZE), ..metadata.clone() };
        let table = Region { at: TABLE_AT, len: (Layout::of(&room).entries() * 8).next_multiple_of(MIB) };
        let end = table.at + table.len;
        let blocks = if self.kind == Kind::Fixed { layout.blocks() * layout.block } else { 0 };
        let bytes = metadata.bytes()?;
        medium
            .set_len(end + blocks)
            .and_then(|()| medium.write(0, &identifier()))
            .and_then(|()| medium.write(METADATA.at, &bytes))
            .map_err(VhdxError::io("write the new VHDX"))?;
        if blocks > 0 {
            fixed_table(medium, &layout, end)?;
        }
        Regions { table, metadata: METADATA }.write(medium)?;
        medium.flush().map_err(VhdxError::io("flush the new VHDX"))?;
        // Until these are there it is none.
        let mut header = Header {
            number: 0,
            file_write: self.random.derived(1),
            data_write: self.random.derived(2),
            log: Guid::ZERO,
            log_at: LOG_AT,
            log_len: LOG_LEN,
        };
        header.write_first(medium)
    }

    fn metadata(&self) -> Result<Metadata> {
        for sector in [self.sector, self.physical_sector] {
            if ![512, 4096].contains(&sector) {
                return Err(VhdxError::BadSector(sector));
            }
        }
        if self.size == 0 || !self.size.is_multiple_of(self.sector.into()) || self.size > MAX_SIZE {
            return Err(VhdxError::BadSize { size: self.size, sector: self.sector });
        }
        if !BLOCKS.contains(&self.block) || !self.block.is_power_of_two() {
            return Err(VhdxError::BadBlock(self.block));
        }
        Ok(Metadata {
            block: self.block,
            fixed: self.kind == Kind::Fixed,
            size: self.size,
            id: self.id,
            sector: self.sector,
            physical_sector: self.physical_sector,
            parent: match &self.kind {
                Kind::Differencing(parent) => Some(parent.clone()),
                _ => None,
            },
        })
    }
}

/// The start of the file (2.2.1): what it is, and who made it.
fn identifier() -> Vec<u8> {
    let name = CREATOR.encode_utf16().flat_map(u16::to_le_bytes);
    FILE.iter().copied().chain(name).collect()
}

/// All blocks are here, one behind the other.
fn fixed_table(medium: &dyn Medium, layout: &Layout, first: u64) -> Result<()> {
    let entry = |n| layout.block_of(n).map_or(0, |block| Block::entry(first + block * layout.block, true));
    for start in (0..layout.entries()).step_by(ENTRIES as usize) {
        let end = (start + ENTRIES).min(layout.entries());
        let bytes: Vec<u8> = (start..end).flat_map(|n| entry(n).to_le_bytes()).collect();
        medium.write(TABLE_AT + start * 8, &bytes).map_err(VhdxError::io("write the block table"))?;
    }
    Ok(())
}
