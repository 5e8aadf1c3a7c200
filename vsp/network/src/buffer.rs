//! Buffers that the guest gives away.

use std::sync::Arc;

use vireo_memory::{GuestMemory, GuestSlice};

const PAGE: u64 = 4096;

/// A buffer: pages of RAM in the guest's order.
#[derive(Clone)]
pub struct Pages {
    memory: Arc<GuestMemory>,
    pages: Arc<[u64]>,
}

impl Pages {
    /// A buffer of these pages; `None`: they are not all RAM.
    pub fn new(memory: &Arc<GuestMemory>, pages: Arc<[u64]>) -> Option<Self> {
        let ram = pages.iter().all(|&page| memory.slice(page, PAGE).is_ok());
        ram.then(|| Self { memory: Arc::clone(memory), pages })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Calls `piece` for the pieces of a range: guest-physical address, bytes. Whether the range is in the buffer.
    fn pieces(&self, offset: u64, len: u64, mut piece: impl FnMut(u64, u64)) -> bool {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return false;
        }
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let first = self.pages[(at / PAGE) as usize];
            let start = first + at % PAGE;
            let mut count = (PAGE - at % PAGE).min(end - at);
            // Pages that follow one another are one piece.
            while at + count < end && self.pages[((at + count) / PAGE) as usize] == start + count {
                count += PAGE.min(end - at - count);
            }
            piece(start, count);
            at += count;
        }
        true
    }

    /// Copies bytes in; whether the range is in the buffer.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let mut done = 0;
        self.pieces(offset, bytes.len() as u64, |gpa, count| {
            // RAM, as `new` found.
            _ = self.memory.write(gpa, &bytes[done..done + count as usize]);
            done += count as usize;
        })
    }

    /// Appends the pieces of a range; whether it is in the buffer.
    pub fn slices(&self, offset: u64, len: u64, to: &mut Vec<GuestSlice>) -> bool {
        self.pieces(offset, len, |gpa, count| to.extend(self.memory.slice(gpa, count).ok()))
    }
}

/// The buffer in which the guest gets frames, in sections of one size.
pub struct ReceiveBuffer {
    pages: Pages,
    /// The guest's name for it.
    id: u16,
    /// Bytes of a section.
    section: u32,
    count: u32,
}

impl ReceiveBuffer {
    /// Cuts a buffer; `None`: it has no room for two sections.
    pub fn new(pages: Pages, id: u16, section: u32) -> Option<Self> {
        // Offsets are 32 bits.
        let count = u32::try_from(pages.len().min(u32::MAX.into()) / u64::from(section)).ok()?;
        (count >= 2).then_some(Self { pages, id, section, count })
    }

    /// The guest's name for it.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Bytes of a section.
    pub fn section(&self) -> u32 {
        self.section
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Where a section starts.
    pub fn offset(&self, section: u32) -> u32 {
        section * self.section
    }

    /// Writes into a section, from `at` on.
    pub fn write(&self, section: u32, at: u32, bytes: &[u8]) {
        _ = self.pages.write(u64::from(self.offset(section) + at), bytes);
    }
}
