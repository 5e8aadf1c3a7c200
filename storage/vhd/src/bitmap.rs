//! The bitmap before each block's data: which of its sectors are here ("Block Allocation Table and Data Blocks").

/// A block's bitmap. The first sector is the highest bit of the first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Its bytes, as they are in the image.
    pub bytes: Box<[u8]>,
    /// It is to be written.
    pub dirty: bool,
}

impl Bitmap {
    /// Bytes of the bitmap of a block, padded to whole sectors.
    pub fn size(block: u32) -> u64 {
        u64::from(block / 512).div_ceil(8).next_multiple_of(512)
    }

    /// One with nothing here.
    pub fn empty(block: u32) -> Self {
        Self { bytes: vec![0; Self::size(block) as usize].into(), dirty: false }
    }

    /// Whether a sector is here.
    pub fn has(&self, sector: u64) -> bool {
        self.bytes[(sector / 8) as usize] & 0x80 >> (sector % 8) != 0
    }

    /// Sectors are here now.
    pub fn add(&mut self, sectors: std::ops::Range<u64>) {
        for sector in sectors {
            let byte = &mut self.bytes[(sector / 8) as usize];
            let new = *byte | 0x80 >> (sector % 8);
            self.dirty |= new != *byte;
            *byte = new;
        }
    }
}
