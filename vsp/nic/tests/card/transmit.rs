//! Frames that go.

use std::sync::atomic::Ordering;

use vireo_frame::{Ability, Checksum, Intent, SegmentKind, Segmentation, Sum, Tag};

use crate::rig::{ADDRESS, ICR, IMS, Rig, TX_BUFFERS, TX_RING, frame, waits};

const END: u64 = 1 << 24;
const SUM: u64 = 1 << 26;
const CUT: u64 = 1 << 26;
const REPORT: u64 = 1 << 27;
const EXTENDED: u64 = 1 << 29;
const TAG: u64 = 1 << 30;
const DATA: u64 = EXTENDED | 1 << 20;
const SUM_IP: u64 = 1 << 40;
const SUM_TRANSPORT: u64 = 1 << 41;

const NONE: Ability = Ability { checksum: false, tcp4: false, tcp6: false, udp: false, tag: false };

/// Bytes in the guest's memory, as descriptors of pieces with these lengths; `each` bits in all of them, END in the last.
fn pieces(rig: &Rig, bytes: &[u8], lengths: &[usize], each: u64) -> Vec<[u64; 2]> {
    rig.memory.write(TX_BUFFERS, bytes).unwrap();
    let (mut at, mut all) = (0, Vec::new());
    for length in lengths.iter().copied().chain([bytes.len()]) {
        let length = length.min(bytes.len() - at);
        if length > 0 {
            all.push([TX_BUFFERS + at as u64, length as u64 | each]);
        }
        at += length;
    }
    all.last_mut().unwrap()[1] |= END;
    all
}

/// TCP or UDP over IPv4 or IPv6 with so much payload, as a driver leaves it that has it cut: without lengths and sums.
fn segment(v6: bool, udp: bool, payload: usize) -> (Vec<u8>, usize) {
    let ip = if v6 { 40 } else { 20 };
    let transport = if udp { 8 } else { 20 };
    let mut bytes = frame(ADDRESS, 14 + ip + transport + payload);
    bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
    bytes[14..14 + ip + transport].fill(0);
    bytes[14] = if v6 { 0x60 } else { 0x45 };
    bytes[if v6 { 20 } else { 23 }] = if udp { 17 } else { 6 };
    bytes[if v6 { 22 } else { 26 }..14 + ip].fill(9);
    if !udp {
        bytes[14 + ip + 12] = 0x50;
    }
    (bytes, 14 + ip)
}

fn context(v6: bool, udp: bool, headers: usize, size: u64) -> [u64; 2] {
    let (start, field) = (if v6 { 54u64 } else { 34 }, if udp { 6 } else { 16 });
    let low = 14 | 24 << 8 | (start - 1) << 16 | start << 32 | (start + field) << 40;
    let command = EXTENDED | u64::from(!udp) << 24 | u64::from(!v6) << 25 | CUT;
    [low, command | (headers as u64) << 40 | size << 48]
}

#[test]
fn old_descriptors() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    rig.write(IMS, 3);
    let bytes = frame(ADDRESS, 1514);
    for lengths in [&[][..], &[14], &[1, 13, 100, 1]] {
        let all = pieces(&rig, &bytes, lengths, REPORT);
        rig.transmit(&all);
        assert!(rig.sent() == [(bytes.clone(), Intent::default())], "{lengths:?}");
    }
    waits("an interrupt", || rig.interrupts());
    assert_eq!(rig.read(ICR) & 3, 3);
    // What was reported, and what was not.
    assert_eq!(rig.memory.read_obj::<u8>(TX_RING + 12).unwrap(), 1);
    let at = *rig.tx_tail.lock().unwrap() * 16;
    rig.transmit(&pieces(&rig, &bytes, &[], 0));
    rig.sent();
    assert_eq!(rig.memory.read_obj::<u8>(TX_RING + at + 12).unwrap(), 0);
    // A sum from 20 to the end, at 50; short ones are filled up.
    let mut short = frame(ADDRESS, 58);
    rig.transmit(&pieces(&rig, &short, &[], SUM | 50 << 16 | 20 << 40));
    let sum = Sum::default().over(&short[20..]).finish();
    short[50..52].copy_from_slice(&sum.to_be_bytes());
    short.resize(60, 0);
    assert!(rig.sent() == [(short, Intent::default())]);
    assert_eq!([0x4080, 0x40d4].map(|r| rig.read(r)), [5, 5]);
}

#[test]
fn sums_are_left_to_the_network() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    let (mut bytes, _) = segment(false, true, 500);
    rig.transmit(&[context(false, true, 0, 0)]);
    rig.transmit(&pieces(&rig, &bytes, &[100], DATA | SUM_IP | SUM_TRANSPORT | REPORT));
    let sum = Sum::default().over(&bytes[14..34]).finish();
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    let wanted = Intent { checksum: Checksum::Wanted { start: 34, offset: 6 }, ..Intent::default() };
    assert!(rig.sent() == [(bytes.clone(), wanted)]);
    // A sum that does not go to the end is made here.
    let [low, high] = context(false, true, 0, 0);
    rig.transmit(&[[low | 100 << 48, high]]);
    rig.transmit(&pieces(&rig, &bytes, &[], DATA | SUM_TRANSPORT));
    let sum = Sum::default().over(&bytes[34..101]).finish();
    bytes[40..42].copy_from_slice(&sum.to_be_bytes());
    assert!(rig.sent() == [(bytes, Intent::default())]);
}

/// A sum may be wherever a byte can say; far behind it is made here, and no frame is lost.
#[test]
fn sums_are_made_wherever_they_are() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    let bytes = frame(ADDRESS, 600);
    for offset in [200u64, 249, 250, 251, 252, 253, 254, 255] {
        let low = 100 << 32 | offset << 40;
        rig.transmit(&[[low, EXTENDED | 1 << 24]]);
        rig.transmit(&pieces(&rig, &bytes, &[], DATA | SUM_TRANSPORT));
        let (sent, intent) = rig.sent().pop().unwrap();
        let offset = offset as usize;
        let mut expected = bytes.clone();
        assert_eq!(intent.checksum, Checksum::Unknown, "neither TCP nor UDP");
        let sum = Sum::default().over(&bytes[100..]).finish();
        expected[offset..offset + 2].copy_from_slice(&sum.to_be_bytes());
        assert!(sent == expected, "{offset}");
    }
}

#[test]
fn long_packets_are_made_whole_and_cut_by_who_can() {
    for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let (bytes, start) = segment(v6, udp, 5000);
        let headers = bytes.len() - 5000;
        let send = |rig: &Rig| {
            rig.start(0);
            rig.transmit(&[context(v6, udp, headers, 1000)]);
            rig.transmit(&pieces(rig, &bytes, &[headers, 3000], DATA | CUT | SUM_IP | SUM_TRANSPORT));
            rig.sent()
        };
        let rig = Rig::new(Ability::ALL);
        let (whole, intent) = send(&rig).pop().unwrap();
        let kind = match (v6, udp) {
            (_, true) => SegmentKind::Udp,
            (true, false) => SegmentKind::Tcp6,
            (false, false) => SegmentKind::Tcp4,
        };
        assert_eq!(intent.segmentation, Some(Segmentation { kind, size: 1000 }));
        let word = |at: usize| usize::from(u16::from_be_bytes([whole[at], whole[at + 1]]));
        let length = whole.len() - start;
        assert_eq!(word(if v6 { 18 } else { 16 }), if v6 { length } else { length + 20 });
        assert!(v6 || Sum::default().over(&whole[14..34]).finish() == 0);
        let addresses = if v6 { 22..54 } else { 26..34 };
        let pseudo =
            Sum::default().over(&bytes[addresses]).word(length as u16).word(if udp { 17 } else { 6 });
        assert_eq!(word(start + if udp { 6 } else { 16 }), usize::from(pseudo.folded()));
        // And by a network that cannot.
        let rig = Rig::new(NONE);
        rig.start(0);
        rig.transmit(&[context(v6, udp, headers, 1000)]);
        rig.transmit(&pieces(&rig, &bytes, &[headers, 3000], DATA | CUT | SUM_IP | SUM_TRANSPORT));
        waits("five segments", || rig.wire.got.lock().unwrap().len() == 5);
        let payload: Vec<u8> = rig.wire.take().iter().flat_map(|(b, _)| b[headers..].to_vec()).collect();
        assert!(payload == bytes[headers..]);
    }
}

#[test]
fn a_tag_goes_beside_the_frame() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    let bytes = frame(ADDRESS, 100);
    rig.transmit(&pieces(&rig, &bytes, &[], TAG | 0x6005 << 48));
    assert!(rig.sent() == [(bytes.clone(), Intent::default())], "not while it is off");
    rig.write(0, 1 << 30);
    let tag = Intent { tag: Some(Tag(0x6005)), ..Intent::default() };
    for kind in [TAG, TAG | DATA] {
        rig.transmit(&pieces(&rig, &bytes, &[], kind | 0x6005 << 48));
        assert!(rig.sent() == [(bytes.clone(), tag)]);
    }
}

#[test]
fn a_frame_waits_for_a_full_network() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    rig.wire.room.store(1, Ordering::Release);
    rig.write(IMS, 1);
    for _ in 0..3 {
        rig.transmit(&pieces(&rig, &frame(ADDRESS, 100), &[], REPORT));
    }
    // The second is in the card, the third still in the ring; the guest is told of the two.
    waits("two", || rig.read(0x3810) == 2 && rig.interrupts());
    assert_eq!(rig.wire.got.lock().unwrap().len(), 1);
    rig.wire.room.store(usize::MAX, Ordering::Release);
    rig.wire.adapter().unwrap().room();
    waits("the rest", || rig.wire.got.lock().unwrap().len() == 3);
    // A reset forgets what waits.
    rig.wire.room.store(0, Ordering::Release);
    rig.transmit(&pieces(&rig, &frame(ADDRESS, 100), &[], 0));
    waits("the ring", || rig.read(0x3810) == 4);
    rig.start(0);
    rig.wire.take();
    rig.wire.room.store(usize::MAX, Ordering::Release);
    rig.wire.adapter().unwrap().room();
    rig.transmit(&pieces(&rig, &frame(ADDRESS, 99), &[], 0));
    assert_eq!(rig.sent().iter().map(|(b, _)| b.len()).collect::<Vec<_>>(), [99]);
}
