//! Which receive queue a frame goes into: frames of one connection into the same one.

use serde::{Deserialize, Serialize};
use vireo_frame::headers::{Headers, Ip, Network, Transport, protocol};
use vireo_frame::{RSS_KEY, rss_hash};
use virtio_bindings::virtio_net as spec;

/// Entries of a table, at most.
pub(super) const TABLE_MAX: usize = 128;
/// What can be hashed: IP, TCP and UDP over either (§5.1.6.4.3.1).
pub(super) const HASH_KINDS: u32 = 0x3f;

/// How the driver wants frames spread (§5.1.6.5.7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rss {
    kinds: u32,
    /// The queue of what has no hash.
    unclassified: u16,
    /// Queues by hash; a power of two of them.
    table: Vec<u16>,
    key: Vec<u8>,
}

impl Rss {
    /// Of a command's data, and how many queues to send by the driver uses. `None`: it is none, for a device with so many pairs.
    pub(super) fn read(data: &[u8], pairs: u16) -> Option<(Self, u16)> {
        let word = |at: usize| data.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b));
        let kinds = u32::from_le_bytes(*data.first_chunk()?);
        let (mask, unclassified) = (word(4)?, word(6)?);
        let count = usize::from(mask) + 1;
        if !count.is_power_of_two() || count > TABLE_MAX || kinds & !HASH_KINDS != 0 {
            return None;
        }
        let table = (0..count).map(|n| word(8 + 2 * n)).collect::<Option<Vec<_>>>()?;
        let rest = data.get(8 + 2 * count..)?;
        let transmit = u16::from_le_bytes(*rest.first_chunk()?);
        let length = usize::from(*rest.get(2)?);
        let given = rest.get(3..3 + length).filter(|_| length <= RSS_KEY)?;
        let mut key = given.to_vec();
        key.resize(RSS_KEY, 0);
        let known = table.iter().chain([&unclassified]).all(|queue| *queue < pairs);
        ((1..=pairs).contains(&transmit) && known)
            .then_some((Self { kinds, unclassified, table, key }, transmit))
    }

    /// Whether a saved state can have it, for a device with so many pairs.
    pub(super) fn possible(&self, pairs: u16) -> bool {
        let known = self.table.iter().chain([&self.unclassified]).all(|queue| *queue < pairs);
        known
            && self.table.len().is_power_of_two()
            && self.table.len() <= TABLE_MAX
            && self.key.len() == RSS_KEY
    }

    fn hash(&self, ip: &Ip) -> Option<u32> {
        let has = |kind: u32| self.kinds & kind != 0;
        let (plain, tcp, udp) = match ip.source.is_ipv4() {
            true => (
                has(spec::VIRTIO_NET_RSS_HASH_TYPE_IPv4),
                has(spec::VIRTIO_NET_RSS_HASH_TYPE_TCPv4),
                has(spec::VIRTIO_NET_RSS_HASH_TYPE_UDPv4),
            ),
            false => (
                has(spec::VIRTIO_NET_RSS_HASH_TYPE_IPv6),
                has(spec::VIRTIO_NET_RSS_HASH_TYPE_TCPv6),
                has(spec::VIRTIO_NET_RSS_HASH_TYPE_UDPv6),
            ),
        };
        let ports = match ip.protocol {
            _ if !matches!(ip.transport, Some(Transport::Ports { .. })) => false,
            protocol::TCP => tcp,
            protocol::UDP => udp,
            _ => false,
        };
        (ports || plain).then(|| rss_hash(self.key.first_chunk()?, ip, ports)).flatten()
    }

    /// The pair of queues of a frame.
    pub(super) fn pair(&self, head: &[u8]) -> u16 {
        let hash = match Headers::read(head).map(|h| h.network) {
            Some(Network::Ip(ip)) => self.hash(&ip),
            _ => None,
        };
        match hash {
            Some(hash) => self.table[hash as usize & (self.table.len() - 1)],
            None => self.unclassified,
        }
    }
}

/// The pair of queues of a frame, out of so many, where the driver does not say it.
pub(super) fn pair(head: &[u8], pairs: u16) -> u16 {
    if pairs <= 1 {
        return 0;
    }
    // What is no IP is little, and in order.
    let Some(Headers { network: Network::Ip(ip), .. }) = Headers::read(head) else { return 0 };
    let ports = match ip.transport {
        Some(Transport::Ports { source, destination }) => u64::from(source) << 16 | u64::from(destination),
        _ => 0,
    };
    let part = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(a) => u64::from(a.to_bits()),
        std::net::IpAddr::V6(a) => a.to_bits() as u64 ^ (a.to_bits() >> 64) as u64,
    };
    // The multiplier of Fibonacci hashing: each bit of what goes in reaches the upper ones, which come first in the next turn.
    const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(MULTIPLIER).rotate_left(32);
    let words = [part(ip.source), part(ip.destination), ports];
    let hash = words.into_iter().fold(ip.protocol.into(), mix);
    ((hash.wrapping_mul(MULTIPLIER) >> 48) % u64::from(pairs)) as u16
}
