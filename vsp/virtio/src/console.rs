//! A console with one port.
//!
//! Source: virtio 1.2 §5.3.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vireo_chipset::lines::SerialSink;
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use crate::device::{Device, Identity, Kicker, Turn};
use crate::queue::{Broken, Chain, ServedQueue};

const QUEUE_SIZE: u16 = 64;
/// Communication controller, of no more special kind.
const CLASS: u32 = 0x07_80_00;
const RECEIVE: usize = 0;
/// Most bytes of input that wait for the guest.
const WAITING_MAX: usize = 64 * 1024;
/// Bytes that are copied at once.
const PIECE: usize = 4096;
/// Most bytes that one chain sends: more than any driver does. The rest of a longer one is lost, or the device could be kept
/// from coming to rest for hours.
const SENT_MAX: usize = 1 << 20;

/// A console: what the guest writes goes to a sink, what is typed waits until the guest reads it.
pub struct Console {
    sink: Arc<dyn SerialSink>,
    waiting: Mutex<VecDeque<u8>>,
    kicker: OnceLock<Kicker>,
}

impl Console {
    /// One that writes to `sink`. While that blocks, so does the console, and it cannot come to rest.
    pub fn new(sink: Arc<dyn SerialSink>) -> Arc<Self> {
        Arc::new(Self { sink, waiting: Mutex::default(), kicker: OnceLock::new() })
    }

    /// Adds input for the guest; returns how many bytes there was room for.
    pub fn push_input(&self, bytes: &[u8]) -> usize {
        let mut waiting = self.waiting();
        let n = bytes.len().min(WAITING_MAX.saturating_sub(waiting.len()));
        waiting.extend(&bytes[..n]);
        drop(waiting);
        if n > 0
            && let Some(kicker) = self.kicker.get()
        {
            kicker.kick(RECEIVE);
        }
        n
    }

    /// Forgets input that the guest has not taken: the machine is reset, say.
    pub fn clear_input(&self) {
        self.waiting().clear();
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn receive(&self, queue: &ServedQueue) -> Result<Turn, Broken> {
        loop {
            // Looked at before the queue: what comes after a look kicks.
            if self.waiting().is_empty() {
                return Ok(Turn::Waits);
            }
            let Some(chain) = queue.pop()? else { return Ok(Turn::Drained) };
            let mut waiting = self.waiting();
            let mut written = 0;
            while !waiting.is_empty() {
                let (first, _) = waiting.as_slices();
                let n = chain.write(written, first);
                if n == 0 {
                    break;
                }
                waiting.drain(..n);
                written += n;
            }
            drop(waiting);
            chain.complete(written as u32);
        }
    }

    fn send(&self, queue: &ServedQueue) -> Result<Turn, Broken> {
        while let Some(chain) = queue.pop()? {
            self.write_out(&chain);
            chain.complete(0);
        }
        Ok(Turn::Drained)
    }

    fn write_out(&self, chain: &Chain) {
        let mut piece = [0; PIECE];
        for at in (0..SENT_MAX).step_by(PIECE) {
            match chain.read(at, &mut piece) {
                0 => return,
                n => self.sink.write(&piece[..n]),
            }
        }
    }
}

impl Device for Console {
    fn identity(&self) -> Identity {
        Identity { kind: VIRTIO_ID_CONSOLE as u16, class: CLASS }
    }

    /// No size, no further ports, no emergency output.
    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; 2]
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn connect(&self, kicker: Kicker) {
        _ = self.kicker.set(kicker);
    }

    fn serve(&self, queue: &ServedQueue) -> Result<Turn, Broken> {
        if queue.index() == RECEIVE { self.receive(queue) } else { self.send(queue) }
    }
}
