//! What comes to the thread of a disk.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

/// A queue whose one reader sleeps in the kernel, where it waits for its I/O as well.
pub struct Inbox<T> {
    queue: Mutex<Queue<T>>,
    bell: OwnedFd,
}

struct Queue<T> {
    items: Vec<T>,
    /// The reader sleeps, or is about to: it is to be woken, once.
    asleep: bool,
    /// The reader has gone: nothing is taken any more.
    closed: bool,
}

impl<T> Inbox<T> {
    /// An empty one.
    pub fn new() -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { queue: Mutex::new(Queue { items: Vec::new(), asleep: false, closed: false }), bell })
    }

    fn queue(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts items in; when the reader has gone they are dropped.
    pub fn put(&self, items: impl IntoIterator<Item = T>) {
        let mut queue = self.queue();
        if queue.closed {
            return;
        }
        queue.items.extend(items);
        let wake = std::mem::take(&mut queue.asleep);
        drop(queue);
        if wake {
            self.ring();
        }
    }

    /// Rings the bell, by which the reader wakes.
    pub fn ring(&self) {
        // It fails only when the count is full, and then the bell has been ringing.
        _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    /// Can be read when the reader is to wake.
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// For the reader, who is awake: exchanges what there is for an empty list.
    pub fn take(&self, items: &mut Vec<T>) {
        let mut queue = self.queue();
        queue.asleep = false;
        std::mem::swap(&mut queue.items, items);
    }

    /// For the reader, who goes: drops what there is, and what still comes.
    pub fn close(&self) {
        let mut queue = self.queue();
        queue.closed = true;
        let items = std::mem::take(&mut queue.items);
        drop(queue);
        drop(items);
    }

    /// For the reader: whether it may sleep now. If so the bell will ring for what comes.
    pub fn sleep(&self) -> bool {
        let mut queue = self.queue();
        queue.asleep = queue.items.is_empty();
        queue.asleep
    }
}
