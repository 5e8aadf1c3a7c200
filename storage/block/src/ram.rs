//! Disks that are memory.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{BlockDevice, BlockError, BlockInfo, Operation, Request};

const fn plain(size: u64, sector: u32) -> BlockInfo {
    BlockInfo { size, sector, physical_sector: sector, read_only: false, unmap: true, id: [0; 16] }
}

/// Keeps nothing: writes are taken, reads leave the buffers as they are. What is above a disk can be measured with it.
#[derive(Debug)]
pub struct Null(BlockInfo);

impl Null {
    /// Of `size` bytes.
    pub const fn new(size: u64) -> Self {
        Self(plain(size, 512))
    }
}

impl BlockDevice for Null {
    fn info(&self) -> BlockInfo {
        self.0
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        for request in batch.drain(..) {
            let result = request.check(&self.0);
            request.complete(result);
        }
    }
}

/// A disk in memory. Requests complete within [`BlockDevice::submit`].
#[derive(Debug)]
pub struct RamDisk {
    info: Mutex<BlockInfo>,
    bytes: Mutex<Vec<u8>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RamDisk {
    /// Of `size` bytes, all zero, with sectors of `sector` bytes.
    pub fn new(size: usize, sector: u32) -> Self {
        Self { info: Mutex::new(plain(size as u64, sector)), bytes: Mutex::new(vec![0; size]) }
    }

    /// Changes what it says of itself, but not its size.
    pub fn describe(&self, change: impl FnOnce(&mut BlockInfo)) {
        let mut info = lock(&self.info);
        let size = info.size;
        change(&mut info);
        info.size = size;
    }

    /// Makes it larger (or smaller) while it is used.
    pub fn resize(&self, size: usize) {
        lock(&self.bytes).resize(size, 0);
        lock(&self.info).size = size as u64;
    }

    /// All that is on it.
    pub fn contents(&self) -> Vec<u8> {
        lock(&self.bytes).clone()
    }

    fn serve(&self, request: &Request) -> Result<(), BlockError> {
        request.check(&self.info())?;
        let mut bytes = lock(&self.bytes);
        let range = request.at as usize..(request.at + request.len) as usize;
        let range = bytes.get_mut(range).ok_or(BlockError::Gone)?;
        let mut at = 0;
        match request.operation {
            Operation::Read => {
                for b in &request.buffers {
                    b.write(0, &range[at..at + b.len()]);
                    at += b.len();
                }
            }
            Operation::Write { .. } => {
                for b in &request.buffers {
                    b.read(0, &mut range[at..at + b.len()]);
                    at += b.len();
                }
            }
            Operation::Flush => {}
            Operation::Unmap | Operation::WriteZeroes => range.fill(0),
        }
        Ok(())
    }
}

impl BlockDevice for RamDisk {
    fn info(&self) -> BlockInfo {
        *lock(&self.info)
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        for request in batch.drain(..) {
            let result = self.serve(&request);
            request.complete(result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;
    use crate::{Buffer, HostBuffer};

    fn does(
        disk: &dyn BlockDevice,
        operation: Operation,
        at: u64,
        len: u64,
        buffers: Vec<Buffer>,
    ) -> Result<(), BlockError> {
        let (sender, receiver) = channel();
        let done = Box::new(move |result| sender.send(result).expect("somebody waits"));
        disk.submit(&mut vec![Request { operation, at, len, buffers, done }]);
        receiver.recv().expect("every request completes")
    }

    #[test]
    fn what_is_written_is_read_and_zeroed_in_any_pieces() {
        let disk = RamDisk::new(8192, 512);
        let pattern: Vec<u8> = (0..1024_u32).map(|i| (i / 3) as u8).collect();
        let (a, b) = Buffer::host(&HostBuffer::of(&pattern)).split_at(100);
        does(&disk, Operation::Write { fua: false }, 512, 1024, vec![a, b]).expect("written");
        assert_eq!(disk.contents()[512..1536], pattern);
        let back = HostBuffer::new(1024);
        does(&disk, Operation::Read, 512, 1024, vec![Buffer::host(&back)]).expect("read");
        let mut bytes = vec![0; 1024];
        back.read(0, &mut bytes);
        assert_eq!(bytes, pattern);
        does(&disk, Operation::WriteZeroes, 1024, 512, vec![]).expect("zeroed");
        assert_eq!(disk.contents()[1024..1536], [0; 512]);
        assert_eq!(disk.contents()[512..1024], pattern[..512]);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let disk = RamDisk::new(8192, 512);
        let buffer = |n| vec![Buffer::host(&HostBuffer::new(n))];
        let read = |at, len, n| does(&disk, Operation::Read, at, len, buffer(n));
        assert!(matches!(read(8192, 512, 512), Err(BlockError::OutOfRange { .. })));
        assert!(matches!(read(u64::MAX - 511, 512, 512), Err(BlockError::OutOfRange { .. })));
        assert!(matches!(read(1, 512, 512), Err(BlockError::OutOfRange { .. })));
        assert!(matches!(read(0, 512, 1024), Err(BlockError::Buffers { have: 1024, need: 512 })));
        disk.describe(|i| i.read_only = true);
        assert!(matches!(does(&disk, Operation::Unmap, 0, 512, vec![]), Err(BlockError::ReadOnly)));
        assert!(read(0, 512, 512).is_ok());
        assert!(does(&disk, Operation::Flush, 0, 0, vec![]).is_ok());
    }

    #[test]
    fn nothing_is_kept_by_none() {
        let disk = Arc::new(Null::new(1 << 40));
        assert!(
            does(
                &*disk,
                Operation::Write { fua: true },
                1 << 39,
                512,
                vec![Buffer::host(&HostBuffer::new(512))]
            )
            .is_ok()
        );
    }
}
