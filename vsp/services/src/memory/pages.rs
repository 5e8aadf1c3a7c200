//! Which pages a guest has given back: a bit for each, so that no order in which it gives them takes more room.

use std::ops::Range;

/// A set of pages, by number.
#[derive(Debug, Default)]
pub struct PageSet {
    /// As many as were needed so far.
    words: Vec<u64>,
    /// As many as there may be.
    most: u64,
    count: u64,
    /// No page of the set is in a word before this one.
    first: usize,
}

impl PageSet {
    /// An empty set for pages below `limit`.
    pub fn new(limit: u64) -> Self {
        Self { most: limit.div_ceil(64), ..Self::default() }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Adds pages; how many of them are new. Those beyond the limit are none.
    pub fn insert(&mut self, pages: Range<u64>) -> u64 {
        let before = self.count;
        let words = pages.end.div_ceil(64).min(self.most);
        if !pages.is_empty() && words > self.words.len() as u64 {
            self.words.resize(words as usize, 0);
        }
        self.each_word(pages, |word, mask| *word |= mask);
        self.count - before
    }

    fn remove(&mut self, pages: Range<u64>) {
        self.each_word(pages, |word, mask| *word &= !mask);
    }

    fn each_word(&mut self, pages: Range<u64>, change: impl Fn(&mut u64, u64)) {
        let end = pages.end.min(self.words.len() as u64 * 64);
        let mut page = pages.start;
        while page < end {
            let (index, bit) = ((page / 64) as usize, page % 64);
            let bits = (64 - bit).min(end - page);
            let mask = (u64::MAX >> (64 - bits)) << bit;
            let word = &mut self.words[index];
            let before = word.count_ones();
            change(word, mask);
            self.count = self.count + u64::from(word.count_ones()) - u64::from(before);
            self.first = self.first.min(index);
            page += bits;
        }
    }

    /// Takes out the lowest run of pages, at most so many of them.
    pub fn take_run(&mut self, most: u64) -> Option<Range<u64>> {
        let index = (self.first..self.words.len()).find(|i| self.words[*i] != 0)?;
        self.first = index;
        let start = index as u64 * 64 + u64::from(self.words[index].trailing_zeros());
        let mut end = start;
        while end - start < most {
            let Some(word) = self.words.get((end / 64) as usize) else { break };
            let there = u64::from((word >> (end % 64)).trailing_ones());
            end += there;
            if there == 0 || !end.is_multiple_of(64) {
                break;
            }
        }
        let run = start..end.min(start + most);
        self.remove(run.clone());
        Some(run).filter(|run| !run.is_empty())
    }

    /// Takes out all.
    pub fn clear(&mut self) {
        *self = Self { most: self.most, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_go_over_words() {
        let mut set = PageSet::new(1000);
        assert_eq!(set.insert(60..200), 140);
        assert_eq!(set.insert(190..210), 10, "some were there");
        assert_eq!(set.insert(990..5000), 34, "up to the limit, in whole words");
        assert_eq!(set.insert(u64::MAX - 1..u64::MAX), 0);
        assert_eq!(set.take_run(10), Some(60..70));
        assert_eq!(set.take_run(1000), Some(70..210));
        assert_eq!((set.take_run(0), set.count()), (None, 34));
        assert_eq!(set.take_run(1000), Some(990..1024));
        assert_eq!((set.take_run(1000), set.count()), (None, 0));
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0..400_u64, 0..130_u64), 1..60)) {
            let (mut set, mut model) = (PageSet::new(384), BTreeSet::new());
            for (insert, start, len) in steps {
                if insert {
                    let new = (start..(start + len).min(384)).filter(|p| model.insert(*p)).count();
                    prop_assert_eq!(set.insert(start..start + len), new as u64);
                } else {
                    let run = set.take_run(len);
                    let first = model.first().copied().filter(|_| len > 0);
                    prop_assert_eq!(run.as_ref().map(|r| r.start), first);
                    for page in run.clone().into_iter().flatten() {
                        prop_assert!(model.remove(&page));
                    }
                    if let Some(run) = run {
                        prop_assert!(run.end - run.start == len || !model.contains(&run.end));
                    }
                }
                prop_assert_eq!(set.count(), model.len() as u64);
            }
        }
    }
}
