//! What code certainly has no translation: known without a lock, since most code that is looked up has none.

use std::sync::atomic::{AtomicU64, Ordering::*};

use super::Key;

/// Bits, of which a translation sets one: a power of two, and many more than there are translations.
const BITS: usize = 1 << 21;

/// A bit for what the hash of a key, without its address, may be.
pub struct Filter(Box<[AtomicU64]>);

impl Filter {
    /// For no translations.
    pub fn new() -> Self {
        Self((0..BITS / 64).map(|_| AtomicU64::new(0)).collect())
    }

    fn place(&self, key: &Key) -> (&AtomicU64, u64) {
        let mixed = (key.gpa ^ key.in_page() << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let bit = (mixed >> (u64::BITS - BITS.ilog2())) as usize;
        (&self.0[bit / 64], 1 << (bit % 64))
    }

    /// There is a translation of a key.
    pub fn add(&self, key: &Key) {
        let (word, bit) = self.place(key);
        word.fetch_or(bit, Relaxed);
    }

    /// False: there is none, nor was a moment ago.
    pub fn may_have(&self, key: &Key) -> bool {
        let (word, bit) = self.place(key);
        word.load(Relaxed) & bit != 0
    }

    /// There are none but those that are added from now on. Others may seem to have none until they are.
    pub fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Relaxed));
    }
}
