//! A disk whose thread is the fuzz target's own: what it is asked to do waits until the target says which of it is done next.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vireo_block::{BlockDevice, BlockError, BlockInfo, Executor, RamDisk, Request, Task};

/// Rung when something has happened that a target may wait for.
#[derive(Default)]
pub struct Bell {
    rung: Mutex<u64>,
    wake: Condvar,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings.
    pub fn ring(&self) {
        *self.lock() += 1;
        self.wake.notify_all();
    }

    /// How often it was rung.
    pub fn count(&self) -> u64 {
        *self.lock()
    }

    /// Waits until it was rung more often than so; `false`: it was not before the deadline.
    pub fn wait(&self, count: u64, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.wake.wait_timeout_while(self.lock(), left, |rung| *rung == count);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }
}

/// How long a target waits for what has to happen.
pub const PATIENCE: Duration = Duration::from_secs(10);

enum Work {
    Task(Arc<dyn Task>),
    Request(Request),
}

/// See the [module](self).
pub struct Desk {
    disk: RamDisk,
    work: Mutex<Vec<Work>>,
    bell: Arc<Bell>,
    me: Weak<Self>,
}

impl Desk {
    /// With a disk in memory of so many bytes. Work that comes rings the bell.
    pub fn new(size: usize, bell: &Arc<Bell>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            disk: RamDisk::new(size, 512),
            work: Mutex::default(),
            bell: Arc::clone(bell),
            me: Weak::clone(me),
        })
    }

    /// The disk.
    pub fn disk(&self) -> &RamDisk {
        &self.disk
    }

    fn work(&self) -> MutexGuard<'_, Vec<Work>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one thing of those that wait, where there is any: `which` of them. A request fails if it is told to.
    pub fn step(&self, which: usize, fails: bool) -> bool {
        let mut work = self.work();
        if work.is_empty() {
            return false;
        }
        let at = which % work.len();
        let next = work.remove(at);
        drop(work);
        match next {
            Work::Task(task) => task.run(),
            Work::Request(request) if fails => request.complete(Err(BlockError::NoSpace)),
            Work::Request(request) => self.disk.submit(&mut vec![request]),
        }
        true
    }

    /// Does the first task of those that wait, and leaves requests alone; `false`: there is none.
    pub fn turn(&self) -> bool {
        let mut work = self.work();
        let Some(at) = work.iter().position(|w| matches!(w, Work::Task(_))) else { return false };
        let task = work.remove(at);
        drop(work);
        if let Work::Task(task) = task {
            task.run();
        }
        true
    }
}

impl BlockDevice for Desk {
    fn info(&self) -> BlockInfo {
        self.disk.info()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        self.work().extend(batch.drain(..).map(Work::Request));
        self.bell.ring();
    }

    fn executor(&self) -> Option<Arc<dyn Executor>> {
        self.me.upgrade().map(|me| me as _)
    }
}

impl Executor for Desk {
    fn execute(&self, task: Arc<dyn Task>) {
        self.work().push(Work::Task(task));
        self.bell.ring();
    }
}
