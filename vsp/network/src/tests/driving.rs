//! What a driver asks, and gets told.

use std::time::{Duration, Instant};

use vireo_frame::{Ability, Filter, Mac};
use vireo_vmbus::Device;
use vireo_vmbus::ring::kind;

use super::rig::*;
use crate::bytes::{le32, words};
use crate::protocol::VERSIONS;

#[test]
fn versions_are_agreed_on_and_messages_are_as_long_as_they_want_them() {
    let rig = Rig::new(Wire::default());
    let refused = rig.ask(&words(&[1, 0x7_0000, 0x7_0000]));
    assert_ne!(le32(&refused, 12), Some(1));
    for version in VERSIONS {
        let answer = rig.ask(&words(&[1, version, version]));
        assert_eq!(le32(&answer, 12), Some(1), "{version:#x}");
        // A message is 28 bytes up to version 6, which are 32 in the ring, and 40 since.
        assert_eq!(answer.len(), if version == 0x6_0001 { 40 } else { 32 });
    }
    // The newest that both know.
    assert_eq!(rig.ask(&words(&[1, 0, u32::MAX])).len(), 40);
}

#[test]
fn the_receive_buffer_is_cut_as_the_driver_can_use_it() {
    for (version, frame, rsc, section) in [
        (0x6_0001, 1514, true, 16 << 10),
        (0x6_0001, 1514, false, 1728),
        (0x6_0000, 1514, true, 1728),
        (0x3_0002, 9014, false, 9152),
    ] {
        let rig = Rig::new(Wire::default());
        rig.ask(&words(&[1, version, version]));
        rig.tell(&words(&[125, frame, 0, 8 | u32::from(rsc) << 7, 0]));
        rig.give(0xe1, RECEIVE, RECEIVE_PAGES);
        let answer = rig.ask(&words(&[101, 0xe1, 0xcafe]));
        let count = RECEIVE_PAGES as u32 * 4096 / section;
        assert_eq!(answer[..28], words(&[102, 1, 1, 0, section, count, section * count]));
    }
    let rig = Rig::new(Wire::default());
    rig.ask(&words(&[1, 2, 2]));
    assert_eq!(le32(&rig.ask(&words(&[101, 0xbad, 0xcafe])), 4), Some(2), "nobody gave that");
    rig.give(0xe1, 0x7000_0000, 4);
    assert_eq!(le32(&rig.ask(&words(&[101, 0xe1, 0xcafe])), 4), Some(2), "it is no RAM");
    assert_eq!(le32(&rig.ask(&words(&[104, 0xe1, 0])), 4), Some(2));
    rig.give(0xe1, RECEIVE, 0);
    assert_eq!(le32(&rig.ask(&words(&[101, 0xe1, 0xcafe])), 4), Some(2), "there is nothing in it");
}

#[test]
fn objects_have_their_values() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    assert_eq!(rig.query(0x0101_0101, &[]), (0, ADDRESS.0.to_vec()));
    assert_eq!(rig.query(0x0001_0106, &[]), (0, words(&[9000])), "longest packet");
    assert_eq!(rig.query(0x0001_0114, &[]), (0, words(&[0])), "connected");
    assert_eq!(rig.query(0x0001_0107, &[]), (0, words(&[100_000_000])), "10 Gbit/s");
    let (status, scale) = rig.query(0x0001_0203, &[0; 18]);
    assert_eq!((status, scale.len(), le32(&scale, 12)), (0, 18, Some(4)), "queues");
    let (_, offload) = rig.query(0xfc01_020d, &[0xa7, 3, 156, 0]);
    assert_eq!((offload.len(), &offload[144..146]), (156, &[1, 1][..]));
    // All that it says it has, it has; those that can only be set, too.
    let (_, list) = rig.query(0x0001_0101, &[]);
    for oid in list.chunks(4).map(|oid| le32(oid, 0).unwrap()) {
        let only_set = [0x0001_0204, 0x0001_021b, 0x0101_010a, 0xfc01_020c].contains(&oid);
        assert_eq!(rig.query(oid, &[]).0 == 0, !only_set, "{oid:#x}");
    }
    assert_eq!(rig.query(0x1234_5678, &[]).0, 0xc000_00bb, "not supported");
    assert_eq!(rig.set(0x1234_5678, &[]), 0xc000_00bb);
}

#[test]
fn the_link_is_told_what_the_driver_takes_and_wants() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    assert_eq!(*rig.wire.adapter_ability.lock().unwrap(), Ability { udp: false, ..Ability::ALL });
    assert_eq!(*rig.wire.filter.lock().unwrap(), Filter::default());
    let group = Mac([1, 0, 0x5e, 0, 0, 5]);
    rig.set(0x0101_0103, &group.0);
    rig.set(0x0001_010e, &words(&[3]));
    let groups = Some([group].into());
    assert_eq!(*rig.wire.filter.lock().unwrap(), Filter { directed: true, broadcast: false, groups });
    rig.set(0x0001_010e, &words(&[0]));
    let nothing = Filter { directed: false, broadcast: false, groups: Some([].into()) };
    assert_eq!(*rig.wire.filter.lock().unwrap(), nothing);
    assert_ne!(rig.set(0x0101_0103, &[1; 6 * 65]), 0, "too many groups");
}

fn network_address(digits: &str) -> Vec<u8> {
    let utf16 = |s: &str| s.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
    let (name, value) = (utf16("NetworkAddress"), utf16(digits));
    let head = words(&[20, name.len() as u32, 2, 20 + name.len() as u32, value.len() as u32]);
    [head, name, value].concat()
}

#[test]
fn the_guest_may_choose_an_address_where_its_network_allows_it() {
    let rig = Rig::ready(Wire::default(), 0x5_0000, false);
    assert_eq!(rig.set(0x0001_021b, &network_address("00155D000077")), 0);
    let new = Mac([0, 0x15, 0x5d, 0, 0, 0x77]);
    assert_eq!(rig.query(0x0101_0102, &[]), (0, new.0.to_vec()));
    assert_eq!(rig.query(0x0101_0101, &[]), (0, ADDRESS.0.to_vec()), "the one it was given");
    assert_eq!(rig.provider.address(), new);
    rig.provider.close(0);
    assert_eq!(rig.provider.address(), new, "the same driver may come again");
    rig.provider.forget();
    assert_eq!((rig.provider.address(), *rig.wire.address.lock().unwrap()), (ADDRESS, Some(ADDRESS)));
    let rig = Rig::ready(Wire::default(), 0x5_0000, false);
    for wrong in ["01005e000005", "000000000000", "00155d0000", "nonsense"] {
        assert_ne!(rig.set(0x0001_021b, &network_address(wrong)), 0, "{wrong}");
    }
    let rig = Rig::ready(Wire { fixed_address: true, ..Wire::default() }, 0x5_0000, false);
    assert_ne!(rig.set(0x0001_021b, &network_address("00155D000077")), 0);
    assert_eq!(rig.provider.address(), ADDRESS);
}

#[test]
fn further_channels_are_offered_as_many_as_there_may_be() {
    let rig = Rig::ready(Wire::default(), 0x5_0000, false);
    assert_eq!(rig.ask(&words(&[133, 1, 9]))[..12], words(&[133, 1, 3]));
    assert_eq!(rig.given.lock().unwrap().offered, 3);
    let old = Rig::ready(Wire::default(), 0x4_0000, false);
    assert_eq!(old.ask(&words(&[133, 1, 2]))[..12], words(&[133, 1, 0]));
}

#[test]
fn carrier_comes_and_goes_and_the_driver_is_told() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    let adapter = rig.wire.adapter.lock().unwrap().clone().unwrap();
    let told = |what: u32, rest: &[u8]| {
        let packet = rig.receive();
        let message = rig.ranges(&packet).remove(0);
        let expected = words(&[
            7,
            20 + rest.len() as u32,
            what,
            rest.len() as u32,
            if rest.is_empty() { 0 } else { 12 },
        ]);
        assert_eq!(message, [&expected, rest].concat());
        rig.give_back(&packet);
    };
    adapter.set_carrier(false, 10_000_000_000);
    told(0x4001_000c, &[]);
    assert_eq!(rig.query(0x0001_0114, &[]), (0, words(&[1])));
    adapter.set_carrier(true, 1_000_000_000);
    told(0x4001_0013, &words(&[10_000_000]));
    told(0x4001_000b, &[]);
    adapter.set_carrier(true, 1_000_000_000);
    assert!(rig.driver.is_empty(), "nothing new");
}

#[test]
fn a_driver_that_owes_something_is_waited_for_but_not_for_ever() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    rig.put(&plain(ADDRESS, OTHER, 60), Default::default()).unwrap();
    let packet = rig.receive();
    let start = Instant::now();
    rig.provider.take_leave(Duration::from_millis(700));
    assert!(start.elapsed() >= Duration::from_millis(700), "it has not given that back");
    assert!(rig.wire.adapter.lock().unwrap().is_none());
    // The news that the network is gone.
    let news = rig.receive();
    assert_eq!(le32(&rig.ranges(&news)[0], 8), Some(0x4001_000c));
    rig.give_back(&news);
    rig.give_back(&packet);
    let start = Instant::now();
    rig.provider.take_leave(Duration::from_secs(60));
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn pauses_rest_and_a_new_driver_begins_anew() {
    let rig = Rig::ready(Wire::default(), 0x6_0001, true);
    assert!(rig.provider.pause(Instant::now() + Duration::from_secs(5)));
    let before = rig.read(RECEIVE, 0, RECEIVE_PAGES as u32 * 4096);
    assert!(rig.put(&plain(ADDRESS, OTHER, 60), Default::default()).is_err(), "full for now");
    assert!(rig.driver.is_empty() && rig.read(RECEIVE, 0, RECEIVE_PAGES as u32 * 4096) == before);
    let told = *rig.wire.told_room.lock().unwrap();
    rig.provider.resume();
    let waited = rig.wire.told_room.lock().unwrap();
    let (waited, timeout) =
        rig.wire.came.wait_timeout_while(waited, Duration::from_secs(20), |n| *n == told).unwrap();
    assert!(!timeout.timed_out(), "it was told that there is room");
    drop(waited);
    rig.put(&plain(ADDRESS, OTHER, 60), Default::default()).unwrap();
    assert_eq!(rig.receive().kind, kind::TRANSFER_PAGES);

    rig.provider.close(0);
    rig.provider.reset();
    rig.put(&plain(ADDRESS, OTHER, 60), Default::default()).unwrap();
    assert!(rig.driver.is_empty(), "nobody is there to get it");
}
