//! A disk that fails and delays what it is told to: for tests of what is above a disk.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{BlockDevice, BlockError, BlockInfo, Request};

/// What becomes of a request.
#[derive(Debug)]
pub enum Fate {
    /// The disk does it.
    Done,
    /// It ends with this error, and the disk never sees it.
    Fails(BlockError),
    /// The disk does it, but nobody is told: it ends with this error.
    Lies(BlockError),
    /// It is kept until [`Faulty::release`], or until the disk is dropped.
    Held,
}

/// Decides what becomes of a request.
type Judge = Box<dyn FnMut(&Request) -> Fate + Send>;

/// See the [module](self).
pub struct Faulty<D: BlockDevice + ?Sized> {
    disk: Arc<D>,
    judge: Mutex<Judge>,
    held: Mutex<Vec<Request>>,
}

impl<D: BlockDevice + ?Sized> Faulty<D> {
    /// Of a disk; `judge` decides of each request, in the order in which they come.
    pub fn new(disk: Arc<D>, judge: impl FnMut(&Request) -> Fate + Send + 'static) -> Self {
        Self { disk, judge: Mutex::new(Box::new(judge)), held: Mutex::default() }
    }

    /// Those that are held, and how many.
    pub fn held(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The disk does those that are held: all, in their order.
    pub fn release(&self) {
        let mut held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        self.disk.submit(&mut held);
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for Faulty<D> {
    fn info(&self) -> BlockInfo {
        self.disk.info()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        for mut request in std::mem::take(batch) {
            // Before what follows: a completion may submit.
            let fate = (self.judge.lock().unwrap_or_else(PoisonError::into_inner))(&request);
            match fate {
                Fate::Done => self.disk.submit(&mut vec![request]),
                Fate::Fails(e) => request.complete(Err(e)),
                Fate::Held => self.held.lock().unwrap_or_else(PoisonError::into_inner).push(request),
                Fate::Lies(e) => {
                    let done = std::mem::replace(&mut request.done, Box::new(|_| ()));
                    request.done = Box::new(|_| done(Err(e)));
                    self.disk.submit(&mut vec![request]);
                }
            }
        }
    }
}

impl<D: BlockDevice + ?Sized> Drop for Faulty<D> {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::{Buffer, HostBuffer, Operation, RamDisk};

    #[test]
    fn each_request_has_the_fate_that_was_chosen() {
        let ram = Arc::new(RamDisk::new(4096, 512));
        let mut fates =
            [Fate::Done, Fate::Fails(BlockError::NoSpace), Fate::Lies(BlockError::Gone), Fate::Held]
                .into_iter();
        let disk = Faulty::new(Arc::clone(&ram), move |_| fates.next().expect("four"));
        let (tell, told) = channel();
        let mut batch = (0..4)
            .map(|n| {
                let tell = tell.clone();
                let done = Box::new(move |r: Result<(), BlockError>| {
                    tell.send((n, r.map_err(|e| e.to_string()))).expect("somebody waits");
                });
                let buffers = vec![Buffer::host(&HostBuffer::of(&[9; 512]))];
                Request { operation: Operation::Write { fua: false }, at: n * 512, len: 512, buffers, done }
            })
            .collect();
        disk.submit(&mut batch);
        let there = || [0, 512, 1024, 1536].map(|at| ram.contents()[at]);
        let ends: Vec<_> = told.try_iter().collect();
        let (full, gone) = (BlockError::NoSpace.to_string(), BlockError::Gone.to_string());
        assert_eq!(ends, [(0, Ok(())), (1, Err(full)), (2, Err(gone))]);
        assert_eq!((there(), disk.held()), ([9, 0, 9, 0], 1));
        drop(disk);
        assert_eq!((told.try_recv(), there()), (Ok((3, Ok(()))), [9, 0, 9, 9]));
    }
}
