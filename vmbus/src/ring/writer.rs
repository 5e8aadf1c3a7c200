//! The side that writes what the guest reads.

use super::control;
use super::memory::{RingMemory, checked_index, distance};
use super::packet::{COMPLETION_REQUESTED, DESCRIPTOR, FOOTER};

/// There is no room for a packet. The guest signals the channel when there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest's ring is full")]
pub struct RingFull;

/// Writes a ring that the guest reads.
#[derive(Debug)]
pub struct RingWriter {
    ring: RingMemory,
    /// Where we go on: ours alone.
    write: u32,
    /// We said that we wait for room.
    waits: bool,
}

impl RingWriter {
    pub(super) fn new(ring: RingMemory) -> Option<Self> {
        let write = checked_index(ring.load(control::WRITE), ring.size())?;
        Some(Self { ring, write, waits: false })
    }

    /// Where the guest reads. An index that is none is that of a reader who stands still: the ring is full then.
    fn reader(&self) -> u32 {
        let size = self.ring.size();
        checked_index(self.ring.load(control::READ), size).unwrap_or((self.write + 8) % size)
    }

    /// Bytes that can be written: never all, since a full ring would look empty.
    fn room(&self) -> u32 {
        let size = self.ring.size();
        size - distance(self.reader(), self.write, size)
    }

    /// Writes a packet with this data; whether the guest has to be signalled.
    ///
    /// # Errors
    /// There is no room (now, or ever: the data is longer than the ring). Nothing was written.
    pub fn write(
        &mut self,
        kind: u16,
        transaction: u64,
        wants_completion: bool,
        data: &[u8],
    ) -> Result<bool, RingFull> {
        let length = DESCRIPTOR + data.len().next_multiple_of(8);
        let Ok(units) = u16::try_from(length / 8) else { return Err(RingFull) };
        let needed = u32::from(units) * 8 + FOOTER as u32;
        if self.room() <= needed && !self.wait_for(needed) {
            return Err(RingFull);
        }
        let mut packet = Vec::with_capacity(length + FOOTER);
        let flags = if wants_completion { COMPLETION_REQUESTED } else { 0 };
        for half in [kind, (DESCRIPTOR / 8) as u16, units, flags] {
            packet.extend(half.to_le_bytes());
        }
        packet.extend(transaction.to_le_bytes());
        packet.extend(data);
        packet.resize(length, 0);
        packet.extend((u64::from(self.write) << 32).to_le_bytes());
        // The ring is RAM.
        _ = self.ring.write(self.write, &packet);
        let before = self.write;
        self.write = (self.write + needed) % self.ring.size();
        self.ring.store(control::WRITE, self.write);
        if std::mem::take(&mut self.waits) {
            self.ring.store(control::PENDING_SEND, 0);
        }
        // A guest that had not read all before goes on reading without being told.
        Ok(self.ring.load(control::INTERRUPT_MASK) == 0 && self.reader() == before)
    }

    /// Says that we wait for room; whether there is some already.
    fn wait_for(&mut self, needed: u32) -> bool {
        self.waits = true;
        self.ring.store(control::PENDING_SEND, needed);
        self.room() > needed
    }
}
