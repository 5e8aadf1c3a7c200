//! The hash by which guests spread what they get over their processors (receive side scaling).
//!
//! Source: Microsoft, "RSS Hashing Functions" and "Verifying the RSS Hash Calculation"; virtio 1.2 §5.1.6.4.3 has the same.

use std::net::IpAddr;

use crate::headers::{Ip, Transport};

/// Bytes of a key.
pub const RSS_KEY: usize = 40;

/// The hash of a packet's addresses, and, with `ports`, of the ports of TCP or UDP, if it has them.
pub fn rss_hash(key: &[u8; RSS_KEY], ip: &Ip, ports: bool) -> Option<u32> {
    let (mut input, mut length) = ([0; 36], 0);
    let mut add = |bytes: &[u8]| {
        input[length..length + bytes.len()].copy_from_slice(bytes);
        length += bytes.len();
    };
    match (ip.source, ip.destination) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            add(&s.octets());
            add(&d.octets());
        }
        (IpAddr::V6(s), IpAddr::V6(d)) => {
            add(&s.octets());
            add(&d.octets());
        }
        _ => return None,
    }
    if let (true, Some(Transport::Ports { source, destination })) = (ports, ip.transport) {
        add(&source.to_be_bytes());
        add(&destination.to_be_bytes());
    }
    Some(toeplitz(key, &input[..length]))
}

/// The hash of Toeplitz: for each bit of the input that is set, the 32 bits of the key that start there.
fn toeplitz(key: &[u8; RSS_KEY], input: &[u8]) -> u32 {
    let (mut hash, mut window) = (0, 0_u64);
    for byte in &key[..4] {
        window = window << 8 | u64::from(*byte);
    }
    for (n, byte) in input.iter().enumerate() {
        window = window << 8 | u64::from(key.get(n + 4).copied().unwrap_or(0));
        for bit in 0..8 {
            let mask = 0_u32.wrapping_sub(u32::from(byte >> (7 - bit) & 1));
            hash ^= (window >> (8 - bit)) as u32 & mask;
        }
        window &= 0xffff_ffff;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key and results of Microsoft's "Verifying the RSS Hash Calculation".
    const MS_KEY: [u8; RSS_KEY] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    #[test]
    fn hashes_are_those_that_are_published() {
        let input = [66, 9, 149, 187, 161, 142, 100, 80];
        let ports = [&input[..], &2794_u16.to_be_bytes(), &1766_u16.to_be_bytes()].concat();
        assert_eq!(toeplitz(&MS_KEY, &input), 0x323e_8fc2);
        assert_eq!(toeplitz(&MS_KEY, &ports), 0x51cc_c178);
        let v6: [u16; 16] = [0x3ffe, 0x2501, 0x200, 0x1fff, 0, 0, 0, 7, 0x3ffe, 0x2501, 0x200, 3, 0, 0, 0, 1];
        let v6: Vec<u8> = v6.iter().flat_map(|w| w.to_be_bytes()).collect();
        let ports = [&v6[..], &2794_u16.to_be_bytes(), &1766_u16.to_be_bytes()].concat();
        assert_eq!((toeplitz(&MS_KEY, &v6), toeplitz(&MS_KEY, &ports)), (0x2cc1_8cd5, 0x4020_7d3d));
    }

    #[test]
    fn ports_count_where_they_are_wanted() {
        let address = |a: [u8; 4]| IpAddr::from(a);
        let ip = Ip {
            source: address([66, 9, 149, 187]),
            destination: address([161, 142, 100, 80]),
            protocol: 6,
            transport: Some(Transport::Ports { source: 2794, destination: 1766 }),
            discovers: false,
        };
        assert_eq!(rss_hash(&MS_KEY, &ip, true), Some(0x51cc_c178));
        assert_eq!(rss_hash(&MS_KEY, &ip, false), Some(0x323e_8fc2));
        assert_eq!(rss_hash(&MS_KEY, &Ip { transport: None, ..ip }, true), Some(0x323e_8fc2));
    }
}
