//! Ports that guests write to for their side effect on people and time: POST codes and I/O delays.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BytePorts;

/// Takes what is written and gives the last of it back.
#[derive(Debug, Default)]
pub struct PostPort(AtomicU8);

impl PostPort {
    /// The last code written: where a firmware that hangs has come to.
    pub fn last(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

impl BytePorts for PostPort {
    fn read(&self, _port: u16) -> u8 {
        self.last()
    }

    fn write(&self, _port: u16, value: u8) {
        self.0.store(value, Ordering::Relaxed);
    }
}
