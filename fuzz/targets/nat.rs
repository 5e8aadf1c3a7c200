//! Any frames from guests to a network whose host is simulated, while that host connects, refuses, sends, ends, breaks off and has
//! no room. What guests get are right packets that the link carries; what there is of flows and bytes has its bounds; it always comes
//! to rest.
#![no_main]

use std::io::ErrorKind;
use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use vireo_frame::headers::{Headers, Network};
use vireo_frame::{
    Ability, Checksum, Frame, Intent, Mac, SegmentKind, Segmentation, Sum, Tag, pseudo_header,
};
use vireo_fuzz::Input;
use vireo_nat::NatConfig;
use vireo_nat::simulation::Bench;

const FLOWS: usize = 16;
/// What connections may hold: each a base, and all together a budget.
const HELD: usize = (64 << 20) + FLOWS * (256 << 10);
const GUESTS: [(Mac, Ipv4Addr); 3] = [
    (Mac([0, 0x15, 0x5d, 0, 0, 1]), Ipv4Addr::new(10, 0, 2, 15)),
    (Mac([0, 0x15, 0x5d, 0, 0, 2]), Ipv4Addr::new(10, 0, 2, 16)),
    (Mac([0, 0x15, 0x5d, 0, 0, 3]), Ipv4Addr::new(0, 0, 0, 0)),
];
const OTHERS: [Ipv4Addr; 8] = [
    Ipv4Addr::new(10, 0, 2, 2),
    Ipv4Addr::new(10, 0, 2, 3),
    Ipv4Addr::new(192, 0, 2, 1),
    Ipv4Addr::new(192, 0, 2, 2),
    Ipv4Addr::new(255, 255, 255, 255),
    Ipv4Addr::new(127, 0, 0, 1),
    Ipv4Addr::new(10, 0, 2, 16),
    Ipv4Addr::new(224, 0, 0, 1),
];
const ROUTER: [u8; 6] = [0x52, 0x55, 10, 0, 2, 2];
const PORTS: [u16; 8] = [53, 67, 68, 80, 1000, 1001, 7000, 7001];

/// The last numbers that the guest was told by a connection, by the guest's port.
type Told = [(u32, u32); 8];

fn pick<T: Copy>(input: &mut Input<'_>, of: &[T]) -> T {
    of[usize::from(input.u8()) % of.len()]
}

fn ip(input: &mut Input<'_>, protocol: u8, body: &[u8]) -> Vec<u8> {
    let (mac, from) = GUESTS[usize::from(input.u8()) % 8 % 3];
    let to = pick(input, &OTHERS);
    let mut ip = vec![0x45, 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0];
    ip[2..4].copy_from_slice(&(20 + body.len() as u16).to_be_bytes());
    let odd = input.u8();
    if odd & 0xf0 == 0xf0 {
        // A fragment.
        ip[5] = odd & 3;
        let place = u16::from(odd & 4) << 11 | u16::from(input.u8());
        ip[6..8].copy_from_slice(&place.to_be_bytes());
    }
    [&ROUTER[..], &mac.0, &[8, 0], &ip, &from.octets(), &to.octets(), body].concat()
}

fn tcp(input: &mut Input<'_>, told: &Told) -> Vec<u8> {
    let (mine, theirs) = (input.u8() & 7, pick(input, &PORTS));
    let (next, ack) = told[usize::from(mine)];
    let number = |input: &mut Input<'_>, near: u32| match input.u8() {
        0..=199 => near,
        200..=229 => near.wrapping_add_signed(input.u16() as i16 as i32),
        _ => input.u32(),
    };
    let (seq, ack) = (number(input, next), number(input, ack));
    let flags = pick(input, &[2, 16, 16, 24, 17, 4, 20, 18]) ^ if input.u8() > 240 { input.u8() } else { 0 };
    let words = usize::from(input.u8() % 4);
    let options: Vec<u8> = [&[2, 4, 5, 0xb4][..], &[1, 3, 3, 9], input.bytes(4)].concat();
    let options = &options[..options.len().min(words * 4) & !3];
    let window = if input.u8() < 200 { 60_000 } else { input.u16() };
    let length = usize::from(input.u16()) % 9000;
    let mut body = [PORTS[usize::from(mine)].to_be_bytes(), theirs.to_be_bytes()].concat();
    body.extend([seq.to_be_bytes(), ack.to_be_bytes()].concat());
    body.extend([(5 + options.len() as u8 / 4) << 4, flags]);
    body.extend(u16::to_be_bytes(window));
    body.extend([0; 4]);
    body.extend(options);
    body.resize(body.len() + if input.u8() < 128 { length } else { 0 }, 7);
    ip(input, 6, &body)
}

fn udp(input: &mut Input<'_>) -> Vec<u8> {
    let (from, to) = (pick(input, &PORTS), pick(input, &PORTS));
    let length = usize::from(input.u8()) * if input.u8() > 200 { 200 } else { 1 };
    let mut payload = input.bytes(length.min(64)).to_vec();
    payload.resize(length, 3);
    let says = if input.u8() < 230 { 8 + length as u16 } else { input.u16() };
    let head = [from, to, says, 0].map(u16::to_be_bytes).concat();
    ip(input, 17, &[&head[..], &payload].concat())
}

fn dhcp(input: &mut Input<'_>) -> Vec<u8> {
    let mut body = vec![0; 240];
    body[..3].copy_from_slice(&[1, 1, 6]);
    body[28..34].copy_from_slice(&[2, 0, 0, 0, 0, input.u8()]);
    body[236..].copy_from_slice(&[99, 130, 83, 99]);
    body.extend([53, 1, input.u8() % 9]);
    let length = usize::from(input.u8() % 60);
    body.extend(input.bytes(length));
    let head = [68, 67, 8 + body.len() as u16, 0].map(u16::to_be_bytes).concat();
    let udp = [&head[..], &body].concat();
    let mut frame = ip(input, 17, &udp);
    frame[30..34].fill(255);
    // Mostly for the station that sends it: others are not answered.
    if input.u8() > 32 {
        frame.copy_within(6..12, 70);
    }
    frame
}

fn ipv6(input: &mut Input<'_>, told: &Told) -> Vec<u8> {
    let (next, body) = match input.u8() % 4 {
        0 => (58, input.bytes(48).to_vec()),
        1 => (58, [&[135, 0, 0, 0, 0, 0, 0, 0, 0xfd][..], &[0; 14], &[input.u8() & 3]].concat()),
        2 => (6, tcp(input, told)[34..].to_vec()),
        _ => (input.u8(), input.bytes(60).to_vec()),
    };
    let from = [&[0xfd][..], &[0; 14], &[21]].concat();
    let mut to = [&[0xfd][..], &[0; 14], &[2 + (input.u8() & 1)]].concat();
    if input.u8() > 128 {
        to[..4].copy_from_slice(&[0x20, 1, 0xd, 0xb8]);
    }
    let head = [&[0x60, 0, 0, 0][..], &(body.len() as u16).to_be_bytes(), &[next, 255]].concat();
    [&ROUTER[..], &GUESTS[0].0.0, &[0x86, 0xdd], &head, &from, &to, &body].concat()
}

fn frame(input: &mut Input<'_>, told: &Told) -> Vec<u8> {
    match input.u8() % 16 {
        0..=6 => tcp(input, told),
        7..=8 => udp(input),
        9 => dhcp(input),
        10..=11 => ipv6(input, told),
        12 => {
            let echo = [&[8, 0, 0, 0, 1, 2, 3, 4][..], input.bytes(9)].concat();
            ip(input, 1, &echo)
        }
        13 => {
            let (mac, address) = pick(input, &GUESTS);
            let kind = 1 + (input.u8() & 1);
            let target = pick(input, &OTHERS);
            let arp =
                [&[0, 1, 8, 0, 6, 4, 0, kind][..], &mac.0, &address.octets(), &[0; 6], &target.octets()]
                    .concat();
            [&ROUTER[..], &mac.0, &[8, 6], &arp].concat()
        }
        14 => {
            let body = input.bytes(30).to_vec();
            let protocol = input.u8();
            ip(input, protocol, &body)
        }
        _ => input.bytes(200).to_vec(),
    }
}

fn intent(input: &mut Input<'_>) -> Intent {
    if input.u8() < 200 {
        return Intent::default();
    }
    let checksum = Checksum::Wanted { start: 34, offset: if input.u8() < 128 { 16 } else { 6 } };
    let kind = pick(input, &[SegmentKind::Tcp4, SegmentKind::Tcp6, SegmentKind::Udp]);
    let segmentation = (input.u8() < 128).then(|| Segmentation { kind, size: input.u16() });
    let tag = (input.u8() > 240).then(|| Tag(input.u16()));
    Intent { checksum, segmentation, tag }
}

/// What guests get is what the link carries, and right.
fn look(bench: &mut Bench, told: &mut Told) {
    for packet in bench.packets() {
        assert!(packet.len() <= 1514, "{} bytes", packet.len());
        let headers = Headers::read(&packet).expect("a frame");
        let Network::Ip(found) = headers.network else { continue };
        let start = if found.source.is_ipv4() { 34 } else { 54 };
        assert!(found.source.is_ipv6() || Sum::default().over(&packet[14..34]).folded() == 0xffff);
        if found.protocol == 6 {
            let body = &packet[start..];
            let sum = pseudo_header(found.source, found.destination, 6, body.len()).over(body);
            assert_eq!(sum.folded(), 0xffff, "a wrong checksum");
            let port = u16::from_be_bytes([body[2], body[3]]);
            if let Some(n) = PORTS.iter().position(|p| *p == port) {
                let number =
                    |at: usize| u32::from_be_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]);
                let length = body.len() - usize::from(body[12] >> 4) * 4
                    + usize::from(body[13] & 1)
                    + usize::from(body[13] >> 1 & 1);
                told[n] = (number(8), number(4).wrapping_add(length as u32));
            }
        }
    }
}

/// The host does something.
fn host(input: &mut Input<'_>, bench: &mut Bench) {
    let errors = [
        ErrorKind::ConnectionRefused,
        ErrorKind::NetworkUnreachable,
        ErrorKind::TimedOut,
        ErrorKind::PermissionDenied,
    ];
    let (what, n) = (input.u8() % 12, usize::from(input.u8()));
    match what {
        0 => bench.set_refuses((n > 200).then(|| pick(input, &errors))),
        1 => bench.pass(u64::from(input.u32()) * 4),
        2 => bench.pass(u64::from(input.u16()) * 100_000_000),
        3 => _ = bench.call(n & 1, ([192, 0, 2, input.u8() & 1], input.u16()).into()),
        4 => bench.set_guest(if n & 1 == 0 { Ability::ALL } else { Ability::default() }, n * n),
        5 if bench.talks() > 0 => {
            let from = (n & 2 != 0).then(|| ([127, 0, 0, 1], 9).into());
            let (at, bytes) = (n % bench.talks(), vec![0; usize::from(input.u16())]);
            let error = pick(input, &errors);
            bench.say(at, if n > 200 { Err(error) } else { Ok(&bytes) }, from);
        }
        _ if bench.peers() == 0 => {}
        6 | 7 => {
            let n = n % bench.peers();
            let error = pick(input, &errors);
            bench.connect(n, if input.u8() < 220 { Ok(()) } else { Err(error) });
        }
        8 => bench.send(n % bench.peers(), &vec![1; usize::from(input.u16()) * 3]),
        9 => bench.end(n % bench.peers()),
        10 => {
            let n = n % bench.peers();
            bench.peer(n, |p| p.room = 0);
            bench.make_room(n, input.u16().into());
        }
        _ => bench.break_off(n % bench.peers()),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let forwards = ["tcp:127.0.0.1:1:7000", "tcp:127.0.0.1:2:10.0.2.16:7001", "udp:127.0.0.1:3:7000"];
    let forwards = forwards.iter().map(|f| f.parse().expect("a forward")).collect();
    let host_loopback = input.u8() & 1 == 0;
    let config = NatConfig { flows: FLOWS, forwards, host_loopback, ..NatConfig::default() };
    let resolvers = ["192.0.2.53".parse().expect("an address"), "::1".parse().expect("an address")];
    let mut bench = Bench::new(config, &resolvers).expect("a network");
    let mut told = Told::default();
    while !input.is_empty() {
        if input.u8() < 170 {
            let bytes = frame(&mut input, &told);
            if let Ok(frame) = Frame::new(&bytes, &[], intent(&mut input)) {
                bench.put(&frame);
            }
        } else {
            host(&mut input, &mut bench);
        }
        bench.run();
        look(&mut bench, &mut told);
        let stats = bench.stats();
        assert!(stats.connections <= FLOWS && stats.talks <= FLOWS && bench.held() <= HELD, "{stats:?}");
    }
    // Nobody says anything any more: all is forgotten in the end.
    bench.set_guest(Ability::ALL, usize::MAX);
    (0..bench.peers()).for_each(|n| bench.connect(n, Err(ErrorKind::TimedOut)));
    for _ in 0..400 {
        bench.pass(60_000_000_000);
        bench.run();
        look(&mut bench, &mut told);
    }
    assert_eq!((bench.stats().connections, bench.stats().talks, bench.held()), (0, 0, 0));
});
