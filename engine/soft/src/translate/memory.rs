//! Executable memory of one vCPU: slots first, then code. Mapped once for writing and once for execution, never both.

use vireo_core::EngineError;

use super::relocation::{Move, Relocation};
use crate::host::{Answer, CodeMapping};

/// A slot: where a jump goes, and the id of the page it is in.
const SLOT: usize = 16;

/// Code and slots; both are only added until everything is dropped.
pub struct CodeMemory {
    mapping: CodeMapping,
    slots: usize,
    slots_used: usize,
    /// End of the shared code, and of all code.
    shared: usize,
    used: usize,
}

impl CodeMemory {
    /// `size` bytes, a multiple of 64 KiB; pages cost memory once they are used.
    pub fn new(size: usize) -> Result<Self, EngineError> {
        let mapping = CodeMapping::new(size, Answer::Translated)?;
        let slots = size / 16;
        Ok(Self { mapping, slots: slots / SLOT, slots_used: 0, shared: slots, used: slots })
    }

    /// Where the next code goes.
    pub fn next(&self) -> usize {
        self.mapping.run().as_ptr() as usize + self.used
    }

    /// Room for code, in bytes.
    pub fn room(&self) -> usize {
        self.mapping.size() - self.used
    }

    /// Bytes of code.
    pub fn used(&self) -> usize {
        self.used - self.shared
    }

    /// Adds code at [`CodeMemory::next`]; the caller has seen to it that there is room.
    pub fn add(&mut self, code: &[u8]) {
        self.mapping.write(self.used, code);
        self.used = (self.used + code.len()).next_multiple_of(32).min(self.mapping.size());
    }

    /// Moves code that starts at an address: changes its fields.
    pub fn relocate<'a>(&mut self, start: usize, fields: impl IntoIterator<Item = &'a Relocation>, m: Move) {
        let start = start - self.mapping.run().as_ptr() as usize;
        for field in fields {
            let at = start + field.at as usize;
            match field.kind.size() {
                8 => self.mapping.change(at, |old| field.kind.moved(old, m)),
                _ => self.mapping.change(at, |old: [u8; 4]| {
                    let mut wide = [0; 8];
                    wide[..4].copy_from_slice(&old);
                    let new = field.kind.moved(wide, m);
                    std::array::from_fn(|n| new[n])
                }),
            }
        }
    }

    /// What was added until now is shared code, which stays.
    pub fn keep(&mut self) {
        self.shared = self.used;
    }

    /// Slots that are left.
    pub fn slots_left(&self) -> usize {
        self.slots - self.slots_used
    }

    /// The number that the next slot gets.
    pub fn next_slot(&self) -> usize {
        self.slots_used
    }

    /// Adds a slot.
    pub fn add_slot(&mut self, to: usize) {
        self.slots_used += 1;
        self.set_slot(self.slots_used - 1, to, 0);
    }

    /// Changes a slot.
    pub fn set_slot(&mut self, slot: usize, to: usize, page_id: u32) {
        let mut bytes = [0; SLOT];
        bytes[..8].copy_from_slice(&to.to_le_bytes());
        bytes[8..12].copy_from_slice(&page_id.to_le_bytes());
        // The address last would not help: only this vCPU jumps by its slots, and not now.
        self.mapping.write(slot * SLOT, &bytes);
    }

    /// Address at which code reads where the slot leads; 8 bytes further the page's id.
    pub fn slot_address(&self, slot: usize) -> usize {
        self.mapping.run().as_ptr() as usize + slot * SLOT
    }

    /// Drops all code but the shared, and all slots.
    pub fn clear(&mut self) {
        (self.used, self.slots_used) = (self.shared, 0);
    }
}
