//! Executable memory for stubs: one sealed memory file, mapped once for writing and once for execution.

use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vireo_core::EngineError;

use super::trap;

/// Alignment of a piece of code.
const ALIGN: usize = 16;

/// Memory that holds code. No page of it is writable and executable at one address; code is only ever added.
pub struct Arena {
    write: NonNull<u8>,
    run: NonNull<u8>,
    size: usize,
    used: usize,
}

// SAFETY: both mappings belong to this value alone; code already handed out is never written again.
unsafe impl Send for Arena {}

impl Arena {
    /// Reserves `size` bytes, a multiple of 4096; pages cost memory once code is in them. Faults at addresses in it
    /// are answered by [`trap`].
    pub fn new(size: usize) -> Result<Self, EngineError> {
        let failed = |what| move |e: Errno| EngineError::os(what, e);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // Kernels before 6.3 do not know EXEC and need no such word.
        let file = memfd_create(c"stubs", flags | MemfdFlags::EXEC)
            .or_else(|_| memfd_create(c"stubs", flags))
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
        let mut arena = Self { write, run, size, used: 0 };
        // The fault exit: see `trap`.
        arena.add(&[0xc3]).ok_or(EngineError::Internal("no room for the fault exit".into()))?;
        trap::watch(run.as_ptr() as usize, size)?;
        Ok(arena)
    }

    /// Adds code and gives the address to call. `None`: full.
    pub fn add(&mut self, code: &[u8]) -> Option<NonNull<u8>> {
        let end = self.used.checked_add(code.len()).filter(|end| *end <= self.size)?;
        // SAFETY: within the mapping, behind all code handed out, and no reference covers it.
        unsafe {
            self.write.add(self.used).copy_from_nonoverlapping(NonNull::from(code).cast(), code.len());
        }
        // SAFETY: within the mapping.
        let entry = unsafe { self.run.add(self.used) };
        self.used = end.next_multiple_of(ALIGN).min(self.size);
        Some(entry)
    }
}

impl Drop for Arena {
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
