//! What code certainly has no translation: known without a lock, since most code that is looked up has none.

use std::sync::atomic::{AtomicU8, Ordering::*};

use super::Key;

/// Counters: a power of two, and more than there are translations.
const COUNTERS: usize = 1 << 19;

/// How many translations there are for each hash of a key without its address. One that has been at its most stays there.
pub struct Filter(Box<[AtomicU8]>);

impl Filter {
    /// For no translations.
    pub fn new() -> Self {
        Self((0..COUNTERS).map(|_| AtomicU8::new(0)).collect())
    }

    fn counter(&self, key: &Key) -> &AtomicU8 {
        let mixed = (key.gpa ^ key.in_page() << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.0[(mixed >> (u64::BITS - COUNTERS.ilog2())) as usize]
    }

    /// There is one more translation of a key.
    pub fn add(&self, key: &Key) {
        let more = |n: u8| n.checked_add(1);
        _ = self.counter(key).fetch_update(Relaxed, Relaxed, more);
    }

    /// There is one less, which had been added.
    pub fn remove(&self, key: &Key) {
        let less = |n: u8| if n == u8::MAX { None } else { n.checked_sub(1) };
        _ = self.counter(key).fetch_update(Relaxed, Relaxed, less);
    }

    /// False: there is none, nor was a moment ago.
    pub fn may_have(&self, key: &Key) -> bool {
        self.counter(key).load(Relaxed) != 0
    }
}
