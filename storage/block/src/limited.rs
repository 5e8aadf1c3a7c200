//! A disk that does only so much in a second.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{BlockDevice, BlockInfo, Executor, Operation, Request};

/// How much may be asked of a disk. A disk that was idle makes up for it, but only for [`Limits::BURST`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests per second, flushes among them; `None`: any number.
    pub requests: Option<u64>,
    /// Bytes per second, read, written and zeroed; `None`: any number. What is unmapped does not count: it moves nothing.
    pub bytes: Option<u64>,
}

impl Limits {
    /// So much of a second's share can be saved.
    pub const BURST: Duration = Duration::from_millis(100);

    /// Nothing is limited.
    pub const fn is_none(&self) -> bool {
        self.requests.is_none() && self.bytes.is_none()
    }
}

/// What is left of a share: it fills at an even rate up to the burst, and may be overdrawn by one request, however large that
/// is. So whatever the limit, each request has its turn.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// A second's.
    rate: Option<u64>,
    /// In units, less than zero if overdrawn.
    level: f64,
    /// When it had that.
    since: Instant,
}

impl Bucket {
    fn new(rate: Option<u64>, now: Instant) -> Self {
        // At a rate of zero nothing would ever go on.
        let mut new = Self { rate: rate.map(|r| r.max(1)), level: f64::MAX, since: now };
        new.fill(now);
        new
    }

    fn fill(&mut self, now: Instant) {
        let Some(rate) = self.rate else { return };
        let gained = now.saturating_duration_since(self.since).as_secs_f64() * rate as f64;
        let most = (Limits::BURST.as_secs_f64() * rate as f64).max(1.0);
        self.level = (self.level + gained).min(most);
        self.since = now;
    }

    /// How long until there is a whole unit, at least.
    fn wait(&self) -> Duration {
        match self.rate {
            Some(rate) if self.level < 1.0 => {
                // One nanosecond more, so that rounding makes nobody wait in vain.
                Duration::from_secs_f64(((1.0 - self.level) / rate as f64).min(1e6)) + Duration::from_nanos(1)
            }
            _ => Duration::ZERO,
        }
    }

    fn take(&mut self, units: u64) {
        if self.rate.is_some() {
            self.level -= units as f64;
        }
    }
}

/// The buckets of a disk.
#[derive(Debug)]
struct Shares {
    requests: Bucket,
    bytes: Bucket,
}

impl Shares {
    fn new(limits: Limits, now: Instant) -> Self {
        Self { requests: Bucket::new(limits.requests, now), bytes: Bucket::new(limits.bytes, now) }
    }

    /// Takes what a request of so many bytes needs, if there is something; else says how long until then.
    fn take(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        self.requests.fill(now);
        self.bytes.fill(now);
        let wait = self.requests.wait().max(self.bytes.wait());
        if wait > Duration::ZERO {
            return Err(wait);
        }
        self.requests.take(1);
        self.bytes.take(bytes);
        Ok(())
    }
}

/// The bytes that a request counts for. Zeros may have to be written like any others; giving blocks back moves nothing.
const fn bytes(request: &Request) -> u64 {
    match request.operation {
        Operation::Read | Operation::Write { .. } | Operation::WriteZeroes => request.len,
        Operation::Flush | Operation::Unmap => 0,
    }
}

struct State {
    limits: Limits,
    shares: Shares,
    /// Requests whose turn has not come, in their order.
    waiting: VecDeque<Request>,
    /// One that the thread has taken out is not with the disk yet.
    handing: bool,
    stop: bool,
}

struct Shared<D: ?Sized> {
    state: Mutex<State>,
    changed: Condvar,
    disk: Arc<D>,
}

/// A disk with limits. What exceeds them waits, in order, on a thread of its own; what does not goes on within the call, as does
/// all while nothing is limited. Nothing is refused. When it is dropped what waits goes on at once.
pub struct Limited<D: BlockDevice + ?Sized + 'static> {
    shared: Arc<Shared<D>>,
    thread: Option<JoinHandle<()>>,
}

impl<D: BlockDevice + ?Sized + 'static> Limited<D> {
    /// Of a disk.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn new(disk: Arc<D>, limits: Limits) -> std::io::Result<Self> {
        let state = State {
            limits,
            shares: Shares::new(limits, Instant::now()),
            waiting: VecDeque::new(),
            handing: false,
            stop: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), disk });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("disk-limits".into()).spawn(move || theirs.hand_on())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// What is allowed, now.
    pub fn limits(&self) -> Limits {
        self.shared.lock().limits
    }

    /// Allows something else, from now on, also to those that wait.
    pub fn set_limits(&self, limits: Limits) {
        let mut state = self.shared.lock();
        state.limits = limits;
        state.shares = Shares::new(limits, Instant::now());
        self.shared.changed.notify_all();
    }
}

impl<D: BlockDevice + ?Sized> Shared<D> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands those that wait to the disk, each in its turn.
    fn hand_on(&self) {
        let mut state = self.lock();
        loop {
            let Some(bytes) = state.waiting.front().map(bytes) else {
                if state.stop {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let turn = if state.stop { Ok(()) } else { state.shares.take(bytes, Instant::now()) };
            match turn {
                Ok(()) => {
                    let mut batch = Vec::from_iter(state.waiting.pop_front());
                    state.handing = true;
                    drop(state);
                    self.disk.submit(&mut batch);
                    state = self.lock();
                    state.handing = false;
                }
                Err(wait) => {
                    let waited = self.changed.wait_timeout(state, wait);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

impl<D: BlockDevice + ?Sized> BlockDevice for Limited<D> {
    fn info(&self) -> BlockInfo {
        self.shared.disk.info()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        let mut state = self.shared.lock();
        let mut free = state.waiting.is_empty() && !state.handing;
        if !(free && state.limits.is_none()) {
            let now = Instant::now();
            let all = std::mem::take(batch);
            for request in all {
                free = free && state.shares.take(bytes(&request), now).is_ok();
                match free {
                    true => batch.push(request),
                    false => state.waiting.push_back(request),
                }
            }
            self.shared.changed.notify_one();
        }
        drop(state);
        if !batch.is_empty() {
            self.shared.disk.submit(batch);
        }
    }

    fn executor(&self) -> Option<Arc<dyn Executor>> {
        self.shared.disk.executor()
    }
}

impl<D: BlockDevice + ?Sized> Drop for Limited<D> {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
        // A completion that drops the disk may run on this very thread: it ends by itself.
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::{BlockError, Buffer, HostBuffer, Null, RamDisk};

    const SECOND: Duration = Duration::from_secs(1);

    /// How many requests of so many bytes have their turn in so many milliseconds.
    fn turns(limits: Limits, bytes: u64, ms: u64) -> u64 {
        let start = Instant::now();
        let mut shares = Shares::new(limits, start);
        let times = (0..ms * 10).map(|t| start + Duration::from_micros(t * 100));
        times.map(|now| std::iter::from_fn(|| shares.take(bytes, now).ok()).count() as u64).sum()
    }

    #[test]
    fn a_second_has_its_share_and_what_was_saved() {
        let limits = |requests, bytes| Limits { requests, bytes };
        // 100 at once, and 1000 in a second.
        assert!((1098..=1101).contains(&turns(limits(Some(1000), None), 4096, 1000)));
        let found = turns(limits(None, Some(1 << 20)), 4096, 1000);
        assert!((280..=283).contains(&found), "{found}");
        // Whichever is less.
        let found = turns(limits(Some(10), Some(1 << 30)), 4096, 2000);
        assert!((20..=22).contains(&found), "{found}");
        // One that is larger than a second's share waits for its turn, and has it.
        assert_eq!(turns(limits(None, Some(1000)), 5000, 11_000), 3);
        assert!(turns(limits(Some(0), None), 512, 1001) >= 1);
        let mut shares = Shares::new(limits(Some(2), None), Instant::now());
        let now = shares.requests.since;
        assert_eq!(shares.take(0, now), Ok(()));
        let wait = shares.take(0, now).expect_err("nothing is left");
        assert!(wait <= SECOND / 2 + Duration::from_nanos(1) && shares.take(0, now + wait).is_ok());
    }

    fn write(n: u64, tell: &std::sync::mpsc::Sender<u64>) -> Request {
        let tell = tell.clone();
        let done = Box::new(move |result: Result<(), BlockError>| {
            result.expect("written");
            tell.send(n).expect("somebody waits");
        });
        let buffers = vec![Buffer::host(&HostBuffer::of(&[n as u8; 512]))];
        Request { operation: Operation::Write { fua: false }, at: n * 512, len: 512, buffers, done }
    }

    #[test]
    fn all_come_through_in_order_and_what_waits_goes_on_in_the_end() {
        let ram = Arc::new(RamDisk::new(1 << 20, 512));
        let (tell, told) = channel();
        let limits = Limits { requests: Some(1000), bytes: None };
        let disk = Limited::new(Arc::clone(&ram), limits).expect("a thread");
        disk.submit(&mut (0..150).map(|n| write(n, &tell)).collect());
        let found: Vec<u64> = told.iter().take(150).collect();
        assert_eq!(found, (0..150).collect::<Vec<_>>());
        // One in a second: nobody waits for them all.
        disk.set_limits(Limits { requests: Some(1), bytes: None });
        disk.submit(&mut (0..100).map(|n| write(n, &tell)).collect());
        drop(disk);
        drop(tell);
        assert_eq!(told.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
        assert_eq!(ram.contents()[512 * 149], 149);
    }

    #[test]
    fn zeros_count_as_bytes_and_what_is_given_back_does_not() {
        let limits = Limits { requests: None, bytes: Some(1 << 20) };
        let disk = Limited::new(Arc::new(Null::new(1 << 30)), limits).expect("a thread");
        let (tell, told) = channel();
        let clear = |operation| {
            let tell = tell.clone();
            let done = Box::new(move |result: Result<(), BlockError>| {
                result.expect("done");
                tell.send(operation).expect("somebody waits");
            });
            Request { operation, at: 0, len: 1 << 30, buffers: Vec::new(), done }
        };
        // The zeros overdraw it by what takes minutes.
        let all = [Operation::Unmap, Operation::Unmap, Operation::WriteZeroes, Operation::Unmap];
        disk.submit(&mut all.map(clear).into());
        assert_eq!(told.try_iter().collect::<Vec<_>>(), all[..3]);
        drop(disk);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), all[3..]);
    }

    #[test]
    fn without_limits_a_request_stays_on_its_thread() {
        let disk = Limited::new(Arc::new(RamDisk::new(1 << 16, 512)), Limits::default()).expect("a thread");
        let (tell, told) = channel();
        disk.submit(&mut vec![write(3, &tell)]);
        assert_eq!(told.try_recv(), Ok(3));
        assert_eq!(disk.info().size, 1 << 16);
        disk.set_limits(Limits { requests: Some(1), bytes: None });
        let mut all: Vec<_> = (1..=100).map(|n| write(n, &tell)).collect();
        disk.submit(&mut all);
        assert_eq!(told.try_recv(), Ok(1));
        // And those that wait go on when they may.
        disk.set_limits(Limits::default());
        assert_eq!(told.iter().take(99).collect::<Vec<_>>(), (2..=100).collect::<Vec<_>>());
    }
}
