//! How long translations of a page last until their code is overwritten. Where that is not long, what is there next must run
//! more often before it is translated: a guest that writes code again and again costs little more than in the interpreter.

use std::sync::atomic::{AtomicU8, Ordering::*};

use crate::clock::{host_tsc, host_tsc_hz};

/// Times that a block is interpreted before it is translated, where code stays.
const HOT: u32 = 24;

/// Pages that are told from each other, by the low bits of their numbers: a power of two.
const PAGES: usize = 1 << 14;

/// A translation takes some 30 microseconds to make. One that ends this soon has not brought that in.
const TOO_SOON_US: u64 = 10;
/// One that ends so soon may have, or not: that depends on how much of the time it ran.
const SOON_US: u64 = 1000;

/// Most doublings of [`HOT`]: interpreting so many runs takes ten times as long as a translation.
const MOST: u8 = 8;
/// Doublings where it is not clear whether translations pay: interpreting so many runs takes about as long as one.
const IN_DOUBT: u8 = 5;

/// For each page, how often [`HOT`] is doubled.
pub struct Churn(Box<[AtomicU8]>);

/// When a translation was made, on this host's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Made(u64);

impl Made {
    /// Now.
    pub fn now() -> Self {
        Self(host_tsc())
    }

    fn age_us(self) -> u64 {
        host_tsc().saturating_sub(self.0) / (host_tsc_hz() / 1_000_000).max(1)
    }
}

impl Churn {
    /// All code stays.
    pub fn new() -> Self {
        Self((0..PAGES).map(|_| AtomicU8::new(0)).collect())
    }

    fn of(&self, page: u32) -> &AtomicU8 {
        &self.0[page as usize % PAGES]
    }

    /// Times that a block of a page is to be interpreted before it is translated.
    pub fn hot(&self, page: u32) -> u32 {
        HOT << self.of(page).load(Relaxed)
    }

    /// Code of a page was overwritten, of which the last translation had been made then.
    pub fn overwritten(&self, page: u32, made: Made) {
        let doublings = self.of(page);
        let now = next(doublings.load(Relaxed), made.age_us());
        // Others may change it meanwhile: either is as good.
        doublings.store(now, Relaxed);
    }
}

/// Doublings after the end of a translation that is so old.
fn next(now: u8, age_us: u64) -> u8 {
    match age_us {
        ..TOO_SOON_US => (now + 1).min(MOST),
        ..SOON_US if now < IN_DOUBT => now + 1,
        ..SOON_US if now == IN_DOUBT => now,
        _ => now.saturating_sub(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_must_be_hotter_where_it_does_not_stay() {
        let after = |ages: &[u64]| ages.iter().fold(0, |now, &age| next(now, age));
        assert_eq!(after(&[0; 3]), 3);
        assert_eq!(after(&[0; 1000]), MOST);
        assert_eq!(after(&[100; 1000]), IN_DOUBT);
        assert_eq!(after(&[0, 0, 0, 0, 0, 0, 0, 0, 100, 100, 100, 100]), IN_DOUBT);
        assert_eq!(after(&[0, 0, 0, 0, 5000, 5000]), 2);
        assert_eq!(after(&[5000; 10]), 0);
    }

    #[test]
    fn pages_are_told_from_each_other() {
        let churn = Churn::new();
        churn.overwritten(3, Made::now());
        assert_eq!((churn.hot(3), churn.hot(4)), (2 * HOT, HOT));
    }
}
