//! Guest time: the clock and timer traits the devices use, and their real implementation.
//!
//! All deadlines are nanoseconds of the guest's monotonic clock, which stands still while the machine is
//! paused. Devices compute their state from the clock alone; timers only make them look at it, so a late or
//! a spurious expiry never changes what the guest sees but for its delay.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

/// The guest's time.
pub trait Clock: Send + Sync {
    /// Nanoseconds since the machine was first started, without those it spent paused. Never goes backwards.
    fn now_ns(&self) -> u64;

    /// Time since 1970-01-01 00:00:00 UTC, for the RTC. Goes on during a pause.
    fn wall_clock(&self) -> Duration;
}

/// What a timer calls when it expires. Runs on the service's thread and may arm timers.
pub type TimerCallback = Box<dyn Fn() + Send + Sync>;

/// Makes timers.
pub trait TimerService: Send + Sync {
    /// A new timer, not armed. Dropping it cancels it.
    fn create(&self, on_expiry: TimerCallback) -> Box<dyn Timer>;
}

/// A one-shot timer.
pub trait Timer: Send + Sync {
    /// Expires once when the guest's clock reaches `deadline_ns`, at once when it already has. Replaces an
    /// earlier deadline.
    fn arm(&self, deadline_ns: u64);

    /// Forgets the deadline. An expiry that is already under way still calls back.
    fn cancel(&self);
}

/// Guest time on the host's monotonic clock, with pause and resume.
#[derive(Debug)]
pub struct HostClock {
    state: Mutex<HostClockState>,
}

#[derive(Debug)]
struct HostClockState {
    /// Guest time at `running_since`, or now when paused.
    base_ns: u64,
    running_since: Option<Instant>,
}

impl HostClock {
    /// A paused clock at `start_ns`: 0 for a new machine, the saved value for a restored one.
    pub fn new(start_ns: u64) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(HostClockState { base_ns: start_ns, running_since: None }) })
    }

    /// Lets time go on. No effect on a running clock.
    pub fn resume(&self) {
        self.lock().running_since.get_or_insert_with(Instant::now);
    }

    /// Stops time. No effect on a paused clock.
    pub fn pause(&self) {
        let mut state = self.lock();
        state.base_ns = state.now_ns();
        state.running_since = None;
    }

    /// Moves the clock to `now_ns`, for a restore; call it only while nothing of the machine runs.
    pub fn set(&self, now_ns: u64) {
        let mut state = self.lock();
        state.base_ns = now_ns;
        if state.running_since.is_some() {
            state.running_since = Some(Instant::now());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HostClockState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostClockState {
    fn now_ns(&self) -> u64 {
        let ran = self.running_since.map_or(0, |since| since.elapsed().as_nanos() as u64);
        self.base_ns.saturating_add(ran)
    }
}

impl Clock for HostClock {
    fn now_ns(&self) -> u64 {
        self.lock().now_ns()
    }

    fn wall_clock(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// Whole cycles of a `hz` oscillator in `ns` nanoseconds.
pub(crate) fn ns_to_cycles(ns: u64, hz: u64) -> u64 {
    (u128::from(ns) * u128::from(hz) / 1_000_000_000) as u64
}

/// The first nanosecond at which `cycles` whole cycles of a `hz` oscillator have passed.
pub(crate) fn cycles_to_ns(cycles: u64, hz: u64) -> u64 {
    u64::try_from((u128::from(cycles) * 1_000_000_000).div_ceil(u128::from(hz))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paused_clock_stands_still_and_continues() {
        let clock = HostClock::new(500);
        assert_eq!(clock.now_ns(), 500);
        clock.resume();
        while clock.now_ns() == 500 {}
        clock.pause();
        let stopped = clock.now_ns();
        std::thread::yield_now();
        assert_eq!(clock.now_ns(), stopped);
        clock.set(7);
        assert_eq!(clock.now_ns(), 7);
    }

    #[test]
    fn cycles_round_trip() {
        for hz in [crate::layout::PIT_HZ, crate::layout::PM_TIMER_HZ, 32_768] {
            for cycles in [0, 1, 2, 3, 65_535, 65_536, 1 << 31, 1 << 40] {
                assert_eq!(ns_to_cycles(cycles_to_ns(cycles, hz), hz), cycles);
            }
        }
    }
}
