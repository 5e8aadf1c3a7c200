//! Addresses of stations.

use std::fmt;
use std::str::FromStr;

/// A station's address, or a group's (IEEE 802, 48 bits).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// All stations.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The first six bytes, if there are so many.
    pub fn first_of(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().map(|b| Self(*b))
    }

    /// Whether it names a group of stations, all of them included, and not one.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// Whether it can be a station's: no group, and not zero.
    pub fn is_station(self) -> bool {
        !self.is_group() && self != Self::default()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no MAC address: six bytes in hexadecimal, as 00:15:5d:01:02:03")]
pub struct NoMac(String);

impl FromStr for Mac {
    type Err = NoMac;

    /// Six bytes of two digits each, with `:` or `-` between them, or nothing.
    fn from_str(text: &str) -> Result<Self, NoMac> {
        let refuse = || NoMac(text.into());
        let mut mac = Self::default();
        let parts: Vec<&str> = match text.len() {
            12 if text.is_ascii() => (0..6).map(|n| &text[n * 2..n * 2 + 2]).collect(),
            _ => text.split(if text.contains('-') { '-' } else { ':' }).collect(),
        };
        if parts.len() != mac.0.len() {
            return Err(refuse());
        }
        for (byte, part) in mac.0.iter_mut().zip(parts) {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            *byte = digits.then(|| u8::from_str_radix(part, 16).ok()).flatten().ok_or_else(refuse)?;
        }
        Ok(mac)
    }
}
