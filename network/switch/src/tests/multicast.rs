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
fn another_limit_loses_no_member_and_another_vlan_does() {
    let mut s = Switch::new();
    s.set_snooping(true);
    let [a, b, c] = [1, 2, 3].map(|n| s.add(guest(n)).unwrap());
    reached(&mut s, b, &message(2, &igmp(0x16, GROUP)));
    reached(&mut s, c, &message(3, &igmp(0x16, GROUP)));
    let bandwidth = Some(crate::Limit { rate: 1_000_000, burst: 100_000 });
    s.set(b, Settings { bandwidth, weight: 7, ..guest(2) }, 0).unwrap();
    assert_eq!(reached(&mut s, a, &data(1)), [b, c]);
    s.set(b, Settings { vlan: crate::vlan::VlanMode::Access(9), ..guest(2) }, 0).unwrap();
    s.set(b, guest(2), 0).unwrap();
    assert_eq!(reached(&mut s, a, &data(1)), [c]);
}

#[test]
fn who_asks_keeps_no_report_from_the_network() {
    let mut s = Switch::new();
    s.set_snooping(true);
    let [_a, b, c] = [1, 2, 3].map(|n| s.add(guest(n)).unwrap());
    let up = s.add(uplink()).unwrap();
    reached(&mut s, c, &message(3, &igmp(0x11, [0; 4])));
    assert_eq!(reached(&mut s, b, &message(2, &igmp(0x16, GROUP))), [c, up]);
    // With the guard it is no router, and the switch goes on asking.
    let guards = crate::Guards { router: true, ..Default::default() };
    s.set(c, Settings { guards, ..guest(3) }, 0).unwrap();
    s.set_querier(true);
    assert_eq!(reached(&mut s, c, &message(3, &igmp(0x11, [0; 4]))), []);
    let mut asked = 0;
    s.ask(0, |_, _| asked += 1);
    assert_eq!((s.has_routers(0, 0), asked), (false, 6), "each guest by IGMP and MLD, the network not");
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

fn mld(from: u8, to: [u8; 16], message: &[u8]) -> Vec<u8> {
    let mut source = [0; 16];
    (source[0], source[1], source[15]) = (0xfe, 0x80, from);
    let [.., a, b, c, d] = to;
    // A hop-by-hop header in front, as MLD has it.
    let body = [&[58, 0, 5, 2, 0, 0, 1, 0], message].concat();
    frame(Mac([0x33, 0x33, a, b, c, d]), mac(from), ether_type::IPV6, &ipv6(to, source, 0, &body))
}

const GROUP6: [u8; 16] = [0xff, 0x15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];

#[test]
fn ipv6_groups_are_kept_account_of_as_well() {
    let mut s = Switch::new();
    s.set_snooping(true);
    let [a, b, c] = [1, 2, 3].map(|n| s.add(guest(n)).unwrap());
    let data = |to: [u8; 16]| mld(1, to, &[0; 8]);
    assert_eq!(reached(&mut s, a, &data(GROUP6)), [b, c]);
    let of = |kind: u8| [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &GROUP6].concat();
    reached(&mut s, b, &mld(2, GROUP6, &of(131)));
    assert_eq!(reached(&mut s, a, &data(GROUP6)), [b]);
    reached(&mut s, b, &mld(2, GROUP6, &of(132)));
    assert_eq!(s.members().count(), 0);
    // Version 2: two groups, one of them only to find neighbours, which all get.
    let mut solicited = [0; 16];
    solicited[..].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 3]);
    let records = [&[4, 0, 0, 0][..], &GROUP6, &[4, 0, 0, 0], &solicited].concat();
    let report = [&[143, 0, 0, 0, 0, 0, 0, 2][..], &records].concat();
    let all_routers = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16];
    reached(&mut s, c, &mld(3, all_routers, &report));
    assert_eq!(s.members().map(|(_, g, p)| (g, p)).collect::<Vec<_>>(), [(GROUP6.into(), c)]);
    assert_eq!(reached(&mut s, a, &data(GROUP6)), [c]);
    assert_eq!(reached(&mut s, a, &data(solicited)), [b, c]);
}

#[test]
fn groups_that_share_an_address_are_left_one_by_one() {
    let mut s = Switch::new();
    s.set_snooping(true);
    let [a, b, _c] = [1, 2, 3].map(|n| s.add(guest(n)).unwrap());
    // 239.255.1.2 and 239.127.1.2 are one address in frames.
    let other = [239, 127, 1, 2];
    reached(&mut s, b, &message(2, &igmp(0x16, GROUP)));
    reached(&mut s, b, &message(2, &igmp(0x16, other)));
    reached(&mut s, b, &message(2, &igmp(0x17, GROUP)));
    assert_eq!(reached(&mut s, a, &data(1)), [b]);
    // A packet for a host in a frame to the group, as network load balancing has it.
    let one = frame(GROUP_MAC, mac(1), ether_type::IPV4, &ipv4([10, 0, 0, 9], [10, 0, 0, 1], 17, &udp(9, 9)));
    assert_eq!(reached(&mut s, a, &one), [b]);
}

#[test]
fn the_switch_asks_where_no_router_does() {
    let mut s = Switch::new();
    s.set_snooping(true);
    let [a, b] = [1, 2].map(|n| s.add(guest(n)).unwrap());
    let c = s.add(Settings { vlan: crate::vlan::VlanMode::Access(7), ..guest(3) }).unwrap();
    let asked = |now: u64, s: &mut Switch| {
        let mut all = Vec::new();
        s.ask(now, |bytes, to| all.push((bytes.to_vec(), to.port)));
        all
    };
    assert!(asked(0, &mut s).is_empty());
    s.set_querier(true);
    let questions = asked(0, &mut s);
    assert_eq!(questions.iter().map(|q| q.1).collect::<Vec<_>>(), [a, a, b, b, c, c]);
    for (question, _) in &questions[..2] {
        // A second way of counting: the sum over all with its checksum is all ones.
        let v6 = question[12] == 0x86;
        let sum = match v6 {
            true => {
                let pseudo = [&question[22..54], &[0, 0, 0, 28, 0, 0, 0, 58], &question[62..]].concat();
                vireo_frame::Sum::default().over(&pseudo).folded()
            }
            false => vireo_frame::Sum::default().over(&question[38..50]).folded(),
        };
        assert_eq!(sum, 0xffff);
        let headers = vireo_frame::headers::Headers::read(question).unwrap();
        let mut groups = crate::groups::Groups::default();
        assert!(!groups.hear(0, a, question, &headers, 0), "it is no report");
        assert_eq!(groups.has_routers(0, 1), v6, "IGMP's comes from nobody");
    }
    assert!(asked(124 * SECOND, &mut s).is_empty());
    reached(&mut s, b, &message(2, &igmp(0x11, [0; 4])));
    assert_eq!(asked(125 * SECOND, &mut s).iter().map(|q| q.1).collect::<Vec<_>>(), [c, c]);
}
