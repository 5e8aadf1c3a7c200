//! Messages of ICMP and ICMPv6 that are made here (RFC 792, 4443), and those to neighbours and of routers (RFC 4861, 8106).

use std::net::{IpAddr, Ipv6Addr};

use vireo_frame::headers::protocol;
use vireo_frame::{Mac, Sum};

use crate::config::Network;
use crate::wire::Way;

/// Types of ICMP.
pub const ECHO: u8 = 8;
pub const ECHO_REPLY: u8 = 0;
/// Types of ICMPv6.
pub const ECHO6: u8 = 128;
pub const ECHO6_REPLY: u8 = 129;
pub const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Seconds that a router's advertisement is good for.
pub const ROUTER_LIFETIME: u16 = 1800;

/// Why a packet cannot get to where it is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    Network,
    Host,
    Protocol,
    Port,
    /// Nobody may.
    Forbidden,
}

/// A message as a frame.
pub fn message(way: &Way, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; way.headers()];
    let v6 = way.destination.is_ipv6();
    let protocol = if v6 { protocol::ICMP6 } else { protocol::ICMP };
    way.write(&mut frame, protocol, body.len());
    let start = frame.len();
    frame.extend_from_slice(body);
    frame[start + 2..start + 4].fill(0);
    let pseudo = if v6 { way.pseudo(protocol, body.len()) } else { Sum::default() };
    let sum = pseudo.over(&frame[start..]).finish();
    frame[start + 2..start + 4].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Tells a guest that a packet of its does not arrive. `way` is that of packets to it; the packet's first bytes behind its IP header
/// are `first`, from a payload of `length`.
pub fn unreachable(
    way: &Way,
    router: IpAddr,
    why: Unreachable,
    protocol: u8,
    first: [u8; 8],
    length: usize,
) -> Vec<u8> {
    let v6 = way.destination.is_ipv6();
    let (kind, code) = match (v6, why) {
        (false, Unreachable::Network) => (3, 0),
        (false, Unreachable::Host) => (3, 1),
        (false, Unreachable::Protocol) => (3, 2),
        (false, Unreachable::Port) => (3, 3),
        (false, Unreachable::Forbidden) => (3, 13),
        (true, Unreachable::Network) => (1, 0),
        (true, Unreachable::Host) => (1, 3),
        (true, Unreachable::Protocol) => (4, 1),
        (true, Unreachable::Port) => (1, 4),
        (true, Unreachable::Forbidden) => (1, 1),
    };
    let back = Way { source: way.destination, destination: way.source, ..*way };
    let mut quoted = vec![0; back.headers()];
    back.write(&mut quoted, protocol, length);
    let ip = &quoted[vireo_frame::headers::HEADER..];
    let body = [&[kind, code, 0, 0, 0, 0, 0, 0][..], ip, &first].concat();
    message(&Way { source: router, ..*way }, &body)
}

/// What is answered to a message of ICMPv6 to neighbours and routers; `None`: nothing.
pub fn neighbour(
    network: &Network,
    mtu: u32,
    router: bool,
    from: Mac,
    source: IpAddr,
    body: &[u8],
) -> Option<Vec<u8>> {
    let IpAddr::V6(source) = source else { return None };
    match *body.first()? {
        ROUTER_SOLICITATION => {
            let to = (!source.is_unspecified()).then_some((from, source));
            advertisement(network, mtu, router, to)
        }
        NEIGHBOUR_SOLICITATION => {
            let target = Ipv6Addr::from(*body.get(8..)?.first_chunk::<16>()?);
            let ours = [Some(network.link_local()), network.gateway6(), network.dns6()];
            // Who asks from no address looks whether one is free (RFC 4862, 5.4): ours are not.
            let (to, destination, flags) = match source.is_unspecified() {
                true => (group_station(ALL_NODES), ALL_NODES, 0xa0),
                false => (from, source, 0xe0),
            };
            ours.contains(&Some(target)).then(|| {
                let station = network.mac();
                let way = Way { to, from: station, source: target.into(), destination: destination.into() };
                let head = [NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
                message(&way, &[&head[..], &target.octets(), &[2, 1], &station.0].concat())
            })
        }
        _ => None,
    }
}

/// Asks who has an address.
pub fn solicitation(network: &Network, target: Ipv6Addr) -> Vec<u8> {
    let station = network.mac();
    let [.., a, b, c] = target.octets();
    let group = Ipv6Addr::from_bits(
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 0).to_bits()
            | u128::from(u32::from_be_bytes([0, a, b, c])),
    );
    let way = Way {
        to: group_station(group),
        from: station,
        source: network.link_local().into(),
        destination: group.into(),
    };
    let head = [NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message(&way, &[&head[..], &target.octets(), &[1, 1], &station.0].concat())
}

/// The address that a neighbour's advertisement says it has.
pub fn advertised(body: &[u8]) -> Option<Ipv6Addr> {
    let target = body.get(8..)?.first_chunk::<16>()?;
    (body[0] == NEIGHBOUR_ADVERTISEMENT).then(|| Ipv6Addr::from(*target))
}

/// A router's advertisement, to one guest or to all. `router`: that it leads anywhere else.
pub fn advertisement(
    network: &Network,
    mtu: u32,
    router: bool,
    to: Option<(Mac, Ipv6Addr)>,
) -> Option<Vec<u8>> {
    let prefix = network.v6?;
    let (to, destination) = to.unwrap_or((group_station(ALL_NODES), ALL_NODES));
    let station = network.mac();
    let lifetime = if router { ROUTER_LIFETIME } else { 0 }.to_be_bytes();
    let mut body =
        vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0, lifetime[0], lifetime[1], 0, 0, 0, 0, 0, 0, 0, 0];
    body.extend_from_slice(&[1, 1]);
    body.extend_from_slice(&station.0);
    body.extend_from_slice(&[5, 1, 0, 0]);
    body.extend_from_slice(&mtu.to_be_bytes());
    // 64 bits that are on the link, and of which guests make their own addresses; for a day, and four hours as preferred ones.
    body.extend_from_slice(&[3, 4, 64, 0xc0]);
    body.extend_from_slice(&86_400_u32.to_be_bytes());
    body.extend_from_slice(&14_400_u32.to_be_bytes());
    body.extend_from_slice(&[0; 4]);
    body.extend_from_slice(&prefix.octets());
    body.extend_from_slice(&[25, 3, 0, 0]);
    body.extend_from_slice(&u32::from(ROUTER_LIFETIME).to_be_bytes());
    body.extend_from_slice(&network.dns6()?.octets());
    let way = Way { to, from: station, source: network.link_local().into(), destination: destination.into() };
    Some(message(&way, &body))
}

/// The station's address of a group (RFC 2464, 7).
fn group_station(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    Mac([0x33, 0x33, a, b, c, d])
}
