//! Pixels as a client wants them (RFC 6143 §7.4).

/// A client wants pixels that cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pixels of {0} bits, true colour {1}, shifts {2:?} and maxima {3:?} cannot be made")]
pub struct FormatError(u8, bool, [u8; 3], [u16; 3]);

/// How a pixel is made of red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    bytes: usize,
    depth: u8,
    big_endian: bool,
    max: [u16; 3],
    shift: [u8; 3],
}

impl Format {
    /// The screen's own: 32 bits, blue first.
    pub const NATIVE: Self =
        Self { bytes: 4, depth: 24, big_endian: false, max: [255; 3], shift: [16, 8, 0] };

    /// From the wire.
    pub fn parse(b: &[u8; 16]) -> Result<Self, FormatError> {
        let half = |at: usize| u16::from_be_bytes([b[at], b[at + 1]]);
        let (max, shift) = ([half(4), half(6), half(8)], [b[10], b[11], b[12]]);
        let true_colour = b[3] != 0;
        let fits = |(max, shift): (&u16, &u8)| {
            *max > 0 && u64::from(*max).checked_shl((*shift).into()).is_some_and(|v| v >> b[0].min(63) == 0)
        };
        let possible = matches!(b[0], 8 | 16 | 32)
            && true_colour
            && shift.iter().all(|s| *s < 32)
            && max.iter().zip(&shift).all(fits);
        if !possible {
            return Err(FormatError(b[0], true_colour, shift, max));
        }
        Ok(Self { bytes: usize::from(b[0] / 8), depth: b[1], big_endian: b[2] != 0, max, shift })
    }

    /// For the wire.
    pub fn bytes(&self) -> [u8; 16] {
        let mut b = [0; 16];
        b[..4].copy_from_slice(&[self.bytes as u8 * 8, self.depth, self.big_endian.into(), 1]);
        for (at, max) in self.max.iter().enumerate() {
            b[4 + at * 2..6 + at * 2].copy_from_slice(&max.to_be_bytes());
        }
        b[10..13].copy_from_slice(&self.shift);
        b
    }

    /// The value of a pixel of the screen.
    pub fn value(&self, pixel: [u8; 4]) -> u32 {
        let part = |n: usize, colour: u8| {
            let max = u32::from(self.max[n]);
            ((u32::from(colour) * max + 127) / 255) << self.shift[n]
        };
        part(0, pixel[2]) | part(1, pixel[1]) | part(2, pixel[0])
    }

    /// Bytes of a value.
    fn put(&self, value: u32, from: usize, len: usize, to: &mut Vec<u8>) {
        if self.big_endian {
            to.extend_from_slice(&(value << (32 - 8 * self.bytes)).to_be_bytes()[from..from + len]);
        } else {
            to.extend_from_slice(&value.to_le_bytes()[from..from + len]);
        }
    }

    /// Appends pixels of the screen.
    pub fn raw(&self, pixels: &[u8], to: &mut Vec<u8>) {
        if *self == Self::NATIVE {
            return to.extend_from_slice(pixels);
        }
        for pixel in pixels.chunks_exact(4) {
            self.put(self.value([pixel[0], pixel[1], pixel[2], 0]), 0, self.bytes, to);
        }
    }

    /// The bytes of a compressed pixel within a pixel (§7.7.5): three, where colours are in the first or last three of four.
    pub fn compressed(&self) -> (usize, usize) {
        if self.bytes < 4 || self.depth > 24 {
            return (0, self.bytes);
        }
        let used =
            self.max.iter().zip(&self.shift).fold(0, |used, (max, shift)| used | u32::from(*max) << shift);
        match (used >> 24 == 0, used & 0xff == 0) {
            (true, _) => (usize::from(self.big_endian), 3),
            (_, true) => (usize::from(!self.big_endian), 3),
            _ => (0, 4),
        }
    }

    /// Appends a value as a compressed pixel.
    pub fn put_compressed(&self, value: u32, to: &mut Vec<u8>) {
        let (from, len) = self.compressed();
        self.put(value, from, len, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits: u8, big: u8, max: [u16; 3], shift: [u8; 3]) -> Result<Format, FormatError> {
        let mut b = [bits, 24.min(bits), big, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for n in 0..3 {
            b[4 + n * 2..6 + n * 2].copy_from_slice(&max[n].to_be_bytes());
            b[10 + n] = shift[n];
        }
        Format::parse(&b)
    }

    #[test]
    fn pixels_are_made_as_the_client_wants_them() {
        const RED: [u8; 8] = [0, 128, 255, 9, 255, 255, 255, 9];
        let raw = |f: Format| {
            let mut out = Vec::new();
            f.raw(&RED, &mut out);
            out
        };
        assert_eq!(Format::parse(&Format::NATIVE.bytes()), Ok(Format::NATIVE));
        assert_eq!(raw(Format::NATIVE), RED);
        let f565 = format(16, 0, [31, 63, 31], [11, 5, 0]).unwrap();
        assert_eq!(raw(f565), [0x00, 0xfc, 0xff, 0xff]);
        assert_eq!(raw(Format { big_endian: true, ..f565 }), [0xfc, 0x00, 0xff, 0xff]);
        let f233 = format(8, 0, [7, 7, 3], [0, 3, 6]).unwrap();
        assert_eq!(raw(f233), [0x27, 0xff]);
        let rgb0 = format(32, 1, [255; 3], [24, 16, 8]).unwrap();
        assert_eq!(raw(rgb0), [255, 128, 0, 0, 255, 255, 255, 0]);
    }

    #[test]
    fn compressed_pixels_leave_out_what_is_always_nothing() {
        let put = |f: Format| {
            let mut out = Vec::new();
            f.put_compressed(f.value([1, 2, 3, 0]), &mut out);
            out
        };
        assert_eq!(put(Format::NATIVE), [1, 2, 3]);
        assert_eq!(put(Format { big_endian: true, ..Format::NATIVE }), [3, 2, 1]);
        let high = format(32, 0, [255; 3], [24, 16, 8]).unwrap();
        assert_eq!(put(high), [1, 2, 3]);
        assert_eq!(put(Format { big_endian: true, ..high }), [3, 2, 1]);
        assert_eq!(put(format(32, 0, [255; 3], [24, 12, 0]).unwrap()).len(), 4);
        assert_eq!(put(format(16, 0, [31, 63, 31], [11, 5, 0]).unwrap()).len(), 2);
    }

    #[test]
    fn impossible_pixels_are_refused() {
        for (bits, max, shift) in [
            (24, [255; 3], [16, 8, 0]),
            (0, [1; 3], [0; 3]),
            (16, [31, 63, 31], [12, 5, 0]),
            (32, [255; 3], [25, 8, 0]),
            (32, [255; 3], [255, 8, 0]),
            (32, [0, 255, 255], [16, 8, 0]),
            (8, [u16::MAX; 3], [0; 3]),
        ] {
            assert!(format(bits, 0, max, shift).is_err(), "{bits} {max:?} {shift:?}");
        }
        let mut palette = Format::NATIVE.bytes();
        palette[3] = 0;
        assert!(Format::parse(&palette).is_err());
    }
}
