//! The memory of a port: a page of control words, and the data of two rings.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

const PAGE: usize = 4096;
/// Bytes of a ring, at least: the longest frame fits into half of it.
pub const RING_MIN: u32 = 1 << 18;
/// At most.
pub const RING_MAX: u32 = 1 << 24;

/// Which way a ring's frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the switch.
    Up,
    /// To the worker.
    Down,
}

/// Control words of a ring: who writes each has a cache line, and its neighbour, for it alone.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Word {
    /// Bytes that were ever put into it, around 2^32.
    Head = 0,
    /// Bytes that were ever taken out of it.
    Tail = 128,
    /// Not 0: the reader waits to be woken when something comes.
    ReaderWaits = 256,
    /// Not 0: the writer waits to be woken when there is room.
    WriterWaits = 384,
}

/// Where the second ring's words are.
const SECOND: usize = 1024;

/// The memory of a port, mapped.
#[derive(Debug)]
pub struct PortMemory {
    file: OwnedFd,
    control: Mapping,
    rings: [Mapping; 2],
    size: u32,
}

impl PortMemory {
    /// Makes one with rings of `size` bytes each.
    ///
    /// # Errors
    /// That is no size (a power of two, from [`RING_MIN`] to [`RING_MAX`]), or the host refuses.
    pub fn create(size: u32) -> io::Result<Self> {
        check_size(size)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | MemfdFlags::NOEXEC_SEAL;
        let made = rustix::fs::memfd_create("vireo-port", flags);
        // Kernels before 6.3 know no NOEXEC_SEAL.
        let file = made.or_else(|_| {
            rustix::fs::memfd_create("vireo-port", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        })?;
        rustix::fs::ftruncate(&file, length(size))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::map(file, size)
    }

    /// Maps one that another process made.
    ///
    /// # Errors
    /// It is none: its size, or it may become shorter, which would turn accesses into SIGBUS.
    pub fn open(file: OwnedFd, size: u32) -> io::Result<Self> {
        check_size(size)?;
        let sealed = rustix::fs::fcntl_get_seals(&file)?.contains(SealFlags::SHRINK);
        let there = u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or(0);
        if !sealed || there < length(size) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no port's memory"));
        }
        Self::map(file, size)
    }

    fn map(file: OwnedFd, size: u32) -> io::Result<Self> {
        let bytes = size as usize;
        let ring = |offset| Mapping::new(&file, offset, bytes, 2);
        let rings = [ring(PAGE)?, ring(PAGE + bytes)?];
        Ok(Self { control: Mapping::new(&file, 0, PAGE, 1)?, rings, size, file })
    }

    /// The file, to be given to the other side.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Bytes of each ring.
    pub fn size(&self) -> u32 {
        self.size
    }

    pub(crate) fn word(&self, way: Way, word: Word) -> &AtomicU32 {
        let at = word as usize + if way == Way::Down { SECOND } else { 0 };
        // SAFETY: the control page is mapped while we live and all words are in it, aligned; both sides access them by atomics only.
        unsafe { AtomicU32::from_ptr(self.control.start.as_ptr().add(at).cast()) }
    }

    /// Where the data is that belongs to an index. From there on a whole ring's bytes are mapped.
    fn at(&self, way: Way, index: u32) -> *mut u8 {
        let start = self.rings[way as usize].start.as_ptr();
        // SAFETY: the offset is below the size, and twice the size is mapped.
        unsafe { start.add((index & (self.size - 1)) as usize) }
    }

    /// Copies bytes out, at most a ring's.
    pub(crate) fn read(&self, way: Way, index: u32, to: &mut [u8]) {
        assert!(to.len() <= self.size as usize);
        // SAFETY: so many bytes are mapped from there on. The other side may write them meanwhile: then any bytes are read.
        unsafe { std::ptr::copy_nonoverlapping(self.at(way, index), to.as_mut_ptr(), to.len()) }
    }

    /// Copies bytes in, at most a ring's.
    pub(crate) fn write(&self, way: Way, index: u32, from: &[u8]) {
        assert!(from.len() <= self.size as usize);
        // SAFETY: so many bytes are mapped from there on, and nobody has a reference to them.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.at(way, index), from.len()) }
    }

    /// Copies guest memory in.
    pub(crate) fn write_guest(&self, way: Way, index: u32, from: &vireo_memory::GuestSlice) {
        assert!(from.len() <= self.size as usize);
        let source = from.iovec();
        // SAFETY: the slice is mapped while it lives; for the rest as above. The guest may write meanwhile.
        unsafe {
            std::ptr::copy_nonoverlapping(source.iov_base.cast(), self.at(way, index), from.len());
        }
    }

    /// Copies `count` bytes of another port's ring in.
    pub(crate) fn copy(&self, way: Way, index: u32, from: (&Self, Way, u32), count: usize) {
        let (other, other_way, other_index) = from;
        assert!(count <= self.size.min(other.size) as usize);
        // SAFETY: so many bytes are mapped from both places on. The rings differ: one is read, the other one written.
        unsafe { std::ptr::copy(other.at(other_way, other_index), self.at(way, index), count) }
    }
}

fn length(size: u32) -> u64 {
    PAGE as u64 + 2 * u64::from(size)
}

fn check_size(size: u32) -> io::Result<()> {
    match size.is_power_of_two() && (RING_MIN..=RING_MAX).contains(&size) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "that is no size of a ring")),
    }
}

/// A part of a file, mapped one or more times in a row: what goes on at a ring's start is in one piece so.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to no thread, and all access to it is by raw pointer or by atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above; races on its bytes are races with another process, which exist anyway.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &OwnedFd, offset: usize, length: usize, times: usize) -> io::Result<Self> {
        let whole = length * times;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory that exists.
        let start = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                whole,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start =
            NonNull::new(start.cast::<u8>()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let mapping = Self { start, length: whole };
        for n in 0..times {
            let (protection, flags) =
                (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED | MapFlags::FIXED);
            // SAFETY: what is replaced is a part of what was just reserved.
            unsafe {
                let place = start.as_ptr().add(n * length).cast();
                rustix::mm::mmap(place, length, protection, flags, file, offset as u64)?;
            }
        }
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: made by `new` with this length, and nobody has a pointer to it any more.
        _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
