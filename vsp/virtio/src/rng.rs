//! Random numbers from the host.
//!
//! Source: virtio 1.2 §5.4.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::device::{Device, Identity, Turn};
use crate::queue::{Broken, ServedQueue};

const QUEUE_SIZE: u16 = 64;
/// Not of any class.
const CLASS: u32 = 0xFF_00_00;
/// Most bytes of one request; a driver that wants more asks again.
const REQUEST_MAX: usize = 4096;
/// Fewer are not worth a request.
const REQUEST_MIN: u64 = 64;
/// Bytes per second. A guest is to have what it needs, not the host's processor.
const RATE: u64 = 1 << 20;
/// Most bytes at once, after a while without any.
const BURST: u64 = 64 << 10;

/// Bytes that may be given, which come back with time.
#[derive(Debug, Clone, Copy)]
struct Budget {
    bytes: u64,
    at: Instant,
}

impl Budget {
    const fn full(now: Instant) -> Self {
        Self { bytes: BURST, at: now }
    }

    /// What there is at `now`, or when there will be enough.
    fn look(&mut self, now: Instant) -> Result<usize, Instant> {
        let passed = now.saturating_duration_since(self.at).min(Duration::from_secs(1));
        let earned = passed.as_micros() as u64 * RATE / 1_000_000;
        // Time that earned nothing yet is kept.
        if earned > 0 {
            self.bytes = (self.bytes + earned).min(BURST);
            self.at = now;
        }
        if self.bytes >= REQUEST_MIN {
            return Ok((self.bytes as usize).min(REQUEST_MAX));
        }
        Err(now + Duration::from_micros((REQUEST_MIN - self.bytes) * 1_000_000 / RATE + 1))
    }

    fn spend(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

/// A source of random numbers: 1 MiB a second at most.
pub struct Rng {
    budget: Mutex<Budget>,
}

impl Rng {
    /// One with all that it may give at once.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { budget: Mutex::new(Budget::full(Instant::now())) })
    }
}

impl Device for Rng {
    fn identity(&self) -> Identity {
        Identity { kind: VIRTIO_ID_RNG as u16, class: CLASS }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn read_config(&self, _offset: usize, _data: &mut [u8]) {}

    fn serve(&self, queue: &ServedQueue) -> Result<Turn, Broken> {
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let most = match budget.look(Instant::now()) {
                Ok(bytes) => bytes,
                Err(at) => return Ok(Turn::At(at)),
            };
            let Some(chain) = queue.pop()? else { return Ok(Turn::Drained) };
            let mut bytes = [0; REQUEST_MAX];
            let wanted = &mut bytes[..chain.writable_len().min(most)];
            let len = fill(wanted);
            chain.write(0, &wanted[..len]);
            budget.spend(len);
            chain.complete(len as u32);
        }
    }
}

/// Fills `bytes` from the host; returns how many it had, which is all unless the host has none to give.
fn fill(bytes: &mut [u8]) -> usize {
    let mut done = 0;
    while done < bytes.len() {
        match getrandom(&mut bytes[done..], GetRandomFlags::empty()) {
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => {
                tracing::debug!("no random numbers from the host: {e}");
                break;
            }
        }
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_bounded_by_time() {
        let start = Instant::now();
        let mut budget = Budget::full(start);
        let mut given = 0;
        while let Ok(n) = budget.look(start) {
            budget.spend(n);
            given += n as u64;
        }
        assert_eq!(given, BURST, "at once");
        // Asked as often as it says: what a second gives is the rate, give or take one request.
        let mut now = start;
        while now < start + Duration::from_secs(1) {
            match budget.look(now) {
                Ok(n) => {
                    budget.spend(n);
                    given += n as u64;
                }
                Err(at) => {
                    assert!(at > now);
                    now = at;
                }
            }
        }
        let rate = given - BURST;
        assert!((RATE * 9 / 10..=RATE + REQUEST_MIN).contains(&rate), "{rate}");
        // And after an hour there is no more than at first.
        let later = now + Duration::from_secs(3600);
        assert_eq!(budget.look(later).ok(), Some(REQUEST_MAX));
        assert_eq!(budget.bytes, BURST);
    }

    #[test]
    fn the_host_gives_different_bytes() {
        let (mut a, mut b) = ([0; 64], [0; 64]);
        assert_eq!((fill(&mut a), fill(&mut b)), (64, 64));
        assert_ne!(a, b);
    }
}
