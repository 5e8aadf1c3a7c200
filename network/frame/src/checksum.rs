//! The Internet checksum (RFC 1071).

use std::net::IpAddr;

/// A sum under way. Its pieces have even lengths, but for the last one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes.
    #[must_use]
    pub fn over(self, bytes: &[u8]) -> Self {
        // In the host's byte order, in which it comes out right as well (RFC 1071, 2 B).
        let (words, rest) = bytes.as_chunks::<4>();
        let words: u64 = words.iter().map(|w| u64::from(u32::from_ne_bytes(*w))).sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        // Pieces are frames' at most: no sum of them comes near 64 bits.
        Self(self.0.wrapping_add(words).wrapping_add(u32::from_ne_bytes(last).into()))
    }

    /// Adds a word.
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        self.over(&word.to_be_bytes())
    }

    /// The sum so far: what a pseudo header's field holds.
    pub fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be_bytes((sum as u16).to_ne_bytes())
    }

    /// The checksum.
    pub fn finish(self) -> u16 {
        !self.folded()
    }
}

/// The sum of a pseudo header (RFC 9293 3.1, RFC 8200 8.1). Addresses of two kinds have none: the sum of nothing.
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Sum {
    let sum = match (source, destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => Sum::default().over(&s.octets()).over(&d.octets()),
        (IpAddr::V6(s), IpAddr::V6(d)) => Sum::default().over(&s.octets()).over(&d.octets()),
        _ => Sum::default(),
    };
    sum.over(&(length as u32).to_be_bytes()).word(protocol.into())
}
