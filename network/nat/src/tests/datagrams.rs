//! UDP, DNS, echo requests, fragments, and messages of ICMP.

use std::io::ErrorKind;

use super::*;

/// Datagrams for the guest: from whom, ports, payload.
fn datagrams(bench: &mut Bench) -> Vec<(IpAddr, (u16, u16), Vec<u8>)> {
    let read = |packet: &Vec<u8>| {
        let (source, destination, protocol, body) = ipv4(packet);
        let sum = pseudo_header(source, destination, 17, body.len()).over(body).finish();
        let word = |at: usize| u16::from_be_bytes([body[at], body[at + 1]]);
        (protocol == 17).then(|| {
            assert!(sum == 0 && usize::from(word(4)) == body.len());
            (source, (word(0), word(2)), body[8..].to_vec())
        })
    };
    bench.packets().iter().filter_map(read).collect()
}

/// Messages of ICMP for the guest.
fn messages(bench: &mut Bench) -> Vec<(IpAddr, Vec<u8>)> {
    let read = |packet: &Vec<u8>| {
        let (source, _, protocol, body) = ipv4(packet);
        (protocol == 1).then(|| {
            assert_eq!(Sum::default().over(body).finish(), 0);
            (source, body.to_vec())
        })
    };
    bench.packets().iter().filter_map(read).collect()
}

#[test]
fn datagrams_go_and_come_until_nobody_has_spoken_for_long() {
    let mut bench = bench(NatConfig::default());
    put(&mut bench, &udp(OUTSIDE, (5000, 7), b"hello"));
    put(&mut bench, &udp(OUTSIDE, (5000, 7), b""));
    assert_eq!(bench.talk(0, |t| (t.to, t.got.len())), (Some("192.0.2.7:7".parse().unwrap()), 2));
    bench.say(0, Ok(b"and back"), None);
    bench.run();
    assert_eq!(datagrams(&mut bench), [(OUTSIDE.into(), (7, 5000), b"and back".to_vec())]);
    for _ in 0..3 {
        bench.pass(150 * SECOND);
        put(&mut bench, &udp(OUTSIDE, (5000, 7), b"still here"));
    }
    assert_eq!((bench.talks(), bench.stats().talks), (1, 1));
    for _ in 0..20 {
        bench.pass(10 * SECOND);
        bench.run();
    }
    assert_eq!(bench.stats().talks, 0);
    assert!(bench.talk(0, |t| t.closed));
}

#[test]
fn flows_are_bounded_and_the_one_that_was_silent_longest_goes() {
    let mut bench = bench(NatConfig { flows: 10, ..NatConfig::default() });
    for port in 1..=1000 {
        bench.pass(MILLISECOND);
        put(&mut bench, &udp(OUTSIDE, (port, 7), b"x"));
        put(&mut bench, &udp(OUTSIDE, (1, 7), b"x"));
        assert!(bench.stats().talks <= 10);
    }
    assert_eq!(bench.talk(0, |t| (t.closed, t.got.len())), (false, 1001));
    assert_eq!(bench.stats().too_many, 990);
}

#[test]
fn questions_go_to_the_hosts_resolver_and_to_the_next_when_it_is_silent() {
    let mut bench = bench(NatConfig::default());
    let dns = Ipv4Addr::new(10, 0, 2, 3);
    put(&mut bench, &udp(dns, (4000, 53), b"question"));
    assert_eq!(bench.talk(0, |t| t.to), Some("192.0.2.53:53".parse().unwrap()));
    bench.say(0, Ok(b"answer"), None);
    bench.run();
    assert_eq!(datagrams(&mut bench), [(dns.into(), (53, 4000), b"answer".to_vec())]);
    // The next is not answered: a second later the same is asked, later another.
    put(&mut bench, &udp(dns, (4000, 53), b"again"));
    bench.pass(SECOND);
    put(&mut bench, &udp(dns, (4000, 53), b"again"));
    assert_eq!((bench.talks(), bench.talk(0, |t| t.got.len())), (1, 3));
    bench.pass(2 * SECOND);
    put(&mut bench, &udp(dns, (4000, 53), b"again"));
    assert_eq!(bench.talk(1, |t| (t.to, t.got.len())), (Some("192.0.2.54:53".parse().unwrap()), 1));
    bench.say(1, Ok(b"late"), None);
    bench.run();
    assert_eq!(datagrams(&mut bench), [(dns.into(), (53, 4000), b"late".to_vec())]);
    // The same by TCP; and nothing else is there.
    put(&mut bench, &Seg { ports: (9, 53), flags: SYN, ..Seg::default() }.frame(dns));
    assert_eq!(bench.peer(0, |p| p.to), Some("192.0.2.54:53".parse().unwrap()));
    put(&mut bench, &udp(dns, (4000, 54), b"?"));
    assert_eq!((bench.talks(), messages(&mut bench).pop().map(|m| m.1[..2].to_vec())), (2, Some(vec![3, 3])));
}

#[test]
fn what_does_not_arrive_is_told() {
    let mut bench = bench(NatConfig::default());
    put(&mut bench, &udp(OUTSIDE, (5000, 7), b"hello"));
    bench.say(0, Err(ErrorKind::ConnectionRefused), None);
    bench.run();
    let (from, message) = messages(&mut bench).pop().expect("a message");
    assert_eq!((from, &message[..2]), (ROUTER.into(), &[3, 3][..]));
    // It quotes who sent what to whom.
    assert_eq!(message[8 + 12..8 + 20], [ADDRESS.octets(), OUTSIDE.octets()].concat());
    assert_eq!(message[28..32], [0x13, 0x88, 0, 7]);
    bench.set_refuses(Some(ErrorKind::NetworkUnreachable));
    put(&mut bench, &udp(OUTSIDE, (5001, 7), b"hello"));
    assert_eq!(messages(&mut bench)[0].1[..2], [3, 0]);
    put(&mut bench, &Seg { ports: (9, 80), seq: 77, flags: SYN, ..Seg::default() }.frame(OUTSIDE));
    assert_eq!(messages(&mut bench)[0].1[28..36], [0, 9, 0, 80, 0, 0, 0, 77]);
    // A connection that nobody takes, a protocol that nobody knows.
    bench.set_refuses(None);
    put(&mut bench, &Seg { ports: (10, 80), seq: 77, flags: SYN, ..Seg::default() }.frame(OUTSIDE));
    bench.connect(0, Err(ErrorKind::ConnectionRefused));
    bench.run();
    let refused = segments(&mut bench).pop().unwrap();
    assert_eq!((refused.flags, refused.ack), (RST | ACK, 78));
    put(&mut bench, &ip(OUTSIDE, 47, &[0; 20]));
    assert_eq!(messages(&mut bench)[0].1[..2], [3, 2]);
}

#[test]
fn echo_requests_are_answered_here_and_there() {
    let mut bench = bench(NatConfig::default());
    let echo = [&[8, 0, 0, 0, 0x12, 0x34, 0, 1][..], b"ping"].concat();
    put(&mut bench, &ip(ROUTER, 1, &echo));
    let (from, reply) = messages(&mut bench).pop().expect("a reply");
    assert_eq!((from, reply[0], &reply[4..]), (ROUTER.into(), 0, &echo[4..]));
    put(&mut bench, &ip(OUTSIDE, 1, &echo));
    assert!(bench.talk(0, |t| t.ping && t.got[0].0 == echo));
    let reply = [&[0, 0, 9, 9, 0x77, 0x77, 0, 1][..], b"ping"].concat();
    bench.say(0, Ok(&reply), None);
    bench.run();
    let (from, reply) = messages(&mut bench).pop().expect("a reply");
    assert_eq!((from, &reply[4..]), (OUTSIDE.into(), &echo[4..]), "with the guest's own identifier");
    bench.set_refuses(Some(ErrorKind::PermissionDenied));
    put(&mut bench, &ip(Ipv4Addr::new(192, 0, 2, 8), 1, &echo));
    assert_eq!(messages(&mut bench)[0].1[..2], [3, 13]);
}

#[test]
fn a_forwarded_port_leads_to_the_guest_and_back() {
    let mut bench = bench(NatConfig::default());
    let forward = bench.add_forward("udp:127.0.0.1:53:5353".parse().unwrap()).unwrap();
    bench.say(0, Ok(b"lost"), Some("127.0.0.1:999".parse().unwrap()));
    bench.run();
    // Nobody knows the guest yet: it is asked for.
    let asked = bench.frames().pop().unwrap().0;
    assert_eq!((&asked[12..14], &asked[38..42]), (&[8, 6][..], &ADDRESS.octets()[..]));
    let arp = [
        &[0, 1, 8, 0, 6, 4, 0, 2][..],
        &GUEST.0,
        &ADDRESS.octets(),
        &[0x52, 0x55, 10, 0, 2, 2],
        &ROUTER.octets(),
    ]
    .concat();
    put(&mut bench, &[&[0x52, 0x55, 10, 0, 2, 2][..], &GUEST.0, &[8, 6], &arp].concat());
    for (peer, seen) in [("127.0.0.1:999", ROUTER), ("198.51.100.9:999", Ipv4Addr::new(198, 51, 100, 9))] {
        bench.say(0, Ok(b"hi"), Some(peer.parse().unwrap()));
        bench.run();
        assert_eq!(datagrams(&mut bench), [(seen.into(), (999, 5353), b"hi".to_vec())]);
        put(&mut bench, &udp(seen, (5353, 999), b"ho"));
        let sent = bench.talk(0, |t| t.got.pop());
        assert_eq!(sent, Some((b"ho".to_vec(), Some(peer.parse().unwrap()))));
    }
    bench.remove_forward(&forward).unwrap();
    assert!(bench.talk(0, |t| t.closed));
    assert_eq!((bench.stats().talks, bench.remove_forward(&forward).is_err()), (0, true));
}

/// A fragment of a datagram.
fn fragment(offset: usize, more: bool, id: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = ip(OUTSIDE, 17, body);
    frame[19] = id;
    let place = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
    frame[20..22].copy_from_slice(&place.to_be_bytes());
    frame
}

#[test]
fn fragments_are_put_together_and_long_datagrams_cut() {
    let mut bench = bench(NatConfig::default());
    let payload: Vec<u8> = (0..4000_u32).map(|n| (n / 3) as u8).collect();
    let whole = udp(OUTSIDE, (5000, 7), &payload)[34..].to_vec();
    for n in [2, 0, 1] {
        let (from, to) = (n * 1480, (n * 1480 + 1480).min(whole.len()));
        put(&mut bench, &fragment(from, to < whole.len(), 1, &whole[from..to]));
    }
    assert!(bench.talk(0, |t| t.got[0].0 == payload));
    // One that overlaps another, one that ends twice, one without a beginning, a flood of them.
    put(&mut bench, &fragment(0, true, 2, &whole[..1480]));
    put(&mut bench, &fragment(800, true, 2, &whole[..1480]));
    put(&mut bench, &fragment(1480, false, 2, &whole[1480..1600]));
    put(&mut bench, &fragment(65_528, false, 3, &whole[..1480]));
    for id in 0..200 {
        put(&mut bench, &fragment(0, true, id, &whole[..1480]));
    }
    assert_eq!(bench.talk(0, |t| t.got.len()), 1);
    bench.frames();
    bench.say(0, Ok(&payload), None);
    bench.run();
    let fragments = bench.packets();
    let mut back = Vec::new();
    for fragment in &fragments {
        assert!(fragment.len() <= 1514);
        let (.., body) = ipv4(fragment);
        let place = u16::from_be_bytes([fragment[20], fragment[21]]);
        assert_eq!(usize::from(place & 0x1fff) * 8, back.len());
        back.extend_from_slice(body);
        assert_eq!(place & 0x2000 == 0, back.len() == whole.len());
    }
    assert_eq!((fragments.len(), &back[8..]), (3, &payload[..]));
}
