//! Who has asked for a group.

use super::*;
use vireo_frame::Filter;
use vireo_frame::headers::{ether_type, protocol};

const GROUP: [u8; 4] = [239, 255, 1, 2];
const GROUP_MAC: Mac = Mac([1, 0, 0x5e, 0x7f, 1, 2]);

fn igmp(kind: u8, group: [u8; 4]) -> Vec<u8> {
    [&[kind, 0, 0, 0][..], &group].concat()
}

fn message(from: u8, body: &[u8]) -> Vec<u8> {
    frame(GROUP_MAC, mac(from), ether_type::IPV4, &ipv4(GROUP, [10, 0, 0, from], protocol::IGMP, body))
}

fn data(from: u8) -> Vec<u8> {
    frame(GROUP_MAC, mac(from), ether_type::IPV4, &ipv4(GROUP, [10, 0, 0, from], protocol::UDP, &udp(9, 9)))
}

#[test]
fn a_group_goes_to_who_has_joined_it() {
    let mut s = Switch::new();
    let [a, b, c, d] = [1, 2, 3, 4].map(|n| s.add(guest(n)).unwrap());
    assert_eq!(reached(&mut s, a, &data(1)), [b, c, d], "nobody keeps account");
    s.set_snooping(true);
    assert_eq!(reached(&mut s, a, &data(1)), [b, c, d], "nobody has joined: it may be for anybody");
    reached(&mut s, b, &message(2, &igmp(0x16, GROUP)));
    assert_eq!(reached(&mut s, a, &data(1)), [b]);
    // A router hears all, and reports go to it alone.
    reached(&mut s, d, &message(4, &igmp(0x11, [0; 4])));
    assert_eq!(reached(&mut s, a, &data(1)), [b, d]);
    assert_eq!(reached(&mut s, c, &message(3, &igmp(0x12, GROUP))), [d]);
    assert_eq!(reached(&mut s, a, &data(1)), [b, c, d]);
    assert_eq!(s.members().count(), 2);
    reached(&mut s, b, &message(2, &igmp(0x17, GROUP)));
    assert_eq!(reached(&mut s, a, &data(1)), [c, d]);
    let late = 259 * SECOND;
    assert_eq!(offer(&mut s, late, a, &data(1)).unwrap().len(), 1, "the router is silent");
    s.age(261 * SECOND);
    assert_eq!(s.members().count(), 0);
    s.remove(d, 0).unwrap();
}

#[test]
fn version_3_tells_of_many_groups() {
    let mut s = Switch::new();
    s.set_snooping(true);
    let [a, b, _c] = [1, 2, 3].map(|n| s.add(guest(n)).unwrap());
    let record = |kind: u8, sources: u16, group: [u8; 4]| {
        let mut bytes = [&[kind, 0][..], &sources.to_be_bytes(), &group].concat();
        bytes.resize(8 + usize::from(sources) * 4, 7);
        bytes
    };
    let report = |records: &[Vec<u8>]| {
        [&[0x22, 0, 0, 0, 0, 0][..], &(records.len() as u16).to_be_bytes(), &records.concat()].concat()
    };
    let joins = report(&[record(4, 3, [239, 1, 1, 1]), record(4, 0, GROUP), record(3, 0, [239, 9, 9, 9])]);
    reached(&mut s, b, &message(2, &joins));
    assert_eq!(s.members().count(), 2);
    assert_eq!(reached(&mut s, a, &data(1)), [b]);
    reached(&mut s, b, &message(2, &report(&[record(3, 0, GROUP)])));
    assert_eq!(s.members().count(), 1);
    // A count that is larger than the message, and groups that are none.
    let mut lies = report(&[record(4, 0, [224, 0, 0, 5]), record(4, 0, [10, 0, 0, 1])]);
    lies[7] = 200;
    reached(&mut s, b, &message(2, &lies));
    assert_eq!(s.members().count(), 1);
}

#[test]
fn a_guest_joins_only_so_many_and_its_filter_counts_too() {
    let mut s = Switch::new();
    s.set_snooping(true);
    let [a, b] = [1, 2].map(|n| s.add(guest(n)).unwrap());
    for n in 0..2000_u16 {
        reached(&mut s, b, &message(2, &igmp(0x16, [239, 1, (n >> 8) as u8, n as u8])));
    }
    assert_eq!(s.members().count(), 256);
    s.set_filter(b, Filter { groups: Some([].into()), ..Filter::default() }).unwrap();
    assert_eq!(reached(&mut s, a, &data(1)), []);
}
