//! Pauses, resets, and saved states, with requests in flight.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vireo_block::Null;
use vireo_board::Attachment;
use vireo_virtio::Blk;

use crate::blk::{IN, header, start};
use crate::disk::Held;
use crate::rig::{EVENT_IDX, NEEDS_RESET, Rig, Ring, VERSION_1, waits};

const CHAIN: [(u64, u32, bool); 3] = [(0x10_0000, 16, false), (0x11_0000, 512, true), (0x10_1000, 1, true)];

fn held(requests: usize) -> (Rig, Ring, Arc<Held>) {
    let disk = Held::new(1 << 20);
    let rig = Rig::new(Blk::new(disk.clone(), 1));
    let mut ring = start(&rig, 0);
    header(&rig, IN, 0);
    for _ in 0..requests {
        ring.add(&rig, &CHAIN);
    }
    rig.notify(0);
    waits("the requests", || disk.held() == requests);
    (rig, ring, disk)
}

#[test]
fn requests_complete_in_any_order() {
    let (rig, mut ring, disk) = held(3);
    disk.complete(1);
    disk.complete(1);
    disk.complete(0);
    let heads: Vec<u16> = (0..3).map(|_| ring.wait(&rig).0).collect();
    assert_eq!(heads, [3, 6, 0]);
}

#[test]
fn a_pause_waits_for_requests_and_nothing_is_served_meanwhile() {
    let (rig, mut ring, disk) = held(2);
    assert!(!rig.function.pause(Instant::now()), "two are in flight");
    disk.complete(0);
    assert!(!rig.function.pause(Instant::now()));
    disk.complete(0);
    assert!(rig.function.pause(Instant::now() + Duration::from_secs(60)));
    let used = ring.used_index(&rig);
    rig.seen.take_told();
    ring.add(&rig, &CHAIN);
    rig.seen.take_told();
    rig.notify(0);
    // Nothing can be waited for that must not come; saving pauses once more and looks at the queues.
    let saved = rig.function.save();
    assert_eq!((disk.held(), ring.used_index(&rig), used), (0, 2, 2));
    assert_eq!(rig.seen.take_told(), []);
    rig.function.resume();
    waits("the request that came meanwhile", || disk.held() == 1);
    disk.complete_all();
    ring.wait(&rig);
    ring.wait(&rig);
    ring.wait(&rig);
    drop(saved);
}

#[test]
fn a_reset_is_done_when_the_requests_are() {
    let (rig, ring, disk) = held(2);
    let status = rig.status();
    rig.set_status(0);
    rig.set_status(1);
    assert_eq!(rig.status(), status, "not reset yet, and nothing else is taken");
    rig.set_common::<2>(16, 0);
    disk.complete(0);
    assert_eq!(rig.status(), status);
    disk.complete(0);
    assert_eq!((rig.status(), rig.common::<2>(16)), (0, 0xFFFF));
    // The next driver starts anew, on the same pages.
    assert_eq!(ring.used_index(&rig), 2);
    let mut ring = start(&rig, 0);
    ring.add(&rig, &CHAIN);
    rig.notify(0);
    waits("the request", || disk.held() == 1);
    disk.complete_all();
    assert_eq!(ring.wait(&rig), (0, 513));
}

#[test]
fn what_is_saved_has_the_reset_behind_it() {
    let (rig, _, disk) = held(20);
    std::thread::scope(|s| {
        rig.set_status(0);
        let saved = s.spawn(|| rig.function.save());
        disk.complete_all();
        let saved = saved.join().unwrap();
        let other = Rig::new(Blk::new(Held::new(1 << 20), 1));
        other.function.restore(&saved).unwrap();
        assert_eq!(other.status(), 0);
    });
}

#[test]
fn a_bus_reset_makes_it_as_new() {
    let (rig, _, disk) = held(1);
    disk.complete_all();
    rig.enable_msix(2);
    rig.settle();
    rig.chipset.reset_all();
    assert_eq!(rig.config_read(rig.msix_capability) >> 31, 0);
    assert_eq!((rig.status(), rig.common::<2>(24)), (0, 256), "and its BAR is where it was");
    let mut ring = start(&rig, 0);
    ring.add(&rig, &CHAIN);
    rig.notify(0);
    waits("the request", || disk.held() == 1);
    disk.complete_all();
    ring.wait(&rig);
}

#[test]
fn a_request_that_is_lost_breaks_the_device() {
    let (rig, _, disk) = held(2);
    disk.lose_all();
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    rig.settle();
    rig.reset();
}

#[test]
fn another_device_goes_on_where_one_was_saved() {
    let (rig, mut ring, disk) = held(2);
    disk.complete_all();
    ring.wait(&rig);
    ring.wait(&rig);
    rig.enable_msix(2);
    assert!(rig.function.pause(Instant::now() + Duration::from_secs(60)));
    // Made available while it is paused: the other one finds it.
    ring.add(&rig, &CHAIN);
    let text = serde_json::to_string(&rig.function.save()).unwrap();
    let (chipset, mut ram) = (rig.chipset.save_all(), vec![0; 8 << 20]);
    rig.memory.read(0x10_0000, &mut ram).unwrap();
    let mut low = vec![0; 0x8_0000];
    rig.memory.read(0, &mut low).unwrap();

    let disk = Held::new(1 << 20);
    let other = Rig::new(Blk::new(disk.clone(), 1));
    assert!(other.function.pause(Instant::now() + Duration::from_secs(60)));
    other.memory.write(0x10_0000, &ram).unwrap();
    other.memory.write(0, &low).unwrap();
    other.function.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    other.chipset.restore_all(&chipset).unwrap();
    assert_eq!(disk.held(), 0);
    other.function.resume();
    waits("the request", || disk.held() == 1);
    disk.complete_all();
    assert_eq!(ring.wait(&other), (6, 513));
    other.settle();
    assert_eq!(other.messages(), [0x41]);
    // And the other way as well: a device that never started.
    let fresh = Rig::new(Blk::new(Held::new(1 << 20), 1));
    other.function.restore(&fresh.function.save()).unwrap();
    assert_eq!(other.status(), 0);
    other.negotiate(VERSION_1);
}

#[test]
fn a_driver_may_add_requests_at_any_moment() {
    for features in [0, EVENT_IDX] {
        let rig = Rig::new(Blk::new(Arc::new(Null::new(1 << 20)), 1));
        let mut ring = start(&rig, features);
        header(&rig, IN, 0);
        let (mut added, mut done) = (0u32, 0u32);
        while done < 30_000 {
            // 64 descriptors are 21 chains.
            while added < 30_000 && added - done < 20 {
                ring.add(&rig, &CHAIN);
                added += 1;
                if added.is_multiple_of(3) {
                    rig.notify(0);
                }
            }
            rig.notify(0);
            ring.wait(&rig);
            done += 1;
        }
        assert_eq!(rig.status() & NEEDS_RESET, 0);
    }
}
