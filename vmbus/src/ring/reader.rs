//! The side that reads what the guest writes.

use super::memory::{RingMemory, checked_index, distance};
use super::packet::{DESCRIPTOR, FOOTER, Packet};
use super::{RingBroken, control};

/// Longest packet that is taken, in bytes: no driver sends one of more than some pages.
const PACKET_MAX: usize = 1 << 20;

/// Reads a ring that the guest writes.
#[derive(Debug)]
pub struct RingReader {
    ring: RingMemory,
    /// Where we go on: ours alone, the guest is only told.
    read: u32,
    /// What the guest was last told.
    published: u32,
    /// What the guest last said.
    write: u32,
}

impl RingReader {
    pub(super) fn new(ring: RingMemory) -> Option<Self> {
        let read = checked_index(ring.load(control::READ), ring.size())?;
        let write = checked_index(ring.load(control::WRITE), ring.size())?;
        Some(Self { ring, read, published: read, write })
    }

    /// Copies the next packet to `packet`; whether there was one.
    ///
    /// # Errors
    /// What is there is none. Reading on is of no use.
    pub fn next(&mut self, packet: &mut Packet) -> Result<bool, RingBroken> {
        let size = self.ring.size();
        if self.read == self.write {
            let write = self.ring.load(control::WRITE);
            self.write = checked_index(write, size).ok_or(RingBroken("its write index is none"))?;
            if self.read == self.write {
                return Ok(false);
            }
        }
        let there = distance(self.read, self.write, size) as usize;
        let gone = |_| RingBroken("its memory is gone");
        let mut descriptor = [0; DESCRIPTOR];
        if there < DESCRIPTOR + FOOTER {
            return Err(RingBroken("less than a packet is there"));
        }
        self.ring.read(self.read, &mut descriptor).map_err(gone)?;
        let length = packet.describe(descriptor).ok_or(RingBroken("a descriptor is none"))?;
        if length > PACKET_MAX || length + FOOTER > there {
            return Err(RingBroken("a packet is longer than what is there"));
        }
        let at = |bytes: usize| (self.read + bytes as u32) % size;
        self.ring.read(at(DESCRIPTOR), packet.body_mut()).map_err(gone)?;
        self.read = at(length + FOOTER);
        Ok(true)
    }

    /// Lets the guest have the room of what was read; whether it waits for that and has to be signalled.
    pub fn publish(&mut self) -> bool {
        if self.read == self.published {
            return false;
        }
        let size = self.ring.size();
        self.ring.store(control::READ, self.read);
        // Low bits are noise of some guests.
        let wanted = self.ring.load(control::PENDING_SEND) & !7;
        // As of now: what the guest wrote before it began to wait counts.
        let write = checked_index(self.ring.load(control::WRITE), size).unwrap_or(self.write);
        let before = size - distance(self.published, write, size);
        let now = size - distance(self.read, write, size);
        self.published = self.read;
        wanted != 0 && before <= wanted && now > wanted
    }

    /// Asks the guest for no signals: we look by ourselves.
    pub fn mask(&self) {
        self.ring.store(control::INTERRUPT_MASK, 1);
    }

    /// Asks the guest for signals again; whether something came meanwhile, of which it sent none.
    pub fn unmask(&mut self) -> bool {
        self.ring.store(control::INTERRUPT_MASK, 0);
        self.read != self.write || self.ring.load(control::WRITE) != self.read
    }
}
