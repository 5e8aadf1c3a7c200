//! VLANs.

use proptest::prelude::*;

use super::*;
use crate::Reason;
use crate::vlan::{Private, VlanMode, VlanSet};

fn with(n: u8, vlan: VlanMode) -> Settings {
    Settings { vlan, ..guest(n) }
}

fn set(vlans: &[u16]) -> VlanSet {
    vlans.iter().copied().collect()
}

#[test]
fn a_vlan_is_a_network_of_its_own() {
    let mut s = Switch::new();
    let a = s.add(with(1, VlanMode::Access(5))).unwrap();
    let b = s.add(with(2, VlanMode::Access(5))).unwrap();
    let c = s.add(with(3, VlanMode::Access(6))).unwrap();
    let trunk = s.add(with(4, VlanMode::Trunk { native: 6, allowed: set(&[5, 7]) })).unwrap();
    let all = plain(Mac::BROADCAST, mac(1));
    assert_eq!(offer(&mut s, 0, a, &all).unwrap(), [(b, None), (trunk, Some(Tag(5)))]);
    assert_eq!(reached(&mut s, a, &plain(mac(3), mac(1))), [], "not even who is known");
    let vlan = Err(Verdict::Drop(Reason::Vlan));
    assert_eq!(offer(&mut s, 0, a, &tagged(5, &all)), vlan, "whoever is there knows of none");
    assert_eq!(offer(&mut s, 0, a, &tagged(0xe000, &all)).unwrap().len(), 2, "but of priorities");
    let from_trunk = plain(Mac::BROADCAST, mac(4));
    assert_eq!(offer(&mut s, 0, trunk, &from_trunk).unwrap(), [(c, None)]);
    assert_eq!(offer(&mut s, 0, trunk, &tagged(6, &from_trunk)).unwrap(), [(c, None)]);
    assert_eq!(offer(&mut s, 0, trunk, &tagged(5, &from_trunk)).unwrap(), [(a, None), (b, None)]);
    assert_eq!(offer(&mut s, 0, trunk, &tagged(9, &from_trunk)), vlan);
    assert_eq!(offer(&mut s, 0, trunk, &tagged(4095, &from_trunk)), vlan);
    // A tag beside the frame counts.
    assert_eq!(s.forward(0, trunk, &from_trunk, 64, Some(Tag(5))), Verdict::Deliver);
    assert_eq!(s.deliveries().len(), 2);
}

/// Where the outermost tag is taken off, one behind it would be the frame's.
#[test]
fn a_second_tag_leads_into_no_other_vlan() {
    let mut s = Switch::new();
    let a = s.add(with(1, VlanMode::Access(5))).unwrap();
    s.add(Settings { vlan: VlanMode::Trunk { native: 5, allowed: VlanSet::All }, ..uplink() }).unwrap();
    let other =
        s.add(Settings { vlan: VlanMode::Trunk { native: 1, allowed: VlanSet::All }, ..uplink() }).unwrap();
    let inner = tagged(100, &plain(Mac::BROADCAST, mac(1)));
    assert_eq!(offer(&mut s, 0, a, &tagged(0, &inner)).unwrap(), [(other, Some(Tag(5)))], "a tag of VLAN 0");
    assert_eq!(s.forward(0, a, &inner, 64, Some(Tag(0))), Verdict::Deliver, "the same beside it");
    assert_eq!(s.deliveries().iter().map(|d| (d.port, d.tag)).collect::<Vec<_>>(), [(other, Some(Tag(5)))]);
    // From a trunk: with its native VLAN's tag, and with one that another port has no tag for.
    let trunk = s.add(with(4, VlanMode::Trunk { native: 5, allowed: set(&[6]) })).unwrap();
    let inner = tagged(100, &plain(Mac::BROADCAST, mac(4)));
    assert_eq!(offer(&mut s, 0, trunk, &tagged(5, &inner)).unwrap(), [(other, Some(Tag(5)))]);
    assert!(offer(&mut s, 0, trunk, &tagged(6, &inner)).unwrap().iter().all(|(_, tag)| *tag == Some(Tag(6))));
}

#[test]
fn a_station_is_learned_in_its_vlan_only() {
    let mut s = Switch::new();
    let trunk = || Settings { vlan: VlanMode::Trunk { native: 0, allowed: VlanSet::All }, ..uplink() };
    let (one, two) = (s.add(trunk()).unwrap(), s.add(trunk()).unwrap());
    let a = s.add(with(1, VlanMode::Access(5))).unwrap();
    let b = s.add(with(2, VlanMode::Access(6))).unwrap();
    reached(&mut s, one, &tagged(5, &plain(mac(1), mac(9))));
    reached(&mut s, two, &tagged(6, &plain(mac(2), mac(9))));
    assert_eq!(offer(&mut s, 0, a, &plain(mac(9), mac(1))).unwrap(), [(one, Some(Tag(5)))]);
    assert_eq!(offer(&mut s, 0, b, &plain(mac(9), mac(2))).unwrap(), [(two, Some(Tag(6)))]);
    assert_eq!(
        offer(&mut s, 0, one, &tagged(0x6005, &plain(mac(7), mac(8)))).unwrap(),
        [(two, Some(Tag(0x6005)))]
    );
}

#[test]
fn an_address_is_a_port_s_in_its_own_vlans_only() {
    let mut s = Switch::new();
    let trunk = |native, allowed| VlanMode::Trunk { native, allowed };
    let up = s.add(Settings { vlan: trunk(0, VlanSet::All), ..uplink() }).unwrap();
    let a = s.add(with(1, VlanMode::Access(5))).unwrap();
    // The router behind the uplink is number 9 in VLAN 5, and so says somebody in VLAN 6.
    let thief = s.add(with(9, VlanMode::Access(6))).unwrap();
    assert_eq!(reached(&mut s, up, &tagged(5, &plain(mac(1), mac(9)))), [a]);
    assert_eq!(offer(&mut s, 0, a, &plain(mac(9), mac(1))).unwrap(), [(up, Some(Tag(5)))]);
    assert_eq!(s.stations().count(), 1);
    let spoofed = Err(Verdict::Drop(Reason::Spoofed));
    assert_eq!(offer(&mut s, 0, up, &tagged(6, &plain(mac(1), mac(9)))), spoofed, "there it is the guest's");
    assert_eq!(reached(&mut s, up, &tagged(6, &plain(mac(9), mac(3)))), [thief]);
    // Two with one address, as long as they are nowhere together.
    s.add(with(9, VlanMode::Access(7))).unwrap();
    let private = |primary, role| VlanMode::Private { primary, role };
    let lone = s.add(with(9, private(10, Private::Isolated(11)))).unwrap();
    let in_use = crate::SwitchError::InUse(mac(9));
    for there in [
        VlanMode::Access(6),
        VlanMode::Access(11),
        trunk(7, set(&[])),
        trunk(20, set(&[3, 6])),
        trunk(20, set(&[11])),
        trunk(20, VlanSet::All),
        private(10, Private::Community(12)),
        private(7, Private::Isolated(30)),
    ] {
        assert_eq!(s.add(with(9, there.clone())), Err(in_use.clone()), "{there:?}");
    }
    let tags = s.add(with(9, trunk(20, set(&[3, 4])))).unwrap();
    assert_eq!(s.set(lone, with(9, VlanMode::Access(3)), 0), Err(in_use.clone()));
    assert_eq!(s.set(thief, with(9, VlanMode::Access(7)), 0), Err(in_use));
    assert_eq!(s.set(thief, with(9, VlanMode::Access(6)), 0), Ok(()));
    assert_eq!(reached(&mut s, up, &tagged(4, &plain(mac(9), mac(2)))), [tags]);
    assert_eq!(reached(&mut s, up, &tagged(10, &plain(mac(9), mac(2)))), [lone]);
}

#[test]
fn a_worker_s_word_is_not_enough_for_the_address_of_a_router() {
    let mut s = Switch::new();
    let up =
        s.add(Settings { vlan: VlanMode::Trunk { native: 0, allowed: VlanSet::All }, ..uplink() }).unwrap();
    let free = s.add(Settings { spoofing: true, ..guest(1) }).unwrap();
    reached(&mut s, up, &tagged(5, &plain(Mac::BROADCAST, mac(9))));
    reached(&mut s, free, &plain(Mac::BROADCAST, mac(8)));
    let heard = Err(crate::SwitchError::Heard(mac(9)));
    let claim = |s: &Switch, n, vlan, now| s.check_claim(&with(n, vlan), now);
    assert_eq!(claim(&s, 9, VlanMode::Access(5), 0), heard);
    assert_eq!(claim(&s, 9, VlanMode::Trunk { native: 0, allowed: set(&[5]) }, 0), heard);
    assert_eq!(claim(&s, 9, VlanMode::Access(6), 0), Ok(()), "another network");
    assert_eq!(claim(&s, 8, VlanMode::Access(0), 0), Ok(()), "a guest's is not the uplink's");
    assert_eq!(claim(&s, 7, VlanMode::Access(5), 0), Ok(()));
    assert_eq!(claim(&s, 9, VlanMode::Access(5), 301 * SECOND), Ok(()), "it is gone");
}

#[test]
fn modes_that_cannot_be_are_refused() {
    let private = |primary, role| VlanMode::Private { primary, role };
    for mode in [
        VlanMode::Access(4095),
        VlanMode::Trunk { native: 5000, allowed: VlanSet::All },
        VlanMode::Trunk { native: 0, allowed: set(&[4095]) },
        private(0, Private::Isolated(1)),
        private(7, Private::Isolated(7)),
        private(7, Private::Community(0)),
        private(7, Private::Promiscuous(VlanSet::All)),
        private(7, Private::Promiscuous(set(&[]))),
    ] {
        assert!(Switch::new().add(with(1, mode.clone())).is_err(), "{mode:?}");
    }
}

/// Who reaches whom, told once more in other words: (reaches, hears).
fn private() -> impl Strategy<Value = VlanMode> {
    let role = prop_oneof![
        Just(Private::Isolated(11)),
        (12..14_u16).prop_map(Private::Community),
        Just(Private::Promiscuous(set(&[11, 12, 13]))),
        Just(Private::Promiscuous(set(&[12]))),
    ];
    role.prop_map(|role| VlanMode::Private { primary: 10, role })
}

fn reaches(from: &VlanMode, to: &VlanMode) -> bool {
    let (VlanMode::Private { role: from, .. }, VlanMode::Private { role: to, .. }) = (from, to) else {
        unreachable!()
    };
    match (from, to) {
        (Private::Isolated(_), Private::Isolated(_) | Private::Community(_)) => false,
        (Private::Community(a), Private::Community(b)) => a == b,
        (Private::Community(_), Private::Isolated(_)) => false,
        (Private::Isolated(v) | Private::Community(v), Private::Promiscuous(all)) => all.has(*v),
        (Private::Promiscuous(_), _) => true,
    }
}

proptest! {
    #[test]
    fn private_vlans_keep_apart_whom_they_should(modes in prop::collection::vec(private(), 2..8)) {
        let mut s = Switch::new();
        let ports: Vec<_> =
            modes.iter().enumerate().map(|(n, m)| s.add(with(n as u8, m.clone())).unwrap()).collect();
        for (a, from) in modes.iter().enumerate() {
            let heard = reached(&mut s, ports[a], &plain(Mac::BROADCAST, mac(a as u8)));
            for (b, to) in modes.iter().enumerate().filter(|(b, _)| *b != a) {
                prop_assert_eq!(heard.contains(&ports[b]), reaches(from, to), "{:?} {:?}", from, to);
                let one = reached(&mut s, ports[a], &plain(mac(b as u8), mac(a as u8)));
                prop_assert_eq!(one == [ports[b]], reaches(from, to));
            }
        }
    }
}

#[test]
fn a_private_vlan_goes_on_behind_a_trunk() {
    let mut s = Switch::new();
    let private = |role| VlanMode::Private { primary: 10, role };
    let lone = s.add(with(1, private(Private::Isolated(11)))).unwrap();
    let other = s.add(with(2, private(Private::Isolated(11)))).unwrap();
    let open = s.add(with(3, private(Private::Promiscuous(set(&[11]))))).unwrap();
    let trunk = Settings { vlan: VlanMode::Trunk { native: 0, allowed: VlanSet::All }, ..uplink() };
    let trunk = s.add(trunk).unwrap();
    let all = |n| plain(Mac::BROADCAST, mac(n));
    assert_eq!(offer(&mut s, 0, lone, &all(1)).unwrap(), [(open, None), (trunk, Some(Tag(11)))]);
    assert_eq!(
        offer(&mut s, 0, open, &all(3)).unwrap(),
        [(lone, None), (other, None), (trunk, Some(Tag(10)))]
    );
    // From a router on the other switch, and from an isolated port there.
    assert_eq!(reached(&mut s, trunk, &tagged(10, &all(8))), [lone, other, open]);
    assert_eq!(reached(&mut s, trunk, &tagged(11, &all(9))), [open]);
    assert_eq!(
        offer(&mut s, 0, lone, &plain(mac(8), mac(1))).unwrap(),
        [(trunk, Some(Tag(11)))],
        "learned in another VLAN"
    );
}
