//! Frames that go out.
//!
//! Source: the manual named in `registers.rs`, 3.3 to 3.5.

use vireo_frame::{Checksum, FRAME_MAX, Frame, Intent, SegmentKind, Segmentation, Sum, Tag};
use vireo_memory::GuestMemory;

use crate::registers::{Context, Registers, cause, ctrl, tctl};

const SHORTEST: usize = 60;

mod command {
    pub const END: u8 = 1;
    pub const LEGACY_SUM: u8 = 1 << 2;
    pub const CUT: u8 = 1 << 2;
    pub const REPORT: u8 = 1 << 3;
    pub const EXTENDED: u8 = 1 << 5;
    pub const TAG: u8 = 1 << 6;
}
const SUM_IP: u8 = 1;
const SUM_TRANSPORT: u8 = 1 << 1;
const DONE: u8 = 1;

/// A frame that goes out; its bytes are the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing(pub Intent);

/// What became of a descriptor.
enum Taken {
    /// There is more of the frame to come, or it was none.
    More,
    /// A frame is whole.
    Whole(Outgoing),
}

impl Registers {
    /// The next frame, into `buffer`; at most `budget` descriptors are looked at. `None`: there is none, or they are used up.
    pub fn transmit(
        &mut self,
        memory: &GuestMemory,
        buffer: &mut Vec<u8>,
        budget: &mut u32,
    ) -> Option<Outgoing> {
        let mut found = None;
        while found.is_none() && self.tctl & tctl::ENABLE != 0 && self.tx.filled() > 0 && *budget > 0 {
            *budget -= 1;
            let at = self.tx.take();
            let mut descriptor = [0; 16];
            if memory.read(at, &mut descriptor).is_err() {
                // A ring that is nowhere: the bus has nothing.
                continue;
            }
            if let Taken::Whole(frame) = self.descriptor(memory, &descriptor, buffer) {
                found = Some(frame);
            }
            let report = command::REPORT;
            if descriptor[11] & report != 0 {
                _ = memory.write_obj(at + 12, descriptor[12] & 0xf0 | DONE);
                self.icr |= cause::TX_WRITTEN_BACK;
            }
            if self.tx.filled() == 0 {
                self.icr |= cause::TX_EMPTY;
            }
        }
        found
    }

    fn descriptor(&mut self, memory: &GuestMemory, descriptor: &[u8; 16], buffer: &mut Vec<u8>) -> Taken {
        let half = |n: usize| u16::from_le_bytes([descriptor[n], descriptor[n + 1]]);
        let extended = descriptor[11] & command::EXTENDED != 0;
        // The kind is the upper half of byte 10.
        if extended && descriptor[10] >> 4 == 0 {
            self.context = context(descriptor);
            return Taken::More;
        }
        let command = descriptor[11];
        let length = match extended {
            true => usize::from(half(8)) | usize::from(descriptor[10] & 0xf) << 16,
            false => half(8).into(),
        };
        let partial = &mut self.partial;
        if !partial.begun {
            partial.bytes.clear();
            partial.begun = true;
            partial.cut = extended && command & command::CUT != 0;
            partial.sum_ip = extended && descriptor[13] & SUM_IP != 0;
            partial.sum_transport = extended && descriptor[13] & SUM_TRANSPORT != 0;
        }
        let address = u64::from_le_bytes(std::array::from_fn(|n| descriptor[n]));
        let before = partial.bytes.len();
        if before + length > FRAME_MAX {
            partial.too_long = true;
        } else if !partial.too_long {
            partial.bytes.resize(before + length, 0);
            // What is no RAM reads as nothing.
            _ = memory.read(address, &mut partial.bytes[before..]);
        }
        if command & command::END == 0 {
            return Taken::More;
        }
        let partial = std::mem::take(partial);
        let tag = command & command::TAG != 0 && self.ctrl & ctrl::VLAN != 0;
        let tag = tag.then(|| Tag(half(14)));
        // The buffer that was the caller's is the next frame's.
        self.partial.bytes = std::mem::replace(buffer, partial.bytes);
        self.partial.bytes.clear();
        if partial.too_long || buffer.len() < vireo_frame::headers::HEADER {
            return Taken::More;
        }
        let checksum = match extended {
            true => self.finish(buffer, partial.cut, partial.sum_ip, partial.sum_transport),
            false => (legacy_sum(buffer, command, descriptor[13], descriptor[10]), None),
        };
        if self.tctl & tctl::PAD != 0 && buffer.len() < SHORTEST && checksum.1.is_none() {
            // Zeroes change no sum that goes to the end.
            buffer.resize(SHORTEST, 0);
        }
        self.count_sent(buffer);
        let intent = Intent { checksum: checksum.0, segmentation: checksum.1, tag };
        match Frame::new(buffer, &[], intent) {
            Ok(_) => Taken::Whole(Outgoing(intent)),
            Err(_) => Taken::More,
        }
    }

    /// Does what the context says: what is left to be done is said.
    fn finish(
        &self,
        bytes: &mut [u8],
        cut: bool,
        sum_ip: bool,
        sum_transport: bool,
    ) -> (Checksum, Option<Segmentation>) {
        let context = &self.context;
        if cut && context.segment != 0 && usize::from(context.headers) < bytes.len() {
            return whole_packet(bytes, context);
        }
        if sum_ip {
            let (start, offset, end) = context.ip;
            sum(bytes, start.into(), offset.into(), end.into());
        }
        let (start, offset, end) = context.transport;
        let (start, offset, end) = (usize::from(start), usize::from(offset), usize::from(end));
        if !sum_transport {
            return (Checksum::Unknown, None);
        }
        let to_the_end = end == 0 || end + 1 >= bytes.len();
        // What has its sum elsewhere than TCP and UDP have theirs is summed here.
        if let Some(offset) = offset.checked_sub(start).filter(|_| to_the_end) {
            let wanted = Checksum::Wanted { start: start as u16, offset: offset as u16 };
            if Frame::check(bytes, bytes.len(), &mut Intent { checksum: wanted, ..Intent::default() }).is_ok()
            {
                return (wanted, None);
            }
        }
        sum(bytes, start, offset, end);
        (Checksum::Unknown, None)
    }

    fn count_sent(&mut self, bytes: &[u8]) {
        let length = bytes.len() as u64 + 4;
        for (register, by) in [(0x4080, 1), (0x40d4, 1), (0x4090, length), (0x40c8, length)] {
            self.count(register, by);
        }
        match bytes {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, ..] => self.count(0x40f4, 1),
            [first, ..] if first & 1 != 0 => self.count(0x40f0, 1),
            _ => {}
        }
    }
}

fn context(d: &[u8; 16]) -> Context {
    let half = |n: usize| u16::from_le_bytes([d[n], d[n + 1]]);
    Context {
        ip: (d[0], d[1], half(2)),
        transport: (d[4], d[5], half(6)),
        payload: u32::from_le_bytes([d[8], d[9], d[10] & 0xf, 0]),
        headers: d[13],
        segment: half(14),
        tcp: d[11] & 1 != 0,
        v4: d[11] & 2 != 0,
    }
}

/// Sums bytes from `start` to `end` (included; 0: the last one), and puts the sum at `offset`. What is not in the frame is not.
fn sum(bytes: &mut [u8], start: usize, offset: usize, end: usize) {
    let end = if end == 0 { bytes.len() } else { (end + 1).min(bytes.len()) };
    let Some(range) = bytes.get(start..end) else { return };
    let sum = Sum::default().over(range).finish();
    if let Some(field) = bytes.get_mut(offset..offset + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
}

/// A descriptor of the old kind has a sum from `start` to the end put at `offset`.
fn legacy_sum(bytes: &mut [u8], command: u8, start: u8, offset: u8) -> Checksum {
    if command & command::LEGACY_SUM != 0 {
        sum(bytes, start.into(), offset.into(), 0);
    }
    Checksum::Unknown
}

/// Makes one long packet of what is to be cut: drivers leave its lengths, and what depends on them, to the card (3.5.3).
fn whole_packet(bytes: &mut [u8], context: &Context) -> (Checksum, Option<Segmentation>) {
    const NOTHING: (Checksum, Option<Segmentation>) = (Checksum::Unknown, None);
    let (ip, start) = (usize::from(context.ip.0), usize::from(context.transport.0));
    let header = if context.v4 { 20 } else { 40 };
    let total = bytes.len();
    if ip < vireo_frame::headers::HEADER || start < ip + header || start + 20 > total {
        return NOTHING;
    }
    let Ok(length) = u16::try_from(total - start) else { return NOTHING };
    let addresses = if context.v4 {
        let Ok(whole) = u16::try_from(total - ip) else { return NOTHING };
        bytes[ip + 2..ip + 4].copy_from_slice(&whole.to_be_bytes());
        bytes[ip + 10..ip + 12].fill(0);
        let sum = Sum::default().over(&bytes[ip..start]).finish();
        bytes[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        ip + 12..ip + 20
    } else {
        let Ok(payload) = u16::try_from(total - ip - 40) else { return NOTHING };
        bytes[ip + 4..ip + 6].copy_from_slice(&payload.to_be_bytes());
        ip + 8..ip + 40
    };
    let (protocol, field) = if context.tcp { (6, 16) } else { (17, 6) };
    if !context.tcp {
        bytes[start + 4..start + 6].copy_from_slice(&length.to_be_bytes());
    }
    let pseudo = Sum::default().over(&bytes[addresses]).word(length).word(protocol).folded();
    bytes[start + field..start + field + 2].copy_from_slice(&pseudo.to_be_bytes());
    let kind = match (context.tcp, context.v4) {
        (true, true) => SegmentKind::Tcp4,
        (true, false) => SegmentKind::Tcp6,
        (false, _) => SegmentKind::Udp,
    };
    let wanted = Checksum::Wanted { start: start as u16, offset: field as u16 };
    (wanted, Some(Segmentation { kind, size: context.segment }))
}
