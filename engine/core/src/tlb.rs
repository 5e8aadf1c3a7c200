//! Flushing the TLBs of several vCPUs at the request of one, without interrupts: an ability that not every engine has.

/// vCPUs by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuSet([u64; Self::WORDS]);

impl VcpuSet {
    const WORDS: usize = 16;
    /// Indices below this can be in it.
    pub const LIMIT: u32 = 64 * Self::WORDS as u32;

    /// The vCPUs below an index.
    pub fn below(end: u32) -> Self {
        let word = |at: u32| match end.saturating_sub(64 * at) {
            0 => 0,
            bits @ 1..64 => (1 << bits) - 1,
            _ => u64::MAX,
        };
        Self(std::array::from_fn(|at| word(at as u32)))
    }

    /// Adds those whose bits are set in a word, of indices from 64 times `at` on. What is beyond the limit is left out.
    pub fn add_word(&mut self, at: usize, bits: u64) {
        if let Some(word) = self.0.get_mut(at) {
            *word |= bits;
        }
    }

    /// The indices below `end` that are in it, in order.
    pub fn iter_below(&self, end: u32) -> impl Iterator<Item = u32> {
        let within = Self::below(end).0;
        let words = std::array::from_fn::<u64, { Self::WORDS }, _>(|at| self.0[at] & within[at]);
        (0..).zip(words).flat_map(|(at, mut word)| {
            std::iter::from_fn(move || {
                let bit = (word != 0).then(|| word.trailing_zeros())?;
                word &= word - 1;
                Some(64 * at + bit)
            })
        })
    }
}

/// Pages of 4 KiB, one after the other, by their linear addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    first: u64,
    last: u64,
}

impl PageRange {
    const OFFSET: u64 = 4096 - 1;

    /// The page that an address is in.
    pub fn at(linear: u64) -> Self {
        Self::between(linear, linear)
    }

    /// The page that an address is in, and so many more. `None`: they would go beyond the highest address.
    pub fn new(linear: u64, more: u64) -> Option<Self> {
        let last = more.checked_mul(Self::OFFSET + 1)?.checked_add(linear)?;
        Some(Self::between(linear, last))
    }

    /// The pages from that of one address to that of another, which is not below.
    pub fn between(first: u64, last: u64) -> Self {
        debug_assert!(first <= last);
        Self { first: first & !Self::OFFSET, last: last & !Self::OFFSET }
    }

    /// Address of the first page.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Address of the last page.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// How many there are: at least one.
    pub fn count(&self) -> u64 {
        ((self.last - self.first) >> 12) + 1
    }

    /// Whether they have a page in common.
    pub fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The fewest pages with those of both.
    pub fn cover(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }
}

/// Which translations are forgotten. All that is said is of every address space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlbScope {
    /// Every one.
    All,
    /// All but those of global pages.
    NonGlobal,
    /// Those of pages, global or not.
    Pages(Vec<PageRange>),
}

/// Flushes TLBs.
pub trait TlbFlusher: Send + Sync {
    /// Has vCPUs forget translations; those that are not there are left out. Called in [`Bus::hypercall`](crate::Bus) of
    /// vCPU `by`, it waits for nobody. But the guest's hypercall does not end before no vCPU of the set can use such a
    /// translation again that it had when this was called.
    fn flush_tlbs(&self, by: u32, of: &VcpuSet, scope: &TlbScope);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_pages_meet_and_cover_each_other() {
        let range = |first, more| PageRange::new(first, more).expect("it ends below the highest address");
        assert_eq!(range(0x5fff, 2), PageRange::between(0x5000, 0x7abc));
        assert_eq!((range(0x5000, 2).count(), PageRange::at(0x5123).count()), (3, 1));
        assert_eq!(PageRange::between(0, u64::MAX).count(), 1 << 52);
        assert!(range(0x5000, 2).meets(&range(0x7000, 0)) && range(0x7000, 0).meets(&range(0x5000, 2)));
        assert!(!range(0x5000, 2).meets(&range(0x8000, 9)) && !range(0x5000, 2).meets(&range(0x4000, 0)));
        assert_eq!(range(0x9000, 1).cover(range(0x2000, 0)), range(0x2000, 8));
        assert_eq!(PageRange::new(!0xfff, 0), Some(PageRange::at(u64::MAX)));
        assert_eq!(PageRange::new(!0xfff, 1), None);
        assert_eq!(PageRange::new(0, u64::MAX), None);
    }

    #[test]
    fn a_set_has_what_was_added_and_is_below_the_end() {
        let mut s = VcpuSet::default();
        s.add_word(0, 1 << 63 | 0b101);
        s.add_word(1, 1);
        s.add_word(15, 1 << 63);
        s.add_word(16, u64::MAX);
        assert_eq!(s.iter_below(VcpuSet::LIMIT).collect::<Vec<_>>(), [0, 2, 63, 64, 1023]);
        assert_eq!(s.iter_below(64).collect::<Vec<_>>(), [0, 2, 63]);
        assert_eq!(s.iter_below(u32::MAX).count(), 5);
        for end in [0, 1, 63, 64, 65, 1024] {
            assert_eq!(
                VcpuSet::below(end).iter_below(u32::MAX).collect::<Vec<_>>(),
                (0..end).collect::<Vec<_>>()
            );
        }
    }
}
