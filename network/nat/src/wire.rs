//! Packets of guests, read; and headers of those for guests, written.
//!
//! All that is read is in a frame's head, which nobody changes any more, and is checked against the frame's length here: where
//! a payload begins and ends ([`Packet::at`], [`Segment::payload`]) is inside the frame.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use vireo_frame::headers::{HEADER, ether_type};
use vireo_frame::{Frame, Mac, Sum, pseudo_header};

use crate::outbox::Outbox;

/// Bytes of headers without options.
pub const IPV4: usize = 20;
pub const IPV6: usize = 40;
pub const TCP: usize = 20;
pub const UDP: usize = 8;
/// Extension headers of IPv6 that are skipped.
const EXTENSIONS: usize = 4;
/// The extension header of IPv6 that fragments have.
const FRAGMENT: u8 = 44;
/// A packet's hops.
const TTL: u8 = 64;

pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_be_bytes(*b))
}

/// A fragment of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Where it belongs.
    pub offset: usize,
    /// Others follow.
    pub more: bool,
    /// Which packet it is of.
    pub id: u32,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The station that it is from.
    pub from: Mac,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// Hops that it may make yet.
    pub hops: u8,
    /// Where it begins in the frame.
    pub start: usize,
    /// Where its payload begins in the frame.
    pub at: usize,
    /// And ends.
    pub end: usize,
    pub fragment: Option<Fragment>,
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Arp(Arp),
    Ip(Packet),
    /// Nothing that is understood here.
    Other,
}

/// ARP for IPv4 (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    pub request: bool,
    pub sender: Mac,
    pub source: Ipv4Addr,
    pub target: Ipv4Addr,
}

impl Content {
    /// Reads it; `None`: it says that it is one of these, and is not.
    pub fn read(frame: &Frame<'_>) -> Option<Self> {
        let head = frame.head();
        // A network of its own has no VLANs; a tag may have a priority alone.
        if frame.intent().tag.is_some_and(|t| t.vlan() != 0) {
            return Some(Self::Other);
        }
        let (kind, at) = match be16(head, 12)? {
            ether_type::VLAN if be16(head, 14)? & 0xfff == 0 => (be16(head, 16)?, HEADER + 4),
            kind => (kind, HEADER),
        };
        match kind {
            ether_type::ARP => Some(Arp::read(head, at)?.map_or(Self::Other, Self::Arp)),
            ether_type::IPV4 => Packet::read4(frame, at).map(Self::Ip),
            ether_type::IPV6 => Packet::read6(frame, at).map(Self::Ip),
            _ => Some(Self::Other),
        }
    }
}

impl Arp {
    fn read(head: &[u8], at: usize) -> Option<Option<Self>> {
        let body = head.get(at..)?.first_chunk::<28>()?;
        let address = |n: usize| body[n..].first_chunk::<4>().map(|a| Ipv4Addr::from(*a));
        if body[..6] != [0, 1, 8, 0, 6, 4] || body[6] != 0 || !matches!(body[7], 1 | 2) {
            return Some(None);
        }
        Some(Some(Self {
            request: body[7] == 1,
            sender: Mac::first_of(&body[8..])?,
            source: address(14)?,
            target: address(24)?,
        }))
    }

    /// A frame that says so; `to` is the station that is asked for or answered.
    pub fn frame(&self, to: Mac) -> Vec<u8> {
        let mut frame = ethernet(to, self.sender, ether_type::ARP);
        frame.extend_from_slice(&[0, 1, 8, 0, 6, 4, 0, if self.request { 1 } else { 2 }]);
        frame.extend_from_slice(&self.sender.0);
        frame.extend_from_slice(&self.source.octets());
        frame.extend_from_slice(&if to == Mac::BROADCAST { [0; 6] } else { to.0 });
        frame.extend_from_slice(&self.target.octets());
        frame
    }
}

/// An Ethernet header.
pub fn ethernet(to: Mac, from: Mac, kind: u16) -> Vec<u8> {
    [&to.0[..], &from.0, &kind.to_be_bytes()].concat()
}

impl Packet {
    fn read4(frame: &Frame<'_>, at: usize) -> Option<Self> {
        let head = frame.head();
        let ip = head.get(at..)?.first_chunk::<IPV4>()?;
        let header = usize::from(ip[0] & 0xf) * 4;
        if ip[0] >> 4 != 4 || header < IPV4 {
            return None;
        }
        // Drivers leave the length of what is to be segmented to who does it.
        let length = match frame.intent().segmentation {
            Some(_) => frame.len() - at,
            None => usize::from(be16(ip, 2)?),
        };
        let fragment = be16(ip, 6)?;
        let (offset, more) = (usize::from(fragment & 0x1fff) * 8, fragment & 0x2000 != 0);
        let packet = Self {
            from: Mac::first_of(&head[6..])?,
            source: Ipv4Addr::from(*ip[12..].first_chunk::<4>()?).into(),
            destination: Ipv4Addr::from(*ip[16..].first_chunk::<4>()?).into(),
            protocol: ip[9],
            hops: ip[8],
            start: at,
            at: at + header,
            end: at + length,
            fragment: (offset != 0 || more).then_some(Fragment { offset, more, id: be16(ip, 4)?.into() }),
        };
        (packet.at <= packet.end && packet.end <= frame.len()).then_some(packet)
    }

    fn read6(frame: &Frame<'_>, at: usize) -> Option<Self> {
        let head = frame.head();
        let ip = head.get(at..)?.first_chunk::<IPV6>()?;
        if ip[0] >> 4 != 6 {
            return None;
        }
        let length = match frame.intent().segmentation {
            Some(_) => frame.len() - at - IPV6,
            None => usize::from(be16(ip, 4)?),
        };
        let address = |n: usize| Some(Ipv6Addr::from(*ip[n..].first_chunk::<16>()?).into());
        let mut packet = Self {
            from: Mac::first_of(&head[6..])?,
            source: address(8)?,
            destination: address(24)?,
            protocol: ip[6],
            hops: ip[7],
            start: at,
            at: at + IPV6,
            end: at + IPV6 + length,
            fragment: None,
        };
        for _ in 0..EXTENSIONS {
            // Hop by hop, destination options: nothing in them changes what is done here.
            if !matches!(packet.protocol, 0 | 60 | FRAGMENT) {
                break;
            }
            if packet.protocol == FRAGMENT {
                return packet.read_fragment(head).filter(|p| p.end <= frame.len());
            }
            let extension = head.get(packet.at..)?.first_chunk::<2>()?;
            packet.protocol = extension[0];
            packet.at += 8 + usize::from(extension[1]) * 8;
        }
        (packet.at <= packet.end && packet.end <= frame.len()).then_some(packet)
    }
}

impl Packet {
    /// What the header of a fragment says (RFC 8200, 4.5).
    fn read_fragment(mut self, head: &[u8]) -> Option<Self> {
        let header = head.get(self.at..)?.first_chunk::<8>()?;
        let place = be16(header, 2)?;
        let (offset, more) = (usize::from(place & !7), place & 1 != 0);
        self.protocol = header[0];
        self.at += header.len();
        // One that is all of its packet is none.
        self.fragment = (offset != 0 || more).then_some(Fragment { offset, more, id: be32(header, 4)? });
        (self.at <= self.end).then_some(self)
    }
}

/// Flags of TCP.
pub mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
}

/// A segment of TCP (RFC 9293).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub source: u16,
    pub destination: u16,
    pub sequence: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// The largest payload that its sender takes.
    pub mss: Option<u16>,
    /// Bits by which its sender's windows are shifted.
    pub scale: Option<u8>,
    /// Where in the frame.
    pub payload: Range<usize>,
}

impl Segment {
    /// Reads it; `None`: it is none.
    pub fn read(head: &[u8], packet: &Packet) -> Option<Self> {
        let header = head.get(packet.at..)?.first_chunk::<TCP>()?;
        let length = usize::from(header[12] >> 4) * 4;
        let from = packet.at + length;
        if length < TCP || from > packet.end {
            return None;
        }
        let options = head.get(packet.at + TCP..from)?;
        let mut segment = Self {
            source: be16(header, 0)?,
            destination: be16(header, 2)?,
            sequence: be32(header, 4)?,
            ack: be32(header, 8)?,
            flags: header[13],
            window: be16(header, 14)?,
            mss: None,
            scale: None,
            payload: from..packet.end,
        };
        segment.read_options(options);
        Some(segment)
    }

    fn read_options(&mut self, mut options: &[u8]) {
        loop {
            match *options {
                [] | [0, ..] => return,
                [1, ref rest @ ..] => options = rest,
                [kind, length, ref body @ ..] => {
                    let Some((body, rest)) =
                        usize::from(length).checked_sub(2).and_then(|n| body.split_at_checked(n))
                    else {
                        return;
                    };
                    match (kind, body) {
                        (2, [a, b]) => self.mss = Some(u16::from_be_bytes([*a, *b])),
                        // RFC 7323: more than 14 is taken as 14.
                        (3, [bits]) => self.scale = Some((*bits).min(14)),
                        _ => {}
                    }
                    options = rest;
                }
                _ => return,
            }
        }
    }

    /// Whether it has a flag.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Numbers of the sequence that it takes.
    pub fn length(&self) -> u32 {
        let numbers = u32::from(self.has(flag::SYN)) + u32::from(self.has(flag::FIN));
        self.payload.len() as u32 + numbers
    }
}

/// Between whom a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The guest's station.
    pub to: Mac,
    /// Ours.
    pub from: Mac,
    pub source: IpAddr,
    pub destination: IpAddr,
}

impl Way {
    /// Bytes of the Ethernet and IP headers.
    pub fn headers(&self) -> usize {
        HEADER + if self.destination.is_ipv6() { IPV6 } else { IPV4 }
    }

    /// Writes both headers, before a payload of `length` bytes; says how long they are. Nothing is written where there is no
    /// room for them.
    pub fn write(&self, to: &mut [u8], protocol: u8, length: usize) -> usize {
        let headers = self.headers();
        if let Some(to) = to.get_mut(..headers) {
            let ip = self.ip(protocol, length);
            let kind = if self.destination.is_ipv6() { ether_type::IPV6 } else { ether_type::IPV4 };
            to[..6].copy_from_slice(&self.to.0);
            to[6..12].copy_from_slice(&self.from.0);
            to[12..HEADER].copy_from_slice(&kind.to_be_bytes());
            to[HEADER..].copy_from_slice(&ip[..headers - HEADER]);
        }
        headers
    }

    fn ip(&self, protocol: u8, length: usize) -> [u8; IPV6] {
        let mut ip = [0; IPV6];
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                // Not to be fragmented, so its number matters to nobody (RFC 6864).
                ip[..10].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, protocol]);
                ip[2..4].copy_from_slice(&((IPV4 + length) as u16).to_be_bytes());
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&destination.octets());
                let sum = Sum::default().over(&ip[..IPV4]).finish();
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                // RFC 4861: messages to neighbours have gone over no router.
                let hops = if protocol == vireo_frame::headers::protocol::ICMP6 { 255 } else { TTL };
                ip[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, protocol, hops]);
                ip[4..6].copy_from_slice(&(length as u16).to_be_bytes());
                ip[8..24].copy_from_slice(&source.octets());
                ip[24..40].copy_from_slice(&destination.octets());
            }
            _ => {}
        }
        ip
    }

    /// The sum of the pseudo header.
    pub fn pseudo(&self, protocol: u8, length: usize) -> Sum {
        pseudo_header(self.source, self.destination, protocol, length)
    }
}

/// A datagram of UDP as a frame, and where its checksum's pseudo header is.
pub fn datagram(way: &Way, source: u16, destination: u16, payload: &[u8]) -> (Vec<u8>, (usize, usize)) {
    let (start, length) = (way.headers(), UDP + payload.len());
    let mut frame = vec![0; start + UDP];
    way.write(&mut frame, vireo_frame::headers::protocol::UDP, length);
    let pseudo = way.pseudo(vireo_frame::headers::protocol::UDP, length).folded();
    for (at, word) in [source, destination, length as u16, pseudo].into_iter().enumerate() {
        frame[start + at * 2..][..2].copy_from_slice(&word.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    (frame, (start, 6))
}

/// Puts a datagram of UDP into an outbox: whole, or in fragments where it is longer than the MTU.
pub fn datagrams(way: &Way, ports: (u16, u16), payload: &[u8], mtu: u32, number: u16, to: &mut Outbox) {
    let (mut frame, sum) = datagram(way, ports.0, ports.1, payload);
    if frame.len() <= mtu as usize + HEADER {
        return to.add(frame, Some(sum));
    }
    crate::outbox::fill(&mut frame, sum.0, sum.1);
    fragments(way, vireo_frame::headers::protocol::UDP, frame, mtu, number, to);
}

/// Puts a packet with all its checksums into an outbox: whole, or in fragments where it is longer than the MTU.
pub fn fragments(way: &Way, protocol: u8, frame: Vec<u8>, mtu: u32, number: u16, to: &mut Outbox) {
    let headers = way.headers();
    let most = mtu as usize + HEADER;
    if frame.len() <= most {
        return to.add(frame, None);
    }
    let body = &frame[headers..];
    let v6 = way.destination.is_ipv6();
    let extension = if v6 { 8 } else { 0 };
    let size = (most - headers - extension) & !7;
    for (n, piece) in body.chunks(size).enumerate() {
        let (offset, more) = (n * size, (n + 1) * size < body.len());
        let mut frame = vec![0; headers];
        if v6 {
            way.write(&mut frame, FRAGMENT, extension + piece.len());
            let place = (offset as u16 | u16::from(more)).to_be_bytes();
            let number = number.to_be_bytes();
            frame.extend_from_slice(&[protocol, 0, place[0], place[1], 0, 0, number[0], number[1]]);
        } else {
            way.write(&mut frame, protocol, piece.len());
            let ip = &mut frame[HEADER..];
            ip[4..6].copy_from_slice(&number.to_be_bytes());
            let place = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            ip[6..8].copy_from_slice(&place.to_be_bytes());
            ip[10..12].fill(0);
            let sum = Sum::default().over(ip).finish();
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        frame.extend_from_slice(piece);
        to.add(frame, None);
    }
}
