//! Fields of structures: all little-endian.

/// Reads fields at offsets.
pub trait Fields {
    /// So many bytes.
    fn array<const N: usize>(&self, at: usize) -> [u8; N];
    /// Two bytes.
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }
    /// Four bytes.
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    /// Eight bytes.
    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

impl Fields for [u8] {
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        std::array::from_fn(|n| self[at + n])
    }
}

/// Writes bytes at an offset.
pub fn put(to: &mut [u8], at: usize, bytes: &[u8]) {
    to[at..at + bytes.len()].copy_from_slice(bytes);
}

/// The checksum of a structure that has it at an offset, where it counts as zero.
pub fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = crc32c::crc32c(&bytes[..at]);
    let sum = crc32c::crc32c_append(sum, &[0; 4]);
    crc32c::crc32c_append(sum, &bytes[at + 4..])
}

/// Puts it there.
pub fn seal(bytes: &mut [u8], at: usize) {
    let sum = checksum(bytes, at);
    put(bytes, at, &sum.to_le_bytes());
}
