//! Executable memory of a partition: shared code first, then segments of slots and code. Mapped once for writing and once
//! for execution, never both.

use vireo_core::EngineError;

use super::relocation::{Move, Relocation};
use crate::host::{Answer, CodeMapping};

/// Segments, of which one is empty or about to be.
pub const SEGMENTS: usize = 16;

/// Room for the code that all translations share.
const SHARED: usize = 64 << 10;

/// A slot is the address that a jump goes to.
const SLOT: usize = 8;

/// Bytes of a segment for each of its slots.
const BYTES_PER_SLOT: usize = 192;

/// Code begins at multiples of this.
const ALIGN: usize = 32;

/// The memory of one segment: its slots, then its code, which is only added until all of it is dropped.
pub struct Region {
    /// Offset of the first slot, of which there are so many.
    start: usize,
    slots: usize,
    slots_used: usize,
    /// Offset of the next code, and of the end.
    next: usize,
    end: usize,
}

impl Region {
    fn code(&self) -> usize {
        self.start + self.slots * SLOT
    }

    /// Whether so much more code and so many more slots fit.
    pub fn has_room(&self, code: usize, slots: usize) -> bool {
        self.end - self.next >= code && self.slots - self.slots_used >= slots
    }

    /// Bytes of code.
    pub fn used(&self) -> usize {
        self.next - self.code()
    }

    /// How many slots it has.
    pub fn slots_used(&self) -> usize {
        self.slots_used
    }

    /// How many slots it can have.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Drops all code and all slots.
    pub fn clear(&mut self) {
        (self.next, self.slots_used) = (self.code(), 0);
    }
}

/// See above.
pub struct CodeMemory {
    mapping: CodeMapping,
    slots: usize,
}

impl CodeMemory {
    /// About `size` bytes; pages cost memory once they are used. Gives the regions too.
    pub fn new(size: usize) -> Result<(Self, Vec<Region>), EngineError> {
        let each = (size / SEGMENTS).next_multiple_of(4096);
        let mapping = CodeMapping::new(SHARED + SEGMENTS * each, Answer::Translated)?;
        let slots = each / BYTES_PER_SLOT / ALIGN * ALIGN;
        let region = |n: usize| {
            let start = SHARED + n * each;
            let next = start + slots * SLOT;
            Region { start, slots, slots_used: 0, next, end: start + each }
        };
        Ok((Self { mapping, slots }, (0..SEGMENTS).map(region).collect()))
    }

    /// Adds the shared code, whose address `emit` is given.
    pub fn add_shared(&mut self, emit: impl FnOnce(usize) -> Vec<u8>) {
        let code = emit(self.base());
        assert!(code.len() <= SHARED);
        self.mapping.write(0, &code);
    }

    fn base(&self) -> usize {
        self.mapping.run().as_ptr() as usize
    }

    /// The segment that an address is in.
    pub fn segment_at(&self, address: usize) -> usize {
        address.wrapping_sub(self.base() + SHARED) / self.segment_size()
    }

    fn segment_size(&self) -> usize {
        (self.mapping.size() - SHARED) / SEGMENTS
    }

    /// Slots of each segment.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Where the region's next code goes.
    pub fn next(&self, region: &Region) -> usize {
        self.base() + region.next
    }

    /// Address of the region's next slot.
    pub fn next_slot(&self, region: &Region) -> usize {
        self.base() + region.start + region.slots_used * SLOT
    }

    /// Adds code where [`CodeMemory::next`] says; the caller has seen to it that there is room.
    pub fn add(&self, region: &mut Region, code: &[u8]) {
        assert!(region.has_room(code.len(), 0));
        // SAFETY: the region's owner gives each part of it once, until no vCPU is in it any more.
        unsafe { self.mapping.write_shared(region.next, code) };
        region.next = (region.next + code.len()).next_multiple_of(ALIGN).min(region.end);
    }

    /// Adds a slot.
    pub fn add_slot(&self, region: &mut Region, to: usize) {
        assert!(region.has_room(0, 1));
        self.mapping.store(region.start + region.slots_used * SLOT, to as u64);
        region.slots_used += 1;
    }

    /// Changes a slot, by which vCPUs may be jumping now.
    pub fn set_slot(&self, number: u32, to: usize) {
        self.mapping.store(self.offset_of(number), to as u64);
    }

    /// Where a slot leads.
    pub fn slot(&self, number: u32) -> usize {
        self.mapping.load(self.offset_of(number)) as usize
    }

    fn offset_of(&self, number: u32) -> usize {
        let (segment, slot) = (number as usize / self.slots, number as usize % self.slots);
        SHARED + segment * self.segment_size() + slot * SLOT
    }

    /// Moves code that starts at an address: changes its fields.
    ///
    /// # Safety
    /// Nobody runs it, or moves it too.
    pub unsafe fn relocate<'a>(
        &self,
        start: usize,
        fields: impl IntoIterator<Item = &'a Relocation>,
        m: Move,
    ) {
        let start = start - self.base();
        for field in fields {
            let at = start + usize::from(field.at);
            let narrow = |old: [u8; 4]| {
                let mut wide = [0; 8];
                wide[..4].copy_from_slice(&old);
                let new = field.kind.moved(wide, m);
                std::array::from_fn(|n| new[n])
            };
            // SAFETY: it is the field of code that the caller says nobody else uses.
            unsafe {
                match field.kind.size() {
                    8 => self.mapping.change(at, |old| field.kind.moved(old, m)),
                    _ => self.mapping.change(at, narrow),
                }
            }
        }
    }
}
