//! Guest time that moves only when told, for tests of devices and boards.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Timer, TimerCallback, TimerService};

/// A clock and a timer service in one. Timers expire inside [`SimulatedTime::advance`], on its thread, in
/// the order of their deadlines.
#[derive(Clone)]
pub struct SimulatedTime(Arc<Mutex<State>>);

struct State {
    now_ns: u64,
    wall_start: Duration,
    next_id: u64,
    callbacks: HashMap<u64, Arc<TimerCallback>>,
    due: BTreeSet<(u64, u64)>,
}

impl SimulatedTime {
    /// Guest time 0; the wall clock then shows `wall_start` since 1970.
    pub fn new(wall_start: Duration) -> Self {
        let (callbacks, due) = (HashMap::new(), BTreeSet::new());
        Self(Arc::new(Mutex::new(State { now_ns: 0, wall_start, next_id: 0, callbacks, due })))
    }

    /// Lets `ns` pass, with every timer that expires in it.
    pub fn advance(&self, ns: u64) {
        let end = self.lock().now_ns.saturating_add(ns);
        while let Some(callback) = self.next_until(end) {
            callback();
        }
        self.lock().now_ns = end;
    }

    /// Lets `ns` pass with the timers late: all expire at the end of it.
    pub fn advance_late(&self, ns: u64) {
        let end = self.lock().now_ns.saturating_add(ns);
        self.lock().now_ns = end;
        self.advance(0);
    }

    /// The earliest deadline armed.
    pub fn next_deadline(&self) -> Option<u64> {
        self.lock().due.first().map(|(deadline, _)| *deadline)
    }

    fn next_until(&self, end: u64) -> Option<Arc<TimerCallback>> {
        let mut state = self.lock();
        let (deadline, id) = state.due.first().copied().filter(|(deadline, _)| *deadline <= end)?;
        state.due.remove(&(deadline, id));
        state.now_ns = state.now_ns.max(deadline);
        state.callbacks.get(&id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for SimulatedTime {
    fn now_ns(&self) -> u64 {
        self.lock().now_ns
    }

    fn wall_clock(&self) -> Duration {
        let state = self.lock();
        state.wall_start + Duration::from_nanos(state.now_ns)
    }
}

impl TimerService for SimulatedTime {
    fn create(&self, on_expiry: TimerCallback) -> Box<dyn Timer> {
        let mut state = self.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.callbacks.insert(id, Arc::new(on_expiry));
        drop(state);
        Box::new(SimulatedTimer { time: self.clone(), id })
    }
}

struct SimulatedTimer {
    time: SimulatedTime,
    id: u64,
}

impl Timer for SimulatedTimer {
    fn arm(&self, deadline_ns: u64) {
        self.cancel();
        self.time.lock().due.insert((deadline_ns, self.id));
    }

    fn cancel(&self) {
        self.time.lock().due.retain(|(_, id)| *id != self.id);
    }
}

impl Drop for SimulatedTimer {
    fn drop(&mut self) {
        self.cancel();
        // Dropped outside the lock: the callback may own other timers.
        let callback = self.time.lock().callbacks.remove(&self.id);
        drop(callback);
    }
}
