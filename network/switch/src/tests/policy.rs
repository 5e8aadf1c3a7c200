//! Addresses, access lists, rates, mirrors.

use std::time::Duration;

use super::*;
use crate::acl::{Acl, Action, Direction, Rule, Who};
use crate::{Limit, Mirror, Reason, SwitchError};
use vireo_frame::Filter;
use vireo_frame::headers::{ether_type, protocol};

#[test]
fn who_is_known_gets_what_is_for_it_and_nobody_else_does() {
    let mut s = Switch::new();
    let (a, b, c) = (s.add(guest(1)).unwrap(), s.add(guest(2)).unwrap(), s.add(guest(3)).unwrap());
    assert_eq!(reached(&mut s, a, &plain(mac(2), mac(1))), [b]);
    assert_eq!(reached(&mut s, a, &plain(Mac::BROADCAST, mac(1))), [b, c]);
    assert_eq!(reached(&mut s, a, &plain(mac(9), mac(1))), [], "nobody knows it, and none may be it");
    assert_eq!(reached(&mut s, a, &plain(mac(1), mac(1))), [], "itself");
    let up = s.add(uplink()).unwrap();
    assert_eq!(reached(&mut s, a, &plain(mac(9), mac(1))), [up]);
    assert_eq!(reached(&mut s, up, &plain(mac(1), mac(9))), [a]);
    let second = s.add(uplink()).unwrap();
    assert_eq!(reached(&mut s, a, &plain(mac(9), mac(1))), [up], "where it was learned");
    assert_eq!(reached(&mut s, up, &plain(mac(8), mac(9))), [second]);
    let later = 301 * SECOND;
    let all = offer(&mut s, later, a, &plain(mac(9), mac(1))).unwrap();
    assert_eq!(all.len(), 2, "forgotten");
    s.age(later);
    assert_eq!(s.stations().count(), 0);
}

#[test]
fn a_guest_is_itself_unless_it_may_be_anybody() {
    let mut s = Switch::new();
    let (a, b) = (s.add(guest(1)).unwrap(), s.add(guest(2)).unwrap());
    let spoofed = Err(Verdict::Drop(Reason::Spoofed));
    assert_eq!(offer(&mut s, 0, a, &plain(mac(2), mac(7))), spoofed);
    assert_eq!(s.set_address(a, mac(7)), Err(SwitchError::Fixed));
    let free = |n| Settings { spoofing: true, ..guest(n) };
    s.set(a, free(1), 0).unwrap();
    assert_eq!(reached(&mut s, a, &plain(mac(2), mac(7))), [b]);
    assert_eq!(reached(&mut s, b, &plain(mac(7), mac(2))), [a], "learned");
    assert_eq!(offer(&mut s, 0, a, &plain(mac(1), mac(2))), spoofed, "that is another's");
    assert_eq!(s.set_address(a, mac(2)), Err(SwitchError::InUse(mac(2))));
    assert_eq!(s.set_address(a, Mac::BROADCAST), Err(SwitchError::NoStation(Mac::BROADCAST)));
    assert_eq!(s.set_address(a, mac(7)), Ok(()));
    assert_eq!(s.add(guest(2)), Err(SwitchError::InUse(mac(2))));
    // What it chose goes with the right to choose.
    s.set(a, guest(1), 0).unwrap();
    assert_eq!(offer(&mut s, 0, a, &plain(mac(2), mac(7))), spoofed);
    assert_eq!(s.counters(a).unwrap().dropped[Reason::Spoofed as usize], 3);
    assert_eq!(offer(&mut s, 0, a, &plain(mac(2), Mac::BROADCAST)), Err(Verdict::Drop(Reason::Malformed)));
}

#[test]
fn hosts_of_one_balanced_address_all_get_what_is_for_it() {
    let mut s = Switch::new();
    let free = |n| Settings { spoofing: true, ..guest(n) };
    let (a, b, c) = (s.add(free(1)).unwrap(), s.add(free(2)).unwrap(), s.add(guest(3)).unwrap());
    let cluster = Mac([2, 0xbf, 10, 0, 0, 1]);
    s.set_address(a, cluster).unwrap();
    s.set_address(b, cluster).unwrap();
    assert_eq!(reached(&mut s, c, &plain(cluster, mac(3))), [a, b]);
    assert_eq!(reached(&mut s, a, &plain(mac(3), cluster)), [c]);
    // They answer from an address that nobody learns as the cluster's.
    let masked = Mac([2, 1, 10, 0, 0, 1]);
    assert_eq!(reached(&mut s, a, &plain(mac(3), masked)), [c]);
    assert_eq!(reached(&mut s, c, &plain(cluster, mac(3))), [a, b]);
    s.remove(a, 0).unwrap();
    assert_eq!(reached(&mut s, c, &plain(cluster, mac(3))), [b]);
}

#[test]
fn what_a_guest_does_not_want_it_does_not_get() {
    let mut s = Switch::new();
    let (a, b) = (s.add(guest(1)).unwrap(), s.add(guest(2)).unwrap());
    let group = Mac([1, 0, 0x5e, 1, 2, 3]);
    let none = Filter { directed: false, broadcast: false, groups: Some([group].into()) };
    s.set_filter(b, none).unwrap();
    assert_eq!(reached(&mut s, a, &plain(mac(2), mac(1))), []);
    assert_eq!(reached(&mut s, a, &plain(Mac::BROADCAST, mac(1))), []);
    assert_eq!(reached(&mut s, a, &plain(group, mac(1))), [b]);
    assert_eq!(reached(&mut s, a, &plain(Mac([1, 0, 0x5e, 1, 2, 4]), mac(1))), []);
    let pause = Mac([1, 0x80, 0xc2, 0, 0, 1]);
    assert_eq!(offer(&mut s, 0, a, &plain(pause, mac(1))), Err(Verdict::Drop(Reason::Reserved)));
}

fn rule(weight: u16, direction: Direction, action: Action) -> Rule {
    let (local, remote) = (Who::Any, Who::Any);
    Rule { weight, direction, local, remote, protocol: None, local_ports: None, remote_ports: None, action }
}

#[test]
fn rules_are_looked_at_by_weight_and_answers_pass_for_a_time() {
    let mut s = Switch::new();
    let net = Who::Net([10, 0, 0, 0].into(), 8);
    let idle = Duration::from_secs(10);
    let acl = Acl::new(vec![
        rule(1, Direction::In, Action::Deny),
        Rule {
            remote: net,
            protocol: Some(protocol::UDP),
            remote_ports: Some(50..=60),
            ..rule(9, Direction::Out, Action::AllowAnswers(idle))
        },
        Rule { remote: net, ..rule(5, Direction::Out, Action::Deny) },
    ]);
    let (a, b) = (s.add(Settings { acl, ..guest(1) }).unwrap(), s.add(guest(2)).unwrap());
    let mut send = |now, from: u8, to: [u8; 4], source: [u8; 4], ports: (u16, u16)| {
        let (port, destination) = if from == 1 { (a, mac(2)) } else { (b, mac(1)) };
        let body = ipv4(to, source, protocol::UDP, &udp(ports.1, ports.0));
        offer(&mut s, now, port, &frame(destination, mac(from), ether_type::IPV4, &body)).map(|d| d.len())
    };
    let (own, peer, far) = ([10, 0, 0, 1], [10, 9, 9, 9], [11, 0, 0, 1]);
    assert_eq!(send(0, 2, own, peer, (53, 4000)), Ok(0), "nobody asked");
    assert_eq!(send(0, 1, peer, own, (4000, 61)), Err(Verdict::Drop(Reason::Acl)));
    assert_eq!(send(0, 1, far, own, (4000, 61)), Ok(1), "no rule is about it");
    assert_eq!(send(0, 1, peer, own, (4000, 53)), Ok(1));
    assert_eq!(send(9 * SECOND, 2, own, peer, (53, 4000)), Ok(1));
    assert_eq!(send(9 * SECOND, 2, own, peer, (53, 4001)), Ok(0), "another flow");
    assert_eq!(send(18 * SECOND, 2, own, peer, (53, 4000)), Ok(1), "an answer goes on");
    assert_eq!(send(28 * SECOND, 2, own, peer, (53, 4000)), Ok(0), "too late");
    assert_eq!(s.counters(a).unwrap().refused, 3);
}

#[test]
fn a_guest_whose_list_denies_the_rest_still_finds_whom_it_may_speak_with() {
    let acl = |extra: Vec<Rule>| {
        let deny = [Direction::In, Direction::Out].map(|way| rule(1, way, Action::Deny));
        Settings { acl: Acl::new([deny.to_vec(), extra].concat()), ..guest(1) }
    };
    let mut s = Switch::new();
    let (a, b) = (s.add(acl(Vec::new())).unwrap(), s.add(guest(2)).unwrap());
    let arp = |sender: u8, operation: u8| {
        let body =
            [&[0, 1, 8, 0, 6, 4, 0, operation][..], &mac(sender).0, &[10, 0, 0, sender], &[0; 10]].concat();
        frame(mac(3 - sender), mac(sender), ether_type::ARP, &body)
    };
    let icmp6 = |kind: u8| {
        let body = ipv6([2; 16], [1; 16], protocol::ICMP6, &[&[kind][..], &[0; 31]].concat());
        frame(mac(2), mac(1), ether_type::IPV6, &body)
    };
    assert_eq!((reached(&mut s, a, &arp(1, 1)), reached(&mut s, b, &arp(2, 2))), (vec![b], vec![a]));
    for kind in [133, 135, 136] {
        assert_eq!(reached(&mut s, a, &icmp6(kind)), [b], "{kind}");
    }
    // As a router, a redirect, an echo request, what is no IP at all, over a router, in a fragment, by IPv4.
    let mut routed = icmp6(135);
    routed[21] = 64;
    let part = [&[protocol::ICMP6, 0, 0, 1, 0, 0, 0, 1, 135][..], &[0; 31]].concat();
    let part = frame(mac(2), mac(1), ether_type::IPV6, &ipv6([2; 16], [1; 16], 44, &part));
    let body = ipv4([10, 0, 0, 2], [10, 0, 0, 1], protocol::ICMP6, &[&[135][..], &[0; 31]].concat());
    let old = frame(mac(2), mac(1), ether_type::IPV4, &body);
    for refused in [icmp6(134), icmp6(137), icmp6(128), plain(mac(2), mac(1)), routed, part, old] {
        assert_eq!(offer(&mut s, 0, a, &refused), Err(Verdict::Drop(Reason::Acl)), "{refused:x?}");
    }
    // A router's advertisement comes in, its question does not.
    let from_b = |kind: u8| [&mac(1).0[..], &mac(2).0, &icmp6(kind)[12..]].concat();
    assert_eq!((reached(&mut s, b, &from_b(134)), reached(&mut s, b, &from_b(133))), (vec![a], vec![]));
    // Who names a station means all that it says.
    let mut s = Switch::new();
    let station = Rule { remote: Who::Mac(mac(2)), ..rule(2, Direction::Out, Action::Deny) };
    let a = s.add(acl(vec![station])).unwrap();
    s.add(guest(2)).unwrap();
    for refused in [arp(1, 1), icmp6(135)] {
        assert_eq!(offer(&mut s, 0, a, &refused), Err(Verdict::Drop(Reason::Acl)));
    }
}

/// A rule about ports or protocols would be got around by headers without an end.
#[test]
fn what_no_rule_can_read_is_refused_where_there_are_rules() {
    let endless: Vec<u8> = [[60, 0, 1, 4, 0, 0, 0, 0]; 9].concat();
    let bytes = frame(Mac::BROADCAST, mac(1), 0x86dd, &ipv6([1; 16], [2; 16], 60, &endless));
    let mut s = Switch::new();
    let free = s.add(guest(1)).unwrap();
    s.add(uplink()).unwrap();
    assert_eq!(reached(&mut s, free, &bytes).len(), 1);
    let mut s = Switch::new();
    let deny = Rule { protocol: Some(6), ..rule(1, Direction::Out, Action::Deny) };
    let ruled = s.add(Settings { acl: Acl::new(vec![deny]), ..guest(1) }).unwrap();
    s.add(uplink()).unwrap();
    assert_eq!(offer(&mut s, 0, ruled, &bytes), Err(Verdict::Drop(Reason::Acl)));
    assert_eq!(reached(&mut s, ruled, &plain(Mac::BROADCAST, mac(1))).len(), 1);
}

#[test]
fn others_flows_take_no_room_of_the_guest_s_own() {
    let mut s = Switch::new();
    let answers = Action::AllowAnswers(Duration::from_secs(60));
    let open = Rule { local_ports: Some(80..=80), ..rule(9, Direction::In, answers) };
    let rules = vec![open, rule(8, Direction::Out, answers), rule(1, Direction::In, Action::Deny)];
    let acl = Acl::new(rules.clone());
    let (a, b) = (s.add(Settings { acl, ..guest(1) }).unwrap(), s.add(guest(2)).unwrap());
    let mut send = |from: u8, ports: (u16, u16)| {
        let (port, to) = if from == 1 { (a, 2) } else { (b, 1) };
        let body = ipv4([10, 0, 0, to], [10, 0, 0, from], protocol::UDP, &udp(ports.1, ports.0));
        offer(&mut s, 0, port, &frame(mac(to), mac(from), ether_type::IPV4, &body)).map(|d| d.len())
    };
    for n in 0..20_000 {
        assert_eq!(send(2, (n + 1000, 80)), Ok(1));
    }
    assert_eq!(send(2, (53, 4000)), Ok(0));
    assert_eq!(send(1, (4000, 53)), Ok(1));
    assert_eq!(send(2, (53, 4000)), Ok(1), "an answer");
    // The same rules keep their flows, others begin anew.
    for (rules, answered) in [(rules.clone(), 1), (rules[1..].to_vec(), 0)] {
        s.set(a, Settings { acl: Acl::new(rules), weight: 7, ..guest(1) }, 0).unwrap();
        let body = ipv4([10, 0, 0, 1], [10, 0, 0, 2], protocol::UDP, &udp(4000, 53));
        let answer = frame(mac(1), mac(2), ether_type::IPV4, &body);
        assert_eq!(offer(&mut s, 0, b, &answer).map(|d| d.len()), Ok(answered));
    }
}

#[test]
fn who_sends_too_much_has_to_wait_and_who_floods_is_not_heard() {
    let mut s = Switch::new();
    let bandwidth = Some(Limit { rate: 1000, burst: 120 });
    let storm = Some(Limit { rate: 10, burst: 2 });
    let a = s.add(Settings { bandwidth, ..guest(1) }).unwrap();
    let b = s.add(Settings { storm, ..guest(2) }).unwrap();
    let sixty = plain(mac(2), mac(1));
    assert_eq!(sixty.len(), 60);
    assert!(offer(&mut s, 0, a, &sixty).is_ok() && offer(&mut s, 0, a, &sixty).is_ok());
    assert_eq!(offer(&mut s, 0, a, &sixty), Err(Verdict::Wait(Duration::from_millis(60))));
    assert!(offer(&mut s, 60_000_000, a, &sixty).is_ok());
    // One that is longer than what may be sent at once is sent, and made up for.
    let long = [sixty.clone(), vec![0; 940]].concat();
    assert!(offer(&mut s, 10 * SECOND, a, &long).is_ok());
    assert!(matches!(offer(&mut s, 10 * SECOND + 900_000_000, a, &sixty), Err(Verdict::Wait(_))));
    assert!(offer(&mut s, 11 * SECOND, a, &sixty).is_ok());
    let all = plain(Mac::BROADCAST, mac(2));
    let heard = (0..5).filter(|_| offer(&mut s, 0, b, &all).is_ok()).count();
    assert_eq!(heard, 2);
    assert!(offer(&mut s, 0, b, &plain(mac(1), mac(2))).is_ok(), "what is for one is none");
}

#[test]
fn who_looks_on_sees_all_and_says_nothing() {
    let mut s = Switch::new();
    let a = s.add(Settings { mirror: Mirror::Source, ..guest(1) }).unwrap();
    let (b, c) = (s.add(guest(2)).unwrap(), s.add(guest(3)).unwrap());
    let eye = s.add(Settings { mirror: Mirror::Destination, spoofing: true, ..guest(4) }).unwrap();
    assert_eq!(reached(&mut s, a, &plain(mac(2), mac(1))), [b, eye]);
    assert_eq!(reached(&mut s, b, &plain(mac(1), mac(2))), [a, eye]);
    assert_eq!(reached(&mut s, b, &plain(mac(3), mac(2))), [c]);
    assert_eq!(reached(&mut s, b, &plain(Mac::BROADCAST, mac(2))), [a, c, eye]);
    assert_eq!(offer(&mut s, 0, eye, &plain(mac(1), mac(4))), Err(Verdict::Drop(Reason::Vlan)));
}
