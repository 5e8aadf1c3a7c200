//! What goes from port to port, and what is lost on the way.

use super::*;
use vireo_frame::{Checksum, SegmentKind, Segmentation, Tag};
use vireo_switch::vlan::{VlanMode, VlanSet};
use vireo_switch::{Limit, Reason};

/// A TCP segment of IPv4 with so many bytes of payload, to be cut.
fn long(to: Mac, from: Mac, payload: usize) -> (Vec<u8>, Intent) {
    let mut bytes = [&to.0[..], &from.0, &[8, 0, 0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0]].concat();
    bytes.extend([
        10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 1, 0, 0, 0, 0,
    ]);
    bytes.resize(54 + payload, 0x5a);
    let intent = Intent {
        checksum: Checksum::Wanted { start: 34, offset: 16 },
        segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1460 }),
        tag: None,
    };
    (bytes, intent)
}

#[test]
fn frames_arrive_whole_with_their_intent() {
    let (mut plane, _handle) = plane();
    let (mut a, mut b) = (plug(&mut plane, "a", guest(1)), plug(&mut plane, "b", guest(2)));
    let mut c = plug(&mut plane, "c", guest(3));
    let (super_frame, intent) = long(mac(2), mac(1), 64_000);
    for length in [14, 60, 255, 256, 257, 1514, 9014, 65_000] {
        a.send(&plain(mac(2), mac(1), length));
        a.send_as(&super_frame, intent);
        settle(&mut plane);
        let got = b.receive();
        assert_eq!(got[0], (plain(mac(2), mac(1), length), Intent::default()));
        assert_eq!(got[1], (super_frame.clone(), intent));
        assert_eq!(got.len(), 2);
    }
    a.send(&plain(Mac::BROADCAST, mac(1), 60));
    settle(&mut plane);
    assert_eq!((a.receive().len(), b.receive().len(), c.receive().len()), (0, 1, 1));
}

#[test]
fn tags_leave_the_bytes_and_come_back_beside_them() {
    let (mut plane, _handle) = plane();
    let vlan = |n: u8, vlan| Settings { vlan, ..guest(n) };
    let trunk = VlanMode::Trunk { native: 1, allowed: VlanSet::All };
    let mut a = plug(&mut plane, "a", vlan(1, trunk.clone()));
    let mut b = plug(&mut plane, "b", vlan(2, VlanMode::Access(7)));
    let mut c = plug(&mut plane, "c", vlan(3, trunk));
    let tagged = |to: u8, tag: u16, length: usize| {
        let plain = plain(mac(to), mac(1), length);
        [&plain[..12], &[0x81, 0], &tag.to_be_bytes(), &plain[12..]].concat()
    };
    for length in [14, 60, 250, 2000] {
        let bare = Intent::default();
        a.send(&tagged(2, 7, length));
        a.send(&tagged(3, 0x6007, length));
        a.send(&tagged(2, 8, length));
        // Native: it leaves without.
        a.send(&tagged(3, 1, length));
        a.send_as(&plain(mac(3), mac(1), length), Intent { tag: Some(Tag(9)), ..bare });
        settle(&mut plane);
        assert_eq!(b.receive(), [(plain(mac(2), mac(1), length), bare)]);
        let got = c.receive();
        assert_eq!(got[0], (tagged(3, 0x6007, length), bare), "as it came");
        assert_eq!(got[1], (plain(mac(3), mac(1), length), bare));
        assert_eq!(got[2], (plain(mac(3), mac(1), length), Intent { tag: Some(Tag(9)), ..bare }));
    }
    // Where the bytes move, so does what is said of them.
    let (mut bytes, mut intent) = long(mac(2), mac(1), 5000);
    bytes.splice(12..12, [0x81, 0, 0, 7]);
    intent.checksum = Checksum::Wanted { start: 38, offset: 16 };
    a.send_as(&bytes, intent);
    settle(&mut plane);
    assert_eq!(b.receive(), [long(mac(2), mac(1), 5000)]);
}

#[test]
fn who_does_not_read_loses_frames_and_holds_up_nobody() {
    let (mut plane, _handle) = plane();
    let (mut a, mut slow) = (plug(&mut plane, "a", guest(1)), plug(&mut plane, "slow", guest(2)));
    let mut quick = plug(&mut plane, "quick", guest(3));
    let (mut sent, mut got) = (0, 0);
    for _ in 0..100 {
        for _ in 0..40 {
            a.send(&plain(mac(2), mac(1), 1514));
            a.send(&plain(mac(3), mac(1), 1514));
            sent += 1;
        }
        settle(&mut plane);
        got += quick.receive().len();
    }
    assert_eq!(got, sent, "the other one gets all");
    let counters = plane.switch().counters(slow.id).unwrap();
    let there = slow.receive().len() as u64;
    assert_eq!((counters.received.frames, counters.received.frames + counters.lost), (there, sent as u64));
    assert!(counters.lost > 0 && counters.received.bytes == there * 1514);
    assert_eq!(plane.switch().counters(a.id).unwrap().sent.frames, 2 * sent as u64);
}

#[test]
fn ports_get_their_share_whoever_sends_more() {
    let (mut plane, _handle) = plane();
    let weight = |n: u8, weight| Settings { weight, ..guest(n) };
    let mut senders: Vec<Worker> =
        [1, 1, 3].iter().zip(1..).map(|(w, n)| plug(&mut plane, &format!("s{n}"), weight(n, *w))).collect();
    let mut sink = plug(&mut plane, "sink", guest(9));
    let sizes = [1514, 9000, 60];
    for _ in 0..200 {
        for (n, sender) in senders.iter_mut().enumerate() {
            let frame = plain(mac(9), mac(n as u8 + 1), sizes[n]);
            while sender.up.put(&Frame::whole(&frame).unwrap()).is_ok() {}
            if sender.up.publish() {
                vireo_port::wire::ring(&sender.socket);
            }
        }
        plane.round(0);
        sink.receive();
    }
    // Frames count for more than their bytes.
    let bytes = [0, 1, 2].map(|n| {
        let sent = plane.switch().counters(senders[n].id).unwrap().sent;
        sent.bytes + sent.frames * 512
    });
    let share = bytes.map(|b| b as f64 / bytes[0] as f64);
    assert!((0.9..1.1).contains(&share[1]) && (2.7..3.3).contains(&share[2]), "{share:?}");
}

#[test]
fn a_limit_has_its_sender_wait_and_loses_nothing() {
    let (mut plane, _handle) = plane();
    let limit = Some(Limit { rate: 1_000_000, burst: 3000 });
    let mut a = plug(&mut plane, "a", Settings { bandwidth: limit, ..guest(1) });
    let mut b = plug(&mut plane, "b", guest(2));
    for _ in 0..10 {
        a.send(&plain(mac(2), mac(1), 1000));
    }
    settle(&mut plane);
    assert_eq!(b.receive().len(), 3);
    plane.round(1_500_000);
    assert_eq!(b.receive().len(), 1);
    plane.round(1_600_000);
    assert_eq!(b.receive().len(), 0, "not yet");
    for time in 2..20 {
        plane.round(time * 1_000_000);
    }
    assert_eq!(b.receive().len(), 6);
    assert_eq!(plane.switch().counters(a.id).unwrap().sent.frames, 10);
}

#[test]
fn a_report_is_heard_to_its_end() {
    let (mut plane, _handle) = plane();
    plane.switch().set_snooping(true);
    let (mut a, mut b) = (plug(&mut plane, "a", guest(1)), plug(&mut plane, "b", guest(2)));
    let mut c = plug(&mut plane, "c", guest(3));
    let to = |n: u8, from: u8, protocol: u8| {
        let ethernet = [&[1, 0, 0x5e, 1, 1, n][..], &mac(from).0, &[8, 0]].concat();
        let ip = [0x45, 0, 0, 0, 0, 0, 0, 0, 1, protocol, 0, 0, 10, 0, 0, from, 239, 1, 1, n];
        [&ethernet[..], &ip].concat()
    };
    // IGMPv3: 150 groups are joined, of which the 256 bytes of a head have 26.
    let mut report = [&to(22, 2, 2)[..], &[0x22, 0, 0, 0, 0, 0, 0, 150]].concat();
    (0..150).for_each(|n| report.extend([4, 0, 0, 0, 239, 1, 1, n]));
    b.send(&report);
    settle(&mut plane);
    assert_eq!(plane.switch().members().count(), 150);
    a.receive();
    c.receive();
    for n in [0, 26, 149] {
        a.send(&[&to(n, 1, 17)[..], &[0, 9, 0, 9, 0, 8, 0, 0]].concat());
        settle(&mut plane);
        assert_eq!((b.receive().len(), c.receive().len()), (1, 0), "{n}");
    }
}

#[test]
fn a_limit_that_was_a_mistake_is_over_when_it_is_changed() {
    let (mut plane, _handle) = plane();
    let limit = |rate| Settings { bandwidth: Some(Limit { rate, burst: 65_536 }), ..guest(1) };
    let mut a = plug(&mut plane, "a", limit(12));
    let mut b = plug(&mut plane, "b", guest(2));
    a.send(&plain(mac(2), mac(1), 65_000));
    a.send(&plain(mac(2), mac(1), 65_000));
    settle(&mut plane);
    plane.round(60_000_000_000);
    assert_eq!(b.receive().len(), 1, "the second one has more than an hour to wait");
    plane.set(a.id, limit(12_000_000)).unwrap();
    plane.round(60_000_000_000);
    assert_eq!(b.receive().len(), 1);
}

#[test]
fn ports_come_and_go_under_traffic() {
    let (mut plane, _handle) = plane();
    let mut a = plug(&mut plane, "a", guest(1));
    for turn in 0..50_u32 {
        let mut b = plug(&mut plane, "b", guest(2));
        a.send(&plain(mac(2), mac(1), 100));
        b.send(&plain(mac(1), mac(2), 100));
        settle(&mut plane);
        assert_eq!((a.receive().len(), b.receive().len()), (1, 1), "{turn}");
        // What it sent at last comes, and nothing that is for it afterwards goes anywhere.
        b.send(&plain(mac(1), mac(2), 100));
        drop(b.socket);
        plane.hear();
        assert_eq!((a.receive().len(), plane.report().len()), (1, 1));
        a.send(&plain(mac(2), mac(1), 100));
        settle(&mut plane);
    }
    assert_eq!(plane.switch().counters(a.id).unwrap().dropped[Reason::Vlan as usize], 0);
}
