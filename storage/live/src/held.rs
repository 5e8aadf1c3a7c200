//! Which requests have to wait for which: two whose ranges overlap are not done at the same time if one of them is to be alone.
//! Of such two the one that came first is done first; all others are free.
//!
//! One that has to wait hangs on the *last* of those that came before it and that it has to wait for; when that one ends, it
//! looks on from there towards the first. So it never looks twice at the same, however many wait. Of those that queue up for
//! one range each hangs on the one before it, and an end wakes one.

/// The range of a request, and how it is to be done.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    /// Its start, in bytes.
    pub start: u64,
    /// Where it ends. An empty range is in nobody's way.
    pub end: u64,
    /// Nothing else is to be done in it at the same time.
    pub alone: bool,
}

impl Claim {
    /// Whether two may not be done at the same time.
    fn excludes(&self, other: &Self) -> bool {
        (self.alone || other.alone) && self.start.max(other.start) < self.end.min(other.end)
    }
}

#[derive(Debug)]
struct Entry {
    claim: Claim,
    /// Those that came just before and just after it, of those that are there.
    before: Option<usize>,
    after: Option<usize>,
    /// Those that hang on it.
    waiting: Vec<usize>,
}

/// The requests that are not done, by their numbers, in the order in which they came.
#[derive(Debug, Default)]
pub struct Held {
    entries: Vec<Option<Entry>>,
    last: Option<usize>,
    /// Those that are to be alone: while there are none, nobody need look at all.
    alone: usize,
    /// How often one was looked at for another.
    #[cfg(test)]
    looks: usize,
}

impl Held {
    /// A request comes, with a number that no other has: whether it may begin at once.
    pub fn enter(&mut self, n: usize, claim: Claim) -> bool {
        if self.entries.len() <= n {
            self.entries.resize_with(n + 1, || None);
        }
        let before = self.last.replace(n);
        if let Some(b) = before.and_then(|b| self.entry(b)) {
            b.after = Some(n);
        }
        self.entries[n] = Some(Entry { claim, before, after: None, waiting: Vec::new() });
        self.alone += usize::from(claim.alone);
        self.look(n, before)
    }

    /// A request ends: adds those that may begin now.
    pub fn leave(&mut self, n: usize, free: &mut Vec<usize>) {
        let Some(gone) = self.entries.get_mut(n).and_then(Option::take) else { return };
        self.alone -= usize::from(gone.claim.alone);
        if let Some(b) = gone.before.and_then(|b| self.entry(b)) {
            b.after = gone.after;
        }
        match gone.after.and_then(|a| self.entry(a)) {
            Some(a) => a.before = gone.before,
            None => self.last = gone.before,
        }
        free.extend(gone.waiting.into_iter().filter(|w| self.look(*w, gone.before)));
    }

    fn entry(&mut self, n: usize) -> Option<&mut Entry> {
        self.entries.get_mut(n)?.as_mut()
    }

    /// Hangs a request on the next that it has to wait for, from this one towards the first. If there is none, it may begin.
    fn look(&mut self, n: usize, mut at: Option<usize>) -> bool {
        let Some(claim) = self.entry(n).map(|e| e.claim) else { return false };
        if self.alone == 0 || claim.start >= claim.end {
            return true;
        }
        while let Some(entry) = at.and_then(|at| self.entries.get_mut(at)?.as_mut()) {
            #[cfg(test)]
            {
                self.looks += 1;
            }
            if entry.claim.excludes(&claim) {
                entry.waiting.push(n);
                return false;
            }
            at = entry.before;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::slab::Slab;

    fn clear(start: u64, end: u64) -> Claim {
        Claim { start, end, alone: true }
    }

    /// Of many that came at once, how often one was looked at until all have ended, first come first.
    fn looks(claims: impl Iterator<Item = Claim>) -> usize {
        let mut held = Held::default();
        let mut free: Vec<usize> =
            claims.enumerate().filter_map(|(n, c)| held.enter(n, c).then_some(n)).collect();
        let mut ended = 0;
        while !free.is_empty() {
            for n in std::mem::take(&mut free) {
                held.leave(n, &mut free);
                ended += 1;
            }
        }
        assert_eq!((ended, held.last, held.alone), (held.entries.len(), None, 0));
        held.looks
    }

    #[test]
    fn each_of_many_in_one_range_looks_at_few() {
        const MANY: u64 = 10_000;
        assert!(looks((0..MANY).map(|_| clear(0, 10))) <= 2 * MANY as usize);
        assert!(looks((0..MANY).map(|n| clear(n, n + 2))) <= 2 * MANY as usize);
        // Of one that all others wait for, too.
        let all = std::iter::once(clear(0, MANY));
        let reads = (0..MANY).map(|n| Claim { start: n, end: n + 1, alone: false });
        let pairs = MANY as usize * (MANY as usize + 1) / 2;
        assert!(looks(all.chain(reads)) <= pairs, "no two are compared twice");
        assert_eq!(looks((0..MANY).map(|_| Claim { start: 0, end: 1, alone: false })), 0);
    }

    #[test]
    fn one_that_waits_for_several_begins_when_the_last_of_them_has_ended() {
        let (mut held, mut free) = (Held::default(), Vec::new());
        let read = |start, end| Claim { start, end, alone: false };
        assert!(held.enter(0, read(0, 1)) && held.enter(1, read(4, 5)) && held.enter(2, read(9, 10)));
        assert!(!held.enter(3, clear(0, 8)));
        assert!(!held.enter(4, read(7, 9)), "it came after one that waits");
        assert!(held.enter(5, read(8, 9)) && held.enter(6, read(0, 0)));
        for (n, frees) in [(0, &[][..]), (5, &[]), (2, &[]), (1, &[3]), (3, &[4]), (4, &[]), (6, &[])] {
            held.leave(n, &mut free);
            assert_eq!(std::mem::take(&mut free), frees, "{n}");
        }
    }

    /// The rule itself: the requests in the order in which they came, each with whether it has begun.
    #[derive(Default)]
    struct Scan(Vec<(usize, Claim, bool)>);

    impl Scan {
        /// Those that begin now.
        fn begin(&mut self) -> Vec<usize> {
            let mut new = Vec::new();
            for i in 0..self.0.len() {
                let (n, claim, begun) = self.0[i];
                if !begun && !self.0[..i].iter().any(|o| o.1.excludes(&claim)) {
                    self.0[i].2 = true;
                    new.push(n);
                }
            }
            new
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_scanning_all_would(steps in prop::collection::vec((any::<bool>(), 0..12_u64, 0..6_u64, 0..3_u8, any::<usize>()), 0..200)) {
            let (mut held, mut scan, mut numbers) = (Held::default(), Scan::default(), Slab::default());
            for (comes, start, len, kind, which) in steps {
                let mut free = Vec::new();
                let begun: Vec<_> = scan.0.iter().filter(|o| o.2).map(|o| o.0).collect();
                if comes || begun.is_empty() {
                    let claim = Claim { start, end: start + len, alone: kind == 0 };
                    let n = numbers.insert(());
                    scan.0.push((n, claim, false));
                    free.extend(held.enter(n, claim).then_some(n));
                } else {
                    let n = begun[which % begun.len()];
                    numbers.remove(n);
                    scan.0.retain(|o| o.0 != n);
                    held.leave(n, &mut free);
                }
                let mut wanted = scan.begin();
                free.sort_unstable();
                wanted.sort_unstable();
                prop_assert_eq!(free, wanted);
            }
        }
    }
}
