//! A piece of guest memory as the buffer of an I/O request.

use std::sync::Arc;

use crate::{GuestMemory, MemoryError};

/// `len` bytes of guest memory that the host's kernel reads or writes directly (io_uring, readv).
///
/// It keeps the memory mapped. Whoever lets something write through [`Self::iovec`] calls [`Self::done_write`] when
/// the data is there and before the guest is told, or the dirty log and translated code miss it.
#[derive(Clone, Debug)]
pub struct GuestSlice {
    memory: Arc<GuestMemory>,
    gpa: u64,
    len: usize,
    start: *mut u8,
}

// SAFETY: `start` points into the mapping that `memory` keeps, which is free to be used by any thread.
unsafe impl Send for GuestSlice {}
// SAFETY: as above.
unsafe impl Sync for GuestSlice {}

impl GuestSlice {
    /// `start` is where `memory` has the bytes at `gpa`, checked for `len`.
    pub(crate) fn new(memory: Arc<GuestMemory>, gpa: u64, len: usize, start: *mut u8) -> Self {
        Self { memory, gpa, len, start }
    }

    /// Guest-physical address.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }
    /// Whether it is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Address and length for a system call. Valid while the slice lives.
    pub fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.start.cast(), iov_len: self.len }
    }

    /// The first `n` bytes (at most all), and the rest.
    pub fn split_at(&self, n: usize) -> (Self, Self) {
        let n = n.min(self.len);
        let head = Self { len: n, ..self.clone() };
        // SAFETY: `n` is at most `len`, so the pointer stays inside the checked range or at its end.
        let start = unsafe { self.start.add(n) };
        let tail = Self { gpa: self.gpa + n as u64, len: self.len - n, start, ..self.clone() };
        (head, tail)
    }

    /// Says that the first `written` bytes (at most all) were written through [`Self::iovec`].
    pub fn done_write(&self, written: usize) {
        self.done_write_at(0, written);
    }

    /// As [`Self::done_write`], for `written` bytes that start `offset` bytes into it.
    pub fn done_write_at(&self, offset: usize, written: usize) {
        let offset = offset.min(self.len);
        self.memory.wrote(self.gpa + offset as u64, written.min(self.len - offset) as u64);
    }

    /// Copies from the slice, starting `offset` bytes into it.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> Result<(), MemoryError> {
        self.memory.read(self.inside(offset, to.len())?, to)
    }

    /// Copies into the slice, starting `offset` bytes into it; needs no [`Self::done_write`].
    pub fn write(&self, offset: usize, from: &[u8]) -> Result<(), MemoryError> {
        self.memory.write(self.inside(offset, from.len())?, from)
    }

    /// Copies `len` bytes of another slice, from `from_offset` on, into this one, from `offset` on; needs no [`Self::done_write`].
    /// The two may be of different machines, or overlap.
    pub fn copy_from(
        &self,
        offset: usize,
        from: &Self,
        from_offset: usize,
        len: usize,
    ) -> Result<(), MemoryError> {
        from.inside(from_offset, len)?;
        self.inside(offset, len)?;
        // SAFETY: both ranges are inside their slices, as just checked, and these keep their mappings; guest memory is never
        // referred to, only copied, and a racing guest may tear the copy.
        unsafe { std::ptr::copy(from.start.add(from_offset), self.start.add(offset), len) };
        self.done_write_at(offset, len);
        Ok(())
    }

    fn inside(&self, offset: usize, len: usize) -> Result<u64, MemoryError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.gpa + offset as u64),
            _ => Err(MemoryError::NotRam { gpa: self.gpa.saturating_add(offset as u64), len: len as u64 }),
        }
    }
}

/// Copies from pieces of memory that stand for one behind the other, from `offset` on; how many bytes there were, at most all of `to`.
///
/// # Errors
/// A piece is no RAM.
pub fn read_pieces(pieces: &[GuestSlice], mut offset: usize, to: &mut [u8]) -> Result<usize, MemoryError> {
    let mut done = 0;
    for piece in pieces {
        if done == to.len() {
            break;
        }
        let skip = offset.min(piece.len());
        let count = (piece.len() - skip).min(to.len() - done);
        piece.read(skip, &mut to[done..done + count])?;
        offset -= skip;
        done += count;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::io::{IoSliceMut, Read, Seek, Write};
    use std::sync::Mutex;

    use super::*;
    use crate::layout::tests::HOLES;
    use crate::{RamLayout, WriteObserver};

    struct Log(Arc<Mutex<Vec<(u64, u64)>>>);
    impl WriteObserver for Log {
        fn host_wrote(&self, gpa: u64, len: u64) {
            self.0.lock().unwrap().push((gpa, len));
        }
    }

    #[test]
    fn the_kernel_reads_a_file_straight_into_guest_memory() {
        let memory = GuestMemory::new(RamLayout::new(16 << 20, &HOLES).unwrap()).unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        assert!(memory.set_observer(Box::new(Log(told.clone()))));
        let fd = rustix::fs::memfd_create("slice-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(fd);
        file.write_all(b"hello, guest").unwrap();
        file.rewind().unwrap();

        let whole = memory.slice(0x12_3000, 12).unwrap();
        let (a, b) = whole.split_at(5);
        // SAFETY: the buffers are as long as said, and in this test nothing else uses them.
        let mut buffers = [&a, &b].map(|s| unsafe {
            IoSliceMut::new(std::slice::from_raw_parts_mut(s.iovec().iov_base.cast(), s.iovec().iov_len))
        });
        assert_eq!(file.read_vectored(&mut buffers).unwrap(), 12);
        a.done_write(a.len());
        b.done_write(usize::MAX);
        assert_eq!(*told.lock().unwrap(), [(0x12_3000, 5), (0x12_3005, 7)]);
        told.lock().unwrap().clear();
        whole.done_write_at(2, 3);
        whole.done_write_at(10, 9);
        whole.done_write_at(99, 9);
        assert_eq!(*told.lock().unwrap(), [(0x12_3002, 3), (0x12_300a, 2)]);
        let mut text = [0; 7];
        whole.read(5, &mut text).unwrap();
        assert_eq!(&text, b", guest");
        told.lock().unwrap().clear();
        let other = memory.slice(0x20_0000, 4).unwrap();
        other.copy_from(1, &whole, 7, 3).unwrap();
        assert_eq!(*told.lock().unwrap(), [(0x20_0001, 3)]);
        assert_eq!(memory.read_obj::<u32>(0x20_0000).unwrap().to_le_bytes(), *b"\0gue");
        assert!(other.copy_from(2, &whole, 0, 3).is_err() && other.copy_from(0, &whole, 10, 3).is_err());
        assert!(whole.read(6, &mut text).is_err() && whole.write(usize::MAX, &[0]).is_err());
        assert_eq!(whole.split_at(99).1.len(), 0);
    }
}
