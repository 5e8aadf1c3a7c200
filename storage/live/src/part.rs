//! A part of a request: what the kernel does by one order, or by several when it does less than it was asked for.

use std::io;
use std::sync::Arc;

use vireo_block::{HostBuffer, Operation, Request};

use crate::files::Files;
use crate::gather;
use crate::ring::{Memory, Order, Ring};

/// What is to be done. Files are numbers of [`Files::all`].
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Bytes are moved.
    Move {
        /// To the file.
        write: bool,
        /// Which.
        file: u32,
        /// Its offset, in bytes.
        at: u64,
        /// Bytes of the request before.
        skip: usize,
        /// How many.
        len: usize,
        /// A write is durable when it is done.
        durable: bool,
        /// By way of a copy, since the request's memory is not as direct transfers need it.
        copy: bool,
    },
    /// What was written becomes durable.
    Sync,
    /// A range of a raw disk is cleared by fallocate(2).
    Clear {
        /// Its start, in bytes.
        at: u64,
        /// Its length, in bytes.
        len: u64,
        /// As there.
        mode: i32,
    },
}

/// A way to clear a range of a raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clear {
    /// fallocate(2), with this mode.
    Allocate(i32),
    /// Zeros are written.
    Write,
    /// Not at all.
    Leave,
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

impl Clear {
    /// The best to make it zero: the space stays the disk's.
    pub const ZERO: Self = Self::Allocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE);
    /// The best to give it back.
    pub const UNMAP: Self = Self::Allocate(PUNCH);

    /// What to try when this is refused; `zero`: the range must be zero then.
    pub fn next(self, zero: bool) -> Self {
        match (self, zero) {
            (Self::ZERO, true) => Self::UNMAP,
            (_, true) => Self::Write,
            (_, false) => Self::Leave,
        }
    }
}

/// What came of an order.
#[derive(Debug)]
pub enum End {
    /// Some is left: it is to be given again.
    Again,
    /// It is done.
    Done,
    /// It failed.
    Failed(io::Error),
    /// fallocate with this mode cannot be had here.
    Refused(i32),
}

/// See the [module](self).
#[derive(Debug)]
pub struct Part {
    /// The request, by its number.
    pub op: usize,
    work: Work,
    /// Bytes that were moved.
    done: usize,
    /// What the kernel was told.
    memory: Option<Memory>,
    copy: Option<Arc<HostBuffer>>,
}

/// Most pieces of memory in one order (IOV_MAX).
const MOST_PIECES: usize = 1024;
/// Most bytes of one piece of memory in one order.
const MOST_BYTES: usize = 1 << 30;

impl Part {
    /// A part of a request.
    pub fn new(op: usize, work: Work) -> Self {
        Self { op, work, done: 0, memory: None, copy: None }
    }

    /// Bytes of memory that giving it will take.
    pub fn copies(&self) -> usize {
        match self.work {
            Work::Move { copy: true, len, .. } if self.copy.is_none() => len,
            _ => 0,
        }
    }

    /// Bytes of memory that it has taken.
    pub fn copied(&self) -> usize {
        self.copy.as_ref().map_or(0, |c| c.len())
    }

    /// Gives the kernel what is left of it. `zeros`: what is written of, instead of the request's memory.
    ///
    /// # Safety
    /// The part, the request's memory, and the zeros stay until [`Part::end`] has said that it is done; nothing is copied from the
    /// part's fields.
    pub unsafe fn give(
        &mut self,
        token: u64,
        ring: &mut Ring,
        request: &Request,
        zeros: Option<&Arc<HostBuffer>>,
    ) -> io::Result<()> {
        let order = match self.work {
            Work::Sync => Order::Sync { file: Files::buffered(0) },
            Work::Clear { at, len, mode } => Order::Allocate { file: Files::buffered(0), at, len, mode },
            Work::Move { write, file, at, skip, len, durable, copy } => {
                if copy && self.copy.is_none() {
                    let host = HostBuffer::new(len);
                    if write {
                        gather::copy(&request.buffers, skip, &host, len, false);
                    }
                    self.copy = Some(host);
                }
                let (skip, left) = (skip + self.done, len - self.done);
                let memory = match (&self.copy, zeros) {
                    (Some(host), _) => Memory::Single(host.iovec(self.done, left)),
                    (None, Some(zeros)) => repeated(zeros, left),
                    (None, None) => of_request(request, skip, left),
                };
                let at = at + self.done as u64;
                Order::Move { write, file, at, memory: self.memory.insert(memory), durable }
            }
        };
        // SAFETY: the caller's promise. The list of pieces is on the heap, and is replaced only when this order has ended.
        unsafe { ring.give(token, &order) }
    }

    /// Takes note of the end of an order: what the system call gave.
    pub fn end(&mut self, result: i32, request: &Request) -> End {
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        match (self.work, error) {
            (_, Some(e)) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => End::Again,
            (Work::Clear { mode, .. }, Some(e)) if is_refusal(&e) => End::Refused(mode),
            (_, Some(e)) => End::Failed(e),
            (Work::Move { write, skip, len, .. }, None) => {
                if result == 0 {
                    // The file ended, or nothing can be written where it is.
                    let kind = if write { io::ErrorKind::WriteZero } else { io::ErrorKind::UnexpectedEof };
                    return End::Failed(kind.into());
                }
                self.done += (result as usize).min(len - self.done);
                if self.done < len {
                    return End::Again;
                }
                if let (Some(host), Operation::Read) = (&self.copy, request.operation) {
                    gather::copy(&request.buffers, skip, host, len, true);
                }
                End::Done
            }
            _ => End::Done,
        }
    }
}

fn of_request(request: &Request, skip: usize, len: usize) -> Memory {
    match gather::single(&request.buffers, skip, len.min(MOST_BYTES)) {
        Some(piece) => Memory::Single(piece),
        None => Memory::Several(gather::iovecs(&request.buffers, skip, len, MOST_PIECES).into()),
    }
}

/// The same zeros, as often as needed.
fn repeated(zeros: &HostBuffer, len: usize) -> Memory {
    let size = zeros.len();
    let pieces = (0..len).step_by(size).take(MOST_PIECES);
    Memory::Several(pieces.map(|at| zeros.iovec(0, size.min(len - at))).collect())
}

/// Whether something is not possible at all, or not in this way.
fn is_refusal(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV))
}
