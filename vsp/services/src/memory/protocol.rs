//! Messages of dynamic memory: a type, a size, a transaction, and what the type has.

use std::ops::Range;

use crate::message::Version;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of a header.
const HEADER: usize = 8;
/// Bits of a page's number in a range.
const PAGE_BITS: u32 = 40;
/// Pages of one range, at most.
pub const RANGE_MAX: u64 = (1 << 24) - 1;
/// Ranges of one message, at most: drivers have a page for it.
pub const RANGES_MAX: usize = 500;

/// Types (enum dm_message_type).
mod kind {
    pub const VERSION_REQUEST: u16 = 1;
    pub const VERSION_RESPONSE: u16 = 2;
    pub const CAPABILITIES: u16 = 3;
    pub const CAPABILITIES_RESPONSE: u16 = 4;
    pub const STATUS: u16 = 5;
    pub const BALLOON: u16 = 6;
    pub const BALLOON_RESPONSE: u16 = 7;
    pub const UNBALLOON: u16 = 8;
    pub const UNBALLOON_RESPONSE: u16 = 9;
    pub const HOT_ADD: u16 = 10;
    pub const HOT_ADD_RESPONSE: u16 = 11;
    pub const INFO: u16 = 12;
}

/// What a driver can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Give memory back.
    pub balloon: bool,
    /// Take memory that was not there at the start.
    pub hot_add: bool,
    /// In pieces of so many bytes.
    pub alignment: u64,
}

/// What a guest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuest {
    /// It would speak this version.
    Version(Version),
    /// It can do this.
    Capabilities(Capabilities),
    /// So many pages are free, and so many are promised to programs.
    Status {
        /// Pages.
        available: u64,
        /// Pages.
        committed: u64,
    },
    /// It gives these pages back; there are more to come.
    Balloon {
        /// Further messages belong to the same answer.
        more: bool,
        /// By number.
        pages: Vec<Range<u64>>,
    },
    /// It has taken the pages that it got.
    Unballoon,
    /// It has taken so many new pages.
    HotAdd {
        /// Pages.
        pages: u64,
    },
}

/// A message of a guest, and its name for it.
pub fn parse(packet: &[u8]) -> Option<(u32, FromGuest)> {
    let half = |at: usize| packet.get(at..at + 2)?.first_chunk().map(|b| u16::from_le_bytes(*b));
    let (kind, size) = (half(0)?, usize::from(half(2)?));
    let message = packet.get(..size)?;
    let word = |at: usize| message.get(at..at + 4)?.first_chunk().map(|b| u32::from_le_bytes(*b));
    let long = |at: usize| message.get(at..at + 8)?.first_chunk().map(|b| u64::from_le_bytes(*b));
    let said = match kind {
        kind::VERSION_REQUEST => {
            let version = word(HEADER)?;
            FromGuest::Version(Version((version >> 16) as u16, version as u16))
        }
        kind::CAPABILITIES => {
            let bits = long(HEADER)?;
            FromGuest::Capabilities(Capabilities {
                balloon: bits & 1 != 0,
                hot_add: bits & 2 != 0,
                // A power of two, in MiB.
                alignment: 1 << (20 + (bits >> 2 & 15)),
            })
        }
        kind::STATUS => FromGuest::Status { available: long(HEADER)?, committed: long(HEADER + 8)? },
        kind::BALLOON_RESPONSE => {
            let head = word(HEADER + 4)?;
            let count = head as usize >> 1;
            let ranges = message.get(HEADER + 8..)?.get(..count.checked_mul(8)?)?;
            FromGuest::Balloon { more: head & 1 != 0, pages: ranges.chunks_exact(8).map(range).collect() }
        }
        kind::UNBALLOON_RESPONSE => FromGuest::Unballoon,
        kind::HOT_ADD_RESPONSE => FromGuest::HotAdd { pages: word(HEADER)?.into() },
        _ => return None,
    };
    Some((word(4)?, said))
}

fn range(bytes: &[u8]) -> Range<u64> {
    let packed = bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
    let start = packed & ((1 << PAGE_BITS) - 1);
    start..start + (packed >> PAGE_BITS)
}

fn packed(pages: &Range<u64>) -> u64 {
    pages.start & ((1 << PAGE_BITS) - 1) | (pages.end - pages.start).min(RANGE_MAX) << PAGE_BITS
}

/// What a guest is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuest<'a> {
    /// Whether its version is spoken.
    Version(bool),
    /// What it can do is welcome.
    Capabilities,
    /// It may come to have so many pages.
    Maximum(u64),
    /// It is to give so many pages back.
    Balloon(u32),
    /// It gets these pages.
    Unballoon {
        /// Further messages belong to it.
        more: bool,
        /// By number.
        pages: &'a [Range<u64>],
    },
    /// It gets these pages, which are new.
    HotAdd(Range<u64>),
}

impl ToGuest<'_> {
    /// The message.
    pub fn bytes(&self, transaction: u32) -> Vec<u8> {
        let (kind, body): (u16, Vec<u8>) = match self {
            Self::Version(accepted) => (kind::VERSION_RESPONSE, u64::from(*accepted).to_le_bytes().into()),
            Self::Capabilities => (kind::CAPABILITIES_RESPONSE, 1_u64.to_le_bytes().into()),
            Self::Maximum(pages) => {
                // Reserved, bytes of information; its type, bytes of it.
                let head = [0, 16, 0, 8_u32].map(u32::to_le_bytes).concat();
                (kind::INFO, [head, pages.to_le_bytes().into()].concat())
            }
            Self::Balloon(pages) => (kind::BALLOON, [*pages, 0].map(u32::to_le_bytes).concat()),
            Self::Unballoon { more, pages } => {
                let pages = &pages[..pages.len().min(RANGES_MAX)];
                let mut body = [u32::from(*more), pages.len() as u32].map(u32::to_le_bytes).concat();
                pages.iter().for_each(|p| body.extend(packed(p).to_le_bytes()));
                (kind::UNBALLOON, body)
            }
            // Without a region that they are part of: drivers make one.
            Self::HotAdd(pages) => (kind::HOT_ADD, packed(pages).to_le_bytes().into()),
        };
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(((HEADER + body.len()) as u16).to_le_bytes());
        bytes.extend(transaction.to_le_bytes());
        bytes.extend(body);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Golden: drivers read it so.
    #[test]
    fn messages_are_as_drivers_read_them() {
        assert_eq!(ToGuest::Version(true).bytes(9), [2, 0, 16, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(ToGuest::Balloon(0x300).bytes(1)[..12], [6, 0, 16, 0, 1, 0, 0, 0, 0, 3, 0, 0]);
        let pages = 0x12_3456..0x12_3457;
        let unballoon = ToGuest::Unballoon { more: true, pages: std::slice::from_ref(&pages) };
        assert_eq!(unballoon.bytes(1)[8..], [1, 0, 0, 0, 1, 0, 0, 0, 0x56, 0x34, 0x12, 0, 0, 1, 0, 0]);
        assert_eq!(ToGuest::HotAdd(0..0x8000).bytes(1)[8..], [0, 0, 0, 0, 0, 0, 0x80, 0]);
        let maximum = ToGuest::Maximum(0x1000).bytes(1);
        assert_eq!(
            maximum[8..],
            [0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn what_guests_say_is_read() {
        let message = |kind: u8, body: &[u8]| {
            let mut bytes = vec![kind, 0, 8 + body.len() as u8, 0, 5, 0, 0, 0];
            bytes.extend(body);
            bytes
        };
        let says = |kind, body: &[u8]| parse(&message(kind, body)).map(|(_, said)| said);
        assert_eq!(says(1, &[0, 0, 2, 0, 1, 0, 0, 0]), Some(FromGuest::Version(Version(2, 0))));
        let mut capabilities = [0; 24];
        capabilities[0] = 0b1_1111;
        let can = Capabilities { balloon: true, hot_add: true, alignment: 128 << 20 };
        assert_eq!(says(3, &capabilities), Some(FromGuest::Capabilities(can)));
        let balloon = [0, 0, 0, 0, 3, 0, 0, 0, 7, 0, 0, 0, 0, 2, 0, 0];
        let pages = std::iter::once(7..9).collect();
        assert_eq!(says(7, &balloon), Some(FromGuest::Balloon { more: true, pages }));
        assert_eq!(says(7, &balloon[..12]), None, "fewer ranges than it says");
        assert_eq!(says(7, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), None);
        assert_eq!(says(11, &[1, 0, 0, 0, 1, 0, 0, 0]), Some(FromGuest::HotAdd { pages: 1 }));
        assert_eq!(parse(&message(9, &[])), Some((5, FromGuest::Unballoon)));
        let mut long = message(9, &[]);
        long[2] = 9;
        assert_eq!(parse(&long), None, "it says that it is longer than it is");
    }

    proptest! {
        #[test]
        fn no_message_does_harm(packet in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Some((_, FromGuest::Balloon { pages, .. })) = parse(&packet) {
                prop_assert!(pages.iter().all(|p| p.start <= p.end && p.end - p.start <= RANGE_MAX));
                prop_assert!(pages.len() <= packet.len() / 8);
            }
        }
    }
}
