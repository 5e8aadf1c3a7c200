//! The side that writes what the guest reads.

use super::control;
use super::memory::{RingMemory, checked_index, distance};
use super::packet::{COMPLETION_REQUESTED, DESCRIPTOR, FOOTER, kind};

/// There is no room for a packet. The guest signals the channel when there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest's ring is full")]
pub struct RingFull;

/// A part of a buffer that the guest gave away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferRange {
    /// Bytes.
    pub bytes: u32,
    /// Where it starts in the buffer.
    pub offset: u32,
}

/// Writes a ring that the guest reads.
#[derive(Debug)]
pub struct RingWriter {
    ring: RingMemory,
    /// Where we go on: ours alone.
    write: u32,
    /// What the guest was last told.
    published: u32,
    /// Where the guest read when we last looked: what it has read since is more room.
    read: u32,
    /// The guest has to be signalled.
    signal: bool,
    /// We said that we wait for room.
    waits: bool,
    /// The packet that is made.
    packet: Vec<u8>,
}

impl RingWriter {
    pub(super) fn new(ring: RingMemory) -> Option<Self> {
        let write = checked_index(ring.load(control::WRITE), ring.size())?;
        // The guest is looked at for the first packet.
        let read = Self::behind(write, ring.size());
        Some(Self { ring, write, published: write, read, signal: false, waits: false, packet: Vec::new() })
    }

    /// Where a reader stands for whom nothing can be written.
    fn behind(write: u32, size: u32) -> u32 {
        (write + 8) % size
    }

    /// Where the guest reads. An index that is none is that of a reader who stands still: the ring is full then.
    fn reader(&self) -> u32 {
        let size = self.ring.size();
        checked_index(self.ring.load(control::READ), size).unwrap_or(Self::behind(self.write, size))
    }

    /// Bytes that can be written, as far as we know: never all, since a full ring would look empty.
    fn room(&self) -> u32 {
        let size = self.ring.size();
        size - distance(self.read, self.write, size)
    }

    /// Puts a packet with this data into the ring. The guest learns of it by [`Self::publish`].
    ///
    /// # Errors
    /// There is no room (now, or ever: the data is longer than the ring). Nothing was written.
    pub fn push(
        &mut self,
        kind: u16,
        transaction: u64,
        wants_completion: bool,
        data: &[u8],
    ) -> Result<(), RingFull> {
        self.put(kind, transaction, wants_completion, |_| {}, data)
    }

    /// Puts a packet into the ring that names ranges of a buffer which the guest gave away: `set` is the guest's name for the
    /// buffer. The guest says by a completion that it is done with them.
    ///
    /// # Errors
    /// As of [`Self::push`].
    pub fn push_transfer(
        &mut self,
        transaction: u64,
        set: u16,
        ranges: &[TransferRange],
        data: &[u8],
    ) -> Result<(), RingFull> {
        let head = |packet: &mut Vec<u8>| {
            packet.extend_from_slice(&u32::from(set).to_le_bytes());
            packet.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
            for range in ranges {
                packet.extend_from_slice(&range.bytes.to_le_bytes());
                packet.extend_from_slice(&range.offset.to_le_bytes());
            }
        };
        self.put(kind::TRANSFER_PAGES, transaction, true, head, data)
    }

    /// `head` appends what is between descriptor and data: whole units of 8 bytes.
    fn put(
        &mut self,
        kind: u16,
        transaction: u64,
        wants_completion: bool,
        head: impl FnOnce(&mut Vec<u8>),
        data: &[u8],
    ) -> Result<(), RingFull> {
        self.packet.clear();
        self.packet.resize(DESCRIPTOR, 0);
        head(&mut self.packet);
        let offset = self.packet.len();
        let length = offset + data.len().next_multiple_of(8);
        let (Ok(start), Ok(units)) = (u16::try_from(offset / 8), u16::try_from(length / 8)) else {
            return Err(RingFull);
        };
        let needed = u32::from(units) * 8 + FOOTER as u32;
        if self.room() <= needed && !self.find_room(needed) {
            return Err(RingFull);
        }
        let packet = &mut self.packet;
        let flags = if wants_completion { COMPLETION_REQUESTED } else { 0 };
        for (at, half) in [kind, start, units, flags].into_iter().enumerate() {
            packet[at * 2..at * 2 + 2].copy_from_slice(&half.to_le_bytes());
        }
        packet[8..DESCRIPTOR].copy_from_slice(&transaction.to_le_bytes());
        packet.extend_from_slice(data);
        packet.resize(length, 0);
        packet.extend_from_slice(&(u64::from(self.write) << 32).to_le_bytes());
        // The ring is RAM.
        _ = self.ring.write(self.write, packet);
        self.write = (self.write + needed) % self.ring.size();
        if std::mem::take(&mut self.waits) {
            self.ring.store(control::PENDING_SEND, 0);
        }
        Ok(())
    }

    /// Lets the guest have what was put in; whether it has to be signalled.
    pub fn publish(&mut self) -> bool {
        self.tell();
        std::mem::take(&mut self.signal)
    }

    /// Writes one packet, and publishes it.
    ///
    /// # Errors
    /// As of [`Self::push`].
    pub fn write(
        &mut self,
        kind: u16,
        transaction: u64,
        wants_completion: bool,
        data: &[u8],
    ) -> Result<bool, RingFull> {
        self.push(kind, transaction, wants_completion, data)?;
        Ok(self.publish())
    }

    /// Whether the guest has read all that it was told of.
    pub fn is_read(&self) -> bool {
        self.reader() == self.published
    }

    fn tell(&mut self) {
        let before = std::mem::replace(&mut self.published, self.write);
        if before == self.write {
            return;
        }
        self.ring.store(control::WRITE, self.write);
        // A guest that had not read all before goes on reading without being told.
        self.signal |= self.ring.load(control::INTERRUPT_MASK) == 0 && self.reader() == before;
    }

    /// Looks how far the guest is, and says that we wait if it is not far enough; whether there is room.
    fn find_room(&mut self, needed: u32) -> bool {
        self.read = self.reader();
        self.room() > needed || self.wait_for(needed)
    }

    fn wait_for(&mut self, needed: u32) -> bool {
        // The guest counts room from what it was told, and signals when that comes to be enough.
        self.tell();
        self.waits = true;
        self.ring.store(control::PENDING_SEND, needed);
        self.read = self.reader();
        self.room() > needed
    }
}
