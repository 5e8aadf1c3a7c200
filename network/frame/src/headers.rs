//! What is read of a frame: headers at the places where the specifications have them, each byte once, nothing kept.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Mac;

/// Bytes of an Ethernet header without tags.
pub const HEADER: usize = 14;
/// Kinds of frames (IEEE 802 numbers).
pub mod ether_type {
    #![allow(missing_docs)]
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
    pub const SERVICE_VLAN: u16 = 0x88a8;
}
/// Protocols over IP (IANA).
pub mod protocol {
    #![allow(missing_docs)]
    pub const ICMP: u8 = 1;
    pub const IGMP: u8 = 2;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMP6: u8 = 58;
}

/// The tag of a VLAN (IEEE 802.1Q): 12 bits of VLAN, one of eligibility to be dropped, three of priority.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tag(pub u16);

impl Tag {
    /// The VLAN; 0 in a tag that has nothing but a priority.
    pub fn vlan(self) -> u16 {
        self.0 & 0xfff
    }

    /// Another VLAN with the same priority.
    pub fn with_vlan(self, vlan: u16) -> Self {
        Self(self.0 & 0xf000 | vlan & 0xfff)
    }
}

/// What is decided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
    /// The outermost tag that is in the frame's bytes.
    pub tag: Option<Tag>,
    /// There are further tags behind that one.
    pub tagged_twice: bool,
    /// The kind of what is behind all tags.
    pub ether_type: u16,
    /// What it says of the network layer.
    pub network: Network,
}

/// Of the network layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Nothing that matters here.
    Other,
    /// It says that it is one of the below, and is not.
    Malformed,
    /// ARP for IPv4.
    Arp {
        /// The address that the sender says it has.
        address: Ipv4Addr,
    },
    /// IP.
    Ip(Ip),
}

/// Of an IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// From whom.
    pub source: IpAddr,
    /// To whom.
    pub destination: IpAddr,
    /// What is in it; behind extension headers of IPv6.
    pub protocol: u8,
    /// What follows; `None` in a fragment that is not the first.
    pub transport: Option<Transport>,
    /// It is a whole packet of neighbour discovery, and has come over no router (RFC 4861; 6980): one to be heeded.
    pub discovers: bool,
}

/// Messages of neighbour discovery, all but redirects.
const DISCOVERY: std::ops::RangeInclusive<u8> = 133..=136;
/// Hops that they have left.
const ALL_HOPS: u8 = 255;

/// Of the layer above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Ports of TCP or UDP.
    Ports {
        /// The sender's.
        source: u16,
        /// The receiver's.
        destination: u16,
    },
    /// A message of ICMP, ICMPv6 or IGMP: its type, and where its bytes start in the frame.
    Message {
        /// Its type.
        kind: u8,
        /// Offset in the frame.
        at: usize,
    },
    /// Something else.
    Other,
    /// Too short for its protocol, or extension headers without an end.
    Malformed,
}

/// Extension headers of an IPv6 packet that are looked behind.
const EXTENSIONS: usize = 8;
/// Tags that are looked behind.
const TAGS: usize = 4;
/// Where a kind is expected, up to this it is a length (IEEE 802.3), or may be one to some: kinds begin at 0x600.
const LENGTH_MAX: u16 = 0x5ff;
/// What may follow a length, and is followed by a kind (IEEE 802.2, RFC 1042).
const SNAP: [u8; 6] = [0xaa, 0xaa, 3, 0, 0, 0];

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

impl Headers {
    /// Reads them; `None`: it is too short for a frame, or has more tags than anybody uses.
    pub fn read(frame: &[u8]) -> Option<Self> {
        let (destination, source) = (Mac::first_of(frame)?, Mac::first_of(frame.get(6..)?)?);
        let (mut at, mut tag, mut tagged_twice, mut steps) = (12, None, false, 0);
        let ether_type = loop {
            let kind = be16(frame, at)?;
            at += 2;
            if kind == ether_type::VLAN || kind == ether_type::SERVICE_VLAN {
                tagged_twice = tag.is_some();
                tag = tag.or(Some(Tag(be16(frame, at)?)));
                at += 2;
            } else if kind <= LENGTH_MAX && frame.get(at..).is_some_and(|f| f.starts_with(&SNAP)) {
                // Some receivers take what is behind it as if it stood here.
                at += SNAP.len();
            } else {
                break kind;
            }
            steps += 1;
            if steps > TAGS {
                return None;
            }
        };
        let network = match ether_type {
            ether_type::ARP => arp(frame, at),
            ether_type::IPV4 => ipv4(frame, at).map_or(Network::Malformed, Network::Ip),
            ether_type::IPV6 => ipv6(frame, at).map_or(Network::Malformed, Network::Ip),
            _ => Network::Other,
        };
        Some(Self { destination, source, tag, tagged_twice, ether_type, network })
    }

    /// Whether it says that it is something which it is not, or that cannot be told.
    pub fn are_malformed(&self) -> bool {
        match self.network {
            Network::Malformed => true,
            Network::Ip(ip) => ip.transport == Some(Transport::Malformed),
            Network::Other | Network::Arp { .. } => false,
        }
    }
}

/// Where TCP or UDP is in a frame of its own, and what is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which IP: its kind of frame.
    pub ether_type: u16,
    /// Where IP starts.
    pub ip: usize,
    /// TCP or UDP.
    pub protocol: u8,
    /// Where that starts.
    pub at: usize,
}

impl Segment {
    /// Of a frame; `None`: it is something else, or a part of a packet only.
    pub fn of(frame: &[u8]) -> Option<Self> {
        let (ether_type, ip) = ether_type_at(frame)?;
        let (protocol, at) = match ether_type {
            ether_type::IPV4 => {
                let (header, length) = ipv4_header(frame, ip)?;
                // More fragments, or an offset.
                (be16(header, 6)? & 0x3fff == 0).then_some((header[9], ip + length))?
            }
            ether_type::IPV6 => match behind_extensions(frame, ip + 40, ipv6_header(frame, ip)?[6]) {
                (protocol, Follows::At(at, false)) => (protocol, at),
                _ => return None,
            },
            _ => return None,
        };
        matches!(protocol, protocol::TCP | protocol::UDP).then_some(Self { ether_type, ip, protocol, at })
    }
}

/// RFC 826, for Ethernet and IPv4; others are none of ours.
fn arp(frame: &[u8], at: usize) -> Network {
    const FOR_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
    let read = || {
        let body = frame.get(at..)?.first_chunk::<28>()?;
        let address: [u8; 4] = *body[14..].first_chunk()?;
        (body[..6] == FOR_IPV4).then_some(address.into())
    };
    read().map_or(Network::Malformed, |address| Network::Arp { address })
}

/// RFC 791: the fixed part of a header, and how long all of it is.
fn ipv4_header(frame: &[u8], at: usize) -> Option<(&[u8; 20], usize)> {
    let header = frame.get(at..)?.first_chunk::<20>()?;
    let length = usize::from(header[0] & 0xf) * 4;
    (header[0] >> 4 == 4 && length >= 20 && frame.len() >= at + length).then_some((header, length))
}

/// What of a frame is of a packet that is so long. 0 says nothing: of a packet that is still to be cut.
fn within(frame: &[u8], at: usize, length: usize) -> &[u8] {
    match length {
        0 => frame,
        _ => &frame[..frame.len().min(at + length)],
    }
}

fn ipv4(frame: &[u8], at: usize) -> Option<Ip> {
    let (header, length) = ipv4_header(frame, at)?;
    let frame = within(frame, at, be16(header, 2)?.into());
    let address = |n: usize| Some(IpAddr::from(Ipv4Addr::from(*header[n..].first_chunk::<4>()?)));
    let first = be16(header, 6)? & 0x1fff == 0;
    let transport = first.then(|| transport(frame, at + length, header[9]));
    Some(Ip {
        source: address(12)?,
        destination: address(16)?,
        protocol: header[9],
        transport,
        discovers: false,
    })
}

/// RFC 8200.
fn ipv6_header(frame: &[u8], at: usize) -> Option<&[u8; 40]> {
    frame.get(at..)?.first_chunk().filter(|header| header[0] >> 4 == 6)
}

fn ipv6(frame: &[u8], at: usize) -> Option<Ip> {
    let header = ipv6_header(frame, at)?;
    let address = |n: usize| Some(IpAddr::from(Ipv6Addr::from(*header[n..].first_chunk::<16>()?)));
    let (source, destination) = (address(8)?, address(24)?);
    let frame = within(frame, at + 40, be16(header, 4)?.into());
    let (protocol, follows) = behind_extensions(frame, at + 40, header[6]);
    let transport = match follows {
        Follows::At(at, _) => Some(transport(frame, at, protocol)),
        Follows::Part => None,
        Follows::Malformed => Some(Transport::Malformed),
    };
    let plain = header[6] == protocol::ICMP6 && header[7] == ALL_HOPS;
    let discovers =
        matches!(transport, Some(Transport::Message { kind, .. }) if plain && DISCOVERY.contains(&kind));
    Some(Ip { source, destination, protocol, transport, discovers })
}

/// What is behind the extension headers of IPv6.
enum Follows {
    /// The layer above, here; and whether it is of a first fragment.
    At(usize, bool),
    /// Some of it: it is a further fragment.
    Part,
    /// Nothing that can be told: they have no end.
    Malformed,
}

/// Looks behind them: what is there, and where.
fn behind_extensions(frame: &[u8], mut at: usize, mut protocol: u8) -> (u8, Follows) {
    const FRAGMENT: u8 = 44;
    let mut is_fragment = false;
    for _ in 0..EXTENSIONS {
        // Hop by hop, routing, destination options, authentication; all say what follows, in their first byte.
        let (next, length) = match (protocol, frame.get(at..).and_then(|f| f.first_chunk::<8>())) {
            (0 | 43 | 60, Some(e)) => (e[0], 8 + usize::from(e[1]) * 8),
            (51, Some(e)) => (e[0], 8 + usize::from(e[1]) * 4),
            (FRAGMENT, Some(e)) if u16::from_be_bytes([e[2], e[3]]) & 0xfff8 != 0 => {
                return (e[0], Follows::Part);
            }
            (FRAGMENT, Some(e)) => {
                is_fragment = true;
                (e[0], 8)
            }
            (0 | 43 | 60 | 51 | FRAGMENT, None) => return (protocol, Follows::Malformed),
            _ => return (protocol, Follows::At(at, is_fragment)),
        };
        (protocol, at) = (next, at + length);
    }
    (protocol, Follows::Malformed)
}

fn transport(frame: &[u8], at: usize, protocol: u8) -> Transport {
    let read = || {
        Some(match protocol {
            protocol::TCP | protocol::UDP => {
                Transport::Ports { source: be16(frame, at)?, destination: be16(frame, at + 2)? }
            }
            protocol::ICMP | protocol::IGMP | protocol::ICMP6 => {
                Transport::Message { kind: *frame.get(at)?, at }
            }
            _ => Transport::Other,
        })
    };
    read().unwrap_or(Transport::Malformed)
}

/// The kind of what is behind all tags, and where that starts.
pub fn ether_type_at(frame: &[u8]) -> Option<(u16, usize)> {
    let mut at = 12;
    for _ in 0..=TAGS {
        let kind = be16(frame, at)?;
        at += 2;
        if kind != ether_type::VLAN && kind != ether_type::SERVICE_VLAN {
            return Some((kind, at));
        }
        at += 2;
    }
    None
}
