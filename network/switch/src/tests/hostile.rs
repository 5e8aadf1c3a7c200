//! Whatever is sent, by whatever ports: rules that always hold.

use proptest::prelude::*;

use super::*;
use crate::vlan::{VlanMode, VlanSet};
use crate::{Guards, Limit, Mirror};
use vireo_frame::headers::Headers;

fn settings() -> impl Strategy<Value = Settings> {
    let vlan = prop_oneof![
        (0..4_u16).prop_map(VlanMode::Access),
        (0..3_u16, prop::collection::vec(1..4_u16, 0..3))
            .prop_map(|(native, allowed)| VlanMode::Trunk { native, allowed: allowed.into_iter().collect() }),
        Just(VlanMode::Trunk { native: 0, allowed: VlanSet::All }),
    ];
    let kind = prop_oneof![(0..8_u8).prop_map(|n| Kind::Guest(mac(n))), Just(Kind::Uplink)];
    (kind, any::<bool>(), vlan, any::<[bool; 3]>(), 0..8_u8).prop_map(
        |(kind, spoofing, vlan, [dhcp, router, own], more)| Settings {
            spoofing,
            vlan,
            guards: Guards { dhcp, router, ipv4: own.then(|| [[10, 0, 0, 1].into()].into()), ipv6: None },
            mirror: if more == 0 { Mirror::Source } else { Mirror::None },
            storm: (more == 1).then_some(Limit { rate: 1, burst: 3 }),
            stations: 4,
            ..Settings::new(kind)
        },
    )
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let any_body = prop::collection::vec(any::<u8>(), 0..80);
    let kind = prop_oneof![Just(0x800_u16), Just(0x806), Just(0x86dd), Just(0x8100), any::<u16>()];
    let to = prop_oneof![(0..10_u8).prop_map(mac), Just(Mac::BROADCAST), any::<[u8; 6]>().prop_map(Mac)];
    let from = prop_oneof![4 => (0..10_u8).prop_map(mac), 1 => any::<[u8; 6]>().prop_map(Mac)];
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..40),
        6 => (to, from, kind, any_body).prop_map(|(to, from, kind, body)| frame(to, from, kind, &body)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_frame_goes_where_it_must_not(
        ports in prop::collection::vec(settings(), 1..8),
        frames in prop::collection::vec((0..8_usize, bytes(), any::<bool>(), any::<u16>()), 1..60),
    ) {
        let mut s = Switch::new();
        s.set_snooping(true);
        for settings in ports {
            _ = s.add(settings);
        }
        let ids: Vec<_> = s.ports().collect();
        for (n, (port, bytes, beside, tag)) in frames.into_iter().enumerate() {
            let from = ids[port % ids.len()];
            let now = n as u64 * SECOND;
            let outer = beside.then_some(Tag(tag));
            let verdict = s.forward(now, from, &bytes, bytes.len(), outer);
            if verdict != Verdict::Deliver {
                prop_assert!(s.deliveries().is_empty());
                continue;
            }
            let headers = Headers::read(&bytes).expect("what passes is a frame");
            let settings = s.settings(from).unwrap();
            let came = settings.vlan.of_incoming(outer.or(headers.tag)).expect("in a VLAN of its port");
            let own = settings.kind.address() == Some(headers.source);
            prop_assert!(own || settings.spoofing || settings.kind == Kind::Uplink);
            let mut seen = Vec::new();
            for d in s.deliveries() {
                prop_assert!(d.port != from && !seen.contains(&d.port));
                seen.push(d.port);
                let to = s.settings(d.port).unwrap();
                let expected = to.vlan.of_outgoing(came, outer.or(headers.tag).unwrap_or_default());
                prop_assert_eq!(expected, Some(d.tag));
                let theirs = to.kind.address();
                let group = headers.destination.is_group();
                prop_assert!(group || theirs == Some(headers.destination) || to.spoofing || to.kind == Kind::Uplink);
            }
            prop_assert!(s.stations().count() <= ids.len() * 4);
        }
    }

    #[test]
    fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        _ = Headers::read(&bytes);
    }
}
