//! The side that takes frames out of a ring.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use crate::RingBroken;
use crate::memory::{PortMemory, Way, Word};
use crate::record::{self, ALIGN, DESCRIPTOR, Record};

/// Takes frames out of a ring that another process fills.
#[derive(Debug)]
pub struct RingReader {
    memory: Arc<PortMemory>,
    way: Way,
    /// Where we go on: ours alone, the writer is only told.
    tail: u32,
    /// What the writer was last told.
    published: u32,
    /// What the writer last said.
    head: u32,
}

impl RingReader {
    /// Of a ring that nobody has used.
    pub fn new(memory: &Arc<PortMemory>, way: Way) -> Self {
        Self { memory: Arc::clone(memory), way, tail: 0, published: 0, head: 0 }
    }

    /// The next frame, which stays in the ring until [`Self::consume`].
    ///
    /// # Errors
    /// What is there is none. Reading on is of no use.
    pub fn peek(&mut self) -> Result<Option<Record>, RingBroken> {
        if self.tail == self.head && !self.look()? {
            return Ok(None);
        }
        let there = self.head.wrapping_sub(self.tail);
        let mut descriptor = [0; DESCRIPTOR];
        self.memory.read(self.way, self.tail, &mut descriptor);
        let record = record::read(self.tail, &descriptor).ok_or(RingBroken("a descriptor is none"))?;
        match Record::room(record.length) <= there {
            true => Ok(Some(record)),
            false => Err(RingBroken("a frame is longer than what is there")),
        }
    }

    /// Asks the writer how far it is; whether there is something.
    fn look(&mut self) -> Result<bool, RingBroken> {
        let head = self.memory.word(self.way, Word::Head).load(Ordering::Acquire);
        if head.wrapping_sub(self.tail) > self.memory.size() || !head.is_multiple_of(ALIGN) {
            return Err(RingBroken("its head is none"));
        }
        self.head = head;
        Ok(self.head != self.tail)
    }

    /// Copies bytes of a frame, from `offset` on: so many that they end where it ends, at most. The writer may change them at any time.
    pub fn read(&self, record: &Record, offset: usize, to: &mut [u8]) {
        assert!(offset.checked_add(to.len()).is_some_and(|end| end <= record.length));
        self.memory.read(self.way, record.index.wrapping_add(offset as u32), to);
    }

    /// Copies bytes of a frame to another ring, at an index of that.
    pub(crate) fn copy(&self, record: &Record, offset: usize, to: (&PortMemory, Way, u32), count: usize) {
        assert!(offset.checked_add(count).is_some_and(|end| end <= record.length));
        let (memory, way, index) = to;
        memory.copy(way, index, (&self.memory, self.way, record.index.wrapping_add(offset as u32)), count);
    }

    /// Takes the frame out that [`Self::peek`] gave.
    pub fn consume(&mut self, record: Record) {
        self.tail = self.tail.wrapping_add(Record::room(record.length));
    }

    /// Lets the writer have the room of what was taken out; whether it waits for that and is to be woken.
    pub fn publish(&mut self) -> bool {
        if self.tail == self.published {
            return false;
        }
        self.memory.word(self.way, Word::Tail).store(self.tail, Ordering::Release);
        self.published = self.tail;
        // What the writer wrote before it began to wait counts as well: the ring may be full of it.
        fence(Ordering::SeqCst);
        let waits = self.memory.word(self.way, Word::WriterWaits);
        if waits.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // A little room is not worth a wake-up; more of it comes, as what fills the ring is still to be read.
        let used = self.memory.word(self.way, Word::Head).load(Ordering::Relaxed).wrapping_sub(self.tail);
        used <= self.memory.size() / 2 && waits.swap(0, Ordering::Relaxed) != 0
    }

    /// Asks to be woken when something comes; whether something has come already, of which nobody tells: then it does not.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn wait(&mut self) -> Result<bool, RingBroken> {
        let waits = self.memory.word(self.way, Word::ReaderWaits);
        waits.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let there = self.tail != self.head || self.look()?;
        if there {
            self.memory.word(self.way, Word::ReaderWaits).store(0, Ordering::Relaxed);
        }
        Ok(there)
    }
}
