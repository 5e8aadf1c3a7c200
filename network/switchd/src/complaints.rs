//! What is said of those who do wrong: seldom enough that nobody fills a log by it.

use vireo_switch::Nanos;

/// Time between lines, once those that may be said at once have been.
const INTERVAL: Nanos = 10_000_000_000;

/// Whether a line may be said.
#[derive(Debug)]
pub(crate) struct Complaints {
    /// Lines that may be said at once after a quiet time.
    at_once: u32,
    /// So many of them are left, as of then.
    left: u32,
    since: Nanos,
    unsaid: u64,
}

impl Complaints {
    pub fn new(at_once: u32) -> Self {
        Self { at_once, left: at_once, since: 0, unsaid: 0 }
    }

    /// `Some`: it is to be said now, and that so many were not.
    pub fn may(&mut self, now: Nanos) -> Option<u64> {
        let more = now.saturating_sub(self.since) / INTERVAL;
        self.since = self.since.saturating_add(more.saturating_mul(INTERVAL));
        self.left = u32::try_from(more).unwrap_or(u32::MAX).saturating_add(self.left).min(self.at_once);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.unsaid))
            }
            None => {
                self.unsaid = self.unsaid.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_wrong_without_end_is_told_of_seldom() {
        let mut complaints = Complaints::new(3);
        let said: Vec<_> = (0..1000).filter_map(|n| complaints.may(n * 1_000_000_000)).collect();
        // At 0, 1 and 2 s, then at 10, 20 … 990: with the seven or nine between.
        assert_eq!(said.len(), 3 + 99);
        assert_eq!(said[..5], [0, 0, 0, 7, 9]);
        // After a quiet time a few may be said again, not more.
        let later = 1_000_000_000_000_000;
        let again = (0..1000).filter(|n| complaints.may(later + n).is_some()).count();
        assert_eq!(again, 3);
    }
}
