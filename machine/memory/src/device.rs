//! Memory of a device that guests reach as they do RAM: a frame buffer.

use std::sync::Arc;

use vireo_core::{HostRam, RamRange};

use crate::MemoryError;
use crate::layout::SIZE_STEP;
use crate::mapping::Mapping;

/// Memory that is not RAM of the machine, though the guest may be given it at some address.
///
/// The guest may write it at any time while it has it. The host reads copies, and writes only while the guest has it not
/// ([`Self::clear`]), so nobody has to be told of its writes.
#[derive(Debug)]
pub struct DeviceMemory {
    mapping: Arc<Mapping>,
}

impl DeviceMemory {
    /// Makes `size` bytes of zeros, a multiple of a MiB.
    ///
    /// # Errors
    /// Another size, or the host has not so much.
    pub fn new(size: u64) -> Result<Arc<Self>, MemoryError> {
        if size == 0 || !size.is_multiple_of(SIZE_STEP) {
            return Err(MemoryError::BadSize { asked: size });
        }
        Ok(Arc::new(Self { mapping: Arc::new(Mapping::new(size, size)?) }))
    }

    /// Bytes of it.
    pub fn size(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// All of it as a range of guest-physical addresses that starts at `gpa`.
    pub fn range(&self, gpa: u64) -> RamRange {
        RamRange { gpa, len: self.size(), host: Arc::clone(&self.mapping) as _, offset: 0, writable: true }
    }

    /// Copies from it, starting at `offset`.
    ///
    /// # Errors
    /// It is not so long.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<(), MemoryError> {
        let len = to.len() as u64;
        if offset.checked_add(len).is_none_or(|end| end > self.size()) {
            return Err(MemoryError::NotRam { gpa: offset, len });
        }
        // SAFETY: the range was just found to be inside the mapping; `to` is a Rust slice and so never guest memory. A racing
        // guest may tear the copy, which callers must expect.
        unsafe {
            let from = self.mapping.as_ptr().add(offset as usize);
            std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len());
        }
        Ok(())
    }

    /// Sets all of it to zero. The guest must not have it.
    pub fn clear(&self) {
        // SAFETY: the mapping has so many bytes, which no Rust reference covers.
        unsafe { std::ptr::write_bytes(self.mapping.as_ptr(), 0, self.mapping.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stay_inside() {
        let memory = DeviceMemory::new(1 << 20).unwrap();
        // SAFETY: inside the mapping, which nothing else uses.
        unsafe { memory.range(0).host.as_ptr().add((1 << 20) - 1).write(7) };
        let mut two = [1; 2];
        memory.read((1 << 20) - 2, &mut two).unwrap();
        assert_eq!(two, [0, 7]);
        for at in [(1 << 20) - 1, 1 << 20, u64::MAX] {
            assert!(memory.read(at, &mut two).is_err(), "{at:#x}");
        }
        memory.clear();
        memory.read((1 << 20) - 2, &mut two).unwrap();
        assert_eq!(two, [0, 0]);
        for size in [0, 4096, u64::MAX] {
            assert!(DeviceMemory::new(size).is_err());
        }
    }
}
