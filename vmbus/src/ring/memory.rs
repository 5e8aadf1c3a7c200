//! Where a ring is: pages of guest memory, in the guest's order.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vireo_memory::{GuestMemory, MemoryError};

use super::{RingReader, RingWriter, control};

const PAGE: u64 = 4096;

/// A ring's memory: its control page, then at least a page of data.
#[derive(Clone, Debug)]
pub struct RingMemory {
    memory: Arc<GuestMemory>,
    /// Guest-physical addresses of the pages.
    pages: Arc<[u64]>,
    first: usize,
    /// Bytes of data.
    size: u32,
}

impl RingMemory {
    /// The ring in these pages, starting with page `first`, of `count` pages with its control page. `None` if a ring cannot be
    /// there: too short, or not all RAM.
    pub fn new(memory: &Arc<GuestMemory>, pages: &Arc<[u64]>, first: usize, count: usize) -> Option<Self> {
        let its = pages.get(first..first.checked_add(count)?)?;
        let size = u32::try_from((count as u64).checked_sub(1)? * PAGE).ok().filter(|&s| s > 0)?;
        let ram = |&page: &u64| page.is_multiple_of(PAGE) && memory.slice(page, PAGE).is_ok();
        its.iter().all(ram).then(|| Self {
            memory: Arc::clone(memory),
            pages: Arc::clone(pages),
            first,
            size,
        })
    }

    /// Bytes of data.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// A control word.
    pub(super) fn load(&self, word: u64) -> u32 {
        let at = self.pages[self.first] + word;
        self.memory.atomic_u32(at, |w| (w.load(Ordering::SeqCst), false)).unwrap_or_default()
    }

    /// Sets a control word, after all that was done before.
    pub(super) fn store(&self, word: u64, value: u32) {
        let at = self.pages[self.first] + word;
        // The pages are RAM, as `new` found.
        _ = self.memory.atomic_u32(at, |w| (w.store(value, Ordering::SeqCst), true));
    }

    /// Calls `part` for the pieces of the range of data from `at` (below the size) on, of `len` bytes (at most the size), which
    /// may go on at the start of the ring: guest-physical address, bytes done before, bytes.
    fn pieces(
        &self,
        at: u32,
        len: usize,
        mut part: impl FnMut(u64, usize, usize) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let (mut at, mut done) = (u64::from(at), 0);
        while done < len {
            let page = self.pages[self.first + 1 + (at / PAGE) as usize];
            let count = (len - done).min((PAGE - at % PAGE) as usize);
            part(page + at % PAGE, done, count)?;
            done += count;
            at = (at + count as u64) % u64::from(self.size);
        }
        Ok(())
    }

    /// Copies data out.
    pub(super) fn read(&self, at: u32, to: &mut [u8]) -> Result<(), MemoryError> {
        self.pieces(at, to.len(), |gpa, done, count| self.memory.read(gpa, &mut to[done..done + count]))
    }

    /// Copies data in.
    pub(super) fn write(&self, at: u32, from: &[u8]) -> Result<(), MemoryError> {
        self.pieces(at, from.len(), |gpa, done, count| self.memory.write(gpa, &from[done..done + count]))
    }
}

/// Both rings of a channel.
#[derive(Debug)]
pub struct RingPair {
    /// What the guest sends.
    pub incoming: RingReader,
    /// What we send.
    pub outgoing: RingWriter,
}

impl RingPair {
    /// The rings in these pages: the first `split` are what the guest sends. `None` if rings cannot be there, or hold what
    /// none can hold.
    pub fn new(memory: &Arc<GuestMemory>, pages: &Arc<[u64]>, split: usize) -> Option<Self> {
        let incoming = RingMemory::new(memory, pages, 0, split)?;
        let outgoing = RingMemory::new(memory, pages, split, pages.len().checked_sub(split)?)?;
        outgoing.store(control::FEATURES, control::FEATURE_PENDING_SEND);
        Some(Self { incoming: RingReader::new(incoming)?, outgoing: RingWriter::new(outgoing)? })
    }
}

/// An index, if it can be one.
pub(super) fn checked_index(value: u32, size: u32) -> Option<u32> {
    (value < size && value.is_multiple_of(8)).then_some(value)
}

/// Bytes from index `from` to index `to`, around the ring.
pub(super) fn distance(from: u32, to: u32, size: u32) -> u32 {
    if to >= from { to - from } else { size - (from - to) }
}
