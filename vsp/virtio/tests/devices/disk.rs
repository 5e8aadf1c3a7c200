//! A disk whose requests complete when the test says so, on the test's thread.

use std::sync::{Arc, Mutex};

use vireo_block::{BlockDevice, BlockInfo, RamDisk, Request};

pub struct Held {
    disk: RamDisk,
    requests: Mutex<Vec<Request>>,
}

impl Held {
    pub fn new(size: usize) -> Arc<Self> {
        Arc::new(Self { disk: RamDisk::new(size, 512), requests: Mutex::default() })
    }

    pub fn held(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    /// Completes the `n`th of those that wait.
    pub fn complete(&self, n: usize) {
        let request = self.requests.lock().unwrap().remove(n);
        self.disk.submit(&mut vec![request]);
    }

    pub fn complete_all(&self) {
        while self.held() > 0 {
            self.complete(self.held() - 1);
        }
    }

    /// Drops the requests that wait, as no disk may.
    pub fn lose_all(&self) {
        let lost = std::mem::take(&mut *self.requests.lock().unwrap());
        drop(lost);
    }
}

impl BlockDevice for Held {
    fn info(&self) -> BlockInfo {
        self.disk.info()
    }
    fn submit(&self, batch: &mut Vec<Request>) {
        self.requests.lock().unwrap().append(batch);
    }
}
