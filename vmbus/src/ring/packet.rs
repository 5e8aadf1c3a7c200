//! Packets: a descriptor of 16 bytes, what belongs to the kind of packet, data, and a footer of 8 bytes.

use std::sync::Arc;

use vireo_memory::{GuestMemory, GuestSlice};

/// Kinds of packets (enum vmbus_packet_type).
pub mod kind {
    /// Data alone.
    pub const IN_BAND: u16 = 6;
    /// Data, and ranges of a buffer that was given away before.
    pub const TRANSFER_PAGES: u16 = 7;
    /// Data, and ranges of guest memory.
    pub const GPA_DIRECT: u16 = 9;
    /// The answer to one that asked for it.
    pub const COMPLETION: u16 = 0xb;
}

/// Bytes of a descriptor: kind, offset and length in units of 8 bytes, flags, transaction.
pub(super) const DESCRIPTOR: usize = 16;
/// Bytes of the footer: where the packet started.
pub(super) const FOOTER: usize = 8;
/// Flag: it wants a completion.
pub(super) const COMPLETION_REQUESTED: u16 = 1;

const PAGE: u64 = 4096;
/// Most bytes that one packet's ranges may name: more than any device moves at once.
const RANGES_MAX: u64 = 64 << 20;

/// A packet that the guest sent, copied out of the ring.
#[derive(Clone, Debug, Default)]
pub struct Packet {
    /// One of [`kind`].
    pub kind: u16,
    /// The guest's name for it; a completion repeats it.
    pub transaction: u64,
    /// Whether the guest waits for a completion.
    pub wants_completion: bool,
    /// All after the descriptor.
    body: Vec<u8>,
    /// Where data starts in it.
    data: usize,
}

/// A packet is not what its kind says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a packet of the guest's is damaged: {0}")]
pub struct PacketError(pub &'static str);

impl Packet {
    /// Takes a descriptor in, and makes room for the body; `None` if it is none. Gives the length of the whole packet.
    pub(super) fn describe(&mut self, descriptor: [u8; DESCRIPTOR]) -> Option<usize> {
        let half = |at: usize| u16::from_le_bytes([descriptor[at], descriptor[at + 1]]);
        let (offset, length) = (usize::from(half(2)) * 8, usize::from(half(4)) * 8);
        if offset < DESCRIPTOR || length < offset {
            return None;
        }
        self.kind = half(0);
        self.wants_completion = half(6) & COMPLETION_REQUESTED != 0;
        self.transaction = u64::from_le_bytes(descriptor[8..].try_into().ok()?);
        self.data = offset - DESCRIPTOR;
        self.body.resize(length - DESCRIPTOR, 0);
        Some(length)
    }

    pub(super) fn body_mut(&mut self) -> &mut [u8] {
        &mut self.body
    }

    /// Its data.
    pub fn data(&self) -> &[u8] {
        &self.body[self.data..]
    }

    fn word(&self, at: usize) -> Option<u32> {
        self.body[..self.data].get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_le_bytes)
    }

    /// The memory that a packet of kind [`kind::GPA_DIRECT`] names, of all its ranges in order; pages that follow one another
    /// are one slice. There may be `most` slices.
    ///
    /// # Errors
    /// Ranges that are not there, too long, too many, or not RAM.
    pub fn gpa_ranges(&self, memory: &Arc<GuestMemory>, most: usize) -> Result<Vec<GuestSlice>, PacketError> {
        // Reserved, count, then each range: bytes, offset in the first page, page numbers.
        let mut slices = Vec::new();
        let count = self.word(4).ok_or(PacketError("no count of ranges"))?;
        let (mut at, mut total) = (8, 0);
        for _ in 0..count {
            let bytes = u64::from(self.word(at).ok_or(PacketError("fewer ranges than it says"))?);
            let offset = u64::from(self.word(at + 4).ok_or(PacketError("fewer ranges than it says"))?);
            at += 8;
            total += bytes;
            if total > RANGES_MAX || offset >= PAGE {
                return Err(PacketError("a range out of bounds"));
            }
            let pages = (offset + bytes).div_ceil(PAGE) as usize;
            let numbers = self.body[..self.data]
                .get(at..at + pages * 8)
                .ok_or(PacketError("fewer pages than it says"))?;
            at += pages * 8;
            add_range(memory, numbers, offset, bytes, &mut slices)
                .ok_or(PacketError("a range that is not RAM"))?;
            if slices.len() > most {
                return Err(PacketError("more pieces than there may be"));
            }
        }
        Ok(slices)
    }
}

/// Adds `bytes` bytes from `offset` on of the pages with these numbers; `None` if they are not all RAM.
fn add_range(
    memory: &Arc<GuestMemory>,
    numbers: &[u8],
    offset: u64,
    bytes: u64,
    slices: &mut Vec<GuestSlice>,
) -> Option<()> {
    let (mut run, mut left): (Option<(u64, u64)>, u64) = (None, bytes);
    let mut offset = offset;
    for number in numbers.chunks_exact(8) {
        let page = u64::from_le_bytes(number.try_into().ok()?).checked_mul(PAGE)?;
        let here = left.min(PAGE - offset);
        run = match run {
            Some((start, len)) if start.checked_add(len) == page.checked_add(offset) => {
                Some((start, len + here))
            }
            Some((start, len)) => {
                slices.push(memory.slice(start, len).ok()?);
                Some((page + offset, here))
            }
            None => Some((page + offset, here)),
        };
        left -= here;
        offset = 0;
    }
    if let Some((start, len)) = run.filter(|&(_, len)| len > 0) {
        slices.push(memory.slice(start, len).ok()?);
    }
    Some(())
}
