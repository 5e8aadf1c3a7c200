//! Which receive queue a frame goes into: frames of one connection into the same one.

use vireo_frame::headers::{Headers, Network, Transport};

/// The pair of queues of a frame, out of so many.
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
