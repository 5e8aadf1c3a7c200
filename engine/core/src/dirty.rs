//! Which guest pages were written: one bit a page, set by vCPU threads and devices, harvested by a checkpoint or
//! migration.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};

/// Bits for the pages of guest-physical memory from 0 to a fixed limit.
///
/// Marking is a single relaxed load while the log is off, or while the bit is already set.
#[derive(Debug)]
pub struct DirtyBitmap {
    on: AtomicBool,
    words: Box<[AtomicU64]>,
}

/// Bytes a bit stands for.
pub const PAGE: u64 = 4096;

impl DirtyBitmap {
    /// A log, off, for addresses below `limit` bytes.
    pub fn new(limit: u64) -> Self {
        let words = limit.div_ceil(PAGE * 64) as usize;
        Self { on: AtomicBool::new(false), words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether writes are recorded.
    pub fn is_on(&self) -> bool {
        self.on.load(Acquire)
    }

    /// Clears the log and turns it on.
    pub fn start(&self) {
        self.words.iter().for_each(|w| w.store(0, Relaxed));
        self.on.store(true, Release);
    }

    /// Turns the log off.
    pub fn stop(&self) {
        self.on.store(false, Release);
    }

    /// Records that `len` bytes at `gpa` were written, if the log is on. Addresses beyond the limit are ignored.
    pub fn mark(&self, gpa: u64, len: u64) {
        if len == 0 || !self.on.load(Relaxed) {
            return;
        }
        let last = gpa.saturating_add(len - 1) / PAGE;
        for page in gpa / PAGE..=last {
            let Some(word) = self.words.get((page / 64) as usize) else { return };
            let bit = 1u64 << (page % 64);
            if word.load(Relaxed) & bit == 0 {
                word.fetch_or(bit, Release);
            }
        }
    }

    /// Takes the bits set since the last harvest: word `i` holds pages `64*i ..`. The engine's own caches of
    /// "already marked" are the engine's business ([`crate::Partition::dirty_harvest`]).
    pub fn harvest(&self) -> Vec<u64> {
        self.words.iter().map(|w| if w.load(Relaxed) == 0 { 0 } else { w.swap(0, AcqRel) }).collect()
    }

    /// Sets bits again that were harvested but could not be used (a send that failed).
    pub fn put_back(&self, bits: &[u64]) {
        for (word, &b) in self.words.iter().zip(bits) {
            if b != 0 {
                word.fetch_or(b, Release);
            }
        }
    }

    /// Adds bits found elsewhere (a hardware dirty log).
    pub fn merge(&self, bits: &[u64]) {
        self.put_back(bits);
    }
}

/// The page addresses set in harvested bits, in rising order.
pub fn pages(bits: &[u64]) -> impl Iterator<Item = u64> + '_ {
    bits.iter()
        .enumerate()
        .flat_map(|(i, &w)| (0..64).filter(move |b| w >> b & 1 != 0).map(move |b| (i as u64 * 64 + b) * PAGE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_records_nothing_on_records_each_page_touched() {
        let log = DirtyBitmap::new(1 << 20);
        log.mark(0x1000, 1);
        assert_eq!(pages(&log.harvest()).count(), 0);
        log.start();
        log.mark(0x1fff, 2);
        log.mark(0xff000, 0x5000);
        assert_eq!(pages(&log.harvest()).collect::<Vec<_>>(), [0x1000, 0x2000, 0xff000]);
        assert_eq!(pages(&log.harvest()).count(), 0);
    }

    #[test]
    fn what_is_put_back_is_harvested_again() {
        let log = DirtyBitmap::new(1 << 20);
        log.start();
        log.mark(0x3000, 1);
        let bits = log.harvest();
        log.put_back(&bits);
        assert_eq!(pages(&log.harvest()).collect::<Vec<_>>(), [0x3000]);
    }
}
