//! Further channels, and channels that come and go.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use vireo_frame::Intent;
use vireo_vmbus::Device;
use vireo_vmbus::ring::kind;

use super::rig::*;
use crate::bytes::{le32, words};

/// An address of a request of RNDIS in pages.
fn request(rig: &Rig, kind: u32, fields: &[u32]) -> (u32, u32, [u64; 1]) {
    let message = words(&[&[kind, 8 + fields.len() as u32 * 4], fields].concat());
    rig.memory.write(DATA, &message).unwrap();
    (message.len() as u32, 0, [DATA / 4096])
}

/// A packet with a request.
const REQUEST: [u32; 3] = [107, 1, u32::MAX];

/// Frames in all sections of the receive buffer, which the driver has.
fn take_all_sections(rig: &Rig, receive: impl Fn() -> vireo_vmbus::driver::Received) -> Vec<u64> {
    // What was given back before this is asked for has been taken.
    rig.ask(&words(&[1, 0x6_0001, 0x6_0001]));
    let take = |_| {
        rig.put(&plain(ADDRESS, OTHER, 1000), Intent::default()).unwrap();
        receive().transaction
    };
    (0..16).map(take).collect()
}

#[test]
fn a_channel_that_comes_and_goes_fills_no_memory() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    rig.ask(&words(&[133, 1, 1]));
    for _ in 0..600 {
        rig.open(1);
        rig.provider.close(1);
    }
    let asked = rig.tell(&words(&[1, 0x6_0001, 0x6_0001]));
    let packets = std::iter::from_fn(|| Some(rig.receive()).filter(|p| p.transaction != asked));
    let tables = packets.filter(|p| le32(&p.data, 0) == Some(134)).count();
    // A ring of 32 KiB, and one that waits.
    assert!((2..32768 / 128 + 2).contains(&tables), "{tables}");
}

#[test]
fn an_answer_without_a_section_stops_nothing() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let packets = take_all_sections(&rig, || rig.receive());
    let (length, offset, page) = request(&rig, 4, &[9, 0x0001_0106, 0, 20, 0]);
    let put = |kind, transaction, ranges: &[(u32, u32, &[u64])], message: &[u32]| {
        let mut data = words(message);
        data.resize(40, 0);
        rig.driver.send(kind, transaction, ranges, &data).expect("room");
    };
    put(kind::GPA_DIRECT, 5000, &[(length, offset, &page)], &REQUEST);
    // More than may wait, whoever answers them, before the section comes.
    (0..200).for_each(|n| put(kind::IN_BAND, 6000 + n, &[], &[107, 0, 9999, 100]));
    put(kind::COMPLETION, packets[3], &[], &[108, 1]);
    rig.channel.doorbell().ring();
    let mut answered = 0;
    while rig.receive().kind != kind::TRANSFER_PAGES {
        answered += 1;
    }
    assert!(answered > 0);
}

#[test]
fn an_answer_goes_when_another_channel_gives_sections_back() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let further = rig.open(1);
    // All frames come by it.
    let scale = [words(&[0, 0, 0, 4, 28, 40, 32, 1]), vec![0; 40]].concat();
    assert_eq!(rig.set(0x0001_0204, &scale), 0);
    let packets = take_all_sections(&rig, || further.receive());
    let (length, offset, page) = request(&rig, 4, &[9, 0x0001_0106, 0, 20, 0]);
    let mut data = words(&REQUEST);
    data.resize(40, 0);
    rig.send(kind::GPA_DIRECT, &[(length, offset, &page)], &data);
    assert_eq!(rig.receive().kind, kind::COMPLETION);
    further.send(kind::COMPLETION, packets[3], &[], &words(&[108, 1]));
    assert_eq!(rig.receive().kind, kind::TRANSFER_PAGES);
}

#[test]
fn the_first_channel_alone_controls_the_adapter() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let further = rig.open(1);
    let (length, offset, page) = request(&rig, 3, &[0]);
    further.send(kind::GPA_DIRECT, 77, &[(length, offset, &page)], &words(&REQUEST));
    let refused = further.receive();
    assert_eq!((refused.transaction, le32(&refused.data, 4)), (77, Some(2)));
    // Not halted.
    rig.put(&plain(ADDRESS, OTHER, 60), Intent::default()).unwrap();
    assert_eq!(rig.receive().kind, kind::TRANSFER_PAGES);
}

#[test]
fn nothing_of_a_driver_outlives_its_channel() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let (tokens, gate) = channel();
    rig.given.lock().unwrap().gate = Some(gate);
    rig.tell(&words(&[101, 0xe1, 0xcafe]));
    // It is taking a buffer when the channel is closed.
    while rig.given.lock().unwrap().gate.is_some() {
        std::thread::yield_now();
    }
    let provider = Arc::clone(&rig.provider);
    let close = std::thread::spawn(move || provider.close(0));
    std::thread::sleep(Duration::from_millis(100));
    drop(tokens);
    close.join().unwrap();
    let anew = rig.open(0);
    anew.send(kind::IN_BAND, 1, &[], &words(&[1, 0x6_0001, 0x6_0001]));
    assert_eq!(anew.receive().transaction, 1);
    for (kind_of, fields) in [(2, &[7, 1, 0, 0x4000][..]), (5, &[9, 0x0001_010e, 4, 20, 0, 0xf])] {
        let (length, offset, page) = request(&rig, kind_of, fields);
        anew.send(kind::GPA_DIRECT, 2, &[(length, offset, &page)], &words(&REQUEST));
        assert_eq!((anew.receive().transaction, anew.driver.is_empty()), (2, true), "nowhere for an answer");
    }
    rig.put(&plain(ADDRESS, OTHER, 60), Intent::default()).unwrap();
    assert!(anew.driver.is_empty(), "the new driver has given no buffer");
}
