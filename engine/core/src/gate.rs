//! The run gate: how a board's vCPU threads are paused with a deadline, resumed, throttled and told to end.
//!
//! The board's thread loop is `while gate.enter(i) { vcpu.run(bus) }`; everything that needs the vCPUs to stand
//! still goes through [`RunGate::pause_all`]. Pauses nest: the machine runs while the count is zero.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Partition;

/// Pausing did not succeed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PauseError {
    /// Some vCPUs did not come to rest in time; the pause was taken back.
    #[error("vCPUs {0:?} did not stop within {1:?}")]
    Deadline(Vec<u32>, Duration),
    /// The machine is ending.
    #[error("the machine is stopping")]
    Ending,
}

#[derive(Debug)]
struct GateState {
    /// Number of pauses in force.
    pauses: u32,
    /// How often the machine went from paused to running.
    resumes: u64,
    ending: bool,
    /// vCPU i is outside guest code and waits at the gate.
    parked: Vec<bool>,
    /// Percent of time each vCPU is kept out of guest code, 0 to 99.
    throttle: u32,
    /// The thread that does so is there.
    throttling: bool,
}

/// The gate of one partition.
pub struct RunGate {
    partition: Arc<dyn Partition>,
    state: Mutex<GateState>,
    changed: Condvar,
}

/// Length of a throttle period: of each, the given percentage is slept.
const THROTTLE_PERIOD: Duration = Duration::from_millis(20);

impl RunGate {
    /// A gate for `vcpus` threads, closed by one pause: threads wait until [`RunGate::resume`].
    pub fn new(partition: Arc<dyn Partition>, vcpus: u32) -> Arc<Self> {
        let state = GateState {
            pauses: 1,
            resumes: 0,
            ending: false,
            parked: vec![false; vcpus as usize],
            throttle: 0,
            throttling: false,
        };
        Arc::new(Self { partition, state: Mutex::new(state), changed: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by vCPU thread `index` before each run: waits while paused; `false` when the thread has to end.
    pub fn enter(&self, index: u32) -> bool {
        let mut s = self.lock();
        while s.pauses > 0 && !s.ending {
            s.parked[index as usize] = true;
            self.changed.notify_all();
            s = self.changed.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        s.parked[index as usize] = s.ending;
        !s.ending
    }

    /// Called by vCPU thread `index` when its processor cannot go on by itself: waits, counted as parked, until the
    /// machine was paused and resumed (a reset) or ends.
    pub fn hold(&self, index: u32) {
        let mut s = self.lock();
        let resumes = s.resumes;
        s.parked[index as usize] = true;
        self.changed.notify_all();
        while s.resumes == resumes && !s.ending {
            s = self.changed.wait(s).unwrap_or_else(PoisonError::into_inner);
        }
        s.parked[index as usize] = false;
    }

    /// Pauses every vCPU and returns when all stand still, or takes the pause back at the deadline.
    pub fn pause_all(&self, deadline: Duration) -> Result<(), PauseError> {
        let until = Instant::now() + deadline;
        let mut s = self.lock();
        if s.ending {
            return Err(PauseError::Ending);
        }
        s.pauses += 1;
        drop(s);
        self.kick_all();
        s = self.lock();
        while !s.parked.iter().all(|&p| p) && !s.ending {
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                s.pauses -= 1;
                let late = (0..).zip(&s.parked).filter(|(_, p)| !**p).map(|(i, _)| i).collect();
                drop(s);
                self.changed.notify_all();
                return Err(PauseError::Deadline(late, deadline));
            };
            s = self.changed.wait_timeout(s, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        if s.ending { Err(PauseError::Ending) } else { Ok(()) }
    }

    /// Takes one pause back; the vCPUs go on when none is left.
    pub fn resume(&self) {
        let mut s = self.lock();
        s.pauses = s.pauses.saturating_sub(1);
        if s.pauses == 0 {
            s.resumes += 1;
        }
        drop(s);
        self.changed.notify_all();
    }

    /// Ends every vCPU thread: each leaves guest code and its `enter` returns `false`.
    pub fn end(&self) {
        self.lock().ending = true;
        self.changed.notify_all();
        self.kick_all();
    }

    /// Whether the machine is ending.
    pub fn is_ending(&self) -> bool {
        self.lock().ending
    }

    /// Keeps each vCPU out of guest code for `percent` (0 to 99) of the time, for a migration to converge.
    pub fn set_throttle(self: &Arc<Self>, percent: u32) {
        let percent = percent.min(99);
        let mut s = self.lock();
        s.throttle = percent;
        if percent > 0 && !s.throttling {
            let gate = Arc::clone(self);
            let thread = std::thread::Builder::new().name("throttle".into());
            s.throttling = thread.spawn(move || gate.throttle_loop()).is_ok();
        }
    }

    /// Alternates between all paused and all running until the throttle is zero again.
    fn throttle_loop(self: Arc<Self>) {
        loop {
            let mut s = self.lock();
            if s.throttle == 0 || s.ending {
                s.throttling = false;
                return;
            }
            let percent = s.throttle;
            drop(s);
            let held = THROTTLE_PERIOD * percent / 100;
            if self.pause_all(THROTTLE_PERIOD).is_ok() {
                std::thread::sleep(held);
                self.resume();
            }
            std::thread::sleep(THROTTLE_PERIOD - held);
        }
    }

    fn kick_all(&self) {
        let n = self.lock().parked.len() as u32;
        (0..n).for_each(|i| self.partition.kick(i));
    }
}
