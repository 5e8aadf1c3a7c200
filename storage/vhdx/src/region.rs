//! The region table (2.2.3): two copies that say where block table and metadata are.

use vireo_vdisk::Medium;

use crate::bytes::{Fields, checksum, put, seal};
use crate::error::damaged;
use crate::{Guid, MIB, Result, VhdxError};

/// Where each copy is, and its size, in bytes.
pub const PLACES: [u64; 2] = [192 << 10, 256 << 10];
/// See above.
pub const SIZE: usize = 64 << 10;
const SIGNATURE: &[u8; 4] = b"regi";
/// Bytes of an entry.
pub const ENTRY: usize = 32;
/// Most entries.
pub const MOST: u32 = 2047;
const TABLE: Guid = Guid::new(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA: Guid = Guid::new(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Its start, in bytes.
    pub at: u64,
    /// Its length, in bytes.
    pub len: u64,
}

/// Where everything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regions {
    /// The block table.
    pub table: Region,
    /// The metadata.
    pub metadata: Region,
}

impl Regions {
    /// Those of an image.
    pub fn read(medium: &dyn Medium) -> Result<Self> {
        let mut b = vec![0; SIZE];
        for at in PLACES {
            medium.read(at, &mut b).map_err(VhdxError::io("read the region table"))?;
            if b[..4] == *SIGNATURE && b.u32(4) == checksum(&b, 4) && b.u32(8) <= MOST {
                return Self::parse(&b);
            }
        }
        damaged("neither copy of its region table is right")
    }

    fn parse(b: &[u8]) -> Result<Self> {
        let (mut table, mut metadata) = (None, None);
        for n in 0..b.u32(8) as usize {
            let e = &b[16 + n * ENTRY..][..ENTRY];
            let id = Guid(e.array(0));
            let region = Region { at: e.u64(16), len: e.u32(24).into() };
            let whole = region.at.is_multiple_of(MIB) && region.len.is_multiple_of(MIB);
            if !whole || region.at < MIB || region.len == 0 || region.at > u64::MAX >> 1 {
                return damaged(format!("region {id} is {} bytes at {}", region.len, region.at));
            }
            match id {
                TABLE => table = Some(region),
                METADATA => metadata = Some(region),
                _ if e.u32(28) & 1 != 0 => return Err(VhdxError::Required { kind: "region", id }),
                _ => {}
            }
        }
        match (table, metadata) {
            (Some(table), Some(metadata)) => Ok(Self { table, metadata }),
            _ => damaged("it has no block table, or no metadata"),
        }
    }

    /// Writes both copies of a new image.
    pub fn write(&self, medium: &dyn Medium) -> Result<()> {
        let mut b = vec![0; SIZE];
        put(&mut b, 0, SIGNATURE);
        put(&mut b, 8, &2u32.to_le_bytes());
        for (n, (id, region)) in [(TABLE, self.table), (METADATA, self.metadata)].into_iter().enumerate() {
            let at = 16 + n * ENTRY;
            put(&mut b, at, &id.0);
            put(&mut b, at + 16, &region.at.to_le_bytes());
            put(&mut b, at + 24, &(region.len as u32).to_le_bytes());
            put(&mut b, at + 28, &1u32.to_le_bytes());
        }
        seal(&mut b, 4);
        PLACES
            .into_iter()
            .try_for_each(|at| medium.write(at, &b))
            .map_err(VhdxError::io("write the region table"))
    }
}

/// What a region is for.
pub fn name(id: Guid) -> &'static str {
    match id {
        TABLE => "block table",
        METADATA => "metadata",
        _ => "unknown",
    }
}
