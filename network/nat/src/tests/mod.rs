//! The whole network with a simulated host, and guests made by hand.

mod datagrams;
mod guest;
mod hostile;
mod links;
mod transfers;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use vireo_frame::{Frame, Mac, Sum, pseudo_header};

use crate::NatConfig;
use crate::simulation::Bench;

const GUEST: Mac = Mac([0, 0x15, 0x5d, 0, 0, 1]);
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLISECOND;

fn bench(config: NatConfig) -> Bench {
    Bench::new(config, &["192.0.2.53".parse().unwrap(), "192.0.2.54".parse().unwrap()]).unwrap()
}

/// An IPv4 packet of the guest, in a frame.
fn ip(to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    header[2..4].copy_from_slice(&(20 + body.len() as u16).to_be_bytes());
    header.extend([ADDRESS.octets(), to.octets()].concat());
    let sum = Sum::default().over(&header).finish().to_be_bytes();
    header[10..12].copy_from_slice(&sum);
    [&[0x52, 0x55, 10, 0, 2, 2][..], &GUEST.0, &[8, 0], &header, body].concat()
}

fn udp(to: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let head = [ports.0, ports.1, 8 + payload.len() as u16, 0].map(u16::to_be_bytes).concat();
    ip(to, 17, &[&head[..], payload].concat())
}

/// What a segment says.
#[derive(Clone, Debug, Default)]
struct Seg {
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: Vec<u8>,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

impl Seg {
    fn frame(&self, to: Ipv4Addr) -> Vec<u8> {
        let mut tcp = [self.ports.0.to_be_bytes(), self.ports.1.to_be_bytes()].concat();
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([(5 + self.options.len() as u8 / 4) << 4, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        ip(to, 6, &tcp)
    }

    /// Reads a packet for the guest, whose checksums have to be right; `None`: it is no TCP.
    fn read(packet: &[u8]) -> Option<Self> {
        let (source, destination, protocol, body) = ipv4(packet);
        if protocol != 6 {
            return None;
        }
        let sum = pseudo_header(source, destination, 6, body.len()).over(body).finish();
        assert!(sum == 0 || sum == 0xffff, "a wrong checksum");
        let word = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        let long = |at: usize| u32::from_be_bytes(*body[at..].first_chunk().unwrap());
        let length = usize::from(body[12] >> 4) * 4;
        Some(Self {
            ports: (word(0), word(2)),
            seq: long(4),
            ack: long(8),
            flags: body[13],
            window: word(14),
            options: body[20..length].to_vec(),
            payload: body[length..].to_vec(),
        })
    }
}

/// Addresses, protocol and payload of a packet for the guest, which has to be whole and right.
fn ipv4(packet: &[u8]) -> (IpAddr, IpAddr, u8, &[u8]) {
    assert_eq!(packet[..14], [&GUEST.0[..], &[0x52, 0x55, 10, 0, 2, 2, 8, 0]].concat());
    let ip = &packet[14..];
    assert_eq!(Sum::default().over(&ip[..20]).folded(), 0xffff, "a wrong checksum");
    assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), ip.len());
    let address = |at: usize| IpAddr::from(Ipv4Addr::from(*ip[at..].first_chunk::<4>().unwrap()));
    (address(12), address(16), ip[9], &ip[20..])
}

fn put(bench: &mut Bench, frame: &[u8]) {
    bench.put(&Frame::whole(frame).unwrap());
    bench.run();
}

/// Segments for the guest.
fn segments(bench: &mut Bench) -> Vec<Seg> {
    bench.packets().iter().filter_map(|p| Seg::read(p)).collect()
}

/// A connection of the guest from port 1000 to port 80 outside; what both sides send next: (ours, theirs), and the peer's number.
fn connected(bench: &mut Bench, options: &[u8], window: u16) -> (u32, u32, usize) {
    let syn =
        Seg { ports: (1000, 80), seq: 99, flags: SYN, window, options: options.to_vec(), ..Seg::default() };
    put(bench, &syn.frame(OUTSIDE));
    let peer = bench.peers() - 1;
    bench.connect(peer, Ok(()));
    bench.run();
    let answer = segments(bench).pop().expect("an answer");
    assert_eq!((answer.flags, answer.ack, answer.ports), (SYN | ACK, 100, (80, 1000)));
    let ack = Seg {
        ports: (1000, 80),
        seq: 100,
        ack: answer.seq.wrapping_add(1),
        flags: ACK,
        window,
        ..Seg::default()
    };
    put(bench, &ack.frame(OUTSIDE));
    (100, answer.seq.wrapping_add(1), peer)
}
