//! A set of interrupt vectors, as in IRR, ISR and TMR.

/// 256 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VectorSet(pub [u64; 4]);

impl VectorSet {
    /// Whether the vector is in the set.
    #[inline]
    pub fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0
    }
    /// Adds a vector.
    #[inline]
    pub fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] |= 1 << (vector & 63);
    }
    /// Removes a vector.
    #[inline]
    pub fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector >> 6)] &= !(1 << (vector & 63));
    }
    /// Adds or removes a vector.
    pub fn set(&mut self, vector: u8, present: bool) {
        if present { self.insert(vector) } else { self.remove(vector) }
    }
    /// The highest vector.
    #[inline]
    pub fn highest(&self) -> Option<u8> {
        (0..4).rev().find(|&i| self.0[i] != 0).map(|i| (i as u32 * 64 + 63 - self.0[i].leading_zeros()) as u8)
    }
    /// The vectors, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = u8> {
        (0..=255).filter(move |&v| self.has(v))
    }
    /// The 32-bit register that holds vectors `32 * i ..`.
    pub fn word(&self, i: usize) -> u32 {
        (self.0[i / 2] >> (32 * (i % 2))) as u32
    }
    /// Sets that register.
    pub fn set_word(&mut self, i: usize, value: u32) {
        let shift = 32 * (i % 2);
        self.0[i / 2] = self.0[i / 2] & !(0xffff_ffff << shift) | u64::from(value) << shift;
    }
}
