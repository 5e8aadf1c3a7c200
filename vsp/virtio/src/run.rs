//! When a device may touch guest memory: its thread, requests in flight, pauses, and the way to rest.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Run state of one device. A device *rests* when its thread serves no queue, no request is in flight, and no reset of the driver
/// is still to be done.
#[derive(Default)]
pub(crate) struct Run {
    state: Mutex<State>,
    /// Wakes the thread.
    work: Condvar,
    /// Tells those who wait that the device rests.
    rest: Condvar,
}

#[derive(Default)]
struct State {
    /// The driver is ready, and has broken nothing.
    active: bool,
    pauses: u32,
    /// The thread serves queues.
    busy: bool,
    /// Chains that were taken from queues and not returned.
    in_flight: usize,
    /// Queues to look at, one bit each.
    kicked: u64,
    /// When to look at queues again, and which.
    later: Option<(Instant, u64)>,
    reset: Reset,
    ended: bool,
}

/// The driver's reset, which waits for the requests in flight.
#[derive(Default, PartialEq, Eq)]
enum Reset {
    #[default]
    None,
    Wanted,
    /// Somebody does it.
    UnderWay,
}

impl State {
    fn quiet(&self) -> bool {
        !self.busy && self.in_flight == 0
    }

    fn rests(&self) -> bool {
        self.quiet() && self.reset == Reset::None
    }

    /// Whether the caller is to do the reset, now.
    fn take_reset(&mut self) -> bool {
        let now = self.quiet() && self.reset == Reset::Wanted;
        if now {
            self.reset = Reset::UnderWay;
        }
        now
    }

    /// Takes the queues to serve now.
    fn take_work(&mut self) -> Option<u64> {
        if self.later.is_some_and(|(at, _)| at <= Instant::now())
            && let Some((_, queues)) = self.later.take()
        {
            self.kicked |= queues;
        }
        let work = self.active && self.pauses == 0 && self.kicked != 0;
        work.then(|| std::mem::take(&mut self.kicked))
    }
}

/// Why another thread than the device's may not use its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rests {
    /// It is paused; when it goes on, all its queues are served.
    Paused,
    /// There is no driver, or it broke the rules.
    NoDriver,
}

/// What the thread is to do.
pub(crate) enum Work {
    /// Serve these queues, then say [`Run::served`].
    Serve(u64),
    /// End.
    End,
}

impl Run {
    /// `paused` once, as devices are made.
    pub(crate) fn paused() -> Self {
        Self { state: Mutex::new(State { pauses: 1, ..State::default() }), ..Self::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queue `index` has work, or may have.
    pub(crate) fn kick(&self, index: usize) {
        let mut state = self.lock();
        if state.active && index < 64 {
            state.kicked |= 1 << index;
            self.work.notify_one();
        }
    }

    /// Has a look taken at queue `index` at `at`, if nobody kicks it before.
    pub(crate) fn kick_at(&self, index: usize, at: Instant) {
        let mut state = self.lock();
        let (earliest, queues) = state.later.unwrap_or((at, 0));
        state.later = Some((earliest.min(at), queues | 1 << (index % 64)));
        // The thread that asks looks at it before it waits.
    }

    /// The driver is ready: the queues are served from now on, all of them once.
    pub(crate) fn activate(&self) {
        let mut state = self.lock();
        state.active = true;
        state.kicked = u64::MAX;
        self.work.notify_one();
    }

    /// Serves queues no more. What is in flight completes.
    pub(crate) fn deactivate(&self) {
        let mut state = self.lock();
        state.active = false;
        state.kicked = 0;
        state.later = None;
    }

    /// Serves queues no more. Whether the caller has to do the driver's reset now; if not, whoever ends the last of what is under
    /// way does. It is asked for once, until [`Run::reset_done`].
    #[must_use]
    pub(crate) fn ask_for_reset(&self) -> bool {
        self.deactivate();
        let mut state = self.lock();
        state.reset = Reset::Wanted;
        state.take_reset()
    }

    /// The reset is done, if there was one.
    pub(crate) fn reset_done(&self) {
        let mut state = self.lock();
        if state.reset == Reset::UnderWay {
            state.reset = Reset::None;
        }
        if state.rests() {
            self.rest.notify_all();
        }
    }

    /// Stops serving queues, and waits until the device rests. Pauses nest. `false`: it did not by `deadline`, and the pause
    /// is taken back. Without a deadline it waits for as long as it takes.
    pub(crate) fn pause(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.lock();
        state.pauses += 1;
        while !state.rests() {
            let Some(deadline) = deadline else {
                state = self.rest.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                self.resume();
                return false;
            }
            state = self.rest.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// Takes one pause back. With the last one all queues are looked at: nobody was told of what happened meanwhile.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        state.pauses = state.pauses.saturating_sub(1);
        if state.pauses == 0 && state.active {
            state.kicked = u64::MAX;
            self.work.notify_one();
        }
    }

    /// A chain is taken from a queue; the thread serves it.
    pub(crate) fn request_begins(&self) {
        self.lock().in_flight += 1;
    }

    /// Another thread than the device's is to use the queues; it is as a chain in flight.
    pub(crate) fn visit(&self) -> Result<(), Rests> {
        let mut state = self.lock();
        if !state.active || state.ended || state.reset != Reset::None {
            return Err(Rests::NoDriver);
        }
        if state.pauses != 0 {
            return Err(Rests::Paused);
        }
        state.in_flight += 1;
        Ok(())
    }

    /// A chain was returned. Whether the caller has to do the driver's reset now.
    #[must_use]
    pub(crate) fn request_ends(&self) -> bool {
        let mut state = self.lock();
        state.in_flight = state.in_flight.saturating_sub(1);
        if state.rests() {
            self.rest.notify_all();
        }
        state.take_reset()
    }

    /// Waits for work; called by the device's thread.
    pub(crate) fn wait(&self) -> Work {
        let mut state = self.lock();
        loop {
            if state.ended {
                return Work::End;
            }
            if let Some(queues) = state.take_work() {
                state.busy = true;
                return Work::Serve(queues);
            }
            let later = state.later.filter(|_| state.active && state.pauses == 0);
            state = match later {
                Some((at, _)) => {
                    let left = at.saturating_duration_since(Instant::now());
                    self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// The thread has served what it took. Whether the caller has to do the driver's reset now.
    #[must_use]
    pub(crate) fn served(&self) -> bool {
        let mut state = self.lock();
        state.busy = false;
        if state.rests() {
            self.rest.notify_all();
        }
        state.take_reset()
    }

    /// Ends the thread once it serves nothing.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        self.work.notify_one();
    }
}
