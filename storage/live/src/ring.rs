//! The kernel's ring of requests, with a disk's files.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};

/// Entries of the submission queue: so many go to the kernel by one call.
const ENTRIES: u32 = 256;
/// Most that is with the kernel at once.
pub const MOST: usize = 1024;
/// Marks the completion of the bell's reading.
const BELL: u64 = u64::MAX;

/// The memory of a transfer. Whoever starts one keeps it valid, and where it is, until the end of the transfer was told.
#[derive(Debug)]
pub enum Memory {
    /// One piece.
    Single(libc::iovec),
    /// Several, at most 1024.
    Several(Box<[libc::iovec]>),
}

/// What the kernel can be asked for. `file` is the number of a file of the ring's.
#[derive(Debug)]
pub enum Order<'a> {
    /// To move bytes.
    Move {
        /// From memory to the file.
        write: bool,
        /// Which.
        file: u32,
        /// Its offset, in bytes.
        at: u64,
        /// From or to here.
        memory: &'a Memory,
        /// A write is durable when it is done.
        durable: bool,
    },
    /// To make durable all that was written.
    Sync {
        /// Which.
        file: u32,
    },
    /// fallocate(2).
    Allocate {
        /// Which.
        file: u32,
        /// Its offset, in bytes.
        at: u64,
        /// In bytes.
        len: u64,
        /// As there.
        mode: i32,
    },
}

/// See the [module](self). One thread makes and uses it.
pub struct Ring {
    ring: IoUring,
    bell: OwnedFd,
    /// Where the bell's count is read to; on the heap, since the ring itself moves.
    count: Box<[u8; 8]>,
    /// Orders whose end was not told yet.
    pending: usize,
    /// The bell is being read.
    listening: bool,
}

impl Ring {
    /// A ring with files, which it keeps open; `bell`, an event counter, wakes whoever waits.
    ///
    /// # Errors
    /// Those of the system.
    pub fn new(files: &[BorrowedFd<'_>], bell: BorrowedFd<'_>) -> io::Result<Self> {
        // One thread asks and waits: then the kernel finishes requests when that thread looks, interrupting nobody (6.1).
        let lone = IoUring::builder()
            .setup_cqsize(2 * MOST as u32)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(ENTRIES);
        let ring = match lone {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                IoUring::builder().setup_cqsize(2 * MOST as u32).build(ENTRIES)?
            }
            other => other?,
        };
        let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&files)?;
        let (bell, count) = (bell.try_clone_to_owned()?, Box::new([0; 8]));
        Ok(Self { ring, bell, count, pending: 0, listening: false })
    }

    /// Whether another order can be given.
    pub fn has_room(&self) -> bool {
        self.pending < MOST
    }

    /// Gives an order; its end is told under `token`, which is not the largest number there is.
    ///
    /// # Safety
    /// The memory of a transfer is valid, and free to be written if it is a read, until the end was told.
    pub unsafe fn give(&mut self, token: u64, order: &Order<'_>) -> io::Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.push(&entry(order).user_data(token))? };
        self.pending += 1;
        Ok(())
    }

    /// # Safety
    /// As for [`Self::give`].
    unsafe fn push(&mut self, entry: &io_uring::squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise.
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter(false)?;
        }
        Ok(())
    }

    /// Hands over all orders; if `wait`, sleeps until an end can be told or the bell rings. Appends the tokens of what is done, each
    /// with what the system call would have given.
    pub fn turn(&mut self, wait: bool, done: &mut Vec<(u64, i32)>) -> io::Result<()> {
        if !self.listening {
            let read =
                opcode::Read::new(io_uring::types::Fd(self.bell.as_raw_fd()), self.count.as_mut_ptr(), 8);
            // SAFETY: `count` lives until the ring is dropped, which waits for this.
            unsafe { self.push(&read.build().user_data(BELL))? };
            self.listening = true;
        }
        self.enter(wait)?;
        for end in self.ring.completion() {
            if end.user_data() == BELL {
                self.listening = false;
            } else {
                self.pending -= 1;
                done.push((end.user_data(), end.result()));
            }
        }
        Ok(())
    }

    fn enter(&mut self, wait: bool) -> io::Result<()> {
        // The kernel finishes requests within this call, if told to look for them.
        const LOOK: u32 = 1;
        self.ring.submission().sync();
        let orders = self.ring.submission().len() as u32;
        // SAFETY: no argument is given whose size could be wrong.
        match unsafe { self.ring.submitter().enter::<libc::sigset_t>(orders, u32::from(wait), LOOK, None) } {
            // A signal; too many ends that nobody took, of which some can be taken now.
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
            other => other.map(drop),
        }
    }
}

fn entry(order: &Order<'_>) -> io_uring::squeue::Entry {
    match *order {
        Order::Move { write, file, at, memory, durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            let file = Fixed(file);
            match (memory, write) {
                (Memory::Single(v), true) => opcode::Write::new(file, v.iov_base.cast(), v.iov_len as u32)
                    .offset(at)
                    .rw_flags(flags)
                    .build(),
                (Memory::Single(v), false) => {
                    opcode::Read::new(file, v.iov_base.cast(), v.iov_len as u32).offset(at).build()
                }
                (Memory::Several(v), true) => {
                    opcode::Writev::new(file, v.as_ptr(), v.len() as u32).offset(at).rw_flags(flags).build()
                }
                (Memory::Several(v), false) => {
                    opcode::Readv::new(file, v.as_ptr(), v.len() as u32).offset(at).build()
                }
            }
        }
        Order::Sync { file } => opcode::Fsync::new(Fixed(file)).flags(FsyncFlags::DATASYNC).build(),
        Order::Allocate { file, at, len, mode } => {
            opcode::Fallocate::new(Fixed(file), len).offset(at).mode(mode).build()
        }
    }
}

impl Drop for Ring {
    /// Waits until the kernel uses no memory any more, and lets go of the files.
    fn drop(&mut self) {
        while self.pending > 0 || self.listening {
            // Memory that the kernel may still write to can neither be given back nor kept.
            let rung = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
            if rung.is_err() || self.enter(true).is_err() {
                std::process::abort();
            }
            for end in self.ring.completion() {
                match end.user_data() {
                    BELL => self.listening = false,
                    _ => self.pending -= 1,
                }
            }
        }
        // The ring itself goes when the kernel finds the time, and their locks with them.
        _ = self.ring.submitter().unregister_files();
    }
}
