//! Does to frames what somebody cannot take: checksums, segments, tags.

use crate::frame::{Checksum, Frame, Intent, SegmentKind};
use crate::headers::{ether_type, ether_type_at};
use crate::{Full, Sum};

/// What somebody can take with a frame, instead of having it done before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ability {
    /// Checksums of TCP and UDP that are still to be made.
    pub checksum: bool,
    /// TCP over IPv4 that is still to be segmented.
    pub tcp4: bool,
    /// TCP over IPv6.
    pub tcp6: bool,
    /// UDP.
    pub udp: bool,
    /// Tags beside the bytes.
    pub tag: bool,
}

impl Ability {
    /// All.
    pub const ALL: Self = Self { checksum: true, tcp4: true, tcp6: true, udp: true, tag: true };

    /// Whether a frame can be taken as it is.
    pub fn takes(&self, intent: &Intent) -> bool {
        let segments = intent.segmentation.is_none_or(|s| self.segments(s.kind));
        let sums = self.checksum || !matches!(intent.checksum, Checksum::Wanted { .. });
        segments && sums && (self.tag || intent.tag.is_none())
    }

    /// Whoever can cut makes sums as well, whatever is said.
    fn segments(&self, kind: SegmentKind) -> bool {
        self.checksum
            && match kind {
                SegmentKind::Tcp4 => self.tcp4,
                SegmentKind::Tcp6 => self.tcp6,
                SegmentKind::Udp => self.udp,
            }
    }
}

/// Gives a frame to `put` in a form that `ability` takes: itself, mostly; or a copy, made in `scratch`; or several.
///
/// `done` says how many of them were put: 0 at first. Where `put` is full, a further call with the same frame goes on there. A
/// frame whose guest memory is gone is lost.
///
/// # Errors
/// Those of `put`.
pub fn fit(
    frame: &Frame<'_>,
    ability: &Ability,
    done: &mut usize,
    scratch: &mut Vec<u8>,
    put: &mut dyn FnMut(&Frame<'_>) -> Result<(), Full>,
) -> Result<(), Full> {
    let intent = frame.intent();
    if ability.takes(&intent) {
        return put(frame);
    }
    scratch.clear();
    let tag = intent.tag.filter(|_| !ability.tag);
    let head = frame.head();
    let shift = match tag {
        Some(tag) => {
            scratch.extend_from_slice(&head[..12]);
            scratch.extend_from_slice(&[0x81, 0]);
            scratch.extend_from_slice(&tag.0.to_be_bytes());
            scratch.extend_from_slice(&head[12..]);
            4
        }
        None => {
            scratch.extend_from_slice(head);
            0
        }
    };
    let known = scratch.len();
    scratch.resize(frame.len() + shift, 0);
    if frame.read(head.len(), &mut scratch[known..]).is_err() {
        return Ok(());
    }
    let mut rest = intent;
    if tag.is_some() {
        rest.tag = None;
    }
    if let Checksum::Wanted { start, .. } = &mut rest.checksum {
        *start += shift as u16;
    }
    match rest.segmentation.filter(|s| !ability.segments(s.kind)) {
        Some(segmentation) => {
            let cut = Cut { bytes: scratch, headers: frame.headers() + shift, intent: rest, ability };
            cut.segments(segmentation.kind, segmentation.size.into(), done, put)
        }
        None => {
            if let Checksum::Wanted { start, offset } = rest.checksum
                && !ability.checksum
                && rest.segmentation.is_none()
            {
                fill(scratch, start.into(), offset.into());
                rest.checksum = Checksum::Good;
            }
            Frame::new(scratch, &[], rest).map_or(Ok(()), |frame| put(&frame))
        }
    }
}

/// Puts the checksum where it belongs.
fn fill(bytes: &mut [u8], start: usize, offset: usize) {
    // All ones and zero are the same sum; UDP takes zero for none (RFC 768).
    let sum = match Sum::default().over(&bytes[start..]).finish() {
        0 => 0xffff,
        sum => sum,
    };
    bytes[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
}

/// A frame that is being cut.
struct Cut<'a> {
    bytes: &'a [u8],
    /// Bytes before its payload.
    headers: usize,
    intent: Intent,
    ability: &'a Ability,
}

/// Flags of TCP that the last segment alone has (RFC 9293: FIN, PSH), and the first alone (RFC 3168: CWR).
const LAST_ONLY: u8 = 0x09;
const FIRST_ONLY: u8 = 0x80;

impl Cut<'_> {
    fn segments(
        &self,
        kind: SegmentKind,
        size: usize,
        done: &mut usize,
        put: &mut dyn FnMut(&Frame<'_>) -> Result<(), Full>,
    ) -> Result<(), Full> {
        let payload = &self.bytes[self.headers..];
        let count = payload.len().div_ceil(size);
        let mut segment = Vec::with_capacity(self.headers + size);
        while *done < count {
            let from = *done * size;
            segment.clear();
            segment.extend_from_slice(&self.bytes[..self.headers]);
            segment.extend_from_slice(&payload[from..payload.len().min(from + size)]);
            let intent = self.finish(&mut segment, kind, *done, from, *done + 1 == count);
            if let Ok(frame) = Frame::new(&segment, &[], intent) {
                put(&frame)?;
            }
            *done += 1;
        }
        Ok(())
    }

    /// Makes the headers of a segment right.
    fn finish(
        &self,
        segment: &mut [u8],
        kind: SegmentKind,
        number: usize,
        from: usize,
        last: bool,
    ) -> Intent {
        let mut intent = Intent { segmentation: None, ..self.intent };
        let Checksum::Wanted { start, offset } = intent.checksum else { return intent };
        let (start, offset) = (usize::from(start), usize::from(offset));
        let Some((ether_type, ip)) = ether_type_at(segment) else { return intent };
        let length = segment.len() - start;
        let pseudo = match ether_type {
            ether_type::IPV6 => ipv6(segment, ip),
            _ => ipv4(segment, ip, number as u16),
        };
        let (protocol, at) = match kind {
            SegmentKind::Udp => {
                segment[start + 4..start + 6].copy_from_slice(&(length as u16).to_be_bytes());
                (crate::headers::protocol::UDP, 6)
            }
            SegmentKind::Tcp4 | SegmentKind::Tcp6 => {
                let sequence = be32(&segment[start + 4..]).wrapping_add(from as u32);
                segment[start + 4..start + 8].copy_from_slice(&sequence.to_be_bytes());
                let not = if last { 0 } else { LAST_ONLY } | if number == 0 { 0 } else { FIRST_ONLY };
                segment[start + 13] &= !not;
                (crate::headers::protocol::TCP, 16)
            }
        };
        let pseudo = pseudo.over(&(length as u32).to_be_bytes()).word(protocol.into());
        segment[start + at..start + at + 2].copy_from_slice(&pseudo.folded().to_be_bytes());
        if !self.ability.checksum && offset == at {
            fill(segment, start, offset);
            intent.checksum = Checksum::Good;
        }
        intent
    }
}

/// Makes the length in an IPv6 header right; the sum of its addresses.
fn ipv6(segment: &mut [u8], ip: usize) -> Sum {
    let length = (segment.len() - ip - 40) as u16;
    segment[ip + 4..ip + 6].copy_from_slice(&length.to_be_bytes());
    Sum::default().over(&segment[ip + 8..ip + 40])
}

/// Makes length, number and checksum of an IPv4 header right; the sum of its addresses.
fn ipv4(segment: &mut [u8], ip: usize, number: u16) -> Sum {
    let length = (segment.len() - ip) as u16;
    segment[ip + 2..ip + 4].copy_from_slice(&length.to_be_bytes());
    let id = u16::from_be_bytes([segment[ip + 4], segment[ip + 5]]).wrapping_add(number);
    segment[ip + 4..ip + 6].copy_from_slice(&id.to_be_bytes());
    segment[ip + 10..ip + 12].fill(0);
    // As long as it says, but not beyond what follows.
    let header = (usize::from(segment[ip] & 0xf) * 4).clamp(20, segment.len() - ip);
    let sum = Sum::default().over(&segment[ip..ip + header]).finish();
    segment[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
    Sum::default().over(&segment[ip + 12..ip + 20])
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b))
}
