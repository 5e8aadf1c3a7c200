//! Frames that come.

use std::collections::BTreeSet;

use vireo_frame::{Ability, Checksum, Intent, Mac};

use crate::rig::{ADDRESS, COUNT, HEAD, ICR, IMS, RCTL, RX, Rig, frame, waits};

const PLAIN: Intent = Intent { checksum: Checksum::Unknown, segmentation: None, tag: None };
const GOOD: Intent = Intent { checksum: Checksum::Good, segmentation: None, tag: None };

#[test]
fn a_frame_comes_with_a_check_sequence_and_an_interrupt_when_all_are_there() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    rig.write(IMS, 0x80);
    rig.buffers(20, 2048);
    let bytes = frame(ADDRESS, 1514);
    rig.wire.gives(&bytes, PLAIN).unwrap();
    rig.wire.gives(&frame(ADDRESS, 20), PLAIN).unwrap();
    assert!(!rig.interrupts());
    rig.wire.adapter().unwrap().flush();
    assert!(rig.interrupts());
    assert_eq!(rig.read(ICR) & 0x80, 0x80);
    let got = rig.received(0);
    assert_eq!((got.status, got.errors), (1 | 2 | 4, 0));
    assert!(got.bytes == [&bytes[..], &[0; 4]].concat());
    assert_eq!(rig.received(1).bytes.len(), 64, "short ones are filled up");
    assert_eq!((rig.received(2).status, rig.read(RX + HEAD)), (0, 2));
    // Packets and octets, which are zero when they were read.
    assert_eq!([0x4074, 0x40d0, 0x4088, 0x4074].map(|r| rig.read(r)), [2, 2, 1518 + 64, 0]);
}

#[test]
fn long_frames_take_several_buffers_where_they_are_wanted() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    rig.buffers(20, 2048);
    rig.wire.gives(&frame(ADDRESS, 1519), PLAIN).unwrap();
    assert_eq!((rig.read(RX + HEAD), rig.read(0x40ac)), (0, 1));
    // Without a check sequence; buffers of 512 bytes, and of 4096.
    for (rctl, size) in [(2 << 16, 512), (1 << 25 | 3 << 16, 4096)] {
        rig.start(1 << 5 | 1 << 26 | rctl);
        rig.buffers(20, 4096);
        let bytes = frame(ADDRESS, 9014);
        rig.wire.gives(&bytes, PLAIN).unwrap();
        let count = bytes.len().div_ceil(size) as u64;
        let all: Vec<u8> = (0..count).flat_map(|n| rig.received(n).bytes).collect();
        assert!(all == bytes, "{size}");
        let ends: Vec<bool> = (0..count).map(|n| rig.received(n).status & 2 != 0).collect();
        assert!(ends.iter().rev().skip(1).all(|end| !end) && ends[count as usize - 1], "{ends:?}");
    }
    rig.wire.gives(&frame(ADDRESS, 16_381), PLAIN).unwrap();
    assert_eq!(rig.read(0x40ac), 1);
}

#[test]
fn the_network_waits_for_buffers() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    assert!(rig.wire.gives(&frame(ADDRESS, 60), PLAIN).is_err());
    rig.buffers(1, 2048);
    waits("word of room", || rig.wire.is_told());
    rig.wire.gives(&frame(ADDRESS, 60), PLAIN).unwrap();
    assert!(rig.wire.gives(&frame(ADDRESS, 60), PLAIN).is_err());
    // Half the ring is low.
    assert_eq!(rig.read(ICR) & 0x10, 0x10);
    rig.buffers(COUNT - 1, 2048);
    waits("word of room", || rig.wire.is_told());
    assert_eq!(rig.read(ICR) & 0x10, 0);
    for n in 0..COUNT - 1 {
        assert_eq!(rig.read(ICR) & 0x10 != 0, n + 1 >= COUNT / 2, "{n}");
        rig.wire.gives(&frame(ADDRESS, 60), PLAIN).unwrap();
    }
    assert!(rig.wire.gives(&frame(ADDRESS, 60), PLAIN).is_err());
    // Switched off, it loses what comes, and the network waits no more.
    rig.write(RCTL, 0);
    waits("word of room", || rig.wire.is_told());
    rig.wire.gives(&frame(ADDRESS, 60), PLAIN).unwrap();
}

#[test]
fn the_guest_gets_what_it_wants() {
    let group = Mac([1, 0, 0x5e, 0, 0x12, 0x34]);
    let other = Mac([2, 0, 0, 0, 0, 1]);
    let rig = Rig::new(Ability::ALL);
    let wanted = || {
        [ADDRESS, other, group, Mac::BROADCAST].map(|to| {
            let before = rig.read(RX + HEAD);
            rig.wire.gives(&frame(to, 60), PLAIN).unwrap();
            rig.read(RX + HEAD) != before
        })
    };
    rig.start(0);
    rig.buffers(COUNT - 1, 2048);
    assert_eq!(wanted(), [true, false, false, true]);
    rig.write(RCTL, 1 << 1);
    assert_eq!(wanted(), [true, false, false, false]);
    rig.write(RCTL, 1 << 1 | 1 << 3);
    assert_eq!(wanted(), [true, true, false, false]);
    rig.write(RCTL, 1 << 1 | 1 << 4);
    assert_eq!(wanted(), [true, false, true, true]);
    rig.write(RCTL, 1 << 1);
    // A second address, a group as an address.
    rig.write(0x5408, 0x0000_0002);
    rig.write(0x540c, 0x8000_0100);
    assert_eq!(wanted(), [true, true, false, false]);
    waits("the filter", || rig.wire.filter.lock().unwrap().groups == Some(BTreeSet::new()));
    // The hash of a group: its last twelve bits, and others as the guest says.
    for (offset, hash) in [(0, 0x341), (1, 0x682), (2, 0xd04), (3, 0x412)] {
        rig.write(RCTL, 1 << 1 | offset << 12);
        rig.write(0x5200 + hash / 32 * 4, 1 << (hash % 32));
        assert_eq!(wanted(), [true, true, true, false], "{offset}");
        rig.write(0x5200 + hash / 32 * 4, 0);
        assert_eq!(wanted(), [true, true, false, false], "{offset}");
    }
    // Its own address.
    rig.write(0x5400, 0x3344_5502);
    rig.write(0x5404, 0x8000_1122);
    waits("the address", || {
        *rig.wire.address.lock().unwrap() == Some(Mac([2, 0x55, 0x44, 0x33, 0x22, 0x11]))
    });
}

#[test]
fn tags_are_taken_out_and_filtered() {
    let rig = Rig::new(Ability::ALL);
    let plain = frame(ADDRESS, 100);
    let tagged = [&plain[..12], &[0x81, 0, 0x60, 0x05], &plain[12..]].concat();
    rig.start(1 << 26);
    rig.buffers(8, 2048);
    rig.wire.gives(&tagged, PLAIN).unwrap();
    assert!(rig.received(0).bytes == tagged && rig.received(0).status & 8 == 0);
    rig.write(0, 1 << 30);
    rig.wire.gives(&tagged, PLAIN).unwrap();
    let got = rig.received(1);
    assert_eq!((got.status & 8, got.tag), (8, 0x6005));
    assert!(got.bytes == plain);
    rig.write(RCTL, rig.read(RCTL) | 1 << 18);
    rig.wire.gives(&tagged, PLAIN).unwrap();
    assert_eq!(rig.read(RX + HEAD), 2, "of another VLAN");
    rig.write(0x5600, 1 << 5);
    rig.wire.gives(&tagged, PLAIN).unwrap();
    rig.wire.gives(&plain, PLAIN).unwrap();
    assert_eq!(rig.read(RX + HEAD), 4);
    assert_eq!(rig.received(3).status & 8, 0);
}

#[test]
fn what_is_known_of_checksums_is_said() {
    let rig = Rig::new(Ability::ALL);
    let mut bytes = frame(ADDRESS, 100);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[14..34].copy_from_slice(&[0x45, 0, 0, 86, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = vireo_frame::Sum::default().over(&bytes[14..34]).finish();
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    rig.start(0);
    rig.buffers(8, 2048);
    let status = |intent, bytes: &[u8]| {
        let n = rig.read(RX + HEAD).into();
        rig.wire.gives(bytes, intent).unwrap();
        let got = rig.received(n);
        (got.status & 0x64, got.errors)
    };
    assert_eq!(status(GOOD, &bytes), (4, 0), "nobody asked");
    rig.write(0x5000, 0x300);
    assert_eq!(status(GOOD, &bytes), (0x60, 0));
    assert_eq!(status(PLAIN, &bytes), (0x40, 0));
    bytes[24] ^= 1;
    assert_eq!(status(GOOD, &bytes), (0x60, 0x40));
    assert_eq!(status(GOOD, &frame(ADDRESS, 100)), (4, 0), "no IP");
}
