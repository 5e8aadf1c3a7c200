//! The memory file and its mapping.

use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use vireo_core::HostRam;

use crate::MemoryError;

/// All RAM of one machine: a sealed memory file, mapped once.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread, and all access to it is by raw pointer.
unsafe impl Send for Mapping {}
// SAFETY: as above; races on its bytes are races with the guest, which exist anyway.
unsafe impl Sync for Mapping {}

// SAFETY: `start` is a shared mapping of `len` bytes of a file sealed against any change of its length, unmapped only
// in `drop`; this crate makes no reference to its bytes but atomics for the time of one operation.
unsafe impl HostRam for Mapping {
    fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    fn len(&self) -> usize {
        self.len
    }
}

impl Mapping {
    /// Makes `size` bytes of zeros; pages take host memory when first touched. The host has to have `at_once` bytes now.
    pub fn new(size: u64, at_once: u64) -> Result<Self, MemoryError> {
        if let Some(available) = available_memory().filter(|&a| a < at_once) {
            return Err(MemoryError::HostShort { asked: at_once, available });
        }
        let failed = |step| move |e: rustix::io::Errno| MemoryError::Host { step, size, source: e.into() };
        let len = usize::try_from(size).map_err(|_| MemoryError::BadSize { asked: size })?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("vireo-guest-ram", flags).map_err(failed("create a file for"))?;
        rustix::fs::ftruncate(&file, size).map_err(failed("reserve"))?;
        // A file that shrank would turn accesses into SIGBUS.
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(failed("seal the file of"))?;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::NORESERVE);
        // SAFETY: a new mapping at an address the kernel chooses touches no existing memory.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, flags, &file, 0) }
            .map_err(failed("map"))?;
        let start = NonNull::new(start.cast()).ok_or(MemoryError::Host {
            step: "map",
            size,
            source: std::io::ErrorKind::OutOfMemory.into(),
        })?;
        let mapping = Self { start, len };
        // A guest's memory is no business of a core dump of the worker. Old kernels may refuse: no harm.
        let _ = mapping.advise(Advice::LinuxDontDump);
        Ok(mapping)
    }

    /// Asks for huge pages; false if the host does not give them.
    pub fn advise_huge_pages(&self) -> bool {
        self.advise(Advice::LinuxHugepage).is_ok()
    }

    /// Gives pages back to the host. The range is inside the file, and of whole pages.
    pub fn discard(&self, offset: u64, len: u64) -> Result<(), MemoryError> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len as u64);
        if !inside || !(offset | len).is_multiple_of(4096) {
            return Err(MemoryError::NotRam { gpa: offset, len });
        }
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the range is inside this mapping, which stays as it is; what it holds becomes zeros, as if the guest had
        // written them.
        unsafe {
            let start = self.start.as_ptr().add(offset as usize).cast();
            rustix::mm::madvise(start, len as usize, Advice::LinuxRemove)
        }
        .map_err(|e| MemoryError::Host { step: "give back", size: len, source: e.into() })
    }

    fn advise(&self, advice: Advice) -> rustix::io::Result<()> {
        // SAFETY: the range is this mapping, and neither advice used changes what its bytes hold.
        unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.len, advice) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length; who has the pointer holds the mapping (HostRam's contract). An
        // error can only mean that it is not mapped.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Bytes the host can give without swapping, if it says so (Linux: proc(5), MemAvailable).
fn available_memory() -> Option<u64> {
    parse_available(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Mapping {
        /// Bytes of it that take memory of the host.
        pub fn resident(&self) -> usize {
            let mut pages = vec![0_u8; self.len / 4096];
            // SAFETY: the range is this mapping, and there is a byte for each of its pages.
            assert_eq!(unsafe { libc::mincore(self.as_ptr().cast(), self.len, pages.as_mut_ptr()) }, 0);
            pages.iter().filter(|p| **p & 1 != 0).count() * 4096
        }
    }

    #[test]
    fn asking_for_more_than_the_host_has_names_both_figures() {
        let available = available_memory().expect("Linux says MemAvailable since 3.14");
        let asked = (available * 2) & !0xfffff;
        let message = Mapping::new(asked, asked).unwrap_err().to_string();
        assert!(
            message.starts_with(&format!("asked for {} MiB of memory, the host has", asked >> 20)),
            "{message}"
        );
    }

    #[test]
    fn meminfo_is_read_in_kib() {
        assert_eq!(parse_available("MemTotal: 9 kB\nMemAvailable:     2048 kB\n"), Some(2 << 20));
        assert_eq!(parse_available("MemTotal: 9 kB\n"), None);
        assert_eq!(parse_available("MemAvailable: 18446744073709551615 kB"), None);
    }
}
