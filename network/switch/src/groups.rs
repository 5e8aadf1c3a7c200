//! Who listens to which IPv4 multicast group, as IGMP tells (RFC 1112, 2236, 3376; snooping: RFC 4541).

use std::net::{IpAddr, Ipv4Addr};

use ahash::AHashMap as HashMap;

use crate::rate::Nanos;
use crate::vlan::Vlan;
use vireo_frame::Mac;
use vireo_frame::headers::{Headers, Network, Transport, protocol};

use crate::PortId;

/// A member that does not report again has left (RFC 3376, 8.4).
const MEMBER: Nanos = 260_000_000_000;
/// A router that asks no more is none (RFC 3376, 8.5).
const ROUTER: Nanos = 255_000_000_000;
/// Memberships of a port: a guest makes them.
const MOST: usize = 256;

/// Kinds of IGMP messages.
mod kind {
    pub const QUERY: u8 = 0x11;
    pub const REPORT_1: u8 = 0x12;
    pub const REPORT_2: u8 = 0x16;
    pub const LEAVE: u8 = 0x17;
    pub const REPORT_3: u8 = 0x22;
}

/// Members of groups, and the ports behind which routers are.
#[derive(Debug, Default)]
pub struct Groups {
    members: HashMap<(Vlan, Ipv4Addr), HashMap<PortId, Nanos>>,
    by_port: HashMap<PortId, usize>,
    routers: HashMap<(Vlan, PortId), Nanos>,
}

/// Whom a frame to a group is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Nobody keeps account of that group.
    All,
    /// Those for whom [`Groups::wants`].
    Known(Ipv4Addr),
}

impl Groups {
    /// Hears what a frame says of groups. Members' reports are for routers alone: whether the frame is one.
    pub fn hear(&mut self, place: Vlan, port: PortId, frame: &[u8], headers: &Headers, now: Nanos) -> bool {
        let Network::Ip(ip) = headers.network else { return false };
        let Some(Transport::Message { kind, at }) = ip.transport else { return false };
        if ip.protocol != protocol::IGMP {
            return false;
        }
        let message = frame.get(at..).unwrap_or_default();
        let group = || message.get(4..)?.first_chunk::<4>().map(|a| Ipv4Addr::from(*a));
        match kind {
            kind::QUERY => {
                if ip.source != IpAddr::from(Ipv4Addr::UNSPECIFIED) {
                    self.routers.insert((place, port), now.saturating_add(ROUTER));
                }
                return false;
            }
            kind::REPORT_1 | kind::REPORT_2 => {
                if let Some(group) = group() {
                    self.join(place, group, port, now);
                }
            }
            kind::LEAVE => {
                if let Some(group) = group() {
                    self.leave(place, group, port);
                }
            }
            kind::REPORT_3 => self.hear_version_3(place, port, message, now),
            _ => return false,
        }
        true
    }

    /// RFC 3376, 4.2.
    fn hear_version_3(&mut self, place: Vlan, port: PortId, message: &[u8], now: Nanos) {
        const INCLUDE: [u8; 2] = [1, 3];
        let Some(count) = message.get(6..).and_then(|m| m.first_chunk::<2>()) else { return };
        let mut at = 8;
        for _ in 0..u16::from_be_bytes(*count) {
            let Some(record) = message.get(at..).and_then(|m| m.first_chunk::<8>()) else { return };
            let sources = usize::from(u16::from_be_bytes([record[2], record[3]]));
            let group = Ipv4Addr::new(record[4], record[5], record[6], record[7]);
            // To listen to no source is to leave; which sources, is the receiver's own business.
            match INCLUDE.contains(&record[0]) && sources == 0 {
                true => self.leave(place, group, port),
                false => self.join(place, group, port, now),
            }
            at += 8 + sources * 4 + usize::from(record[1]) * 4;
        }
    }

    fn join(&mut self, place: Vlan, group: Ipv4Addr, port: PortId, now: Nanos) {
        if !group.is_multicast() || is_local(group) {
            return;
        }
        let known = self.members.get(&(place, group)).is_some_and(|m| m.contains_key(&port));
        let count = self.by_port.entry(port).or_default();
        if !known && *count >= MOST {
            return;
        }
        *count += usize::from(!known);
        self.members.entry((place, group)).or_default().insert(port, now.saturating_add(MEMBER));
    }

    fn leave(&mut self, place: Vlan, group: Ipv4Addr, port: PortId) {
        let Some(members) = self.members.get_mut(&(place, group)) else { return };
        if members.remove(&port).is_some()
            && let Some(count) = self.by_port.get_mut(&port)
        {
            *count = count.saturating_sub(1);
        }
        if members.is_empty() {
            self.members.remove(&(place, group));
        }
    }

    /// Whom a frame to a group address is for.
    pub fn interest(&self, place: Vlan, headers: &Headers, now: Nanos) -> Interest {
        let Network::Ip(ip) = headers.network else { return Interest::All };
        let IpAddr::V4(group) = ip.destination else { return Interest::All };
        let of_group = group.is_multicast() && headers.destination == address_of(group);
        let members = self.members.get(&(place, group));
        match of_group && !is_local(group) && members.is_some_and(|m| m.values().any(|until| *until > now)) {
            true => Interest::Known(group),
            false => Interest::All,
        }
    }

    /// Whether a port is to get frames to a group: a member is behind it, or a router, who asks for all.
    pub fn wants(&self, place: Vlan, group: Ipv4Addr, port: PortId, now: Nanos) -> bool {
        let members = self.members.get(&(place, group));
        members.and_then(|m| m.get(&port)).is_some_and(|until| *until > now)
            || self.has_router(place, port, now)
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
        let stays = |p: PortId, until: Nanos| Some(p) != port && until > now;
        routers.retain(|(_, p), until| stays(*p, *until));
        by_port.clear();
        members.retain(|_, m| {
            m.retain(|p, until| stays(*p, *until));
            m.keys().for_each(|p| *by_port.entry(*p).or_default() += 1);
            !m.is_empty()
        });
    }

    /// All memberships, in no order.
    pub fn all(&self) -> impl Iterator<Item = (Vlan, Ipv4Addr, PortId)> {
        self.members.iter().flat_map(|((place, group), m)| m.keys().map(|p| (*place, *group, *p)))
    }
}

/// Groups that everybody gets, as they are for a network's own needs (224.0.0.x).
fn is_local(group: Ipv4Addr) -> bool {
    group.octets()[..3] == [224, 0, 0]
}

/// The address that frames to a group have (RFC 1112, 6.4).
fn address_of(group: Ipv4Addr) -> Mac {
    let [_, b, c, d] = group.octets();
    Mac([0x01, 0x00, 0x5e, b & 0x7f, c, d])
}
