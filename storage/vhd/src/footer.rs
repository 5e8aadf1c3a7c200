//! The footer, which every image ends with, and which sparse ones have a copy of at the start ("Hard Disk Footer Format").

use crate::{Result, VhdError, checksum, field};

/// Size in bytes. Some old images end with one byte less.
pub const SIZE: usize = 512;
const COOKIE: &[u8; 8] = b"conectix";
const CHECKSUM: usize = 64;
/// "Reserved. This bit must always be set to 1."
const FEATURES: u32 = 2;
const VERSION: u32 = 0x0001_0000;
/// Of a fixed disk, which has no header.
const NO_OFFSET: u64 = u64::MAX;
/// Who made it: a name of four letters, and "Windows", the only system that all readers take.
const CREATOR: &[u8; 4] = b"vreo";
const CREATOR_VERSION: u32 = 0x0001_0000;
const CREATOR_SYSTEM: &[u8; 4] = b"Wi2k";

/// How an image stores its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// All of it, from the first byte on.
    Fixed,
    /// Blocks that have been written.
    Dynamic,
    /// Sectors that have been written; the others are a parent's.
    Differencing,
}

impl DiskType {
    fn number(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
    fn of(number: u32) -> Result<Self> {
        match number {
            2 => Ok(Self::Fixed),
            3 => Ok(Self::Dynamic),
            4 => Ok(Self::Differencing),
            n => Err(VhdError::Unsupported(format!("disk type {n}"))),
        }
    }
}

/// What ATA calls a disk's geometry. It says a size that may be less than the disk's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

impl Geometry {
    /// That of a disk of so many bytes (appendix "CHS Calculation").
    pub fn of(size: u64) -> Self {
        let total = (size / 512).min(65535 * 16 * 255);
        if total >= 65535 * 16 * 63 {
            return Self::with(total / 255 / 16, 16, 255);
        }
        let mut sectors = 17;
        let mut tracks = total / sectors;
        let mut heads = tracks.div_ceil(1024).max(4);
        if tracks >= heads * 1024 || heads > 16 {
            (sectors, heads) = (31, 16);
            tracks = total / sectors;
        }
        if tracks >= heads * 1024 {
            (sectors, heads) = (63, 16);
            tracks = total / sectors;
        }
        Self::with(tracks / heads, heads, sectors)
    }

    fn with(cylinders: u64, heads: u64, sectors: u64) -> Self {
        Self { cylinders: cylinders as u16, heads: heads as u8, sectors: sectors as u8 }
    }
}

/// A footer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    /// Offset of the header of a sparse image.
    pub header_at: Option<u64>,
    /// When it was made: seconds since the start of 2000, UTC.
    pub created: u32,
    /// Which program made it.
    pub creator: [u8; 4],
    /// Size of the disk when it was made, in bytes.
    pub original_size: u64,
    /// Size of the disk, in bytes.
    pub size: u64,
    /// See [`Geometry`].
    pub geometry: Geometry,
    /// How it stores its disk.
    pub disk_type: DiskType,
    /// Identity of the image: a child names it.
    pub id: [u8; 16],
}

impl Footer {
    /// A new one.
    pub fn new(disk_type: DiskType, size: u64, id: [u8; 16], created: u32) -> Self {
        let header_at = (disk_type != DiskType::Fixed).then_some(SIZE as u64);
        let geometry = Geometry::of(size);
        Self { header_at, created, creator: *CREATOR, original_size: size, size, geometry, disk_type, id }
    }

    /// Parses one. `None`: it is none, or its checksum is wrong.
    ///
    /// # Errors
    /// It is one, of a kind that is not known.
    pub fn parse(bytes: &[u8; SIZE]) -> Result<Option<Self>> {
        let u32_at = |at| u32::from_be_bytes(field(bytes, at));
        let u64_at = |at| u64::from_be_bytes(field(bytes, at));
        if bytes[..8] != *COOKIE || u32_at(CHECKSUM) != checksum(bytes, CHECKSUM) {
            return Ok(None);
        }
        if u32_at(12) >> 16 != VERSION >> 16 {
            return Err(VhdError::Unsupported(format!("version {:#x}", u32_at(12))));
        }
        Ok(Some(Self {
            header_at: Some(u64_at(16)).filter(|at| *at != NO_OFFSET && *at != 0xffff_ffff),
            created: u32_at(24),
            creator: field(bytes, 28),
            original_size: u64_at(40),
            size: u64_at(48),
            geometry: Geometry {
                cylinders: u16::from_be_bytes(field(bytes, 56)),
                heads: bytes[58],
                sectors: bytes[59],
            },
            disk_type: DiskType::of(u32_at(60))?,
            id: field(bytes, 68),
        }))
    }

    /// Its bytes.
    pub fn bytes(&self) -> [u8; SIZE] {
        let mut b = [0; SIZE];
        let mut put = |at: usize, v: &[u8]| b[at..at + v.len()].copy_from_slice(v);
        put(0, COOKIE);
        put(8, &FEATURES.to_be_bytes());
        put(12, &VERSION.to_be_bytes());
        put(16, &self.header_at.unwrap_or(NO_OFFSET).to_be_bytes());
        put(24, &self.created.to_be_bytes());
        put(28, &self.creator);
        put(32, &CREATOR_VERSION.to_be_bytes());
        put(36, CREATOR_SYSTEM);
        put(40, &self.original_size.to_be_bytes());
        put(48, &self.size.to_be_bytes());
        put(56, &self.geometry.cylinders.to_be_bytes());
        put(58, &[self.geometry.heads, self.geometry.sectors]);
        put(60, &self.disk_type.number().to_be_bytes());
        put(68, &self.id);
        let sum = checksum(&b, CHECKSUM);
        b[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
        b
    }
}
