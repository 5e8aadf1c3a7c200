//! Linux's own stack behind the ports: each station is a namespace with a TAP device, whose other end is joined to a port.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};

use super::serving::Home;
use super::*;
use crate::{Joined, Service, SwitchKind, join};
use vireo_frame::Link;
use vireo_port::{PortRequest, SwitchPort};
use vireo_tap::Tap;
use vireo_tap::trial::Namespace;

/// A host on the switch, with the address 10.0.0.n.
struct Station {
    network: Namespace,
    port: Arc<SwitchPort>,
    _joined: Joined,
}

/// Stations 1 to `N` on a switch of their own; `None`: this process may not make networks, which is said loudly.
fn lab<const N: usize>() -> Option<(Home, Service, [Station; N])> {
    let home = Home::new(SwitchKind::Private, None);
    let service = home.start();
    let stations: Option<Vec<_>> = (1..=N as u8).map(|n| station(&home, n)).collect();
    Some((home, service, stations?.try_into().ok().expect("so many")))
}

fn station(home: &Home, n: u8) -> Option<Station> {
    let network = Namespace::new()?;
    let tap = network.run(|| Tap::open("eth")).expect("a TAP device");
    network.ip(&format!("link set eth address {}", mac(n)));
    network.ip(&format!("addr add 10.0.0.{n}/24 dev eth"));
    network.ip("link set eth up");
    let request = PortRequest { name: format!("s{n}"), mac: mac(n), vlan: None };
    let port = SwitchPort::connect(&home.1.sockets("lab").ports(), request).expect("a port");
    let joined = join(port.clone(), tap, &Arc::default());
    Some(Station { network, port, _joined: joined })
}

impl Station {
    fn socket(&self, port: u16) -> UdpSocket {
        bind(&self.network, port)
    }
}

fn bind(network: &Namespace, port: u16) -> UdpSocket {
    let socket = network.run(|| UdpSocket::bind(("0.0.0.0", port))).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(30))).expect("a time");
    socket.set_broadcast(true).expect("a flag");
    socket
}

#[test]
fn the_carrier_of_an_uplink_is_told_also_when_its_device_is_taken_away() {
    let Some(network) = Namespace::new() else { return };
    let home = Home::new(SwitchKind::External, Some("tap=wire"));
    let _service = network.run(|| home.start());
    let carrier = || home.status().carrier;
    soon(|| carrier() == Some(false));
    network.ip("link set wire up");
    soon(|| carrier() == Some(true));
    network.ip("link delete wire");
    soon(|| carrier() == Some(false));
}

/// Whether datagrams arrive at all of these. None is waited for long, and one that is to arrive is sent often enough.
fn reach(from: &UdpSocket, to: (u8, u16), at: &[&UdpSocket]) -> Vec<bool> {
    let to = (Ipv4Addr::new(10, 0, 0, to.0), to.1);
    // What an earlier call sent may be late.
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let hello = CALLS.fetch_add(1, Ordering::Relaxed).to_le_bytes();
    let mut arrived = vec![false; at.len()];
    for turn in 0..40 {
        // It may not know yet where that is, or be told that nobody is there.
        _ = from.send_to(&hello, to);
        for (n, socket) in at.iter().enumerate() {
            let mut bytes = [0; 64];
            while let Ok((length, _)) = socket.recv_from(&mut bytes) {
                if bytes[..length] == hello {
                    arrived[n] = true;
                    break;
                }
            }
        }
        if arrived.iter().all(|a| *a) || turn > 12 && arrived.iter().any(|a| *a) {
            break;
        }
    }
    arrived
}

fn reaches(from: &UdpSocket, to: (u8, u16), at: &UdpSocket) -> bool {
    reach(from, to, &[at])[0]
}

#[test]
fn vlans_are_apart() {
    let Some((home, _service, [a, b, c])) = lab() else { return };
    for (port, vlan) in [("s1", "10"), ("s2", "10"), ("s3", "20")] {
        home.set(Some(port), &[("vlan", vlan)]).unwrap();
    }
    let [x, y, z] = [&a, &b, &c].map(|s| s.socket(5000));
    assert!(reaches(&x, (2, 5000), &y) && reaches(&y, (1, 5000), &x));
    assert!(!reaches(&x, (3, 5000), &z) && !reaches(&z, (1, 5000), &x));
    home.set(Some("s3"), &[("vlan", "10")]).unwrap();
    assert!(reaches(&x, (3, 5000), &z));
    // Private: both reach the third, and each other not.
    for (port, vlan) in
        [("s1", "isolated:100:101"), ("s2", "isolated:100:101"), ("s3", "promiscuous:100:101")]
    {
        home.set(Some(port), &[("vlan", vlan)]).unwrap();
    }
    assert!(reaches(&x, (3, 5000), &z) && reaches(&z, (2, 5000), &y) && reaches(&y, (3, 5000), &z));
    assert!(!reaches(&x, (2, 5000), &y));
}

#[test]
fn guards_and_rules_hold() {
    let Some((home, _service, [a, b])) = lab() else { return };
    let (server, other, client) = (a.socket(67), a.socket(1067), b.socket(68));
    assert!(reaches(&server, (2, 68), &client));
    home.set(Some("s1"), &[("dhcp-guard", "on")]).unwrap();
    assert!(!reaches(&server, (2, 68), &client), "no DHCP server");
    let [x, y] = [&a, &b].map(|s| s.socket(5000));
    assert!(reaches(&x, (2, 5000), &y), "all else goes");
    home.set(Some("s1"), &[("addresses", "10.0.0.77")]).unwrap();
    assert!(!reaches(&other, (2, 5000), &y), "not its address");
    home.set(Some("s1"), &[("addresses", "10.0.0.1")]).unwrap();
    assert!(reaches(&other, (2, 5000), &y));
    home.set(Some("s1"), &[("acl", "deny out udp remote-port=5000")]).unwrap();
    assert!(!reaches(&x, (2, 5000), &y));
    let closed = [("acl", "deny in udp"), ("acl", "allow out udp answers=60 weight=10")];
    home.set(Some("s1"), &closed).unwrap();
    assert!(!reaches(&y, (1, 5000), &x), "nobody asked");
    assert!(reaches(&x, (2, 5000), &y) && reaches(&y, (1, 5000), &x), "an answer");
    let dropped: Vec<_> = home.status().ports.into_iter().map(|p| p.report).collect();
    let of = |name: &str| dropped.iter().find(|r| r.name == name).unwrap();
    for reason in ["dhcp", "address", "acl"] {
        assert!(of("s1").dropped.contains_key(reason), "{reason} is counted: {dropped:?}");
    }
    assert!(of("s1").refused > 0);
}

#[test]
fn network_load_balancing_works_in_its_three_modes() {
    let Some((home, _service, [a, b, c, client])) = lab() else { return };
    let nodes = [&a, &b, &c];
    let sockets = nodes.map(|s| s.socket(80));
    let at = sockets.each_ref();
    let from = client.socket(9000);
    nodes.iter().for_each(|n| n.network.ip("addr add 10.0.0.100/24 dev eth"));
    let table = |mac: &str| {
        client.network.ip(&format!("neigh replace 10.0.0.100 lladdr {mac} dev eth nud permanent"));
    };

    // Unicast: all nodes have one address; without leave to choose it, one has not.
    let cluster = "02:bf:0a:00:00:64";
    table(cluster);
    home.set(Some("s1"), &[("spoofing", "on")]).unwrap();
    home.set(Some("s2"), &[("spoofing", "on")]).unwrap();
    let mac = cluster.parse().unwrap();
    assert!(a.port.set_address(mac).is_ok() && b.port.set_address(mac).is_ok());
    assert!(c.port.set_address(mac).is_err());
    nodes.iter().for_each(|n| n.network.ip(&format!("link set eth address {cluster}")));
    assert_eq!(reach(&from, (100, 80), &at), [true, true, false]);

    // Multicast: an address of a group that nobody keeps account of, and their own ones back.
    for (n, node) in nodes.iter().enumerate() {
        let own = super::mac(n as u8 + 1);
        node.network.ip(&format!("link set eth address {own}"));
        node.port.set_address(own).unwrap();
    }
    table("03:bf:0a:00:00:64");
    assert_eq!(reach(&from, (100, 80), &at), [true, true, true]);

    // IGMP: only who has joined gets it.
    home.set(None, &[("snooping", "on"), ("querier", "on")]).unwrap();
    table("01:00:5e:7f:00:64");
    for n in [0, 2] {
        let own = Ipv4Addr::new(10, 0, 0, n as u8 + 1);
        sockets[n].join_multicast_v4(&Ipv4Addr::new(239, 255, 0, 100), &own).unwrap();
    }
    soon(|| home.status().members.len() >= 2);
    // What was on its way before.
    std::thread::sleep(Duration::from_millis(100));
    sockets.iter().for_each(|s| while s.recv_from(&mut [0; 64]).is_ok() {});
    assert_eq!(reach(&from, (100, 80), &at), [true, false, true]);
}

#[test]
fn the_host_is_reached_by_its_own_device() {
    let Some(host) = Namespace::new() else { return };
    let home = Home::new(SwitchKind::Internal, Some("tap=up0"));
    let _service = host.run(|| home.start());
    host.ip("addr add 10.0.0.254/24 dev up0");
    host.ip("link set up0 up");
    let Some(a) = station(&home, 1) else { return };
    let (x, y) = (a.socket(5000), bind(&host, 5000));
    assert!(reaches(&x, (254, 5000), &y) && reaches(&y, (1, 5000), &x));
    let stations = home.status().stations;
    assert!(stations.iter().any(|s| s.port == crate::UPLINK), "the host was learned: {stations:?}");
}

#[test]
fn the_world_is_reached_by_translation() {
    let Some(host) = Namespace::new() else { return };
    host.ip("link set lo up");
    host.ip("addr add 192.0.2.1/32 dev lo");
    let home = Home::new(SwitchKind::External, Some("nat=10.0.0.0/24"));
    let _service = host.run(|| home.start());
    let Some(a) = station(&home, 15) else { return };
    a.network.ip("route add default via 10.0.0.2");
    let (x, y) = (a.socket(5000), bind(&host, 7));
    let mut asked = None;
    for _ in 0..100 {
        _ = x.send_to(b"hello", ("192.0.2.1", 7));
        asked = y.recv_from(&mut [0; 64]).ok();
        if asked.is_some() {
            break;
        }
    }
    let (length, from) = asked.expect("it went out");
    y.send_to(b"back", from).unwrap();
    let mut back = [0; 64];
    let came = (0..20).any(|_| x.recv_from(&mut back).is_ok());
    assert!(length == 5 && came && back.starts_with(b"back"));
}
