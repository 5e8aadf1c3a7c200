//! What a network is like, and why there can be none.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use vireo_frame::Mac;

use crate::Forward;

/// The smallest packet that IPv6 has to get through whole (RFC 8200, 5), and with it any MTU here.
pub const MTU_MIN: u32 = 1280;
/// The largest packet that fits a frame of 65,535 bytes.
pub const MTU_MAX: u32 = 65_521;

/// A private network: whom it has at which address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its first address.
    pub base: Ipv4Addr,
    /// Bits that all its addresses share.
    pub prefix: u8,
    /// The router, which is also the host: what is sent there goes to the host's loopback, if that is allowed.
    pub gateway: Ipv4Addr,
    /// Who answers DNS.
    pub dns: Ipv4Addr,
    /// The first guest that asks by DHCP, and the one that is forwarded to.
    pub guest: Ipv4Addr,
    /// IPv6: the first 64 bits of all addresses. Router and DNS have the same number in it as in IPv4's last byte.
    pub v6: Option<Ipv6Addr>,
}

impl Default for Network {
    /// 10.0.2.0/24 and fd00::/64, as guests of QEMU's user network know it.
    fn default() -> Self {
        Self {
            base: Ipv4Addr::new(10, 0, 2, 0),
            prefix: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            guest: Ipv4Addr::new(10, 0, 2, 15),
            v6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0)),
        }
    }
}

impl Network {
    /// The usual places in a network: router, DNS and guest at 2, 3 and 15.
    ///
    /// # Errors
    /// It is too small, or no network.
    pub fn new(base: Ipv4Addr, prefix: u8) -> Result<Self, NatError> {
        let at = |n: u32| Ipv4Addr::from_bits(base.to_bits().wrapping_add(n));
        let network = Self { base, prefix, gateway: at(2), dns: at(3), guest: at(15), ..Self::default() };
        network.check().map(|()| network)
    }

    /// The mask of its addresses.
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0))
    }

    /// The address of all in it.
    pub fn broadcast(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() | !self.mask().to_bits())
    }

    /// Whether an address is in it.
    pub fn has(&self, address: IpAddr) -> bool {
        match (address, self.v6) {
            (IpAddr::V4(a), _) => (a.to_bits() ^ self.base.to_bits()) & self.mask().to_bits() == 0,
            (IpAddr::V6(a), Some(net)) => a.segments()[..4] == net.segments()[..4],
            (IpAddr::V6(_), None) => false,
        }
    }

    /// Whether an address can be a guest's.
    pub fn may_be_guest(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => {
                self.has(address) && ![self.base, self.broadcast(), self.gateway, self.dns].contains(&a)
            }
            IpAddr::V6(a) => {
                self.has(address)
                    && Some(a) != self.gateway6()
                    && Some(a) != self.dns6()
                    && Some(a) != self.v6
            }
        }
    }

    fn at6(&self, like: Ipv4Addr) -> Option<Ipv6Addr> {
        let [.., last] = like.octets();
        self.v6.map(|net| Ipv6Addr::from_bits(net.to_bits() & !u128::from(u64::MAX) | u128::from(last)))
    }

    /// The router, by IPv6.
    pub fn gateway6(&self) -> Option<Ipv6Addr> {
        self.at6(self.gateway)
    }

    /// Who answers DNS, by IPv6.
    pub fn dns6(&self) -> Option<Ipv6Addr> {
        self.at6(self.dns)
    }

    /// The router's address on the link alone.
    pub fn link_local(&self) -> Ipv6Addr {
        let [.., last] = self.gateway.octets();
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last.into())
    }

    /// The station that all of the network's own addresses are.
    pub fn mac(&self) -> Mac {
        let [a, b, c, d] = self.gateway.octets();
        Mac([0x52, 0x55, a, b, c, d])
    }

    pub(crate) fn check(&self) -> Result<(), NatError> {
        let refuse = |why| Err(NatError::Network(*self, why));
        if !(8..=27).contains(&self.prefix) {
            return refuse("its prefix is not of 8 to 27 bits");
        }
        if self.base.to_bits() & !self.mask().to_bits() != 0 {
            return refuse("its address has bits behind its prefix");
        }
        if self.base.is_loopback() || self.base.is_multicast() || self.base.octets()[0] == 0 {
            return refuse("guests cannot have such addresses");
        }
        let own = [self.gateway, self.dns];
        let inside = |a: &Ipv4Addr| self.has((*a).into()) && *a != self.base && *a != self.broadcast();
        if !own.iter().all(inside) || self.gateway == self.dns || !self.may_be_guest(self.guest.into()) {
            return refuse("router, DNS and guest do not have addresses of their own in it");
        }
        match self.v6 {
            Some(net) if net.to_bits() as u64 != 0 || net.segments()[0] & 0xfe00 != 0xfc00 => {
                refuse("its IPv6 prefix is not of 64 bits in fc00::/7")
            }
            Some(_) if own[0].octets()[3] == own[1].octets()[3] => {
                refuse("router and DNS have the same last byte, and so the same address by IPv6")
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// A text names no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no network: an address and a prefix of 8 to 27 bits, as 10.0.2.0/24")]
pub struct NoNetwork(String);

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let read = || {
            let (base, prefix) = text.split_once('/')?;
            Self::new(base.parse().ok()?, prefix.parse().ok()?).ok()
        };
        read().ok_or_else(|| NoNetwork(text.into()))
    }
}

/// What a network address translation is to be like.
#[derive(Clone, Debug)]
pub struct NatConfig {
    /// Addresses.
    pub network: Network,
    /// The longest packet, in bytes; guests are told by DHCP and router advertisement.
    pub mtu: u32,
    /// What is forwarded to guests from the start.
    pub forwards: Vec<Forward>,
    /// The router's address is the host's loopback.
    pub host_loopback: bool,
    /// The name that DHCP gives the first guest.
    pub host_name: Option<String>,
    /// Connections, and as many flows of datagrams, that there may be at a time. Each takes a file descriptor: where the process may
    /// have few, it is a quarter of them.
    pub flows: usize,
}

impl Default for NatConfig {
    fn default() -> Self {
        Self {
            network: Network::default(),
            mtu: 1500,
            forwards: Vec::new(),
            host_loopback: true,
            host_name: None,
            flows: 400,
        }
    }
}

impl NatConfig {
    pub(crate) fn check(&self) -> Result<(), NatError> {
        self.network.check()?;
        if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            return Err(NatError::Mtu(self.mtu));
        }
        if self.host_name.as_ref().is_some_and(|n| n.is_empty() || n.len() > 63 || !n.is_ascii()) {
            return Err(NatError::HostName);
        }
        Ok(())
    }
}

/// There can be no such network, or no such forwarding.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// Its addresses.
    #[error("{0} cannot be a guests' network: {1}")]
    Network(Network, &'static str),
    /// Its MTU.
    #[error("{0} bytes cannot be the longest packet: it is of {MTU_MIN} to {MTU_MAX}")]
    Mtu(u32),
    /// The guest's name.
    #[error("the guest's name is not of 1 to 63 characters of ASCII")]
    HostName,
    /// The host does not give what it takes to be one.
    #[error("the host gives no {what}: {source}")]
    Host {
        /// What.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Somebody has that port.
    #[error("cannot forward {0}: {1} is in use already")]
    InUse(Forward, SocketAddr),
    /// The host does not let us have that port.
    #[error("cannot forward {forward}: the host does not give {}: {source}", forward.host)]
    Bind {
        /// What was to be forwarded.
        forward: Forward,
        /// Why it cannot be.
        source: io::Error,
    },
    /// It goes to an address that is no guest's.
    #[error("cannot forward {0}: its address is no guest's in {1}")]
    NoGuest(Forward, Network),
    /// There is none.
    #[error("{0} is not forwarded")]
    NotForwarded(Forward),
    /// There are too many.
    #[error("{0} ports are forwarded already")]
    TooMany(usize),
}
