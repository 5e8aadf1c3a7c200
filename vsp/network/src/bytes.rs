//! Little-endian fields of messages.

/// The 16 bits at `at`, if they are there.
pub fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

/// The 32 bits at `at`, if they are there.
pub fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

/// The `len` bytes from `at` on, if they are there.
pub fn part(bytes: &[u8], at: u32, len: u32) -> Option<&[u8]> {
    bytes.get(at as usize..)?.get(..len as usize)
}

/// Words, one behind the other.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}
