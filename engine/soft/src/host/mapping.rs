//! Memory for generated code: one sealed memory file, mapped once for writing and once for execution.

use std::arch::asm;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering::*};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vireo_core::EngineError;

use super::trap::{self, Answer};

/// Two views of the same memory. No page of it is writable and executable at one address.
pub struct CodeMapping {
    write: NonNull<u8>,
    run: NonNull<u8>,
    size: usize,
}

// SAFETY: both mappings belong to this value alone, and are only touched through raw pointers.
unsafe impl Send for CodeMapping {}
// SAFETY: as above; what writes by a shared reference is atomic, or has its callers see to it that it is alone.
unsafe impl Sync for CodeMapping {}

impl CodeMapping {
    /// Reserves `size` bytes, a multiple of 4096; pages cost memory once code is in them. Host exceptions of code in it
    /// get the answer given.
    pub fn new(size: usize, answer: Answer) -> Result<Self, EngineError> {
        let failed = |what| move |e: Errno| EngineError::os(what, e);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know EXEC and need no such word.
        let file = memfd_create(c"code", flags | MemfdFlags::EXEC)
            .or_else(|_| memfd_create(c"code", flags))
            .map_err(failed("creating a memory file for code"))?;
        ftruncate(&file, size as u64).map_err(failed("sizing a memory file for code"))?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(failed("sealing a memory file for code"))?;
        let map = |prot| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let p = unsafe { mmap(std::ptr::null_mut(), size, prot, MapFlags::SHARED, &file, 0) };
            p.map_err(failed("mapping a memory file for code"))
                .and_then(|p| NonNull::new(p.cast()).ok_or(EngineError::Internal("mapped at zero".into())))
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
        let run = map(ProtFlags::READ | ProtFlags::EXEC).inspect_err(|_| unmap(write, size))?;
        let mapping = Self { write, run, size };
        trap::watch(run.as_ptr() as usize, size, answer)?;
        Ok(mapping)
    }

    /// Size in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Start of the executable view.
    pub fn run(&self) -> NonNull<u8> {
        self.run
    }

    /// Copies bytes to an offset.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&mut self, at: usize, bytes: &[u8]) {
        // SAFETY: nobody else has the mapping.
        unsafe { self.write_shared(at, bytes) };
    }

    /// As [`CodeMapping::write`], while others may write elsewhere.
    ///
    /// # Panics
    /// If they do not fit.
    ///
    /// # Safety
    /// Nobody else writes these bytes now, or runs them.
    pub unsafe fn write_shared(&self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.size));
        // SAFETY: within the mapping, as just checked, and no reference covers it.
        unsafe { self.write.add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }

    /// Stores 8 bytes at an offset that is a multiple of 8, at once, after all that was written before.
    ///
    /// # Panics
    /// If they are not all in the mapping, or not so aligned.
    pub fn store(&self, at: usize, value: u64) {
        assert!(at.is_multiple_of(8) && at.checked_add(8).is_some_and(|end| end <= self.size));
        // SAFETY: within the mapping and aligned, as just checked; others only read it.
        unsafe { AtomicU64::from_ptr(self.write.add(at).cast().as_ptr()) }.store(value, Release);
    }

    /// The 8 bytes at an offset that is a multiple of 8, at once.
    ///
    /// # Panics
    /// If they are not all in the mapping, or not so aligned.
    pub fn load(&self, at: usize) -> u64 {
        assert!(at.is_multiple_of(8) && at.checked_add(8).is_some_and(|end| end <= self.size));
        // SAFETY: within the mapping and aligned, as just checked; others store to it at once.
        unsafe { AtomicU64::from_ptr(self.write.add(at).cast().as_ptr()) }.load(Acquire)
    }

    /// Changes bytes at an offset.
    ///
    /// # Panics
    /// If they are not all in the mapping.
    ///
    /// # Safety
    /// Nobody else writes these bytes now, or runs them.
    pub unsafe fn change<const N: usize>(&self, at: usize, change: impl FnOnce([u8; N]) -> [u8; N]) {
        assert!(at.checked_add(N).is_some_and(|end| end <= self.size));
        // SAFETY: within the mapping, as just checked, and no reference covers it.
        let old = unsafe { self.write.add(at).cast().read_unaligned() };
        // SAFETY: the caller sees to it.
        unsafe { self.write_shared(at, &change(old)) };
    }
}

/// Has the processor fetch anew what it may have fetched already: after code was changed through its other view, where
/// processors need not notice (SDM vol. 3A, 9.1.3).
pub fn serialize() {
    // SAFETY: returns to the next instruction, with all registers as they were: IRET is the serializing instruction that
    // costs little in a virtual machine too.
    unsafe {
        asm!(
            "mov {s}, rsp",
            "mov {t:e}, ss",
            "push {t}",
            "push {s}",
            "pushfq",
            "mov {t:e}, cs",
            "push {t}",
            "lea {t}, [rip + 2f]",
            "push {t}",
            "iretq",
            "2:",
            s = out(reg) _,
            t = out(reg) _,
        );
    }
}

impl Drop for CodeMapping {
    fn drop(&mut self) {
        trap::forget(self.run.as_ptr() as usize);
        unmap(self.write, self.size);
        unmap(self.run, self.size);
    }
}

fn unmap(at: NonNull<u8>, size: usize) {
    // SAFETY: `at` came from `mmap` with this size. An error would leave the mapping in place, which harms nobody.
    let _ = unsafe { munmap(at.as_ptr().cast(), size) };
}
