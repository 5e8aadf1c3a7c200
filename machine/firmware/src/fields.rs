//! Little-endian fields of a file that may be cut short anywhere.

/// Bytes from which fields are read by offset; `None` beyond the end.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }
    pub fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }
    pub fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }
    pub fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }
    pub fn u64(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
    /// `len` bytes at `at`, both as a file states them.
    pub fn slice(self, at: u64, len: u64) -> Option<&'a [u8]> {
        let (start, end) = (usize::try_from(at).ok()?, usize::try_from(at.checked_add(len)?).ok()?);
        self.0.get(start..end)
    }
}
