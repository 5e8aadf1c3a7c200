//! What all flows of a network know: addresses, who is where, what waits to be sent.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ahash::AHashMap as HashMap;
use vireo_frame::Mac;
use vireo_frame::headers::protocol;

use crate::config::Network;
use crate::host::Token;
use crate::icmp::{self, Unreachable};
use crate::outbox::Outbox;
use crate::slots::{Nanos, SECOND, Timers};
use crate::stats::Stats;
use crate::wire::{Arp, Packet, Way};

/// Stations that are remembered.
const NEIGHBOURS: usize = 256;
/// Who has been heard so recently is there.
const HEARD: Nanos = 300 * SECOND;
/// Addresses of IPv4 that a station may have before it is not believed that it needs them.
const ADDRESSES: usize = 8;
/// Connections that wait for a station at a time.
const WAITING: usize = 256;

/// What flows share.
#[derive(Debug)]
pub struct Shared {
    pub network: Network,
    pub mtu: u32,
    pub host_loopback: bool,
    pub outbox: Outbox,
    pub timers: Timers,
    pub stats: Stats,
    /// Who has which address, and when that was heard last.
    neighbours: HashMap<IpAddr, (Mac, Nanos)>,
    /// When the packet came that is looked at.
    pub now: Nanos,
    /// Connections that wait for a guest's station to be known.
    waiting: Vec<(IpAddr, Token)>,
    /// Those that need not wait any more.
    pub known: Vec<Token>,
}

/// Where a guest's packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To an address of the host's world.
    Host(SocketAddr),
    /// To whoever answers DNS for the host.
    Dns(u16),
}

impl Shared {
    pub fn new(network: Network, mtu: u32, host_loopback: bool, now: Nanos) -> Self {
        Self {
            network,
            mtu,
            host_loopback,
            outbox: Outbox::default(),
            timers: Timers::default(),
            stats: Stats::default(),
            neighbours: HashMap::new(),
            now,
            waiting: Vec::new(),
            known: Vec::new(),
        }
    }

    /// Who has which address is not known any more.
    pub fn forget_stations(&mut self) {
        self.neighbours.clear();
    }

    /// The station of a guest. Where nobody knows, it is asked for.
    pub fn station(&mut self, guest: IpAddr) -> Option<Mac> {
        let known = self.known_station(guest);
        if known.is_none() {
            self.ask_for(guest);
        }
        known
    }

    /// Asks who has an address.
    pub fn ask_for(&mut self, guest: IpAddr) {
        let net = &self.network;
        let question = match guest {
            IpAddr::V4(target) => {
                Arp { request: true, sender: net.mac(), source: net.gateway, target }.frame(Mac::BROADCAST)
            }
            IpAddr::V6(target) => icmp::solicitation(net, target),
        };
        self.outbox.add(question, None);
    }

    /// The station of a guest, if it is known.
    pub fn known_station(&self, guest: IpAddr) -> Option<Mac> {
        self.neighbours.get(&guest).map(|(mac, _)| *mac)
    }

    /// Who has been heard of late with which address, but for those who have more than anybody needs: they make them up.
    pub fn heard(&self) -> HashMap<Ipv4Addr, Mac> {
        let mut heard = HashMap::new();
        let mut counts: HashMap<Mac, usize> = HashMap::new();
        for (address, (mac, last)) in &self.neighbours {
            if let IpAddr::V4(address) = address
                && self.now.saturating_sub(*last) < HEARD
            {
                heard.insert(*address, *mac);
                *counts.entry(*mac).or_default() += 1;
            }
        }
        heard.retain(|_, mac| counts[mac] <= ADDRESSES);
        heard
    }

    /// A connection goes on when a guest's station is known, or it is looked at again.
    pub fn wait_for_station(&mut self, guest: IpAddr, token: Token) {
        if self.waiting.len() < WAITING && !self.waiting.contains(&(guest, token)) {
            self.waiting.push((guest, token));
        }
    }

    /// A guest has been heard.
    pub fn learn(&mut self, guest: IpAddr, mac: Mac) {
        if !mac.is_station() {
            return;
        }
        if let Some((known, last)) = self.neighbours.get_mut(&guest)
            && *known == mac
        {
            *last = self.now;
            return;
        }
        // So many guests there are not: somebody makes addresses up. The real ones are asked for again.
        if self.neighbours.len() >= NEIGHBOURS {
            self.neighbours.clear();
        }
        self.neighbours.insert(guest, (mac, self.now));
        let known = self.waiting.extract_if(.., |(waits_for, _)| *waits_for == guest);
        self.known.extend(known.map(|(_, token)| token));
    }

    /// The router's address, as a guest knows it.
    pub fn gateway_for(&self, guest: IpAddr) -> Option<IpAddr> {
        match guest {
            IpAddr::V4(_) => Some(self.network.gateway.into()),
            IpAddr::V6(_) => self.network.gateway6().map(IpAddr::from),
        }
    }

    /// Where a guest's packet goes, if anywhere.
    pub fn target(&self, destination: IpAddr, port: u16) -> Option<Target> {
        let net = &self.network;
        let (gateway, dns, loopback) = match destination {
            IpAddr::V4(a) => (a == net.gateway, a == net.dns, IpAddr::from(Ipv4Addr::LOCALHOST)),
            IpAddr::V6(a) => (Some(a) == net.gateway6(), Some(a) == net.dns6(), Ipv6Addr::LOCALHOST.into()),
        };
        match () {
            () if dns => (port == crate::dns::PORT).then_some(Target::Dns(port)),
            () if gateway => self.host_loopback.then(|| Target::Host(SocketAddr::new(loopback, port))),
            () if is_outside(net, destination) => Some(Target::Host(SocketAddr::new(destination, port))),
            () => None,
        }
    }

    /// From where a guest sees what comes from an address of the host's world.
    pub fn seen_from(&self, peer: IpAddr, guest: IpAddr) -> IpAddr {
        let gateway = self.gateway_for(guest);
        let as_it_is = is_outside(&self.network, peer) && peer.is_ipv4() == guest.is_ipv4();
        if as_it_is { peer } else { gateway.unwrap_or(peer) }
    }

    /// The way back of a guest's packet.
    pub fn way_back(&self, packet: &Packet) -> Way {
        Way {
            to: packet.from,
            from: self.network.mac(),
            source: packet.destination,
            destination: packet.source,
        }
    }

    /// Sends a guest a message of ICMP, in fragments if it is too long; these have a number.
    pub fn message(&mut self, way: &Way, body: &[u8], number: u16) {
        let protocol = if way.destination.is_ipv6() { protocol::ICMP6 } else { protocol::ICMP };
        crate::wire::fragments(way, protocol, icmp::message(way, body), self.mtu, number, &mut self.outbox);
    }

    /// Tells a guest that a packet of its does not arrive.
    pub fn refuse(&mut self, way: &Way, why: Unreachable, protocol: u8, first: [u8; 8], length: usize) {
        if let Some(router) = self.gateway_for(way.destination) {
            self.outbox.add(icmp::unreachable(way, router, why, protocol, first, length), None);
        }
    }
}

/// Where clouds tell their machines what others must not know, besides 169.254.0.0/16: Amazon's, Azure's, Alibaba's, Oracle's.
const METADATA: [IpAddr; 4] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Whether an address is one that packets go to as they are: not the host's own loopback in any spelling, nor what means several,
/// nobody, or somebody here.
fn is_outside(network: &Network, address: IpAddr) -> bool {
    let address = address.to_canonical();
    !network.has(address)
        && !METADATA.contains(&address)
        && match address {
            IpAddr::V4(a) => {
                let first = a.octets()[0];
                // 0.0.0.0 is the host's loopback too; 240.0.0.0/4 has all stations of the host's link in it.
                first != 0 && first < 224 && !a.is_loopback() && !a.is_link_local()
            }
            IpAddr::V6(a) => {
                !a.is_loopback()
                    && !a.is_unspecified()
                    && !a.is_multicast()
                    && !a.is_unicast_link_local()
                    // ::/96, in which addresses of IPv4 used to be written.
                    && a.to_bits() >> 32 != 0
            }
        }
}
