//! What a guest may claim to be.

use super::*;
use crate::{Guards, Reason};
use vireo_frame::headers::{ether_type, protocol};

const OWN: [u8; 4] = [10, 0, 0, 1];
const ROUTER: [u8; 4] = [10, 0, 0, 254];
const OWN_6: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_6: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

struct Rig(Switch, PortId);

impl Rig {
    fn new(guards: Guards) -> Self {
        let mut s = Switch::new();
        let port = s.add(Settings { guards, ..guest(1) }).unwrap();
        s.add(uplink()).unwrap();
        Self(s, port)
    }

    fn send(&mut self, kind: u16, body: &[u8]) -> Option<Reason> {
        let bytes = frame(Mac::BROADCAST, mac(1), kind, body);
        match offer(&mut self.0, 0, self.1, &bytes) {
            Ok(all) => {
                assert_eq!(all.len(), 1);
                None
            }
            Err(Verdict::Drop(reason)) => Some(reason),
            Err(other) => panic!("{other:?}"),
        }
    }

    fn v4(&mut self, from: [u8; 4], protocol: u8, body: &[u8]) -> Option<Reason> {
        self.send(ether_type::IPV4, &ipv4([255; 4], from, protocol, body))
    }

    fn v6(&mut self, from: [u8; 16], next: u8, body: &[u8]) -> Option<Reason> {
        self.send(ether_type::IPV6, &ipv6(ALL_6, from, next, body))
    }
}

#[test]
fn no_guest_is_a_dhcp_server() {
    let mut off = Rig::new(Guards::default());
    assert_eq!(off.v4(ROUTER, protocol::UDP, &udp(68, 67)), None);
    let mut on = Rig::new(Guards { dhcp: true, ..Guards::default() });
    assert_eq!(on.v4([0; 4], protocol::UDP, &udp(67, 68)), None, "it may ask");
    assert_eq!(on.v4(OWN, protocol::UDP, &udp(53, 4000)), None);
    assert_eq!(on.v4(ROUTER, protocol::UDP, &udp(68, 67)), Some(Reason::Dhcp));
    assert_eq!(on.v4(ROUTER, protocol::UDP, &udp(68, 1000)), Some(Reason::Dhcp), "from another port");
    assert_eq!(on.v6(OWN_6, protocol::UDP, &udp(546, 547)), Some(Reason::Dhcp));
    assert_eq!(on.v6(OWN_6, protocol::UDP, &udp(547, 546)), None);
    // Behind tags, behind options, in pieces.
    let offer = ipv4([255; 4], ROUTER, protocol::UDP, &udp(68, 67));
    let inner = [&[0, 0][..], &ether_type::IPV4.to_be_bytes(), &offer].concat();
    assert_eq!(on.send(ether_type::VLAN, &inner), Some(Reason::Dhcp));
    let hidden = [&[protocol::UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp(546, 547)].concat();
    assert_eq!(on.v6(OWN_6, 60, &hidden), Some(Reason::Dhcp));
    let mut with_options = ipv4([255; 4], ROUTER, protocol::UDP, &[&[1, 1, 1, 0][..], &udp(68, 67)].concat());
    with_options[0] = 0x46;
    assert_eq!(on.send(ether_type::IPV4, &with_options), Some(Reason::Dhcp));
    assert_eq!(on.v4(ROUTER, protocol::UDP, &[0, 67]), Some(Reason::Malformed), "cut off before the port");
    let mut second_piece = ipv4([255; 4], OWN, protocol::UDP, &udp(68, 67));
    second_piece[7] = 1;
    assert_eq!(on.send(ether_type::IPV4, &second_piece), None, "has no ports");
    // Where some look behind a header of LLC.
    let behind = [&[0xaa, 0xaa, 3, 0, 0, 0][..], &ether_type::IPV4.to_be_bytes(), &offer].concat();
    assert_eq!(on.send(behind.len() as u16, &behind), Some(Reason::Dhcp));
    let priority = [&[0, 0][..], &(behind.len() as u16).to_be_bytes(), &behind].concat();
    assert_eq!(on.send(ether_type::VLAN, &priority), Some(Reason::Dhcp));
    // What follows the packet says nothing of it: its ports come in the next piece.
    let piece = ipv6(ALL_6, OWN_6, 44, &[60, 0, 0, 1, 0, 0, 0, 7, protocol::UDP, 0, 1, 4, 0, 0, 0, 0]);
    let padded = [&piece[..], &udp(53, 4000)].concat();
    assert_eq!(on.send(ether_type::IPV6, &padded), Some(Reason::Malformed));
    let endless: Vec<u8> = [[60, 0, 1, 4, 0, 0, 0, 0]; 9].concat();
    assert_eq!(on.v6(OWN_6, 60, &endless), Some(Reason::Malformed));
}

#[test]
fn no_guest_is_a_router() {
    let mut on = Rig::new(Guards { router: true, ..Guards::default() });
    for (kind, refused) in [
        (130, true),
        (131, false),
        (143, false),
        (134, true),
        (137, true),
        (133, false),
        (135, false),
        (136, false),
        (128, false),
    ] {
        let body = [[kind, 0, 0, 0, 0, 0, 0, 0], [0; 8], [0; 8]].concat();
        assert_eq!(on.v6(OWN_6, protocol::ICMP6, &body), refused.then_some(Reason::Router), "{kind}");
        let piece = [&[protocol::ICMP6, 0, 0, 1, 0, 0, 0, 7][..], &body].concat();
        assert_eq!(on.v6(OWN_6, 44, &piece), refused.then_some(Reason::Router), "{kind} in its first piece");
    }
    for (kind, refused) in [(5, true), (9, true), (8, false), (0, false)] {
        assert_eq!(on.v4(OWN, protocol::ICMP, &[kind; 8]), refused.then_some(Reason::Router), "{kind}");
    }
    for (kind, refused) in [(0x11, true), (0x16, false), (0x22, false), (0x17, false)] {
        assert_eq!(on.v4(OWN, protocol::IGMP, &[kind; 8]), refused.then_some(Reason::Router), "{kind}");
    }
}

#[test]
fn a_guest_has_its_own_addresses_only() {
    let mut on = Rig::new(Guards {
        ipv4: Some([OWN.into()].into()),
        ipv6: Some([OWN_6.into()].into()),
        ..Guards::default()
    });
    let arp = |address: [u8; 4]| {
        let head = [0, 1, 8, 0, 6, 4, 0, 2];
        [&head[..], &mac(1).0, &address, &mac(2).0, &ROUTER].concat()
    };
    assert_eq!(on.v4(OWN, protocol::TCP, &udp(80, 4000)), None);
    assert_eq!(on.v4(ROUTER, protocol::TCP, &udp(80, 4000)), Some(Reason::Address));
    assert_eq!(on.v4([0; 4], protocol::UDP, &udp(67, 68)), None, "who asks for one has none");
    assert_eq!(on.send(ether_type::ARP, &arp(OWN)), None);
    assert_eq!(on.send(ether_type::ARP, &arp([0; 4])), None, "a probe");
    assert_eq!(on.send(ether_type::ARP, &arp(ROUTER)), Some(Reason::Address));
    assert_eq!(on.send(ether_type::ARP, &arp(OWN)[..20]), Some(Reason::Malformed));
    let neighbour = |target: [u8; 16]| [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &target].concat();
    assert_eq!(on.v6(OWN_6, protocol::ICMP6, &neighbour(OWN_6)), None);
    assert_eq!(on.v6(OWN_6, protocol::ICMP6, &neighbour(ALL_6)), Some(Reason::Address));
    assert_eq!(on.v6([0; 16], protocol::ICMP6, &[135, 0]), None, "whether it is free");
    assert_eq!(on.v6([1; 16], protocol::UDP, &udp(1, 2)), Some(Reason::Address));
    let mut piece = ipv4([255; 4], ROUTER, protocol::UDP, &udp(68, 67));
    piece[7] = 1;
    assert_eq!(on.send(ether_type::IPV4, &piece), Some(Reason::Address), "pieces have addresses, too");
}
