//! Identities.

use std::fmt;
use std::str::FromStr;

/// A GUID, in the order of its bytes in files: the first three parts are little-endian.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// None.
    pub const ZERO: Self = Self([0; 16]);

    /// From its parts as they are printed; the last two together.
    pub const fn new(a: u32, b: u16, c: u16, d: u64) -> Self {
        let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
        Self([a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]])
    }

    /// Another one, which nobody else has: this one, of chance, with a number mixed in.
    pub(crate) fn derived(self, n: u64) -> Self {
        let mut bytes = self.0;
        for (b, x) in bytes.iter_mut().zip(n.to_le_bytes()) {
            *b ^= x;
        }
        Self(bytes)
    }
}

impl Guid {
    /// Its bytes in the order in which they are written as text.
    pub fn in_text_order(self) -> [u8; 16] {
        let [b0, b1, b2, b3, b4, b5, b6, b7, rest @ ..] = self.0;
        let [r0, r1, r2, r3, r4, r5, r6, r7] = rest;
        [b3, b2, b1, b0, b5, b4, b7, b6, r0, r1, r2, r3, r4, r5, r6, r7]
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, byte) in self.in_text_order().iter().enumerate() {
            let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

/// What was to be a GUID is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no GUID")]
pub struct NoGuid;

impl FromStr for Guid {
    type Err = NoGuid;
    fn from_str(s: &str) -> Result<Self, NoGuid> {
        let s = s.strip_prefix('{').and_then(|s| s.strip_suffix('}')).unwrap_or(s);
        let parts: Vec<&str> = s.split('-').collect();
        let lengths: Vec<usize> = parts.iter().map(|p| p.len()).collect();
        if lengths != [8, 4, 4, 4, 12] {
            return Err(NoGuid);
        }
        let number = |p: &str| u64::from_str_radix(p, 16).map_err(|_| NoGuid);
        let [a, b, c, d, e] =
            [number(parts[0])?, number(parts[1])?, number(parts[2])?, number(parts[3])?, number(parts[4])?];
        Ok(Self::new(a as u32, b as u16, c as u16, d << 48 | e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_and_read() {
        let g = Guid::new(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
        assert_eq!(g.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
        assert_eq!(g.0[..4], [0x66, 0x77, 0xc2, 0x2d]);
        assert_eq!("{2DC27766-F623-4200-9D64-115E9BFD4A08}".parse(), Ok(g));
        assert_eq!("2dc27766f623-4200-9d64-115e9bfd4a08".parse::<Guid>(), Err(NoGuid));
    }
}
