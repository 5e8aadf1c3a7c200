//! Frames from the guest, and to it.

use vireo_frame::{Ability, Checksum, Intent, Mac, SegmentKind, Segmentation, Tag};
use vireo_vmbus::ring::kind;

use super::rig::*;
use crate::bytes::{le32, words};

/// A packet of NVSP with data messages in a section of the send buffer, and in pages.
fn send(rig: &Rig, section: Option<(u32, &[u8])>, pages: &[u8]) -> u64 {
    let (index, length) = match section {
        Some((index, bytes)) => {
            rig.write(SEND, index * 6144, bytes);
            (index, bytes.len() as u32)
        }
        None => (u32::MAX, 0),
    };
    let mut data = words(&[107, 0, index, length]);
    data.resize(40, 0);
    if pages.is_empty() {
        return rig.send(kind::IN_BAND, &[], &data);
    }
    // From the middle of a page on, over pages that lie the other way round.
    let count = (100 + pages.len()).div_ceil(4096) as u64;
    let numbers: Vec<u64> = (0..count).map(|n| DATA / 4096 + 64 - n).collect();
    for (n, byte) in pages.iter().enumerate() {
        let at = numbers[(100 + n) / 4096] * 4096 + (100 + n) as u64 % 4096;
        rig.memory.write(at, &[*byte]).unwrap();
    }
    rig.send(kind::GPA_DIRECT, &[(pages.len() as u32, 100, &numbers)], &data)
}

fn completed(rig: &Rig, transaction: u64) -> u32 {
    let answer = rig.receive();
    assert_eq!(
        (answer.kind, answer.transaction, le32(&answer.data, 0)),
        (kind::COMPLETION, transaction, Some(108))
    );
    le32(&answer.data, 4).unwrap()
}

#[test]
fn frames_go_out_of_sections_of_pages_and_of_both() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let frames: Vec<Vec<u8>> = [60, 61, 1514, 9014, 300].map(|n| plain(OTHER, ADDRESS, n)).into();
    // Two messages in a section, the first filled up to 8 bytes.
    let two = [packet(&frames[0], &[], 4), packet(&frames[1], &[], 0)].concat();
    let first = send(&rig, Some((3, &two)), &[]);
    assert_eq!(completed(&rig, first), 1);
    // In pages alone.
    let second = send(&rig, None, &packet(&frames[3], &[], 0));
    assert_eq!(completed(&rig, second), 1);
    // A whole message and the head of another in a section, the rest in pages.
    let last = packet(&frames[2], &[], 0);
    let third = send(&rig, Some((0, &[&packet(&frames[4], &[], 0), &last[..44]].concat())), &last[44..]);
    assert_eq!(completed(&rig, third), 1);
    let sent: Vec<Vec<u8>> = rig.sent(5).into_iter().map(|(bytes, _)| bytes).collect();
    assert_eq!(sent, [0, 1, 3, 4, 2].map(|n: usize| frames[n].clone()));
    let counters = rig.provider.counters();
    assert_eq!((counters.sent, counters.sent_bytes, counters.bad), (5, 60 + 61 + 1514 + 9014 + 300, 0));
}

/// TCP over IPv4, as Linux leaves it for an adapter to finish: no length, no sums.
fn tcp4(payload: usize) -> Vec<u8> {
    let mut frame = plain(OTHER, ADDRESS, 14);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame.extend([0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x18, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..payload).map(|n| n as u8));
    frame
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn large_sends_are_left_to_who_can_and_cut_for_who_cannot() {
    // Offset of TCP 34, segments of 1448 bytes, the second kind of large send, IPv4.
    let large = (2, 1448 | 34 << 20 | 1 << 30);
    let frame = tcp4(40_000);
    let rig = Rig::ready(Wire { ability: Ability::ALL.into(), ..Wire::default() }, 0x6_0001, true);
    let transaction = send(&rig, None, &packet(&frame, &[large, (6, 5 << 4 | 3)], 0));
    assert_eq!(completed(&rig, transaction), 1);
    let (bytes, intent) = rig.sent(1).remove(0);
    let segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448 });
    let checksum = Checksum::Wanted { start: 34, offset: 16 };
    assert_eq!(intent, Intent { checksum, segmentation, tag: Some(Tag(0x6005)) });
    assert_eq!(bytes[16..18], (40_040_u16).to_be_bytes(), "the length of the packet");
    assert_eq!(sum(&bytes[14..34]), 0xffff);
    let pseudo = [&bytes[26..34], &[0, 6], &40_020_u16.to_be_bytes()].concat();
    assert_eq!(bytes[50..52], sum(&pseudo).to_be_bytes());
    assert_eq!(bytes[54..], frame[54..]);

    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    // It is full again and again.
    *rig.wire.room.lock().unwrap() = Some(5);
    let transaction = send(&rig, None, &packet(&frame, &[large], 0));
    let mut payload = Vec::new();
    for round in 0..6 {
        let segments = if round < 5 { 5 } else { 3 };
        for (bytes, intent) in rig.sent(segments) {
            assert_eq!(intent, Intent { checksum: Checksum::Good, ..Intent::default() });
            let pseudo =
                [&bytes[26..34], &[0, 6], &(bytes.len() as u16 - 34).to_be_bytes(), &bytes[34..]].concat();
            assert_eq!((sum(&pseudo), sum(&bytes[14..34])), (0xffff, 0xffff));
            payload.extend_from_slice(&bytes[54..]);
        }
        assert!(rig.driver.is_empty() || round == 5, "the guest keeps its memory until all is sent");
        *rig.wire.room.lock().unwrap() = Some(5);
        rig.wire.adapter.lock().unwrap().clone().unwrap().room();
    }
    assert_eq!(payload, frame[54..]);
    assert_eq!(completed(&rig, transaction), 1);
}

#[test]
fn checksums_are_asked_for_by_what_comes_with_the_frame() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let mut frame = tcp4(100);
    frame[16..18].copy_from_slice(&140_u16.to_be_bytes());
    // IPv4, TCP, the sum of the IP header; TCP at 34, or where IP says.
    for offset in [34 << 16, 0] {
        let transaction = send(&rig, Some((1, &packet(&frame, &[(0, 0x15 | offset)], 0))), &[]);
        assert_eq!(completed(&rig, transaction), 1);
        let (bytes, _) = rig.sent(1).remove(0);
        let pseudo = [&bytes[26..34], &[0, 6], &120_u16.to_be_bytes(), &bytes[34..]].concat();
        assert_eq!((sum(&pseudo), sum(&bytes[14..34])), (0xffff, 0xffff));
    }
}

/// A frame, and what comes with it: kinds and values.
type Got = (Vec<u8>, Vec<(u32, u32)>);

/// The frames of a packet to the driver, parts put together, with the information of the first.
fn frames_of(messages: &[Vec<u8>]) -> Vec<Got> {
    let mut all: Vec<Got> = Vec::new();
    for message in messages {
        let field = |n: usize| le32(message, 8 + n * 4).unwrap() as usize;
        assert_eq!((le32(message, 0), le32(message, 4)), (Some(1), Some(message.len() as u32)));
        let data = &message[8 + field(0)..][..field(1)];
        let infos: Vec<(u32, u32)> = message[8 + 36..8 + field(0)]
            .chunks(16)
            .map(|i| (le32(i, 4).unwrap(), le32(i, 12).unwrap()))
            .collect();
        let part = infos.iter().find(|(kind, _)| *kind == 0x8000_0001).map(|(_, value)| value >> 8);
        match (part, all.last_mut()) {
            (Some(part), Some(last)) if part & 2 == 0 => last.0.extend_from_slice(data),
            _ => all.push((data.to_vec(), infos)),
        }
    }
    all
}

#[test]
fn frames_to_the_guest_come_together_and_in_parts() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let adapter = rig.wire.adapter.lock().unwrap().clone().unwrap();
    let put = |bytes: &[u8], intent| adapter.put(&vireo_frame::Frame::new(bytes, &[], intent).unwrap());
    let small = plain(ADDRESS, OTHER, 60);
    let mut large = tcp4(60_000);
    large[..6].copy_from_slice(&ADDRESS.0);
    let intent = Intent {
        checksum: Checksum::Wanted { start: 34, offset: 16 },
        segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448 }),
        tag: Some(Tag(0x6005)),
    };
    put(&small, Intent::default()).unwrap();
    put(&large, intent).unwrap();
    put(&plain(Mac::BROADCAST, OTHER, 1514), Intent::default()).unwrap();
    put(&plain(OTHER, ADDRESS, 60), Intent::default()).unwrap();
    put(&plain(ADDRESS, OTHER, 1515), Intent::default()).unwrap();
    assert!(rig.driver.is_empty(), "they go together");
    adapter.flush();
    let packet = rig.receive();
    let frames = frames_of(&rig.ranges(&packet));
    assert_eq!(frames.len(), 3, "not what is another's, nor what is too long");
    assert_eq!(frames[0], (small, vec![]));
    assert_eq!(frames[1].0, large);
    assert_eq!(frames[1].1[..2], [(0, 1 << 3 | 1 << 5), (6, 5 << 4 | 3)], "right, and its VLAN");
    assert_eq!(frames[2].0.len(), 1514);
    rig.give_back(&packet);
    // To all that want everything.
    rig.set(0x0001_010e, &words(&[0x20]));
    put(&plain(OTHER, ADDRESS, 60), Intent::default()).unwrap();
    adapter.flush();
    assert_eq!(frames_of(&rig.ranges(&rig.receive())).len(), 1);
}

#[test]
fn who_takes_no_coalesced_frames_gets_segments() {
    let rig = Rig::ready(Wire::default(), 0x6_0000, false);
    let mut large = tcp4(5000);
    large[..6].copy_from_slice(&ADDRESS.0);
    let intent = Intent {
        checksum: Checksum::Wanted { start: 34, offset: 16 },
        segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1448 }),
        tag: None,
    };
    rig.put(&large, intent).unwrap();
    let frames = frames_of(&rig.ranges(&rig.receive()));
    let lengths: Vec<usize> = frames.iter().map(|f| f.0.len() - 54).collect();
    assert_eq!(lengths, [1448, 1448, 1448, 656]);
    assert!(frames.iter().all(|f| f.1 == [(0, 1 << 3 | 1 << 5)]));
    assert!(frames.iter().all(|f| sum_of_transport(&f.0) == 0xffff));
}

/// 0xffff: the sum of what comes behind IPv4 is right.
fn sum_of_transport(frame: &[u8]) -> u16 {
    let length = (frame.len() - 34) as u16;
    sum(&[&frame[26..34], &[0, frame[23]], &length.to_be_bytes(), &frame[34..]].concat())
}

#[test]
fn a_sum_that_is_said_to_be_right_is_there() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let mut frame = tcp4(100);
    frame[..6].copy_from_slice(&ADDRESS.0);
    frame[16..18].copy_from_slice(&140_u16.to_be_bytes());
    let pseudo = sum(&[&frame[26..34], &[0, 6], &120_u16.to_be_bytes()].concat());
    frame[50..52].copy_from_slice(&pseudo.to_be_bytes());
    let intent = Intent { checksum: Checksum::Wanted { start: 34, offset: 16 }, ..Intent::default() };
    rig.put(&frame, intent).unwrap();
    let got = frames_of(&rig.ranges(&rig.receive())).remove(0);
    assert_eq!((sum_of_transport(&got.0), &got.0[54..]), (0xffff, &frame[54..]));
    assert_eq!(got.1, [(0, 1 << 3 | 1 << 5)]);
}

#[test]
fn what_is_not_coalesced_has_its_sum() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let mut datagram = plain(ADDRESS, OTHER, 14);
    datagram[12..14].copy_from_slice(&[8, 0]);
    datagram
        .extend([0x45, 0, 0, 33, 0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 67, 0, 68, 0, 13]);
    datagram.extend([0, 0]);
    datagram.extend(*b"hello");
    let mut segment = tcp4(5);
    segment[..6].copy_from_slice(&ADDRESS.0);
    segment[17] = 45;
    for (mut frame, offset, told) in [(datagram, 6, 1 << 4 | 1 << 5), (segment, 16, 1 << 3 | 1 << 5)] {
        // The sum of the pseudo header is what who leaves it to others puts there.
        let length = (frame.len() as u16 - 34).to_be_bytes();
        let pseudo = sum(&[&frame[26..34], &[0, frame[23]], &length].concat());
        frame[34 + offset..][..2].copy_from_slice(&pseudo.to_be_bytes());
        let checksum = Checksum::Wanted { start: 34, offset: offset as u16 };
        rig.put(&frame, Intent { checksum, ..Intent::default() }).unwrap();
        let packet = rig.receive();
        let got = frames_of(&rig.ranges(&packet)).remove(0);
        assert_eq!((sum_of_transport(&got.0), got.1), (0xffff, vec![(0, told)]));
        rig.give_back(&packet);
    }
}

#[test]
fn a_guest_that_gives_nothing_back_makes_its_network_wait() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let frame = plain(ADDRESS, OTHER, 1000);
    let mut packets = Vec::new();
    // What was given back before this is asked for has been taken.
    rig.ask(&words(&[1, 0x6_0001, 0x6_0001]));
    // 16 sections of 16 KiB.
    for _ in 0..16 {
        rig.put(&frame, Intent::default()).unwrap();
        packets.push(rig.receive());
    }
    assert!(rig.put(&frame, Intent::default()).is_err());
    assert_eq!(*rig.wire.told_room.lock().unwrap(), 0);
    rig.give_back(&packets[7]);
    let told = rig.wire.told_room.lock().unwrap();
    let wait = rig.wire.came.wait_timeout_while(told, std::time::Duration::from_secs(20), |n| *n == 0);
    assert!(!wait.unwrap().1.timed_out());
    rig.put(&frame, Intent::default()).unwrap();
    // What was given back once is not given back twice.
    rig.receive();
    rig.give_back(&packets[7]);
    rig.ask(&words(&[1, 0x6_0001, 0x6_0001]));
    assert!(rig.put(&frame, Intent::default()).is_ok(), "a name is used again, though");
    assert!(rig.put(&frame, Intent::default()).is_err());
}
