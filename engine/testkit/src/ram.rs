//! Anonymous memory as guest RAM.

use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags};
use vireo_core::{EngineError, HostRam};

/// Zeroed memory.
pub struct Ram {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a plain mapping without thread affinity; all access is by raw pointer.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}
// SAFETY: the mapping is page-aligned, readable, writable, and stays until drop; no reference to it is ever made.
unsafe impl HostRam for Ram {
    fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    fn len(&self) -> usize {
        self.len
    }
}

impl Ram {
    /// `len` bytes, a multiple of 4096.
    pub fn new(len: usize) -> Result<Self, EngineError> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::SHARED) };
        let start = start.map_err(|e| EngineError::os("mapping guest RAM", e))?;
        let start =
            NonNull::new(start.cast()).ok_or_else(|| EngineError::Internal("mmap gave null".into()))?;
        Ok(Self { start, len })
    }

    /// Copies bytes in. Panics outside the memory: a fault of the case.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let at = self.check(at, bytes.len());
        // SAFETY: the range was checked; guests may race with this, which raw byte copies of plain memory bear.
        unsafe { self.start.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies bytes out.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let at = self.check(at, N);
        let mut bytes = [0; N];
        // SAFETY: as in `write`.
        unsafe { self.start.as_ptr().add(at).copy_to_nonoverlapping(bytes.as_mut_ptr(), N) };
        bytes
    }

    /// A little-endian number.
    pub fn u64(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at))
    }

    /// A little-endian number.
    pub fn u32(&self, at: u64) -> u32 {
        u32::from_le_bytes(self.read(at))
    }

    fn check(&self, at: u64, len: usize) -> usize {
        let at = usize::try_from(at).expect("an address inside the guest's memory");
        assert!(
            at.checked_add(len).is_some_and(|end| end <= self.len),
            "{at:#x}+{len} is outside the guest's RAM"
        );
        at
    }
}

impl Drop for Ram {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; partitions that use it hold a reference to self.
        unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len).ok() };
    }
}
