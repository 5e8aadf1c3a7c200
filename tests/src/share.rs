//! Tests of one program run at the same time; their guests share the host's processors.

use std::sync::{Condvar, Mutex, PoisonError};

static TAKEN: Mutex<u32> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// A share of the host's processors, given back when dropped.
pub struct HostShare(u32);

impl HostShare {
    /// Waits for so many processors, or for all there are. Guests that starve each other would be killed by their
    /// deadlines, and a starved kernel rightly complains about its clock.
    pub fn take(processors: u32) -> Self {
        let all = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let wanted = processors.clamp(1, all);
        let taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = FREED.wait_while(taken, |taken| *taken + wanted > all);
        *wait.unwrap_or_else(PoisonError::into_inner) += wanted;
        Self(wanted)
    }
}

impl Drop for HostShare {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        FREED.notify_all();
    }
}
