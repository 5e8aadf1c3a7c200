//! The real timer service: one thread that waits for the earliest deadline.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::clock::{Clock, Timer, TimerCallback, TimerService};

/// Runs timers against a [`Clock`] on one thread. Starts paused; dropping it ends the thread.
///
/// To pause a machine, pause this first and the clock second; to resume it, the other way round.
pub struct TimerThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    /// The thread has something new to look at.
    changed: Condvar,
    /// A callback has ended.
    ended: Condvar,
}

struct State {
    /// (deadline, timer), at most one for each timer, so a guest that re-arms without end costs no memory.
    due: BTreeSet<(u64, u64)>,
    timers: HashMap<u64, Entry>,
    next_id: u64,
    paused: bool,
    stopping: bool,
    in_callback: bool,
}

struct Entry {
    deadline: Option<u64>,
    callback: Arc<TimerCallback>,
}

impl TimerThread {
    /// Starts the thread, paused.
    ///
    /// # Errors
    /// The host refuses another thread.
    pub fn start(clock: Arc<dyn Clock>) -> std::io::Result<Self> {
        let state = State {
            due: BTreeSet::new(),
            timers: HashMap::new(),
            next_id: 0,
            paused: true,
            stopping: false,
            in_callback: false,
        };
        let shared = Arc::new(Shared {
            clock,
            state: Mutex::new(state),
            changed: Condvar::new(),
            ended: Condvar::new(),
        });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("timers".into()).spawn(move || of_thread.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Lets timers expire.
    pub fn resume(&self) {
        self.shared.lock().paused = false;
        self.shared.changed.notify_one();
    }

    /// Holds all timers. When it returns, no callback runs and none starts until [`TimerThread::resume`].
    /// Must not be called from a callback, nor with a lock that a callback takes.
    pub fn pause(&self) {
        let mut state = self.shared.lock();
        state.paused = true;
        while state.in_callback {
            state = self.shared.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for TimerThread {
    fn drop(&mut self) {
        self.shared.lock().stopping = true;
        self.shared.changed.notify_one();
        // A callback may own the last reference to the machine; a thread cannot wait for itself.
        if let Some(thread) = self.thread.take().filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl TimerService for TimerThread {
    fn create(&self, on_expiry: TimerCallback) -> Box<dyn Timer> {
        let mut state = self.shared.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.timers.insert(id, Entry { deadline: None, callback: Arc::new(on_expiry) });
        Box::new(ThreadTimer { shared: self.shared.clone(), id })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let next = state.due.first().copied().filter(|_| !state.paused);
            let Some((deadline, id)) = next else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let now = self.clock.now_ns();
            if deadline > now {
                let wait = Duration::from_nanos(deadline - now);
                state = self.changed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let Some(callback) = state.set_deadline(id, None) else { continue };
            state.in_callback = true;
            drop(state);
            callback();
            drop(callback);
            state = self.lock();
            state.in_callback = false;
            self.ended.notify_all();
        }
    }
}

impl State {
    /// Replaces a timer's deadline and gives its callback.
    fn set_deadline(&mut self, id: u64, deadline: Option<u64>) -> Option<Arc<TimerCallback>> {
        let entry = self.timers.get_mut(&id)?;
        if let Some(old) = std::mem::replace(&mut entry.deadline, deadline) {
            self.due.remove(&(old, id));
        }
        if let Some(new) = deadline {
            self.due.insert((new, id));
        }
        Some(entry.callback.clone())
    }
}

struct ThreadTimer {
    shared: Arc<Shared>,
    id: u64,
}

impl Timer for ThreadTimer {
    fn arm(&self, deadline_ns: u64) {
        let mut state = self.shared.lock();
        state.set_deadline(self.id, Some(deadline_ns));
        let wake = !state.paused && state.due.first().is_some_and(|first| first.1 == self.id);
        drop(state);
        if wake {
            self.shared.changed.notify_one();
        }
    }

    fn cancel(&self) {
        self.shared.lock().set_deadline(self.id, None);
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.set_deadline(self.id, None);
        let entry = state.timers.remove(&self.id);
        // The callback may own other timers, whose drop takes the lock.
        drop(state);
        drop(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HostClock;
    use std::sync::mpsc;

    #[test]
    fn expires_in_order_only_while_running_and_never_after_cancel() {
        let clock = HostClock::new(0);
        let service = TimerThread::start(clock.clone()).unwrap();
        let (sender, receiver) = mpsc::channel();
        let timer = |name: u32| {
            let (sender, clock) = (sender.clone(), clock.clone());
            service.create(Box::new(move || sender.send((name, clock.now_ns())).unwrap()))
        };
        let (first, second, cancelled, dropped) = (timer(1), timer(2), timer(3), timer(4));
        second.arm(2_000_000);
        first.arm(900_000_000);
        first.arm(1_000_000);
        cancelled.arm(500_000);
        cancelled.cancel();
        dropped.arm(500_000);
        drop(dropped);
        assert!(receiver.try_recv().is_err());
        clock.resume();
        service.resume();
        let (name, at) = receiver.recv().unwrap();
        assert!(name == 1 && at >= 1_000_000);
        let (name, at) = receiver.recv().unwrap();
        assert!(name == 2 && at >= 2_000_000);
        service.pause();
        clock.pause();
        first.arm(0);
        assert!(receiver.try_recv().is_err());
        clock.resume();
        service.resume();
        assert_eq!(receiver.recv().unwrap().0, 1);
        drop(service);
        first.arm(0);
        assert!(receiver.try_recv().is_err());
    }
}
