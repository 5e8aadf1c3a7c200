//! Rings between us and a driver that shares no code, and rings that no driver makes.

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;
use vireo_memory::{GuestMemory, Holes, RamLayout};

use super::{Packet, RingPair, kind};
use crate::driver::Driver;

const BASE: u64 = 0x20_0000;

fn memory() -> Arc<GuestMemory> {
    let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
    GuestMemory::new(RamLayout::new(16 << 20, &holes).unwrap()).unwrap()
}

fn pair(out: u32, inbound: u32) -> (Driver, RingPair, Arc<GuestMemory>) {
    let memory = memory();
    let driver = Driver::new(&memory, BASE, out, inbound);
    let rings = RingPair::new(&memory, &driver.pages(), driver.split()).expect("rings");
    (driver, rings, memory)
}

#[test]
fn the_other_side_is_signalled_when_it_sleeps_and_not_when_it_works() {
    let (driver, mut rings, _memory) = pair(1, 1);
    let mut packet = Packet::default();
    assert_eq!(driver.send(kind::IN_BAND, 1, &[], b"one"), Some(true), "empty before");
    assert_eq!(driver.send(kind::IN_BAND, 2, &[], b"two"), Some(false), "we have not read the first yet");
    rings.incoming.mask();
    assert!(rings.incoming.next(&mut packet).unwrap() && rings.incoming.next(&mut packet).unwrap());
    assert!(!rings.incoming.next(&mut packet).unwrap());
    assert!(!rings.incoming.publish());
    assert_eq!(driver.send(kind::IN_BAND, 3, &[], b""), Some(false), "masked");
    assert!(rings.incoming.unmask(), "that came without a signal");
    assert!(rings.incoming.next(&mut packet).unwrap());
    assert_eq!((packet.transaction, packet.wants_completion, packet.data()), (3, true, &[][..]));
    rings.incoming.publish();
    assert!(!rings.incoming.unmask());

    assert_eq!(rings.outgoing.write(kind::COMPLETION, 7, false, b"x"), Ok(true));
    assert_eq!(rings.outgoing.write(kind::COMPLETION, 8, false, b"y"), Ok(false));
    assert_eq!(driver.receive().unwrap().transaction, 7);
    assert_eq!(driver.receive().unwrap().data, b"y\0\0\0\0\0\0\0");
    driver.mask(true);
    assert_eq!(rings.outgoing.write(kind::COMPLETION, 9, false, b""), Ok(false));
}

#[test]
fn whoever_waits_for_room_is_told() {
    let (driver, mut rings, _memory) = pair(1, 1);
    let mut packet = Packet::default();
    let mut sent = 0;
    while driver.send(kind::IN_BAND, sent, &[], &[1; 1000]).is_some() {
        sent += 1;
    }
    driver.wait_for_room(2048 + 3);
    assert!(rings.incoming.next(&mut packet).unwrap());
    assert!(!rings.incoming.publish(), "not enough yet");
    assert!(rings.incoming.next(&mut packet).unwrap());
    assert!(rings.incoming.publish());
    assert!(rings.incoming.next(&mut packet).unwrap());
    assert!(!rings.incoming.publish(), "told once");

    let mut written = 0;
    while rings.outgoing.write(kind::COMPLETION, written, false, &[2; 1000]).is_ok() {
        written += 1;
    }
    assert_eq!((written, driver.awaited_room()), (3, 1024));
    driver.receive().unwrap();
    assert!(rings.outgoing.write(kind::COMPLETION, 3, false, &[2; 1000]).is_ok());
    assert_eq!(driver.awaited_room(), 0);
    assert!(rings.outgoing.write(kind::COMPLETION, 4, false, &[0; 70_000]).is_err(), "longer than any ring");
}

#[test]
fn packets_that_are_published_together_signal_once() {
    let (driver, mut rings, _memory) = pair(1, 1);
    let out = &mut rings.outgoing;
    for n in 0..3 {
        out.push(kind::COMPLETION, n, false, b"x").unwrap();
    }
    assert!(driver.is_empty(), "not told yet");
    assert!(out.publish() && !out.publish());
    for n in 0..3 {
        assert_eq!(driver.receive().unwrap().transaction, n);
    }
    // A driver that is asked for room counts it from what it was told: that must be all.
    let mut pushed = 0;
    while out.push(kind::COMPLETION, pushed, false, &[2; 1000]).is_ok() {
        pushed += 1;
    }
    assert_eq!((pushed, driver.awaited_room(), driver.is_empty()), (3, 1024, false));
    assert!(out.publish(), "the first of them found an empty ring");
    driver.receive().unwrap();
    assert!(out.push(kind::COMPLETION, 3, false, &[2; 1000]).is_ok());
    assert_eq!(driver.awaited_room(), 0);
    assert!(!out.publish());
}

#[test]
fn ranges_of_memory_are_found_and_joined() {
    let (driver, mut rings, memory) = pair(2, 1);
    let mut packet = Packet::default();
    let mut ranges = |given: &[(u32, u32, &[u64])]| {
        driver.send(kind::GPA_DIRECT, 1, given, b"command!").unwrap();
        assert!(rings.incoming.next(&mut packet).unwrap());
        rings.incoming.publish();
        assert_eq!(packet.data(), b"command!");
        packet.gpa_ranges(&memory, 3).map(|s| s.iter().map(|s| (s.gpa(), s.len())).collect::<Vec<_>>())
    };
    assert_eq!(ranges(&[(0x1800, 0x800, &[0x300, 0x301])]).unwrap(), [(0x30_0800, 0x1800)]);
    assert_eq!(
        ranges(&[(0x2800, 0x800, &[0x300, 0x302, 0x303]), (0x10, 0, &[0x400])]).unwrap(),
        [(0x30_0800, 0x800), (0x30_2000, 0x2000), (0x40_0000, 0x10)]
    );
    assert!(ranges(&[(0x4000, 0, &[0x300, 0x302, 0x304, 0x306])]).is_err(), "more than three pieces");
    assert!(ranges(&[(0x2000, 0, &[0xf_ffff_ffff_ffff, 0])]).is_err(), "around the end of all addresses");
    assert!(ranges(&[(0x1000, 0, &[0xa0])]).is_err(), "no RAM");
    assert!(ranges(&[(0x1000, 0, &[u64::MAX])]).is_err());
    assert!(ranges(&[(0x2000, 0, &[0x300])]).is_err(), "fewer pages than bytes");
    assert!(ranges(&[(u32::MAX, 0, &[0x300])]).is_err());
    assert!(ranges(&[(0x1000, 0x1000, &[0x300, 0x301])]).is_err(), "an offset beyond the first page");
}

#[test]
fn rings_that_cannot_be_are_refused() {
    let memory = memory();
    let driver = Driver::new(&memory, BASE, 1, 1);
    let pages = driver.pages();
    for split in [0, 1, 3, 4, 5] {
        assert!(RingPair::new(&memory, &pages, split).is_none(), "{split}");
    }
    let hole: Arc<[u64]> = [BASE, 0xa_0000, BASE + 0x2000, BASE + 0x3000].into();
    assert!(RingPair::new(&memory, &hole, 2).is_none());
    for control in driver.controls() {
        for (word, value) in [(0, 4096_u32), (4, 4096), (0, 4), (4, u32::MAX)] {
            memory.write_obj(control + word, value).unwrap();
            let read_by_us = control == driver.controls()[0];
            // Where the guest reads its own ring is looked at only when there is something to send.
            let matters = read_by_us || word == 0;
            assert_eq!(RingPair::new(&memory, &pages, 2).is_none(), matters, "{word} {value:#x}");
            memory.write_obj(control + word, 0_u32).unwrap();
        }
    }
}

proptest! {
    #[test]
    fn what_is_sent_arrives_in_order(
        steps in prop::collection::vec((0..4_u8, 0..3000_usize), 1..300),
    ) {
        let (driver, mut rings, _memory) = pair(1, 2);
        let (mut to_us, mut to_driver) = (VecDeque::new(), VecDeque::new());
        let mut packet = Packet::default();
        for (n, (step, len)) in (0_u64..).zip(steps) {
            let data = vec![n as u8; len];
            match step {
                0 => if driver.send(kind::IN_BAND, n, &[], &data).is_some() { to_us.push_back((n, data)) },
                1 => if rings.outgoing.write(kind::COMPLETION, n, false, &data).is_ok() { to_driver.push_back((n, data)) },
                2 => {
                    let there = rings.incoming.next(&mut packet).unwrap();
                    rings.incoming.publish();
                    let expected = to_us.pop_front();
                    prop_assert_eq!(there, expected.is_some());
                    if let Some((n, mut data)) = expected {
                        data.resize(data.len().next_multiple_of(8), 0);
                        prop_assert_eq!((packet.transaction, packet.data()), (n, &data[..]));
                    }
                }
                _ => {
                    let got = driver.receive().map(|r| (r.transaction, r.data));
                    let expected = to_driver.pop_front().map(|(n, mut data): (u64, Vec<u8>)| {
                        data.resize(data.len().next_multiple_of(8), 0);
                        (n, data)
                    });
                    prop_assert_eq!(got, expected);
                }
            }
        }
    }

    #[test]
    fn no_ring_does_harm(
        controls in prop::collection::vec((0..2_usize, prop_oneof![Just(0_u64), Just(4), Just(8), Just(12)], prop_oneof![0..9000_u32, any::<u32>()]), 1..40),
        noise in prop::collection::vec(any::<u64>(), 512),
    ) {
        let (driver, mut rings, memory) = pair(1, 1);
        let bytes: Vec<u8> = noise.iter().flat_map(|n| n.to_le_bytes()).collect();
        memory.write(BASE + 0x1000, &bytes).unwrap();
        let mut packet = Packet::default();
        for (ring, word, value) in controls {
            memory.write_obj(driver.controls()[ring] + word, value).unwrap();
            // As a device does: it goes on as long as there are packets, and stops at the first that is none.
            for _ in 0..1000 {
                match rings.incoming.next(&mut packet) {
                    Ok(true) => _ = packet.gpa_ranges(&memory, 100),
                    Ok(false) | Err(_) => break,
                }
            }
            rings.incoming.publish();
            rings.incoming.unmask();
            _ = rings.outgoing.write(kind::COMPLETION, 1, false, &[0; 100]);
        }
    }
}
