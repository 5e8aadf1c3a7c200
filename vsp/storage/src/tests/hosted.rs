//! Channels that a disk's thread serves.

use std::collections::VecDeque;
use std::sync::atomic::AtomicBool;
use std::thread::ThreadId;

use vireo_block::{BlockInfo, Executor, Task};

use super::*;

/// A disk with a thread of its own, which does its requests, and tasks. It can be held up.
struct Desk {
    disk: RamDisk,
    work: Mutex<VecDeque<Arc<dyn Task>>>,
    news: Condvar,
    held: AtomicBool,
    thread: Mutex<Option<ThreadId>>,
    /// Tasks that others had it do.
    served: AtomicU32,
    /// Batches of requests that came on its own thread, and on others.
    inside: AtomicU32,
    outside: AtomicU32,
    me: Weak<Self>,
}

struct Batch(Weak<Desk>, Mutex<Vec<Request>>);

impl Task for Batch {
    fn run(&self) {
        if let Some(desk) = self.0.upgrade() {
            desk.disk.submit(&mut self.1.lock().unwrap());
        }
    }
}

impl Desk {
    fn new() -> Arc<Self> {
        let desk = Arc::new_cyclic(|me| Self {
            disk: RamDisk::new(1 << 20, 512),
            work: Mutex::default(),
            news: Condvar::new(),
            held: AtomicBool::new(false),
            thread: Mutex::default(),
            served: AtomicU32::new(0),
            inside: AtomicU32::new(0),
            outside: AtomicU32::new(0),
            me: Weak::clone(me),
        });
        let thread = Arc::downgrade(&desk);
        let thread = std::thread::spawn(move || {
            while let Some(desk) = thread.upgrade() {
                let work = desk.work.lock().unwrap();
                let wait = |work: &mut VecDeque<_>| work.is_empty() || desk.held.load(Ordering::SeqCst);
                let mut work = desk.news.wait_timeout_while(work, Duration::from_millis(2), wait).unwrap().0;
                if desk.held.load(Ordering::SeqCst) {
                    continue;
                }
                let task = work.pop_front();
                drop(work);
                if let Some(task) = task {
                    task.run();
                }
            }
        });
        *desk.thread.lock().unwrap() = Some(thread.thread().id());
        desk
    }

    fn put(&self, task: Arc<dyn Task>) {
        self.work.lock().unwrap().push_back(task);
        self.news.notify_all();
    }
}

impl BlockDevice for Desk {
    fn info(&self) -> BlockInfo {
        self.disk.info()
    }
    fn submit(&self, batch: &mut Vec<Request>) {
        let own = *self.thread.lock().unwrap() == Some(std::thread::current().id());
        if own { &self.inside } else { &self.outside }.fetch_add(1, Ordering::SeqCst);
        self.put(Arc::new(Batch(Weak::clone(&self.me), Mutex::new(std::mem::take(batch)))));
    }
    fn executor(&self) -> Option<Arc<dyn Executor>> {
        self.me.upgrade().map(|me| me as _)
    }
}

impl Executor for Desk {
    fn execute(&self, task: Arc<dyn Task>) {
        self.served.fetch_add(1, Ordering::SeqCst);
        self.put(task);
    }
}

const READ: [u8; 9] = [opcode::READ_10, 0, 0, 0, 0, 0, 0, 0, 1];

#[test]
fn the_thread_of_the_only_disk_serves_the_channel() {
    let desk = Desk::new();
    let rig = Rig::with(&[Arc::clone(&desk) as _]);
    // Many at once, and each by itself.
    for many in (1..40).chain([1; 40]) {
        let mut sent: Vec<u64> = (0..many).map(|_| rig.start([0, 0, 0], &READ, &[DATA >> 12], 512)).collect();
        for _ in 0..many {
            let got = rig.receive();
            assert_eq!(ended(&got).0, 1);
            sent.retain(|s| *s != got.transaction);
        }
        assert!(sent.is_empty());
    }
    assert!(desk.inside.load(Ordering::SeqCst) > 0);
    assert_eq!(desk.outside.load(Ordering::SeqCst), 0);
}

#[test]
fn a_disk_whose_thread_is_held_up_holds_up_no_disk_that_is_added() {
    let desk = Desk::new();
    let rig = Rig::with(&[Arc::clone(&desk) as _]);
    desk.held.store(true, Ordering::SeqCst);
    let waits = rig.start([0, 0, 0], &READ, &[DATA >> 12], 512);
    rig.controller.add(Some(1), Arc::new(ScsiDisk::new(ram()))).unwrap();
    assert_eq!(rig.receive().kind, kind::IN_BAND);
    assert_eq!(rig.scsi(1, &[opcode::TEST_UNIT_READY], &[], 0).3[12], 0x29);
    assert_eq!(rig.scsi(1, &READ, &[DATA >> 12], 512).0, 1);
    desk.held.store(false, Ordering::SeqCst);
    let got = rig.receive();
    assert_eq!((got.transaction, ended(&got).0), (waits, 1));
    // Alone again, it serves again.
    rig.controller.remove(1).unwrap();
    assert_eq!(rig.receive().kind, kind::IN_BAND);
    let before = (desk.served.load(Ordering::SeqCst), desk.outside.load(Ordering::SeqCst));
    assert_eq!(rig.scsi(0, &READ, &[DATA >> 12], 512).0, 1);
    assert!(desk.served.load(Ordering::SeqCst) > before.0);
    assert_eq!(desk.outside.load(Ordering::SeqCst), before.1);
}

#[test]
fn who_serves_may_change_at_any_time() {
    let desk = Desk::new();
    let rig = Rig::with(&[Arc::clone(&desk) as _]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            for lun in (1..64).cycle() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                if rig.controller.add(Some(lun), Arc::new(ScsiDisk::new(ram()))).is_ok() {
                    std::thread::yield_now();
                    rig.controller.remove(lun).unwrap();
                }
            }
        });
        for _ in 0..500 {
            let sent: Vec<u64> = (0..8).map(|_| rig.start([0, 0, 0], &READ, &[DATA >> 12], 512)).collect();
            let mut left = sent.len();
            while left > 0 {
                let got = rig.receive();
                if got.kind == kind::COMPLETION {
                    assert!(sent.contains(&got.transaction));
                    left -= 1;
                }
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
}

#[test]
fn nothing_is_left_to_a_turn_that_a_pause_keeps_out() {
    let desk = Desk::new();
    let rig = Rig::with(&[Arc::clone(&desk) as _]);
    for _ in 0..200 {
        let sent = rig.start([0, 0, 0], &READ, &[DATA >> 12], 512);
        assert!(rig.provider.pause(Instant::now() + Duration::from_secs(20)));
        // Either it was not begun, or its end is there now.
        let early = rig.driver.receive();
        rig.provider.resume();
        assert_eq!(early.unwrap_or_else(|| rig.receive()).transaction, sent);
    }
}

#[test]
fn a_turn_that_comes_after_the_channel_was_closed_does_nothing() {
    let desk = Desk::new();
    let rig = Rig::with(&[Arc::clone(&desk) as _]);
    desk.held.store(true, Ordering::SeqCst);
    rig.start([0, 0, 0], &READ, &[DATA >> 12], 512);
    rig.provider.close(0);
    let before = desk.inside.load(Ordering::SeqCst);
    desk.held.store(false, Ordering::SeqCst);
    while !desk.work.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    std::thread::sleep(Duration::from_millis(5));
    assert!(rig.driver.receive().is_none());
    assert_eq!(desk.inside.load(Ordering::SeqCst), before);
    drop(rig);
    assert!(Arc::strong_count(&desk) <= 2, "it and its thread");
}
