//! Who listens to which multicast group, as IGMP and MLD tell (RFC 1112, 2236, 3376; 2710, 3810; snooping: RFC 4541).
//!
//! Kept by the addresses that frames have, not by those of packets: network load balancing sends packets for one host to the address
//! of a group that its hosts have joined.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ahash::AHashMap as HashMap;

use crate::rate::Nanos;
use crate::vlan::Vlan;
use vireo_frame::Mac;
use vireo_frame::headers::{Headers, Network, Transport, protocol};

use crate::PortId;

/// A member that does not report again has left (RFC 3376, 8.4; RFC 3810, 9.4).
const MEMBER: Nanos = 260_000_000_000;
/// A router that asks no more is none (RFC 3376, 8.5).
const ROUTER: Nanos = 255_000_000_000;
/// Memberships of a port: a guest makes them.
const MOST: usize = 256;

/// Kinds of messages: IGMP's, then MLD's.
mod kind {
    pub const QUERY: u8 = 0x11;
    pub const REPORT_1: u8 = 0x12;
    pub const REPORT_2: u8 = 0x16;
    pub const LEAVE: u8 = 0x17;
    pub const REPORT_3: u8 = 0x22;
    pub const MLD_QUERY: u8 = 130;
    pub const MLD_REPORT: u8 = 131;
    pub const MLD_DONE: u8 = 132;
    pub const MLD_REPORT_2: u8 = 143;
}

/// Groups that a port has joined, of those that have one address in frames, and until when.
type Joined = Vec<(IpAddr, Nanos)>;

/// Members of groups, and the ports behind which routers are.
#[derive(Debug, Default)]
pub struct Groups {
    members: HashMap<(Vlan, Mac), HashMap<PortId, Joined>>,
    by_port: HashMap<PortId, usize>,
    routers: HashMap<(Vlan, PortId), Nanos>,
}

/// Whom a frame to a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nobody keeps account of that group.
    All,
    /// Those for whom [`Groups::wants`].
    Known(Mac),
}

impl Groups {
    /// Hears what a frame says of groups. Members' reports are for routers alone: whether the frame is one.
    pub fn hear(&mut self, place: Vlan, port: PortId, frame: &[u8], headers: &Headers, now: Nanos) -> bool {
        let Network::Ip(ip) = headers.network else { return false };
        let Some(Transport::Message { kind, at }) = ip.transport else { return false };
        let message = frame.get(at..).unwrap_or_default();
        match (ip.protocol, kind) {
            (protocol::IGMP, kind::QUERY) | (protocol::ICMP6, kind::MLD_QUERY) => {
                if !ip.source.is_unspecified() {
                    self.routers.insert((place, port), now.saturating_add(ROUTER));
                }
                return false;
            }
            (protocol::IGMP, kind::REPORT_1 | kind::REPORT_2) => {
                if let Some(group) = v4(message, 4) {
                    self.join(place, group, port, now);
                }
            }
            (protocol::IGMP, kind::LEAVE) => {
                if let Some(group) = v4(message, 4) {
                    self.leave(place, group, port);
                }
            }
            (protocol::IGMP, kind::REPORT_3) => self.hear_records(place, port, message, v4, 4, now),
            (protocol::ICMP6, kind::MLD_REPORT) => {
                if let Some(group) = v6(message, 8) {
                    self.join(place, group, port, now);
                }
            }
            (protocol::ICMP6, kind::MLD_DONE) => {
                if let Some(group) = v6(message, 8) {
                    self.leave(place, group, port);
                }
            }
            (protocol::ICMP6, kind::MLD_REPORT_2) => self.hear_records(place, port, message, v6, 16, now),
            _ => return false,
        }
        true
    }

    /// Records of RFC 3376, 4.2, and RFC 3810, 5.2, which differ in how long an address is.
    fn hear_records(
        &mut self,
        place: Vlan,
        port: PortId,
        message: &[u8],
        group_at: fn(&[u8], usize) -> Option<IpAddr>,
        address: usize,
        now: Nanos,
    ) {
        const INCLUDE: [u8; 2] = [1, 3];
        let Some(count) = message.get(6..).and_then(|m| m.first_chunk::<2>()) else { return };
        let mut at = 8;
        for _ in 0..u16::from_be_bytes(*count) {
            let Some(record) = message.get(at..).and_then(|m| m.first_chunk::<4>()) else { return };
            let Some(group) = group_at(message, at + 4) else { return };
            let sources = usize::from(u16::from_be_bytes([record[2], record[3]]));
            // To listen to no source is to leave; which sources, is the receiver's own business.
            match INCLUDE.contains(&record[0]) && sources == 0 {
                true => self.leave(place, group, port),
                false => self.join(place, group, port, now),
            }
            at += 4 + address + sources * address + usize::from(record[1]) * 4;
        }
    }

    fn join(&mut self, place: Vlan, group: IpAddr, port: PortId, now: Nanos) {
        let Some(mac) = address_of(group).filter(|_| !is_local(group)) else { return };
        let until = now.saturating_add(MEMBER);
        let count = self.by_port.entry(port).or_default();
        let joined = self.members.get_mut(&(place, mac)).and_then(|m| m.get_mut(&port));
        if let Some(known) = joined.and_then(|j| j.iter_mut().find(|(g, _)| *g == group)) {
            known.1 = until;
            return;
        }
        if *count >= MOST {
            return;
        }
        *count += 1;
        self.members.entry((place, mac)).or_default().entry(port).or_default().push((group, until));
    }

    fn leave(&mut self, place: Vlan, group: IpAddr, port: PortId) {
        let Some(mac) = address_of(group) else { return };
        let Some(members) = self.members.get_mut(&(place, mac)) else { return };
        let Some(joined) = members.get_mut(&port) else { return };
        let before = joined.len();
        joined.retain(|(g, _)| *g != group);
        let left = before - joined.len();
        if joined.is_empty() {
            members.remove(&port);
        }
        if members.is_empty() {
            self.members.remove(&(place, mac));
        }
        if let Some(count) = self.by_port.get_mut(&port) {
            *count = count.saturating_sub(left);
        }
    }

    /// Whom a frame to a group address is for.
    pub fn interest(&self, place: Vlan, headers: &Headers, now: Nanos) -> Interest {
        let Network::Ip(ip) = headers.network else { return Interest::All };
        let to = headers.destination;
        if ip.destination.is_multicast()
            && (is_local(ip.destination) || address_of(ip.destination) != Some(to))
        {
            return Interest::All;
        }
        let is_alive = |joined: &Joined| joined.iter().any(|(_, until)| *until > now);
        match self.members.get(&(place, to)).is_some_and(|m| m.values().any(is_alive)) {
            true => Interest::Known(to),
            false => Interest::All,
        }
    }

    /// Whether a port is to get frames to a group: a member is behind it, or a router, who asks for all.
    pub fn wants(&self, place: Vlan, group: Mac, port: PortId, now: Nanos) -> bool {
        let joined = self.members.get(&(place, group)).and_then(|m| m.get(&port));
        joined.is_some_and(|j| j.iter().any(|(_, until)| *until > now)) || self.has_router(place, port, now)
    }

    /// Whether a router is behind a port.
    pub fn has_router(&self, place: Vlan, port: PortId, now: Nanos) -> bool {
        self.routers.get(&(place, port)).is_some_and(|until| *until > now)
    }

    /// Whether a router is behind any.
    pub fn has_routers(&self, place: Vlan, now: Nanos) -> bool {
        self.routers.iter().any(|((p, _), until)| *p == place && *until > now)
    }

    /// Forgets a port, if one is given, and whoever was silent for too long.
    pub fn forget(&mut self, port: Option<PortId>, now: Nanos) {
        let Self { members, by_port, routers } = self;
        routers.retain(|(_, p), until| Some(*p) != port && *until > now);
        by_port.clear();
        members.retain(|_, m| {
            m.retain(|p, joined| {
                joined.retain(|(_, until)| Some(*p) != port && *until > now);
                if !joined.is_empty() {
                    *by_port.entry(*p).or_default() += joined.len();
                }
                !joined.is_empty()
            });
            !m.is_empty()
        });
    }

    /// All memberships, in no order.
    pub fn all(&self) -> impl Iterator<Item = (Vlan, IpAddr, PortId)> {
        let of = |((place, _), m): (&(Vlan, Mac), &HashMap<PortId, Joined>)| {
            let place = *place;
            let all =
                m.iter().flat_map(move |(port, joined)| joined.iter().map(move |(g, _)| (place, *g, *port)));
            all.collect::<Vec<_>>()
        };
        self.members.iter().flat_map(of)
    }
}

fn v4(message: &[u8], at: usize) -> Option<IpAddr> {
    message.get(at..)?.first_chunk::<4>().map(|a| Ipv4Addr::from(*a).into())
}

fn v6(message: &[u8], at: usize) -> Option<IpAddr> {
    message.get(at..)?.first_chunk::<16>().map(|a| Ipv6Addr::from(*a).into())
}

/// Groups that everybody gets, as they are for a network's own needs (224.0.0.x; ff02:: and below: neighbours are found by them).
fn is_local(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => group.octets()[..3] == [224, 0, 0],
        IpAddr::V6(group) => group.octets()[1] & 0xf <= 2,
    }
}

/// The address that frames to a group have (RFC 1112, 6.4; RFC 2464, 7); `None`: it is no group.
fn address_of(group: IpAddr) -> Option<Mac> {
    let mac = match group {
        IpAddr::V4(group) => {
            let [_, b, c, d] = group.octets();
            Mac([0x01, 0x00, 0x5e, b & 0x7f, c, d])
        }
        IpAddr::V6(group) => {
            let [.., a, b, c, d] = group.octets();
            Mac([0x33, 0x33, a, b, c, d])
        }
    };
    group.is_multicast().then_some(mac)
}
