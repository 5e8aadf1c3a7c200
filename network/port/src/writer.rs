//! The side that puts frames into a ring.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vireo_frame::{FRAME_MAX, Frame, Intent};

use crate::memory::{PortMemory, Way, Word};
use crate::record::{self, DESCRIPTOR, Record};
use crate::{RingBroken, RingReader};

/// So many bytes are published at the latest, however long nobody says that no more come: the reader can begin.
const UNTOLD_MAX: u32 = 1 << 15;

/// A frame was not put into a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no room now.
    #[error("the ring is full")]
    Full,
    /// The ring is broken.
    #[error(transparent)]
    Broken(#[from] RingBroken),
}

/// Puts frames into a ring that another process empties.
#[derive(Debug)]
pub struct RingWriter {
    memory: Arc<PortMemory>,
    way: Way,
    /// Where we go on: ours alone, the reader is only told.
    head: u32,
    /// What the reader was last told.
    published: u32,
    /// What the reader last said.
    tail: u32,
    /// Something was put in, and nobody has looked since whether the reader waits for it.
    is_news: bool,
}

impl RingWriter {
    /// Of a ring that nobody has used.
    pub fn new(memory: &Arc<PortMemory>, way: Way) -> Self {
        Self { memory: Arc::clone(memory), way, head: 0, published: 0, tail: 0, is_news: false }
    }

    /// Puts a frame in. The reader sees it after [`Self::publish`], which is called by itself now and then, without waking anybody.
    ///
    /// # Errors
    /// There is no room for it, or the ring is broken.
    pub fn put(&mut self, frame: &Frame<'_>) -> Result<(), Refused> {
        let mut at = self.begin(frame.len(), &frame.intent())?;
        self.memory.write(self.way, at, frame.head());
        at = at.wrapping_add(frame.head().len() as u32);
        for piece in frame.tail() {
            self.memory.write_guest(self.way, at, piece);
            at = at.wrapping_add(piece.len() as u32);
        }
        self.end(frame.len());
        Ok(())
    }

    /// Puts in a frame of another ring, with this intent: `head` in place of its first `replaced` bytes, then its others.
    ///
    /// # Errors
    /// As for [`Self::put`].
    pub fn put_from(
        &mut self,
        from: &RingReader,
        record: &Record,
        replaced: usize,
        head: &[u8],
        intent: &Intent,
    ) -> Result<(), Refused> {
        let rest = record.length.saturating_sub(replaced);
        let length = head.len() + rest;
        let at = self.begin(length, intent)?;
        self.memory.write(self.way, at, head);
        if rest > 0 {
            let at = at.wrapping_add(head.len() as u32);
            from.copy(record, replaced, (&self.memory, self.way, at), rest);
        }
        self.end(length);
        Ok(())
    }

    /// Makes sure of room, and writes the descriptor; where the bytes go.
    fn begin(&mut self, length: usize, intent: &Intent) -> Result<u32, Refused> {
        assert!(length <= FRAME_MAX, "frames are no longer than that");
        let wanted = Record::room(length);
        if self.free() < wanted {
            self.look()?;
            if self.free() < wanted {
                return Err(Refused::Full);
            }
        }
        self.memory.write(self.way, self.head, &record::describe(length, intent));
        Ok(self.head.wrapping_add(DESCRIPTOR as u32))
    }

    fn end(&mut self, length: usize) {
        self.head = self.head.wrapping_add(Record::room(length));
        self.is_news = true;
        if self.head.wrapping_sub(self.published) >= UNTOLD_MAX {
            self.tell();
        }
    }

    fn free(&self) -> u32 {
        self.memory.size() - self.head.wrapping_sub(self.tail)
    }

    /// Asks the reader how far it is.
    fn look(&mut self) -> Result<(), RingBroken> {
        let tail = self.memory.word(self.way, Word::Tail).load(Ordering::Acquire);
        if self.head.wrapping_sub(tail) > self.memory.size() {
            return Err(RingBroken("its tail is none"));
        }
        self.tail = tail;
        Ok(())
    }

    fn tell(&mut self) {
        self.memory.word(self.way, Word::Head).store(self.head, Ordering::Release);
        self.published = self.head;
    }

    /// Lets the reader see all that was put in; whether it waits for that and is to be woken.
    pub fn publish(&mut self) -> bool {
        if !std::mem::take(&mut self.is_news) {
            return false;
        }
        self.tell();
        fence(Ordering::SeqCst);
        let waits = self.memory.word(self.way, Word::ReaderWaits);
        waits.load(Ordering::Relaxed) != 0 && waits.swap(0, Ordering::Relaxed) != 0
    }

    /// Asks to be woken when there is room again; whether there is already.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn wait(&mut self) -> Result<bool, RingBroken> {
        let waits = self.memory.word(self.way, Word::WriterWaits);
        waits.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.look()?;
        // As the reader sees it: it wakes when half of the ring is free.
        let room = self.free() >= self.memory.size() / 2;
        if room {
            self.memory.word(self.way, Word::WriterWaits).store(0, Ordering::Relaxed);
        }
        Ok(room)
    }

    /// Whether it is waiting to be woken still.
    pub fn is_waiting(&self) -> bool {
        self.memory.word(self.way, Word::WriterWaits).load(Ordering::Relaxed) != 0
    }
}
