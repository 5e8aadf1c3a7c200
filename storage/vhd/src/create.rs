//! New images.

use vireo_vdisk::Medium;

use crate::bitmap::Bitmap;
use crate::footer::{self, DiskType, Footer};
use crate::header::{self, Header, ParentLink};
use crate::{Result, VhdError};

/// Largest disk: 2040 GiB.
pub const MAX_SIZE: u64 = 2040 << 30;
/// Blocks have this size unless something else is asked for, in bytes.
pub const DEFAULT_BLOCK: u32 = 2 << 20;
/// Sizes that blocks can have.
pub(crate) const BLOCKS: std::ops::RangeInclusive<u32> = 4096..=256 << 20;
/// Most blocks: the table is kept in memory.
const MOST_BLOCKS: u64 = 64 << 20;
/// An entry of the block table that leads nowhere.
pub(crate) const NOWHERE: u32 = u32::MAX;

/// How a new image stores its disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of it.
    Fixed,
    /// Blocks of so many bytes, once they are written.
    Dynamic {
        /// Bytes of a block.
        block: u32,
    },
    /// Sectors, once they are written; the others are the parent's.
    Differencing {
        /// Bytes of a block.
        block: u32,
        /// The parent.
        parent: ParentLink,
    },
}

/// What a new image is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVhd {
    /// Size of the disk, in bytes.
    pub size: u64,
    /// How it is stored.
    pub kind: Kind,
    /// Identity, unique in the world.
    pub id: [u8; 16],
    /// When it is made: seconds since the start of 2000, UTC.
    pub created: u32,
}

impl NewVhd {
    /// Writes the image on an empty medium, durably. The payload of a fixed one is zero by being nothing yet.
    ///
    /// # Errors
    /// Sizes that cannot be; those of the medium.
    pub fn create(&self, medium: &dyn Medium) -> Result<()> {
        if self.size == 0 || !self.size.is_multiple_of(512) || self.size > MAX_SIZE {
            return Err(VhdError::BadSize(self.size));
        }
        match &self.kind {
            Kind::Fixed => self.create_fixed(medium)?,
            Kind::Dynamic { block } => self.create_sparse(medium, *block, None)?,
            Kind::Differencing { block, parent } => self.create_sparse(medium, *block, Some(parent))?,
        }
        medium.flush().map_err(VhdError::io("make the new VHD durable"))
    }

    fn create_fixed(&self, medium: &dyn Medium) -> Result<()> {
        let footer = Footer::new(DiskType::Fixed, self.size, self.id, self.created);
        medium.set_len(self.size).map_err(VhdError::io("extend the new VHD"))?;
        medium.write(self.size, &footer.bytes()).map_err(VhdError::io("write the footer"))
    }

    fn create_sparse(&self, medium: &dyn Medium, block: u32, parent: Option<&ParentLink>) -> Result<()> {
        if !BLOCKS.contains(&block) || !block.is_power_of_two() {
            return Err(VhdError::BadBlock(block));
        }
        let disk_type = if parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
        let footer = Footer::new(disk_type, self.size, self.id, self.created).bytes();
        let entries = blocks(self.size, block)?;
        let table_at = (footer::SIZE + header::SIZE) as u64;
        let table = vec![0xff_u8; (4 * entries as usize).next_multiple_of(512)];
        let paths_at = table_at + table.len() as u64;
        let header = Header { table_at, entries, block, parent: parent.cloned(), locators: Vec::new() };
        let (header, paths) = header.bytes(paths_at)?;
        let end = next_block(paths_at + paths.len() as u64, block);
        let parts: [(u64, &[u8]); 5] = [
            (0, &footer),
            (footer::SIZE as u64, &header),
            (table_at, &table),
            (paths_at, &paths),
            (end, &footer),
        ];
        parts
            .into_iter()
            .try_for_each(|(at, bytes)| medium.write(at, bytes))
            .map_err(VhdError::io("write the new VHD"))
    }
}

/// How many blocks a disk has.
///
/// # Errors
/// Too many.
pub(crate) fn blocks(size: u64, block: u32) -> Result<u32> {
    match size.div_ceil(block.into()) {
        blocks @ ..=MOST_BLOCKS => Ok(blocks as u32),
        blocks => Err(VhdError::Unsupported(format!("{blocks} blocks"))),
    }
}

/// Where the next block can begin, from an offset on: so that its data begins at a multiple of 4096, which the disks
/// below like.
pub(crate) fn next_block(at: u64, block: u32) -> u64 {
    let bitmap = Bitmap::size(block);
    (at + bitmap).next_multiple_of(4096) - bitmap
}
