//! So much in a second. Time is told, never asked for.

use std::time::Duration;

/// Since some moment that stays the same, in nanoseconds: 584 years of it.
pub type Nanos = u64;

const SECOND: u128 = 1_000_000_000;

/// A rate that may be exceeded for a moment, by what was not used before (the generic cell rate algorithm, ITU-T I.371).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Units in a second, at least 1.
    rate: u64,
    /// What may be taken at once after a pause, as time.
    burst: Nanos,
    /// When all that was taken is made up for.
    even: Nanos,
}

impl Bucket {
    /// A full one: `rate` units in a second, `burst` units at once.
    pub fn new(rate: u64, burst: u64) -> Self {
        let rate = rate.max(1);
        Self { rate, burst: time(burst, rate), even: 0 }
    }

    /// Takes units, or says how long it is until they can be had. More than a burst can be had when it is full, and is made up for.
    pub fn take(&mut self, units: u64, now: Nanos) -> Result<(), Duration> {
        let even = self.even.max(now);
        let cost = time(units, self.rate);
        let debt = (even - now).saturating_add(cost.min(self.burst));
        if debt > self.burst {
            return Err(Duration::from_nanos(debt - self.burst));
        }
        self.even = even.saturating_add(cost);
        Ok(())
    }
}

fn time(units: u64, rate: u64) -> Nanos {
    (u128::from(units) * SECOND / u128::from(rate)).try_into().unwrap_or(Nanos::MAX)
}
