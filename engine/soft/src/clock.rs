//! Guest time: the guest's time-stamp counter is the host's, less an offset.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vireo_core::partition::ClockState;

/// The host's time-stamp counter.
#[inline(always)]
pub fn host_tsc() -> u64 {
    // SAFETY: RDTSC reads a counter; Linux lets user mode execute it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Rate of the host's time-stamp counter in Hz, measured once against the monotonic clock.
pub fn host_tsc_hz() -> u64 {
    static HZ: OnceLock<u64> = OnceLock::new();
    *HZ.get_or_init(|| {
        // 20 ms between two bracketed readings: the error is below 10 ppm, and below what an NTP client corrects.
        let (a, ta) = bracketed();
        std::thread::sleep(Duration::from_millis(20));
        let (b, tb) = bracketed();
        let ns = (tb - ta).as_nanos().max(1);
        let hz = u128::from(b.saturating_sub(a)) * 1_000_000_000 / ns;
        // Counters run at a multiple of 100 kHz on every known host; the measurement's noise is below that.
        let step = 100_000;
        ((hz + step / 2) / step * step) as u64
    })
}

/// A counter value and the time at which it was read, from the tightest of several tries.
fn bracketed() -> (u64, Instant) {
    let mut best = (u64::MAX, 0, Instant::now());
    for _ in 0..16 {
        let before = host_tsc();
        let now = Instant::now();
        let after = host_tsc();
        if after.saturating_sub(before) < best.0 {
            best = (after.saturating_sub(before), before + after.saturating_sub(before) / 2, now);
        }
    }
    (best.1, best.2)
}

/// The guest's counter.
pub struct Clock {
    /// Guest value = host value - offset, while not frozen.
    offset: AtomicU64,
    frozen: AtomicBool,
    /// The guest value at which it stands while frozen.
    stopped_at: Mutex<u64>,
}

impl Clock {
    /// A clock that starts at zero, now.
    pub fn new() -> Self {
        Self { offset: AtomicU64::new(host_tsc()), frozen: AtomicBool::new(false), stopped_at: Mutex::new(0) }
    }

    fn stopped(&self) -> std::sync::MutexGuard<'_, u64> {
        self.stopped_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's counter now, not counting a vCPU's own adjustment.
    #[inline(always)]
    pub fn tsc(&self) -> u64 {
        if self.frozen.load(Relaxed) {
            return *self.stopped();
        }
        host_tsc().wrapping_sub(self.offset.load(Relaxed))
    }

    /// Host value less guest value, while not frozen.
    pub fn offset(&self) -> u64 {
        self.offset.load(Relaxed)
    }

    /// Stops the counter.
    pub fn freeze(&self) {
        let mut stopped = self.stopped();
        if !self.frozen.load(Relaxed) {
            *stopped = host_tsc().wrapping_sub(self.offset.load(Relaxed));
            self.frozen.store(true, Release);
        }
    }

    /// Lets it go on from where it stopped.
    pub fn thaw(&self) {
        let stopped = self.stopped();
        if self.frozen.load(Relaxed) {
            self.offset.store(host_tsc().wrapping_sub(*stopped), Relaxed);
            self.frozen.store(false, Release);
        }
    }

    /// Value and rate.
    pub fn export(&self) -> ClockState {
        ClockState { tsc: self.tsc(), tsc_hz: host_tsc_hz() }
    }

    /// Sets the value; frozen or not, it goes on from there.
    pub fn import(&self, tsc: u64) {
        *self.stopped() = tsc;
        self.offset.store(host_tsc().wrapping_sub(tsc), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_clock_stands_and_goes_on_from_there() {
        let c = Clock::new();
        c.freeze();
        let a = c.tsc();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(c.tsc(), a);
        c.thaw();
        let b = c.tsc();
        assert!(b >= a && b - a < host_tsc_hz());
        c.import(12345);
        assert!(c.tsc() - 12345 < host_tsc_hz());
    }
}
