//! A frame in a ring: a descriptor of 16 bytes, its bytes, and nothing up to the next 16.

use vireo_frame::headers::HEADER;
use vireo_frame::{Checksum, FRAME_MAX, Intent, SegmentKind, Segmentation, Tag};

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: usize = 16;
/// Records start at multiples of this.
pub(crate) const ALIGN: u32 = 16;

/// Flags of a descriptor.
mod flag {
    pub const CHECKSUM: u16 = 0x3;
    pub const GOOD: u16 = 1;
    pub const WANTED: u16 = 2;
    pub const SEGMENTS: u16 = 0xc;
    pub const TCP4: u16 = 0x4;
    pub const TCP6: u16 = 0x8;
    pub const UDP: u16 = 0xc;
    pub const TAG: u16 = 0x10;
    pub const ALL: u16 = 0x1f;
}

/// A frame that is in a ring, and was not taken out yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where its bytes start.
    pub(crate) index: u32,
    /// Bytes of the frame.
    pub length: usize,
    /// What its sender says is to be done to it: not checked against its bytes.
    pub intent: Intent,
}

impl Record {
    /// Bytes that a frame takes in a ring.
    pub(crate) fn room(length: usize) -> u32 {
        // The longest frame and a descriptor are less than 2^17.
        (DESCRIPTOR + length).next_multiple_of(ALIGN as usize) as u32
    }
}

/// The descriptor of a frame.
pub(crate) fn describe(length: usize, intent: &Intent) -> [u8; DESCRIPTOR] {
    let (mut flags, mut start, mut offset, mut size, mut tag) = (0, 0, 0, 0, 0);
    match intent.checksum {
        Checksum::Unknown => {}
        Checksum::Good => flags |= flag::GOOD,
        Checksum::Wanted { start: s, offset: o } => {
            flags |= flag::WANTED;
            (start, offset) = (s, o);
        }
    }
    if let Some(segmentation) = intent.segmentation {
        flags |= match segmentation.kind {
            SegmentKind::Tcp4 => flag::TCP4,
            SegmentKind::Tcp6 => flag::TCP6,
            SegmentKind::Udp => flag::UDP,
        };
        size = segmentation.size;
    }
    if let Some(Tag(t)) = intent.tag {
        flags |= flag::TAG;
        tag = t;
    }
    let mut bytes = [0; DESCRIPTOR];
    bytes[..4].copy_from_slice(&(length as u32).to_le_bytes());
    for (n, half) in [flags, start, offset, size, tag].into_iter().enumerate() {
        bytes[4 + n * 2..6 + n * 2].copy_from_slice(&half.to_le_bytes());
    }
    bytes
}

/// What a descriptor at `index` says; `None`: it is none.
pub(crate) fn read(index: u32, bytes: &[u8; DESCRIPTOR]) -> Option<Record> {
    let half = |n: usize| u16::from_le_bytes([bytes[4 + n * 2], bytes[5 + n * 2]]);
    let length = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
    let flags = half(0);
    if !(HEADER..=FRAME_MAX).contains(&length) || flags & !flag::ALL != 0 {
        return None;
    }
    let checksum = match flags & flag::CHECKSUM {
        0 => Checksum::Unknown,
        flag::GOOD => Checksum::Good,
        flag::WANTED => Checksum::Wanted { start: half(1), offset: half(2) },
        _ => return None,
    };
    let kind = match flags & flag::SEGMENTS {
        flag::TCP4 => Some(SegmentKind::Tcp4),
        flag::TCP6 => Some(SegmentKind::Tcp6),
        flag::UDP => Some(SegmentKind::Udp),
        _ => None,
    };
    let segmentation = kind.map(|kind| Segmentation { kind, size: half(3) });
    let tag = (flags & flag::TAG != 0).then(|| Tag(half(4)));
    let index = index.wrapping_add(DESCRIPTOR as u32);
    Some(Record { index, length, intent: Intent { checksum, segmentation, tag } })
}
