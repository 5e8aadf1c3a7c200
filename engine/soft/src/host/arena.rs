//! Executable memory for stubs, which are only ever added.

use std::ptr::NonNull;

use vireo_core::EngineError;

use super::mapping::CodeMapping;
use super::trap::Answer;

/// Alignment of a piece of code.
const ALIGN: usize = 16;

/// Memory that holds stubs.
pub struct Arena {
    mapping: CodeMapping,
    used: usize,
}

impl Arena {
    /// Reserves `size` bytes, a multiple of 4096.
    pub fn new(size: usize) -> Result<Self, EngineError> {
        let mut arena = Self { mapping: CodeMapping::new(size, Answer::Stub)?, used: 0 };
        // The fault exit: see `trap`.
        arena.add(&[0xc3]).ok_or(EngineError::Internal("no room for the fault exit".into()))?;
        Ok(arena)
    }

    /// Adds code and gives the address to call. `None`: full.
    pub fn add(&mut self, code: &[u8]) -> Option<NonNull<u8>> {
        let end = self.used.checked_add(code.len()).filter(|end| *end <= self.mapping.size())?;
        self.mapping.write(self.used, code);
        // SAFETY: within the mapping.
        let entry = unsafe { self.mapping.run().add(self.used) };
        self.used = end.next_multiple_of(ALIGN).min(self.mapping.size());
        Some(entry)
    }
}
