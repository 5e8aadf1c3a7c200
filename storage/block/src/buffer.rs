//! The memory of a request.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::Arc;

use vireo_memory::GuestSlice;

/// Memory that a disk reads into or writes from.
#[derive(Clone, Debug)]
pub enum Buffer {
    /// The guest's: it may change it at any time, so whoever needs to look at it copies first.
    Guest(GuestSlice),
    /// The host's, from an offset on, of a length.
    Host(Arc<HostBuffer>, usize, usize),
}

impl Buffer {
    /// All of a host's.
    pub fn host(memory: &Arc<HostBuffer>) -> Self {
        Self::Host(Arc::clone(memory), 0, memory.len())
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Guest(slice) => slice.len(),
            Self::Host(_, _, len) => *len,
        }
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Address and length for a system call. Valid while the buffer lives.
    pub fn iovec(&self) -> libc::iovec {
        match self {
            Self::Guest(slice) => slice.iovec(),
            Self::Host(memory, offset, len) => memory.iovec(*offset, *len),
        }
    }

    /// Its first `n` bytes (at most all), and the rest.
    pub fn split_at(&self, n: usize) -> (Self, Self) {
        match self {
            Self::Guest(slice) => {
                let (head, tail) = slice.split_at(n);
                (Self::Guest(head), Self::Guest(tail))
            }
            Self::Host(memory, offset, len) => {
                let n = n.min(*len);
                let part = |offset, len| Self::Host(Arc::clone(memory), offset, len);
                (part(*offset, n), part(offset + n, len - n))
            }
        }
    }

    /// Says that the first `written` bytes (at most all) were written through [`Self::iovec`]; before the request completes.
    pub fn done_write(&self, written: usize) {
        if let Self::Guest(slice) = self {
            slice.done_write(written);
        }
    }

    /// Copies from it, starting `offset` bytes into it.
    ///
    /// # Panics
    /// It is shorter than that.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        match self {
            Self::Guest(slice) => slice.read(offset, to).expect("inside the buffer"),
            Self::Host(memory, start, len) => {
                assert!(offset.checked_add(to.len()).is_some_and(|end| end <= *len), "inside the buffer");
                memory.read(start + offset, to);
            }
        }
    }

    /// Copies into it, starting `offset` bytes into it; needs no [`Self::done_write`].
    ///
    /// # Panics
    /// It is shorter than that.
    pub fn write(&self, offset: usize, from: &[u8]) {
        match self {
            Self::Guest(slice) => slice.write(offset, from).expect("inside the buffer"),
            Self::Host(memory, start, len) => {
                assert!(offset.checked_add(from.len()).is_some_and(|end| end <= *len), "inside the buffer");
                memory.write(start + offset, from);
            }
        }
    }
}

/// Alignment of a [`HostBuffer`]: what direct I/O wants at most.
const ALIGNMENT: usize = 4096;

/// Page-aligned memory of the host that the kernel and several threads may use at once.
#[derive(Debug)]
pub struct HostBuffer {
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory belongs to no thread, and is accessed by raw pointer only.
unsafe impl Send for HostBuffer {}
// SAFETY: as above: no reference to its bytes is ever made, as with guest memory.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// `len` bytes of zeros; at least one page is taken.
    ///
    /// # Panics
    /// `len` is more than half of the address space.
    pub fn new(len: usize) -> Arc<Self> {
        let layout = Layout::from_size_align(len.max(1), ALIGNMENT).expect("a length that memory can have");
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Arc::new(Self { start, layout })
    }

    /// With these bytes.
    pub fn of(bytes: &[u8]) -> Arc<Self> {
        let buffer = Self::new(bytes.len().max(1));
        buffer.write(0, bytes);
        buffer
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.layout.size()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Address and length of a part, for a system call.
    ///
    /// # Panics
    /// The part is not inside.
    pub fn iovec(&self, offset: usize, len: usize) -> libc::iovec {
        libc::iovec { iov_base: self.part(offset, len).cast(), iov_len: len }
    }

    /// Copies from it.
    ///
    /// # Panics
    /// It is shorter.
    pub fn read(&self, offset: usize, to: &mut [u8]) {
        let from = self.part(offset, to.len());
        // SAFETY: `part` checked the bounds; `to` is a slice of Rust's and so none of this memory, to whose bytes no
        // reference is ever made. Another thread, or the kernel, may tear the copy.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) }
    }

    /// Copies into it.
    ///
    /// # Panics
    /// It is shorter.
    pub fn write(&self, offset: usize, from: &[u8]) {
        let to = self.part(offset, from.len());
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    fn part(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len).is_some_and(|end| end <= self.len()), "inside the buffer");
        // SAFETY: the offset is inside the allocation, or its end.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
