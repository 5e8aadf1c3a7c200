//! A sparse extent ("Hosted Sparse Extents", "Stream-Optimized Compressed Sparse Extents"): a directory that leads to
//! tables, which lead to grains.

use vireo_vdisk::Medium;

use crate::error::damaged;
use crate::{Result, SPARSE, VmdkError, descriptor};

const SECTOR: u64 = 512;
/// Entries of a table, in the versions that there are.
const MOST_ENTRIES: u32 = 512;
/// Largest grain that is taken into memory, in sectors.
const MOST_GRAIN: u64 = 2048;
/// Largest extent: 64 TiB.
const MOST_SIZE: u64 = 64 << 40;
/// The directory's place is in a copy of the header at the end.
const AT_THE_END: u64 = u64::MAX;
/// Flags: table entries of 1 are zero grains; grains are compressed.
const ZERO_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
/// A grain's marker, before its compressed bytes: where it is on the disk, and how many they are.
const MARKER: u64 = 12;

/// A sparse extent.
pub struct Sparse {
    medium: Box<dyn Medium>,
    header: Header,
    /// The table that was used last: which, and its entries.
    table: Option<(u64, Vec<u32>)>,
    /// The grain that was inflated last: where it is in the file, and its bytes.
    grain: Option<(u32, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    flags: u32,
    /// In sectors: of the disk, and of a grain.
    capacity: u64,
    grain: u64,
    /// The embedded descriptor, in sectors.
    descriptor: (u64, u64),
    /// Entries of a table.
    entries: u32,
    /// Where the directory is, in sectors.
    directory: u64,
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|n| b[at + n]))
}

fn u64_at(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| b[at + n]))
}

impl Header {
    fn read(medium: &dyn Medium, at: u64) -> Result<Self> {
        let mut b = [0; SECTOR as usize];
        medium.read(at, &mut b).map_err(VmdkError::io("read the header"))?;
        if b[..4] != *SPARSE {
            return Err(VmdkError::NotVmdk);
        }
        let header = Self {
            flags: u32_at(&b, 8),
            capacity: u64_at(&b, 12),
            grain: u64_at(&b, 20),
            descriptor: (u64_at(&b, 28), u64_at(&b, 36)),
            entries: u32_at(&b, 44),
            directory: u64_at(&b, 56),
        };
        let (version, compression) = (u32_at(&b, 4), u16::from_le_bytes([b[77], b[78]]));
        if !(1..=3).contains(&version) {
            return Err(VmdkError::Unsupported(format!("version {version}")));
        }
        if header.flags & COMPRESSED != 0 && compression != 1 {
            return Err(VmdkError::Unsupported(format!("compression {compression}")));
        }
        if !header.grain.is_power_of_two() || header.grain > MOST_GRAIN {
            return damaged(format!("its grains have {} sectors", header.grain));
        }
        if header.entries == 0 || header.entries > MOST_ENTRIES {
            return damaged(format!("its tables have {} entries", header.entries));
        }
        if header.capacity == 0 || header.capacity > MOST_SIZE / SECTOR {
            return damaged(format!("its disk has {} sectors", header.capacity));
        }
        Ok(header)
    }
}

impl Sparse {
    /// Opens an extent.
    pub fn open(medium: Box<dyn Medium>) -> Result<Self> {
        let mut header = Header::read(&*medium, 0)?;
        if header.directory == AT_THE_END {
            let len = medium.len().map_err(VmdkError::io("find the end of the VMDK"))?;
            // The last sector is the end-of-stream marker; before that is the footer.
            let Some(at) = len.checked_sub(2 * SECTOR) else { return damaged("it has no footer") };
            header = Header::read(&*medium, at / SECTOR * SECTOR)?;
        }
        Ok(Self { medium, header, table: None, grain: None })
    }

    /// Size of the part of the disk that it is, in bytes.
    pub fn size(&self) -> u64 {
        self.header.capacity * SECTOR
    }

    /// Size of a grain, in bytes.
    pub fn grain(&self) -> u64 {
        self.header.grain * SECTOR
    }

    /// The embedded descriptor; empty if it has none.
    pub fn descriptor(&self) -> Result<Vec<u8>> {
        let (at, len) = self.header.descriptor;
        let bytes = len.checked_mul(SECTOR).filter(|len| *len <= descriptor::MOST);
        let (Some(at), Some(len)) = (at.checked_mul(SECTOR), bytes) else {
            return damaged(format!("its descriptor has {len} sectors"));
        };
        let mut bytes = vec![0; if at == 0 { 0 } else { len as usize }];
        self.medium.read(at, &mut bytes).map_err(VmdkError::io("read the descriptor"))?;
        Ok(bytes)
    }

    /// Reads a range that lies in one grain. Whether it is known to be zero.
    pub fn read(&mut self, at: u64, to: &mut [u8]) -> Result<bool> {
        let (grain, within) = (at / self.grain(), at % self.grain());
        let entry = self.entry(grain)?;
        if entry == 0 || entry == 1 && self.header.flags & ZERO_GRAINS != 0 {
            to.fill(0);
            return Ok(true);
        }
        if self.header.flags & COMPRESSED != 0 {
            let bytes = self.inflated(entry)?;
            to.copy_from_slice(&bytes[within as usize..][..to.len()]);
        } else {
            let at = u64::from(entry) * SECTOR + within;
            self.medium.read(at, to).map_err(VmdkError::io("read a grain"))?;
        }
        Ok(false)
    }

    /// The sector where a grain is; 0: nowhere.
    fn entry(&mut self, grain: u64) -> Result<u32> {
        let entries = u64::from(self.header.entries);
        let (number, n) = (grain / entries, grain % entries);
        if self.table.as_ref().is_none_or(|(known, _)| *known != number) {
            let place = self.header.directory.checked_mul(SECTOR).and_then(|at| at.checked_add(4 * number));
            let Some(place) = place else { return damaged("its directory is nowhere") };
            let mut at = [0; 4];
            self.medium.read(place, &mut at).map_err(VmdkError::io("read the grain directory"))?;
            let table = match u32::from_le_bytes(at) {
                0 => Vec::new(),
                at => {
                    let mut bytes = vec![0; 4 * entries as usize];
                    let read = self.medium.read(u64::from(at) * SECTOR, &mut bytes);
                    read.map_err(VmdkError::io("read a grain table"))?;
                    bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect()
                }
            };
            self.table = Some((number, table));
        }
        Ok(self.table.as_ref().and_then(|(_, table)| table.get(n as usize)).copied().unwrap_or(0))
    }

    /// The bytes of a compressed grain.
    fn inflated(&mut self, entry: u32) -> Result<&[u8]> {
        if self.grain.as_ref().is_none_or(|(known, _)| *known != entry) {
            let (at, size) = (u64::from(entry) * SECTOR, self.grain() as usize);
            let mut marker = [0; MARKER as usize];
            self.medium.read(at, &mut marker).map_err(VmdkError::io("read a grain's marker"))?;
            let len = u32_at(&marker, 8) as usize;
            if len > 2 * size + 1024 {
                return damaged(format!("a grain of {size} bytes has {len} when it is compressed"));
            }
            let mut packed = vec![0; len];
            self.medium.read(at + MARKER, &mut packed).map_err(VmdkError::io("read a grain"))?;
            let inflated = miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(&packed, size);
            let Ok(mut bytes) = inflated else { return damaged("a grain cannot be inflated") };
            // The last grain of a disk may be short.
            bytes.resize(size, 0);
            self.grain = Some((entry, bytes));
        }
        Ok(self.grain.as_ref().map_or(&[], |(_, bytes)| bytes))
    }
}
