//! Frames made by hand. Each has a mark in it that no other has, by which guests know it as the test's.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

pub type Mac = [u8; 6];
pub const BROADCAST: Mac = [0xff; 6];
/// DHCP's ports: servers', clients'.
pub const DHCP: (u16, u16) = (67, 68);
/// DHCPv6's.
pub const DHCP_6: (u16, u16) = (547, 546);

/// The address of guest `n`'s adapter.
pub fn mac(n: usize) -> Mac {
    [0, 0x15, 0x5d, 0, 0, n as u8]
}

/// Its IPv4 address.
pub fn ip(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, 0, n as u8)
}

/// Its IPv6 address, of the link.
pub fn ip6(n: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, n as u16)
}

fn mark() -> Vec<u8> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(" VIREO {:08} ", NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

/// As short as may be, so nobody fills it up.
fn ethernet(to: Mac, from: Mac, kind: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), body].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// One of a protocol for experiments (IEEE 802).
pub fn plain(to: Mac, from: Mac) -> Vec<u8> {
    ethernet(to, from, 0x88b5, &mark())
}

/// The same with a tag.
pub fn tagged(vlan: u16, frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat()
}

fn ipv4(ends: (Mac, Mac), from: Ipv4Addr, to: Ipv4Addr, protocol: u8, message: &[u8]) -> Vec<u8> {
    let length = (20 + message.len() as u16).to_be_bytes();
    let mut head =
        [&[0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0][..], &from.octets(), &to.octets()]
            .concat();
    let words = head.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])));
    let sum: u32 = words.sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    ethernet(ends.1, ends.0, 0x800, &[&head[..], message].concat())
}

fn ipv6(ends: (Mac, Mac), from: Ipv6Addr, to: Ipv6Addr, next: u8, message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u16).to_be_bytes();
    let head = [0x60, 0, 0, 0, length[0], length[1], next, 255];
    ethernet(ends.1, ends.0, 0x86dd, &[&head[..], &from.octets(), &to.octets(), message].concat())
}

fn datagram(ports: (u16, u16)) -> Vec<u8> {
    let data = mark();
    [
        &ports.0.to_be_bytes()[..],
        &ports.1.to_be_bytes(),
        &(8 + data.len() as u16).to_be_bytes(),
        &[0, 0],
        &data,
    ]
    .concat()
}

/// UDP between adapters and addresses.
pub fn udp(ends: (Mac, Mac), from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    ipv4(ends, from, to, 17, &datagram(ports))
}

/// TCP with some data.
pub fn tcp(ends: (Mac, Mac), from: Ipv4Addr, to: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    let head = [
        &ports.0.to_be_bytes()[..],
        &ports.1.to_be_bytes(),
        &[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 1, 0, 0, 0, 0, 0],
    ]
    .concat();
    ipv4(ends, from, to, 6, &[head, mark()].concat())
}

/// A message of ICMP.
pub fn icmp(ends: (Mac, Mac), from: Ipv4Addr, to: Ipv4Addr, kind: u8) -> Vec<u8> {
    ipv4(ends, from, to, 1, &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &mark()].concat())
}

/// UDP over IPv6.
pub fn udp6(ends: (Mac, Mac), from: Ipv6Addr, to: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    ipv6(ends, from, to, 17, &datagram(ports))
}

/// A message of ICMPv6 about an address.
pub fn icmp6(ends: (Mac, Mac), from: Ipv6Addr, to: Ipv6Addr, kind: u8, about: Ipv6Addr) -> Vec<u8> {
    ipv6(ends, from, to, 58, &[&[kind, 0, 0, 0, 0, 0, 0, 0][..], &about.octets(), &mark()].concat())
}

/// Whoever has `from` says so to all.
pub fn arp(sender: Mac, from: Ipv4Addr) -> Vec<u8> {
    let body =
        [&[0, 1, 8, 0, 6, 4, 0, 1][..], &sender, &from.octets(), &[0; 6], &from.octets(), &mark()].concat();
    ethernet(BROADCAST, sender, 0x806, &body)
}
