//! Access lists of a port: what may pass between its guest and others.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::flows::{Flow, Flows};
use crate::rate::Nanos;
use vireo_frame::Mac;
use vireo_frame::headers::{Headers, Ip, Network, Transport};

/// Which way a frame goes, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the guest.
    In,
    /// From it.
    Out,
}

impl Direction {
    fn other(self) -> Self {
        match self {
            Self::In => Self::Out,
            Self::Out => Self::In,
        }
    }
}

/// What happens to a frame that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It passes.
    Allow,
    /// It passes, and so do answers to it, until nothing has passed either way for so long.
    AllowAnswers(Duration),
    /// It does not.
    Deny,
}

/// Whom a rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Who {
    /// Anybody.
    #[default]
    Any,
    /// A station.
    Mac(Mac),
    /// All addresses with the same first bits: so many.
    Net(IpAddr, u8),
}

impl Who {
    fn is(self, mac: Mac, address: Option<IpAddr>) -> bool {
        match (self, address) {
            (Self::Any, _) => true,
            (Self::Mac(wanted), _) => wanted == mac,
            (Self::Net(IpAddr::V4(net), bits), Some(IpAddr::V4(address))) => {
                let differ = net.to_bits() ^ address.to_bits();
                differ.checked_shr(32_u32.saturating_sub(bits.into())).unwrap_or(0) == 0
            }
            (Self::Net(IpAddr::V6(net), bits), Some(IpAddr::V6(address))) => {
                let differ = net.to_bits() ^ address.to_bits();
                differ.checked_shr(128_u32.saturating_sub(bits.into())).unwrap_or(0) == 0
            }
            (Self::Net(..), _) => false,
        }
    }
}

/// A rule. What it does not name may be anything; but how stations find each other and routers (ARP, neighbour discovery) is a matter of
/// rules alone that name a station: a list that denies by default would leave its guest nobody to speak with. The port's guards see to it
/// that what its guest says is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Those of more weight are looked at first.
    pub weight: u16,
    /// Which way.
    pub direction: Direction,
    /// The guest.
    pub local: Who,
    /// The other side.
    pub remote: Who,
    /// Over IP.
    pub protocol: Option<u8>,
    /// The guest's port.
    pub local_ports: Option<RangeInclusive<u16>>,
    /// The other side's.
    pub remote_ports: Option<RangeInclusive<u16>>,
    /// What happens.
    pub action: Action,
}

/// A frame as rules see it.
#[derive(Clone, Copy)]
struct View {
    local: (Mac, Option<IpAddr>),
    remote: (Mac, Option<IpAddr>),
    protocol: Option<u8>,
    /// The guest's port and the other's, where they are known.
    ports: Option<(u16, u16)>,
    /// It is about who has which address.
    resolves: bool,
}

/// Questions for routers and what these advertise (RFC 4861).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;

/// Whether a frame is of those that tell stations each other's addresses. A guest asks for routers, and is none.
fn resolves(headers: &Headers, direction: Direction) -> bool {
    match headers.network {
        Network::Arp { .. } => true,
        Network::Ip(Ip { discovers: true, transport: Some(Transport::Message { kind, .. }), .. }) => {
            match kind {
                ROUTER_SOLICITATION => direction == Direction::Out,
                ROUTER_ADVERTISEMENT => direction == Direction::In,
                _ => true,
            }
        }
        _ => false,
    }
}

impl View {
    fn of(headers: &Headers, direction: Direction) -> Self {
        let ip: Option<Ip> = match headers.network {
            Network::Ip(ip) => Some(ip),
            _ => None,
        };
        let ports = match ip.and_then(|ip| ip.transport) {
            Some(Transport::Ports { source, destination }) => Some((source, destination)),
            _ => None,
        };
        let (from, to) =
            ((headers.source, ip.map(|ip| ip.source)), (headers.destination, ip.map(|ip| ip.destination)));
        let (protocol, resolves) = (ip.map(|ip| ip.protocol), resolves(headers, direction));
        match direction {
            Direction::Out => Self { local: from, remote: to, protocol, ports, resolves },
            Direction::In => {
                Self { local: to, remote: from, protocol, ports: ports.map(|(s, d)| (d, s)), resolves }
            }
        }
    }

    fn flow(&self) -> Option<Flow> {
        let (local, remote) = (self.local.1?, self.remote.1?);
        Some(Flow { local, remote, protocol: self.protocol?, ports: self.ports })
    }
}

impl Rule {
    fn is_about(&self, direction: Direction, view: &View) -> bool {
        let port = |wanted: &Option<RangeInclusive<u16>>, port: Option<u16>| {
            wanted.as_ref().is_none_or(|range| port.is_some_and(|p| range.contains(&p)))
        };
        let names_a_station = matches!(self.local, Who::Mac(_)) || matches!(self.remote, Who::Mac(_));
        self.direction == direction
            && (names_a_station || !view.resolves)
            && self.local.is(view.local.0, view.local.1)
            && self.remote.is(view.remote.0, view.remote.1)
            && self.protocol.is_none_or(|p| view.protocol == Some(p))
            && port(&self.local_ports, view.ports.map(|p| p.0))
            && port(&self.remote_ports, view.ports.map(|p| p.1))
    }
}

/// The rules of a port, and the flows whose answers pass. Without rules everything does; and so does what no rule is about.
#[derive(Clone, Debug, Default)]
pub struct Acl {
    rules: Vec<Rule>,
    /// By the way that the answers go.
    flows: [Flows; 2],
}

impl Acl {
    /// With these rules; of those with one weight, the first counts.
    pub fn new(mut rules: Vec<Rule>) -> Self {
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.weight));
        Self { rules, flows: Default::default() }
    }

    /// The rules, in the order in which they are looked at.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether a frame may pass.
    pub fn passes(&mut self, headers: &Headers, direction: Direction, now: Nanos) -> bool {
        if self.rules.is_empty() {
            return true;
        }
        // No rule could be about what cannot be told, and a rule that denies would be got around.
        if headers.are_malformed() {
            return false;
        }
        let view = View::of(headers, direction);
        if let Some(flow) = view.flow()
            && self.flows[direction as usize].has(&flow, now)
        {
            return true;
        }
        match self.rules.iter().find(|rule| rule.is_about(direction, &view)).map(|rule| rule.action) {
            None | Some(Action::Allow) => true,
            Some(Action::Deny) => false,
            Some(Action::AllowAnswers(idle)) => {
                if let Some(flow) = view.flow() {
                    self.flows[direction.other() as usize].expect(flow, idle, now);
                }
                true
            }
        }
    }
}
