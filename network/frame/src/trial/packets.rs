//! Packets of TCP and UDP, and what is said of them: right ones, and such as a hostile sender makes.

use crate::headers::{Segment, ether_type, protocol};
use crate::{Checksum, Intent, SegmentKind, Segmentation, Tag};

/// A TCP or UDP frame with so many words of options of TCP; and the wish to have its checksum made, in whose place is anything.
pub fn packet(v6: bool, udp: bool, options: usize, payload: &[u8]) -> (Vec<u8>, Intent) {
    let transport = if udp { 8 } else { 20 + options * 4 };
    let length = transport + payload.len();
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if v6 {
        bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        bytes.extend((length as u16).to_be_bytes());
        bytes.extend([if udp { 17 } else { 6 }, 64]);
        bytes.extend((1..=32).collect::<Vec<u8>>());
    } else {
        bytes.extend([8, 0, 0x45, 0]);
        bytes.extend((20 + length as u16).to_be_bytes());
        bytes.extend([0xff, 0xfe, 0x40, 0, 64, if udp { 17 } else { 6 }, 0, 0]);
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
    }
    let start = bytes.len();
    bytes.extend([0x12, 0x34, 0, 80]);
    if udp {
        bytes.extend([0, 0, 0xaa, 0xbb]);
    } else {
        bytes.extend([0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1]);
        bytes.extend([(5 + options as u8) << 4, 0x99, 1, 0, 0xaa, 0xbb, 0, 0]);
        bytes.extend(vec![1; options * 4]);
    }
    bytes.extend(payload);
    let offset = if udp { 6 } else { 16 };
    (bytes, Intent { checksum: Checksum::Wanted { start: start as u16, offset }, ..Intent::default() })
}

/// A frame with a payload of `most` bytes (65,000 or less) at most, and what is said of it, as `next` chooses: a fuzzer, or chance.
///
/// Most are packets of which is said what is so, or were before a few of their bytes were changed: what is done to frames is behind
/// checks that nothing else passes. Others are anything. Zeros make a right packet.
pub fn any_packet(most: usize, next: &mut dyn FnMut() -> u8) -> (Vec<u8>, Intent) {
    let mut choice = Choice(next);
    let bytes = if choice.is_seldom(8) { choice.anything(most) } else { choice.nearly_right(most) };
    let intent = choice.said_of(&bytes);
    (bytes, intent)
}

struct Choice<'a>(&'a mut dyn FnMut() -> u8);

impl Choice<'_> {
    fn u8(&mut self) -> u8 {
        (self.0)()
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.u8()) % end
    }

    /// Once in `times`.
    fn is_seldom(&mut self, times: usize) -> bool {
        self.below(times) == times - 1
    }

    /// Bytes as they come, of any frame or of IP.
    fn anything(&mut self, most: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..self.u8()).map(|_| self.u8()).collect();
        if self.is_seldom(2) {
            bytes.resize(usize::from(self.u16()) % (most + 1), 0x5a);
        }
        let kinds = [None, None, Some(ether_type::IPV4), Some(ether_type::IPV6)];
        if let (Some(kind), Some(at)) = (kinds[self.below(4)], bytes.get_mut(12..14)) {
            at.copy_from_slice(&kind.to_be_bytes());
        }
        bytes
    }

    /// A packet with options, extension headers and tags, of which a few bytes are changed, or the end is missing.
    fn nearly_right(&mut self, most: usize) -> Vec<u8> {
        let (v6, udp) = (self.is_seldom(2), self.is_seldom(2));
        let options = if udp { 0 } else { self.below(11) };
        let (length, step) = (usize::from(self.u16()) % (most + 1), self.u8() | 1);
        let payload: Vec<u8> = (0..length).map(|n| (n as u8).wrapping_mul(step)).collect();
        let (mut bytes, _) = packet(v6, udp, options, &payload);
        lengthen(&mut bytes, v6, self.below(3));
        for _ in 0..self.below(3) {
            let tag = self.u16().to_be_bytes();
            bytes.splice(12..12, [0x81, 0, tag[0], tag[1]]);
        }
        for _ in 0..self.below(4) {
            let at = self.below(128) % bytes.len();
            bytes[at] = self.u8();
        }
        if self.is_seldom(16) {
            bytes.truncate(14 + self.below(100));
        }
        bytes
    }

    /// What is so, mostly, as the frame's own headers have it.
    fn said_of(&mut self, bytes: &[u8]) -> Intent {
        let place = Segment::of(bytes);
        let is_lie = self.is_seldom(16);
        let (start, offset, kind) = match place.filter(|_| !is_lie) {
            Some(Segment { protocol: protocol::UDP, at, .. }) => (at as u16, 6, SegmentKind::Udp),
            Some(Segment { ether_type: ether_type::IPV4, at, .. }) => (at as u16, 16, SegmentKind::Tcp4),
            Some(Segment { at, .. }) => (at as u16, 16, SegmentKind::Tcp6),
            None => {
                let start = if self.is_seldom(4) { self.u16() } else { self.below(80) as u16 };
                let kinds = [SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp];
                (start, self.below(80) as u16, kinds[self.below(3)])
            }
        };
        let checksum = match self.below(8) {
            6 => Checksum::Good,
            7 => Checksum::Unknown,
            _ => Checksum::Wanted { start, offset },
        };
        let segmentation = self.is_seldom(2).then(|| {
            let end = if self.is_seldom(8) { u16::MAX } else { bytes.len().clamp(1, 65_535) as u16 };
            Segmentation { kind, size: self.u16() % end }
        });
        let tag = self.is_seldom(4).then(|| Tag(self.u16()));
        Intent { checksum, segmentation, tag }
    }
}

/// Puts words of options into IPv4, or extension headers behind IPv6.
fn lengthen(bytes: &mut Vec<u8>, v6: bool, count: usize) {
    for _ in 0..count {
        let (length, more) = if v6 {
            let follows = std::mem::replace(&mut bytes[20], 60);
            bytes.splice(54..54, [follows, 0, 1, 4, 0, 0, 0, 0]);
            (18, 8)
        } else {
            bytes[14] += 1;
            bytes.splice(34..34, [1; 4]);
            (16, 4)
        };
        let now = u16::from_be_bytes([bytes[length], bytes[length + 1]]) + more;
        bytes[length..length + 2].copy_from_slice(&now.to_be_bytes());
    }
}
