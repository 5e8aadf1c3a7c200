//! What a switch lets pass and what not, by frames that a guest sends as they are and others catch.

mod lab;

use std::net::{Ipv4Addr, Ipv6Addr};

use vireo_tests::HostShare;

use crate::frames::*;
use crate::rig::{compare, is_sound, reaches};
use lab::{Lab, Sent};

/// Guests are called by their ports' names; these are their numbers.
const A: usize = 1;
const B: usize = 2;
const C: usize = 3;
/// IPv6 hosts of the link.
const ALL_6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_6_MAC: Mac = [0x33, 0x33, 0, 0, 0, 1];
const ALL_4: Ipv4Addr = Ipv4Addr::BROADCAST;

fn to_all(from: usize) -> Vec<u8> {
    plain(BROADCAST, mac(from))
}

fn to_one(from: usize, to: usize) -> Vec<u8> {
    plain(mac(to), mac(from))
}

fn vlans(lab: &mut Lab) {
    lab.check(&[Sent::new(A, to_all(A)).reaches(&[B, C]), Sent::new(A, to_one(A, C)).reaches(&[C])]);
    lab.set(&[("a", "--vlan 10"), ("b", "--vlan 10"), ("c", "--vlan 20")]);
    lab.check(&[
        Sent::new(A, to_all(A)).reaches(&[B]),
        Sent::new(A, to_one(A, C)),
        Sent::new(C, to_one(C, B)),
        Sent::new(B, to_one(B, A)).reaches(&[A]),
        Sent::new(A, tagged(20, &to_all(A))).dropped("vlan"),
    ]);
    // C has 20 without tags, and 10 with one.
    lab.set(&[("a", "--vlan 10"), ("b", "--vlan 20"), ("c", "--vlan trunk:20:10")]);
    let [in_10, to_c, from_c] = [to_all(A), to_one(A, C), to_all(C)];
    lab.check(&[
        Sent::new(A, in_10.clone()).becomes(C, tagged(10, &in_10)),
        Sent::new(A, to_c.clone()).becomes(C, tagged(10, &to_c)),
        Sent::new(B, to_all(B)).reaches(&[C]),
        Sent::new(C, tagged(10, &from_c)).becomes(A, from_c.clone()),
        Sent::new(C, to_all(C)).reaches(&[B]),
        Sent::new(C, tagged(30, &to_all(C))).dropped("vlan"),
    ]);
}

fn private_vlans(lab: &mut Lab) {
    lab.set(&[
        ("a", "--vlan isolated:100:101"),
        ("b", "--vlan isolated:100:101"),
        ("c", "--vlan promiscuous:100:101-102"),
    ]);
    lab.check(&[
        Sent::new(A, to_all(A)).reaches(&[C]),
        Sent::new(A, to_one(A, B)),
        Sent::new(B, to_one(B, C)).reaches(&[C]),
        Sent::new(C, to_all(C)).reaches(&[A, B]),
        Sent::new(C, to_one(C, B)).reaches(&[B]),
    ]);
    lab.set(&[
        ("a", "--vlan community:100:102"),
        ("b", "--vlan community:100:102"),
        ("c", "--vlan isolated:100:101"),
    ]);
    lab.check(&[
        Sent::new(A, to_all(A)).reaches(&[B]),
        Sent::new(B, to_one(B, A)).reaches(&[A]),
        Sent::new(A, to_one(A, C)),
        Sent::new(C, to_all(C)),
    ]);
}

fn spoofing(lab: &mut Lab) {
    let stranger = [2, 0, 0, 0, 0, 9];
    lab.set(&[("a", "--spoofing off")]);
    lab.check(&[
        Sent::new(A, plain(BROADCAST, stranger)).dropped("spoofed"),
        Sent::new(A, plain(mac(B), mac(C))).dropped("spoofed"),
        Sent::new(B, plain(stranger, mac(B))),
    ]);
    lab.set(&[("a", "--spoofing on")]);
    lab.check(&[
        Sent::new(A, plain(BROADCAST, stranger)).reaches(&[B, C]),
        Sent::new(A, plain(mac(B), mac(C))).dropped("spoofed"),
    ]);
}

fn guards(lab: &mut Lab) {
    let all = (mac(A), BROADCAST);
    let all_6 = (mac(A), ALL_6_MAC);
    let offer = |ends| udp(ends, ip(A), ALL_4, DHCP);
    let advertise = || udp6(all_6, ip6(A), ALL_6, DHCP_6);
    let router = |kind| icmp6(all_6, ip6(A), ALL_6, kind, ip6(A));
    let both = &[B, C];
    lab.check(&[
        Sent::new(A, offer(all)).reaches(both),
        Sent::new(A, advertise()).reaches(both),
        Sent::new(A, router(134)).reaches(both),
        Sent::new(A, icmp(all, ip(A), ALL_4, 9)).reaches(both),
    ]);
    lab.set(&[("a", "--dhcp-guard on")]);
    lab.check(&[
        Sent::new(A, offer(all)).dropped("dhcp"),
        Sent::new(A, offer((mac(A), mac(B)))).dropped("dhcp"),
        Sent::new(A, advertise()).dropped("dhcp"),
        Sent::new(A, udp(all, Ipv4Addr::UNSPECIFIED, ALL_4, (68, 67))).reaches(both),
        Sent::new(A, router(134)).reaches(both),
    ]);
    lab.set(&[("a", "--router-guard on")]);
    lab.check(&[
        Sent::new(A, router(134)).dropped("router"),
        Sent::new(A, router(137)).dropped("router"),
        Sent::new(A, icmp(all, ip(A), ALL_4, 9)).dropped("router"),
        Sent::new(A, icmp((mac(A), mac(C)), ip(A), ip(C), 5)).dropped("router"),
        Sent::new(A, router(133)).reaches(both),
        Sent::new(A, offer(all)).reaches(both),
    ]);
}

fn source_guard(lab: &mut Lab) {
    let ends = (mac(A), mac(B));
    let (other, other_6) = (ip(77), ip6(77));
    lab.set(&[("a", "--addresses 10.9.0.1,fe80::1")]);
    lab.check(&[
        Sent::new(A, udp(ends, ip(A), ip(B), (9, 9))).reaches(&[B]),
        Sent::new(A, udp(ends, other, ip(B), (9, 9))).dropped("address"),
        Sent::new(A, arp(mac(A), ip(A))).reaches(&[B, C]),
        Sent::new(A, arp(mac(A), other)).dropped("address"),
        Sent::new(A, udp6(ends, ip6(A), ip6(B), (9, 9))).reaches(&[B]),
        Sent::new(A, udp6(ends, other_6, ip6(B), (9, 9))).dropped("address"),
        Sent::new(A, icmp6(ends, ip6(A), ip6(B), 136, ip6(A))).reaches(&[B]),
        Sent::new(A, icmp6(ends, ip6(A), ip6(B), 136, other_6)).dropped("address"),
    ]);
    lab.check(&[Sent::new(A, arp(mac(A), other)).reaches(&[B, C])]);
}

fn access_lists(lab: &mut Lab) {
    let to_b = (mac(A), mac(B));
    lab.set(&[
        ("a", "--acl deny+out+tcp+remote-port=25"),
        ("b", "--acl deny+in+udp+local-port=50-60 --acl deny+in+remote=00:15:5d:00:00:03"),
    ]);
    lab.check(&[
        Sent::new(A, tcp(to_b, ip(A), ip(B), (4000, 25))).dropped("acl"),
        Sent::new(A, tcp(to_b, ip(A), ip(B), (25, 80))).reaches(&[B]),
        Sent::new(A, udp(to_b, ip(A), ip(B), (4000, 53))).kept_from(B),
        Sent::new(A, udp(to_b, ip(A), ip(B), (53, 4000))).reaches(&[B]),
        Sent::new(C, to_one(C, B)).kept_from(B),
        Sent::new(C, to_one(C, A)).reaches(&[A]),
    ]);
    // What B has asked for is answered, and nothing else comes.
    lab.set(&[("b", "--acl deny+in --acl allow+out+tcp+answers=300")]);
    lab.check(&[
        Sent::new(A, tcp(to_b, ip(A), ip(B), (80, 4000))).kept_from(B),
        Sent::new(B, tcp((mac(B), mac(A)), ip(B), ip(A), (4000, 80))).reaches(&[A]),
        Sent::new(A, tcp(to_b, ip(A), ip(B), (80, 4000))).reaches(&[B]),
        Sent::new(A, tcp(to_b, ip(A), ip(B), (80, 4001))).kept_from(B),
        Sent::new(A, udp(to_b, ip(A), ip(B), (80, 4000))).kept_from(B),
        Sent::new(C, tcp((mac(C), mac(B)), ip(C), ip(B), (80, 4000))).kept_from(B),
    ]);
}

/// Two hosts, B and C, have one address: in unicast mode of adapters, else that of a group.
fn load_balancing(lab: &mut Lab) {
    let cluster = Ipv4Addr::new(10, 9, 0, 100);
    let ask = |to: Mac| udp((mac(A), to), ip(A), cluster, (4000, 80));
    // Hosts send from other addresses, so that no switch learns that of the cluster.
    let (unicast, masked) = ([2, 0xbf, 10, 9, 0, 100], [2, 2, 10, 9, 0, 100]);
    assert!(!lab.set_address(B, unicast), "no spoofing");
    lab.set(&[("b", "--spoofing on"), ("c", "--spoofing on")]);
    assert!(lab.set_address(B, unicast) && lab.set_address(C, unicast));
    lab.check_on(&[
        Sent::new(A, ask(unicast)).reaches(&[B, C]),
        Sent::new(B, udp((masked, mac(A)), cluster, ip(A), (80, 4000))).reaches(&[A]),
        Sent::new(A, ask(unicast)).reaches(&[B, C]),
    ]);
    assert!(lab.set_address(B, mac(B)));
    lab.check_on(&[Sent::new(A, ask(unicast)).reaches(&[C])]);
    assert!(lab.set_address(C, mac(C)));
    let multicast = [3, 0xbf, 10, 9, 0, 100];
    lab.check(&[Sent::new(A, ask(multicast)).reaches(&[B, C])]);
    // 239.255.0.100, which the hosts join.
    let igmp = [1, 0, 0x5e, 0x7f, 0, 100];
    lab.set_switch("--snooping on");
    lab.join(B, true);
    lab.check(&[Sent::new(A, ask(igmp)).reaches(&[B])]);
    lab.join(C, true);
    lab.check(&[Sent::new(A, ask(igmp)).reaches(&[B, C])]);
    lab.join(B, false);
    lab.check(&[Sent::new(A, ask(igmp)).reaches(&[C])]);
    lab.set_switch("--snooping off");
    lab.check(&[Sent::new(A, ask(igmp)).reaches(&[B, C])]);
}

/// B gets an adapter in the network of C, and sends on what A has for it: with the sums that it came with.
fn a_guest_routes(lab: Lab) {
    const FLOWS: usize = 8;
    let (place, [mut a, mut b, mut c]) = lab.at_their_shells();
    for (port, vlan) in [("a", "10"), ("b", "10"), ("b2", "20"), ("c", "20")] {
        place.switch(&["set", "lab", port, "--vlan", vlan]);
    }
    b.does(&["nic", "add", "switch=lab,port=b2"]);
    let up = "ip link set eth1 up; ip addr add 10.1.0.2/24 dev eth0; ip addr add 10.2.0.2/24 dev eth1";
    let wait = "until [ -e /sys/class/net/eth1 ]; do sleep 0.1; done";
    b.shell(&format!("{wait}; {up}; echo 1 >/proc/sys/net/ipv4/ip_forward")).unwrap();
    a.shell("ip addr add 10.1.0.1/24 dev eth0; ip route add default via 10.1.0.2").unwrap();
    c.shell("ip addr add 10.2.0.3/24 dev eth0; ip route add default via 10.2.0.2; flows serve").unwrap();
    reaches(&mut a, "10.2.0.3");
    let told = a.shell(&format!("flows to 10.2.0.3 {FLOWS}")).unwrap();
    compare(FLOWS, &told, &c.shell("flows told").unwrap());
    [a, b, c].iter_mut().for_each(is_sound);
}

#[test]
fn a_switch_lets_pass_what_its_ports_are_allowed() {
    let _share = HostShare::take(3);
    let mut lab = Lab::new("6.1");
    vlans(&mut lab);
    private_vlans(&mut lab);
    spoofing(&mut lab);
    guards(&mut lab);
    source_guard(&mut lab);
    access_lists(&mut lab);
    load_balancing(&mut lab);
    a_guest_routes(lab);
}
