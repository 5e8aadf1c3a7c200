//! Chains that are filled together: what comes from outside goes into as many as it takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vireo_memory::{GuestMemory, GuestSlice, MemoryError};
use virtio_queue::QueueT;

use super::{Broken, Slot, total};
use crate::memory::QueueMemory;

/// Whether there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// As much as is wanted.
    Enough,
    /// The driver has not made enough available.
    NotYet,
    /// As the driver makes its chains, there never is.
    Never,
}

/// Chains that were taken to be filled, and where in them the next byte goes. It is used again and again.
#[derive(Default)]
pub(crate) struct Gathered {
    /// Head and room of each.
    chains: Vec<(u16, u32)>,
    pieces: Vec<GuestSlice>,
    piece: usize,
    offset: usize,
}

impl Gathered {
    /// How many chains they are.
    pub(crate) fn count(&self) -> usize {
        self.chains.len()
    }

    fn clear(&mut self) {
        self.chains.clear();
        self.pieces.clear();
        (self.piece, self.offset) = (0, 0);
    }

    /// Calls `copy` for each part of the next `len` bytes: where it goes, the offset there, which bytes they are.
    fn advance(
        &mut self,
        len: usize,
        mut copy: impl FnMut(&GuestSlice, usize, usize, usize) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let mut done = 0;
        while done < len
            && let Some(piece) = self.pieces.get(self.piece)
        {
            let n = (piece.len() - self.offset).min(len - done);
            copy(piece, self.offset, done, n)?;
            (done, self.offset) = (done + n, self.offset + n);
            if self.offset == piece.len() {
                (self.piece, self.offset) = (self.piece + 1, 0);
            }
        }
        Ok(())
    }

    /// Writes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), MemoryError> {
        self.advance(bytes.len(), |to, at, from, n| to.write(at, &bytes[from..from + n]))
    }

    /// Copies the next bytes from guest memory, this or another machine's.
    pub(crate) fn copy(&mut self, bytes: &GuestSlice) -> Result<(), MemoryError> {
        self.advance(bytes.len(), |to, at, from, n| to.copy_from(at, bytes, from, n))
    }
}

impl Slot {
    /// Takes chains until they have room for `wanted` bytes, at most `most` of them. If there is not enough, none is taken; with
    /// [`Room::NotYet`], the driver tells when there is more.
    pub(crate) fn gather(
        &mut self,
        queues: &QueueMemory,
        memory: &Arc<GuestMemory>,
        wanted: usize,
        most: usize,
        gathered: &mut Gathered,
    ) -> Result<Room, Broken> {
        // Each time round there is a chain more, and there are no more of them than this.
        for _ in 0..=self.queue.size() {
            let next = self.queue.next_avail();
            let room = self.try_gather(queues, memory, wanted, most, gathered)?;
            if room == Room::Enough {
                return Ok(room);
            }
            self.in_flight = self.in_flight.saturating_sub(gathered.count() as u16);
            self.queue.set_next_avail(next);
            // What came while the driver did not tell.
            if room == Room::Never || !self.tell_of_more(queues)? {
                return Ok(room);
            }
        }
        Err(Broken::new("an available index that goes back and forth"))
    }

    fn try_gather(
        &mut self,
        queues: &QueueMemory,
        memory: &Arc<GuestMemory>,
        wanted: usize,
        most: usize,
        gathered: &mut Gathered,
    ) -> Result<Room, Broken> {
        gathered.clear();
        let mut room = 0;
        while room < wanted {
            if gathered.count() == most || gathered.count() == usize::from(self.queue.size().max(1)) {
                return Ok(Room::Never);
            }
            let Some((head, descriptors)) = self.pop(queues)? else { return Ok(Room::NotYet) };
            let (_, writable) = super::resolve(memory, &descriptors)?;
            let here = total(&writable);
            if here == 0 {
                return Err(Broken::new("a buffer without room"));
            }
            gathered.chains.push((head, u32::try_from(here).unwrap_or(u32::MAX)));
            gathered.pieces.extend(writable);
            room += here;
        }
        Ok(Room::Enough)
    }

    /// Has the driver tell of chains beyond those that there are. Whether more came meanwhile.
    fn tell_of_more(&mut self, queues: &QueueMemory) -> Result<bool, Broken> {
        if !self.queue.ready() {
            return Ok(false);
        }
        let next = self.queue.next_avail();
        let seen = self.queue.avail_idx(queues, Ordering::Acquire)?;
        self.queue.set_next_avail(seen.0);
        let more = self.queue.enable_notification(queues);
        self.queue.set_next_avail(next);
        Ok(more?)
    }

    /// Returns all of them, with `written` bytes in them.
    pub(crate) fn publish_gathered(
        &mut self,
        queues: &QueueMemory,
        gathered: &mut Gathered,
        mut written: usize,
    ) -> Result<(), Broken> {
        for (_, room) in &mut gathered.chains {
            *room = (*room).min(u32::try_from(written).unwrap_or(u32::MAX));
            written -= *room as usize;
        }
        self.publish(queues, &gathered.chains)
    }
}
