//! Any frames, through a switch with all of its policy: headers, guards, access lists, groups and addresses that are learned. Whoever
//! gets one may, and nothing is remembered without bounds.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use vireo_frame::headers::Headers;
use vireo_frame::{Mac, Tag};
use vireo_fuzz::Input;
use vireo_switch::acl::Acl;
use vireo_switch::{Guards, Kind, Limit, Mirror, Settings, Switch, Verdict};

/// Starts of frames that get far: of IPv4 with IGMP, of IPv6 with MLD, of ARP, of DHCP.
const STARTS: [&[u8]; 4] = [
    &[8, 0, 0x46, 0, 0, 36, 0, 0, 0, 0, 1, 2, 0, 0, 10, 0, 0, 1, 224, 0, 0, 22, 0x94, 4, 0, 0],
    &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 36, 0, 1],
    &[8, 6, 0, 1, 8, 0, 6, 4],
    &[8, 0, 0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 68, 0, 67],
];

fn mac(n: u8) -> Mac {
    Mac([0, 0x15, 0x5d, 0, 0, n])
}

/// Ports of all kinds.
fn ports() -> [Settings; 6] {
    let guest = |n: u8| Settings::new(Kind::Guest(mac(n)));
    let vlan = |text: &str| text.parse().expect("a VLAN mode");
    let rules =
        ["deny in udp local-port=67", "allow out tcp answers=5 weight=3", "deny out remote=10.9.0.0/16"];
    let rules = rules.map(|rule| rule.parse().expect("a rule")).to_vec();
    let guards =
        Guards { dhcp: true, router: true, ipv4: Some([[10, 0, 0, 1].into()].into()), ipv6: Some([].into()) };
    [
        Settings { vlan: vlan("trunk:none:all"), spoofing: true, stations: 16, ..guest(1) },
        Settings { guards, acl: Acl::new(rules), storm: Some(Limit { rate: 100, burst: 10 }), ..guest(2) },
        Settings { vlan: vlan("isolated:100:101"), ..guest(3) },
        Settings { vlan: vlan("promiscuous:100:101"), mirror: Mirror::Source, ..guest(4) },
        Settings { mirror: Mirror::Destination, ..guest(5) },
        Settings::new(Kind::Uplink),
    ]
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut switch = Switch::new();
    switch.set_snooping(true);
    switch.set_querier(true);
    let ids = ports().map(|settings| switch.add(settings).expect("a port"));
    let mut now = 0;
    while !input.is_empty() {
        let from = ids[usize::from(input.u8()) % ids.len()];
        let choice = input.u8();
        let to = match choice % 4 {
            0 => mac(input.u8() % 8),
            1 => Mac([1, 0, 0x5e, input.u8() & 0x7f, input.u8(), input.u8()]),
            2 => Mac([0x33, 0x33, 0, 0, input.u8(), input.u8()]),
            _ => Mac(input.array()),
        };
        let source = if choice & 0x40 == 0 { mac(input.u8() % 8) } else { Mac(input.array()) };
        let length = usize::from(input.u8());
        let start = STARTS.get(usize::from(choice >> 2 & 7)).copied().unwrap_or_default();
        let frame = [&to.0[..], &source.0, start, input.bytes(length)].concat();
        let outer = (choice & 0x80 != 0).then(|| Tag(input.u16()));
        now += u64::from(input.u16()) * 1_000_000;
        if let Some(headers) = Headers::read(&frame) {
            assert_eq!((headers.destination, headers.source), (to, source));
        }
        if switch.forward(now, from, &frame, frame.len(), outer) == Verdict::Deliver {
            let reached: BTreeSet<_> = switch.deliveries().iter().map(|d| d.port).collect();
            assert!(reached.len() == switch.deliveries().len() && !reached.contains(&from));
        }
        if choice == 0xff {
            switch.age(now);
            switch.ask(now, |_, _| {});
        }
    }
    assert!(switch.members().count() <= 256 * ids.len() && switch.stations().count() <= 16 + 4096);
});
