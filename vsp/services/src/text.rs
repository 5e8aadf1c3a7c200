//! Text in messages: UTF-16, ended by a zero.

/// A text with its zero, if it fits into so many bytes and has no zero in it.
pub fn utf16(text: &str, most: usize) -> Option<Vec<u8>> {
    let bytes: Vec<u8> = text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect();
    (bytes.len() <= most && !text.contains('\0')).then_some(bytes)
}

/// The text up to its zero, or all. What is no text comes out as U+FFFD.
pub fn from_utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    let units: Vec<u16> = units.take_while(|u| *u != 0).collect();
    String::from_utf16_lossy(&units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ends_at_its_zero_and_fits() {
        let bytes = utf16("ä😀", 8).unwrap();
        assert_eq!(bytes, [0xe4, 0, 0x3d, 0xd8, 0, 0xde, 0, 0]);
        assert_eq!(from_utf16(&bytes), "ä😀");
        assert_eq!(from_utf16(b"a\0b\0\0\0c\0"), "ab");
        assert_eq!(from_utf16(&[0x3d, 0xd8, b'x']), "\u{fffd}", "half of a character, and half of a unit");
        assert_eq!((utf16("ä😀", 7), utf16("a\0", 99)), (None, None));
    }
}
