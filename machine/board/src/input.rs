//! Bytes on their way to the guest's serial port, which takes no more than its FIFO holds.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use vireo_chipset::uart::Uart;

/// Most bytes that wait; more are refused.
const LIMIT: usize = 64 * 1024;

/// The queue in front of a serial port.
pub struct SerialInput {
    uart: Arc<Uart>,
    waiting: Mutex<VecDeque<u8>>,
}

impl SerialInput {
    /// A queue that the port empties as it has room.
    pub fn new(uart: &Arc<Uart>) -> Arc<Self> {
        let input = Arc::new(Self { uart: Arc::clone(uart), waiting: Mutex::default() });
        let weak = Arc::downgrade(&input);
        uart.on_space(Box::new(move || {
            if let Some(input) = weak.upgrade() {
                input.feed();
            }
        }));
        input
    }

    /// Adds bytes; gives how many there was room for.
    pub fn push(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.lock();
        let n = bytes.len().min(LIMIT.saturating_sub(waiting.len()));
        waiting.extend(&bytes[..n]);
        drop(waiting);
        self.feed();
        n
    }

    fn feed(&self) {
        let mut waiting = self.lock();
        let taken = self.uart.push_input(waiting.make_contiguous());
        waiting.drain(..taken);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
