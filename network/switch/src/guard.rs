//! What a port's guest may claim to be: a DHCP server, a router, an IP address.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use vireo_frame::headers::{Headers, Ip, Network, Transport, protocol};

/// The guards of a port; each is off at first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guards {
    /// No offers of addresses (DHCP and DHCPv6).
    pub dhcp: bool,
    /// No router advertisements and redirects (ICMP and ICMPv6), and no questions about groups (IGMP, MLD): who asks is a router to
    /// snooping switches.
    pub router: bool,
    /// IPv4 only from these addresses.
    pub ipv4: Option<BTreeSet<Ipv4Addr>>,
    /// IPv6 only from these addresses. The link-local one is to be among them.
    pub ipv6: Option<BTreeSet<Ipv6Addr>>,
}

/// Which guard refused a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// An answer of a DHCP server.
    Dhcp,
    /// A router's message.
    Router,
    /// An address that is not the guest's.
    Address,
    /// It cannot be told what it is.
    Malformed,
}

/// Ports of DHCP and DHCPv6: servers', then clients' (RFC 2131, 8415).
const DHCP: [(u16, u16); 2] = [(67, 68), (547, 546)];
/// ICMP: redirect, router advertisement (RFC 792, 1256).
const ICMP_ROUTER: [u8; 2] = [5, 9];
/// ICMPv6: multicast listener query (RFC 2710, 3810), router advertisement, redirect (RFC 4861).
const ICMP6_ROUTER: [u8; 3] = [130, 134, 137];
/// IGMP: membership query (RFC 3376).
const IGMP_QUERY: u8 = 0x11;
/// ICMPv6: neighbour advertisement.
const NEIGHBOUR: u8 = 136;

impl Guards {
    fn are_off(&self) -> bool {
        !self.dhcp && !self.router && self.ipv4.is_none() && self.ipv6.is_none()
    }

    /// Why a frame of the guest's may not pass; `None`: it may.
    pub fn refusal(&self, frame: &[u8], headers: &Headers) -> Option<Refusal> {
        if self.are_off() {
            return None;
        }
        if headers.are_malformed() {
            return Some(Refusal::Malformed);
        }
        match headers.network {
            Network::Other | Network::Malformed => None,
            Network::Arp { address } => (!self.owns_ipv4(address)).then_some(Refusal::Address),
            Network::Ip(ip) => self.of_message(&ip).or_else(|| self.of_addresses(frame, &ip)),
        }
    }

    fn of_message(&self, ip: &Ip) -> Option<Refusal> {
        match (ip.protocol, ip.transport?) {
            (protocol::UDP, Transport::Ports { source, destination }) => {
                // Some clients take offers from any port; relays are answered on the servers' port.
                let offers = DHCP.iter().any(|(server, client)| source == *server || destination == *client);
                (self.dhcp && offers).then_some(Refusal::Dhcp)
            }
            (protocol::ICMP, Transport::Message { kind, .. }) => {
                (self.router && ICMP_ROUTER.contains(&kind)).then_some(Refusal::Router)
            }
            (protocol::IGMP, Transport::Message { kind, .. }) => {
                (self.router && kind == IGMP_QUERY).then_some(Refusal::Router)
            }
            (protocol::ICMP6, Transport::Message { kind, .. }) => {
                (self.router && ICMP6_ROUTER.contains(&kind)).then_some(Refusal::Router)
            }
            _ => None,
        }
    }

    fn of_addresses(&self, frame: &[u8], ip: &Ip) -> Option<Refusal> {
        let owned = match ip.source {
            IpAddr::V4(address) => self.owns_ipv4(address),
            IpAddr::V6(address) => self.owns_ipv6(address),
        };
        let claimed = match ip.transport {
            Some(Transport::Message { kind: NEIGHBOUR, at }) if ip.protocol == protocol::ICMP6 => {
                let target = frame.get(at + 8..).and_then(|f| f.first_chunk::<16>());
                target.is_some_and(|t| self.owns_ipv6(Ipv6Addr::from(*t)))
            }
            _ => true,
        };
        (!owned || !claimed).then_some(Refusal::Address)
    }

    /// The address of who has none yet is anybody's: of who asks for one, or whether somebody has it.
    fn owns_ipv4(&self, address: Ipv4Addr) -> bool {
        self.ipv4.as_ref().is_none_or(|own| address.is_unspecified() || own.contains(&address))
    }

    fn owns_ipv6(&self, address: Ipv6Addr) -> bool {
        self.ipv6.as_ref().is_none_or(|own| address.is_unspecified() || own.contains(&address))
    }
}
