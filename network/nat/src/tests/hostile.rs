//! Guests that mean no good.

use proptest::prelude::*;

use super::*;

fn seg(seq: u32, ack: u32, flags: u8) -> Seg {
    Seg { ports: (1000, 80), seq, ack, flags, window: 60_000, ..Seg::default() }
}

/// Puts a segment; what is answered.
fn say(bench: &mut Bench, segment: &Seg) -> Vec<Seg> {
    put(bench, &segment.frame(OUTSIDE));
    segments(bench)
}

#[test]
fn floods_of_connections_are_bounded_and_leave_room_for_others() {
    let mut bench = bench(NatConfig { flows: 64, ..NatConfig::default() });
    for port in 0..5000 {
        let syn = Seg { ports: (1024 + port, 80), flags: SYN, ..Seg::default() };
        put(&mut bench, &syn.frame(OUTSIDE));
    }
    assert_eq!(bench.stats().connections, 16, "a quarter may wait for the host");
    assert_eq!((bench.peers(), bench.stats().too_many), (16, 4984));
    // All that come are there at once: no more than may be at all.
    for n in 0..16 {
        bench.connect(n, Ok(()));
    }
    bench.run();
    for port in 6000..6100 {
        put(&mut bench, &Seg { ports: (port, 80), flags: SYN, ..Seg::default() }.frame(OUTSIDE));
        if bench.peers() > 16 {
            let last = bench.peers() - 1;
            bench.connect(last, Ok(()));
            bench.run();
        }
    }
    assert_eq!(bench.stats().connections, 64);
    // Nobody has answered: they are forgotten.
    for _ in 0..40 {
        bench.pass(10 * SECOND);
        bench.run();
    }
    assert_eq!(bench.stats().connections, 0);
    assert!((0..bench.peers()).all(|n| bench.peer(n, |p| p.closed && p.aborted)));
}

/// A frame as another station on the link has it.
fn of_another(mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&[0, 0x15, 0x5d, 0, 0, 2]);
    frame[26..30].copy_from_slice(&[10, 0, 2, 16]);
    frame
}

fn syn(port: u16) -> Vec<u8> {
    Seg { ports: (port, 80), flags: SYN, ..Seg::default() }.frame(OUTSIDE)
}

/// Sockets of the host that are there, of those from one on.
fn there(bench: &mut Bench, from: usize) -> usize {
    (from..bench.peers()).filter(|n| bench.peer(*n, |p| !p.closed)).count()
}

#[test]
fn a_guest_that_connects_to_nowhere_leaves_others_their_share() {
    let mut bench = bench(NatConfig { flows: 64, ..NatConfig::default() });
    (0..100).for_each(|n| put(&mut bench, &syn(1000 + n)));
    assert_eq!(bench.peers(), 16);
    put(&mut bench, &of_another(syn(1000)));
    assert_eq!((bench.peers(), bench.stats().connections), (17, 16));
    assert!(bench.peer(0, |p| p.closed && p.aborted), "the oldest gives way");
    (0..100).for_each(|n| put(&mut bench, &of_another(syn(1000 + n))));
    assert_eq!((there(&mut bench, 0), there(&mut bench, 16)), (16, 8), "each has half of it");
    assert!(bench.packets().is_empty(), "who has to wait asks again");
    // The first one does not get more back, and nobody waits for long.
    (0..100).for_each(|n| put(&mut bench, &syn(2000 + n)));
    assert_eq!((there(&mut bench, 0), there(&mut bench, 16)), (16, 8));
    bench.pass(29 * SECOND);
    bench.run();
    assert_eq!(bench.stats().connections, 16);
    bench.pass(SECOND);
    bench.run();
    assert_eq!((bench.stats().connections, bench.timers(), there(&mut bench, 0)), (0, 0, 0));
    put(&mut bench, &syn(1000));
    assert_eq!(bench.stats().connections, 1);
}

#[test]
fn a_guest_with_all_connections_gives_them_up_to_one_that_has_less() {
    let mut bench = bench(NatConfig { flows: 64, ..NatConfig::default() });
    let open = |bench: &mut Bench, n: u16, other: bool| {
        let (before, mut segment) = (bench.peers(), seg(99, 0, SYN));
        segment.ports.0 += n;
        let frame = segment.frame(OUTSIDE);
        put(bench, &if other { of_another(frame) } else { frame });
        if bench.peers() == before {
            return false;
        }
        bench.connect(before, Ok(()));
        bench.run();
        if !other {
            let answer = segments(bench).pop().expect("an answer");
            segment = Seg { ports: segment.ports, ..seg(100, answer.seq.wrapping_add(1), ACK) };
            put(bench, &segment.frame(OUTSIDE));
        }
        bench.pass(MILLISECOND);
        true
    };
    assert_eq!((0..100).filter(|n| open(&mut bench, *n, false)).count(), 64);
    bench.packets();
    // The oldest has just been heard.
    put(&mut bench, &Seg { payload: vec![7], ..seg(100, 0, ACK) }.frame(OUTSIDE));
    assert_eq!((0..32).filter(|n| open(&mut bench, *n, true)).count(), 32);
    assert_eq!((bench.stats().connections, there(&mut bench, 0), there(&mut bench, 64)), (64, 64, 32));
    assert!(bench.peer(0, |p| !p.closed) && bench.peer(1, |p| p.closed && p.aborted));
    let resets = bench.frames().iter().filter(|(f, _)| f[..6] == GUEST.0 && f[47] & RST != 0).count();
    assert_eq!(resets, 32, "they are told");
    // More than half is nobody's right.
    assert!(!open(&mut bench, 99, true) && !open(&mut bench, 199, false));
}

#[test]
fn who_calls_a_forwarded_port_leaves_the_guest_its_share() {
    let mut bench = bench(NatConfig { flows: 64, ..NatConfig::default() });
    bench.add_forward("tcp:127.0.0.1:80:80".parse().unwrap()).unwrap();
    let peer = |n: u16| SocketAddr::new([198, 51, 100, 1].into(), 1000 + n);
    (0..100).for_each(|n| _ = bench.call(0, peer(n)));
    bench.run();
    assert_eq!(bench.stats().connections, 64);
    let before = bench.peers();
    for n in 0..40 {
        put(&mut bench, &syn(1000 + n));
        if bench.peers() > before + usize::from(n) {
            bench.connect(before + usize::from(n), Ok(()));
            bench.run();
        }
    }
    assert_eq!((there(&mut bench, 0), there(&mut bench, before)), (64, 32));
    // Datagrams the same.
    bench.add_forward("udp:127.0.0.1:53:53".parse().unwrap()).unwrap();
    for n in 0..100 {
        bench.say(0, Ok(b"hi"), Some(peer(n)));
        bench.run();
    }
    assert_eq!(bench.stats().talks, 64);
    for port in 0..100 {
        put(&mut bench, &udp(OUTSIDE, (1000 + port, 9), b"hello"));
    }
    let own = (1..101).filter(|n| bench.talk(*n, |t| !t.closed)).count();
    assert_eq!((own, bench.stats().talks), (32, 64));
}

/// For want of descriptors, which nobody tells of when there are some again.
#[test]
fn who_calls_when_the_host_has_no_descriptors_is_let_in_when_it_has() {
    let mut bench = bench(NatConfig::default());
    bench.add_forward("tcp:127.0.0.1:80:80".parse().unwrap()).unwrap();
    bench.call(0, "198.51.100.1:7".parse().unwrap());
    bench.set_exhausted(true);
    bench.run();
    assert_eq!(bench.stats().connections, 0);
    bench.set_exhausted(false);
    bench.pass(2 * SECOND);
    bench.run();
    assert_eq!(bench.stats().connections, 1);
}

#[test]
fn a_guest_with_all_flows_of_datagrams_has_its_own_forgotten() {
    let mut bench = bench(NatConfig { flows: 64, ..NatConfig::default() });
    put(&mut bench, &of_another(udp(OUTSIDE, (1000, 9), b"hello")));
    for port in 0..1000 {
        bench.pass(MILLISECOND);
        put(&mut bench, &udp(OUTSIDE, (1000 + port, 9), b"hello"));
    }
    assert_eq!(bench.stats().talks, 64);
    assert!(bench.talk(0, |t| !t.closed) && bench.talk(1, |t| t.closed));
    // And it may have half of them.
    for port in 0..1000 {
        bench.pass(MILLISECOND);
        put(&mut bench, &of_another(udp(OUTSIDE, (1000 + port, 9), b"hello")));
    }
    let first = (1..1001).filter(|n| bench.talk(*n, |t| !t.closed)).count();
    assert_eq!((first, bench.stats().talks), (32, 64));
}

#[test]
fn dhcp_is_answered_to_who_asks_for_itself() {
    let mut bench = bench(NatConfig::default());
    let ask = |client: Mac| {
        let mut request = vec![0; 240];
        request[..3].copy_from_slice(&[1, 1, 6]);
        request[28..34].copy_from_slice(&client.0);
        request[236..].copy_from_slice(&[99, 130, 83, 99]);
        request.extend([53, 1, 1, 255]);
        udp(Ipv4Addr::BROADCAST, (68, 67), &request)
    };
    put(&mut bench, &ask(Mac([2; 6])));
    assert_eq!(bench.packets().len(), 0);
    put(&mut bench, &ask(GUEST));
    let (asked, offered) = (bench.frames(), ADDRESS.octets());
    // Whether somebody has that address already, and the offer.
    assert_eq!((&asked[0].0[12..14], &asked[0].0[38..42]), (&[8, 6][..], &offered[..]));
    assert_eq!((asked.len(), &asked[1].0[58..62]), (2, &offered[..]));
}

#[test]
fn a_flow_waits_for_one_time_however_often_that_changes_and_for_none_when_it_is_over() {
    let mut bench = bench(NatConfig::default());
    let (ours, mut theirs, peer) = connected(&mut bench, &[], 60_000);
    for _ in 0..100 {
        // Not acknowledged in time, sent again, acknowledged: the next time is hours away, and then it is near again.
        bench.send(peer, &[7]);
        bench.run();
        bench.pass(SECOND);
        bench.run();
        theirs = theirs.wrapping_add(1);
        say(&mut bench, &seg(ours, theirs, ACK));
    }
    assert!(bench.stats().sent_again >= 100, "its times come");
    assert_eq!((bench.stats().connections, bench.timers()), (1, 1));
    say(&mut bench, &seg(ours, 0, RST));
    assert_eq!((bench.stats().connections, bench.timers()), (0, 0));
    // Datagrams: of more flows than there may be.
    for port in 0..2000 {
        put(&mut bench, &udp(OUTSIDE, (1000 + port, 53), b"what?"));
    }
    assert_eq!((bench.stats().talks, bench.timers()), (400, 400));
}

#[test]
fn a_reset_has_to_be_right() {
    let mut bench = bench(NatConfig::default());
    let (ours, theirs, peer) = connected(&mut bench, &[], 60_000);
    // Outside of the window, and inside but not the next.
    assert!(say(&mut bench, &seg(ours.wrapping_sub(5), 0, RST)).is_empty());
    assert!(say(&mut bench, &seg(ours + 2_000_000, 0, RST)).is_empty());
    let challenge = say(&mut bench, &seg(ours + 5, 0, RST));
    assert_eq!((challenge[0].flags, challenge[0].seq, challenge[0].ack), (ACK, theirs, ours));
    // A second beginning as well.
    assert_eq!(say(&mut bench, &seg(ours + 700, 0, SYN))[0].flags, ACK);
    assert_eq!(bench.stats().connections, 1);
    assert!(say(&mut bench, &seg(ours, 0, RST)).is_empty());
    assert_eq!(bench.stats().connections, 0);
    assert!(bench.peer(peer, |p| p.aborted && p.closed));
}

#[test]
fn what_is_beyond_the_window_is_not_taken_and_what_was_never_sent_is_not_acknowledged() {
    let mut bench = bench(NatConfig::default());
    let (ours, theirs, peer) = connected(&mut bench, &[], 60_000);
    bench.peer(peer, |p| p.room = 0);
    // The host takes nothing; the guest sends what it may and more.
    let mut at = ours;
    let mut last = Seg::default();
    for _ in 0..200 {
        let payload = vec![7; 1400];
        if let Some(answer) = say(&mut bench, &Seg { payload, ..seg(at, theirs, ACK) }).pop() {
            last = answer;
        }
        at = last.ack;
        assert!(bench.held() <= 65_536);
    }
    assert_eq!(last.window, 0);
    assert_eq!(last.ack.wrapping_sub(ours), 65_536);
    // It asks, and is told; then there is room.
    assert_eq!(say(&mut bench, &Seg { payload: vec![1], ..seg(at, theirs, ACK) })[0].ack, at);
    bench.make_room(peer, usize::MAX / 2);
    bench.run();
    assert_eq!(bench.peer(peer, |p| p.got.len()), 65_536);
    assert!(segments(&mut bench).pop().expect("an opened window").window > 60_000);
    // Acknowledges what was never sent.
    let answer = say(&mut bench, &Seg { payload: vec![1; 10], ..seg(at, theirs + 1, ACK) });
    assert_eq!((answer[0].ack, answer[0].seq), (at, theirs));
    assert_eq!(bench.peer(peer, |p| p.got.len()), 65_536);
}

#[test]
fn a_connection_that_breaks_while_bytes_wait_for_it_is_over() {
    let mut bench = bench(NatConfig::default());
    let (ours, theirs, peer) = connected(&mut bench, &[], 60_000);
    bench.peer(peer, |p| p.room = 0);
    say(&mut bench, &Seg { payload: vec![7; 1400], ..seg(ours, theirs, ACK) });
    assert_eq!(bench.held(), 1400);
    bench.break_off(peer);
    bench.run();
    let reset = segments(&mut bench).pop().expect("a reset");
    assert_eq!((reset.flags, reset.seq), (RST | ACK, theirs));
    assert_eq!((bench.stats().connections, bench.held()), (0, 0));
}

#[test]
fn a_guest_that_opens_its_window_for_nothing_makes_nobody_hold_much() {
    let mut bench = bench(NatConfig::default());
    let mut peers = Vec::new();
    for port in 0..200_u16 {
        let syn = Seg {
            ports: (port + 1, 80),
            seq: 99,
            flags: SYN,
            window: 65_535,
            options: vec![1, 3, 3, 14],
            ..Seg::default()
        };
        put(&mut bench, &syn.frame(OUTSIDE));
        let peer = bench.peers() - 1;
        bench.connect(peer, Ok(()));
        bench.run();
        let answer = segments(&mut bench).pop().unwrap();
        let ack = Seg {
            ports: (port + 1, 80),
            seq: 100,
            ack: answer.seq + 1,
            flags: ACK,
            window: 65_535,
            ..Seg::default()
        };
        put(&mut bench, &ack.frame(OUTSIDE));
        peers.push(peer);
    }
    for peer in peers {
        bench.send(peer, &vec![0; 5 << 20]);
        bench.run();
        bench.frames();
    }
    assert!(bench.held() <= (64 << 20) + 200 * (128 << 10), "{}", bench.held());
    assert!(bench.held() > 30 << 20, "it is to be as much as may be: {}", bench.held());
}

#[test]
fn nobody_gets_to_what_is_not_meant_for_guests() {
    let mut open = bench(NatConfig::default());
    let mut closed = bench(NatConfig { host_loopback: false, ..NatConfig::default() });
    let syn = seg(0, 0, SYN);
    let reached = |bench: &mut Bench, to: Ipv4Addr| {
        let before = bench.peers();
        put(bench, &syn.frame(to));
        let answers = segments(bench);
        (bench.peers() > before)
            .then(|| bench.peer(before, |p| p.to).unwrap())
            .ok_or(answers.first().map(|s| s.flags))
    };
    assert_eq!(reached(&mut open, ROUTER), Ok("127.0.0.1:80".parse().unwrap()));
    assert_eq!(reached(&mut closed, ROUTER), Err(Some(RST | ACK)));
    assert_eq!(reached(&mut closed, OUTSIDE), Ok("192.0.2.7:80".parse().unwrap()));
    for to in [
        [127, 0, 0, 1],
        [127, 9, 9, 9],
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [10, 0, 2, 3],
        [169, 254, 169, 254],
        [240, 0, 0, 1],
    ] {
        assert_eq!(reached(&mut open, to.into()), Err(Some(RST | ACK)), "{to:?}");
        assert_eq!(reached(&mut closed, to.into()), Err(Some(RST | ACK)), "{to:?}");
    }
    // Several, and those on the link.
    for to in [[224, 0, 0, 1], [255, 255, 255, 255], [10, 0, 2, 255], [10, 0, 2, 77]] {
        assert_eq!(reached(&mut open, to.into()), Err(None), "{to:?}");
    }
    // From an address that is none of the network's.
    let mut frame = syn.frame(OUTSIDE);
    frame[26..30].copy_from_slice(&[192, 168, 1, 1]);
    let before = open.peers();
    put(&mut open, &frame);
    assert_eq!((open.peers(), open.stats().forbidden), (before, 8));
}

#[test]
fn spellings_of_the_loopback_in_ipv6_are_known() {
    let mut bench = bench(NatConfig { host_loopback: false, ..NatConfig::default() });
    let far: std::net::Ipv6Addr = "2001:db8::1".parse().unwrap();
    for (to, count) in [
        ("::1", 0),
        ("::", 0),
        ("::ffff:127.0.0.1", 0),
        ("::127.0.0.1", 0),
        ("fd00::2", 0),
        ("fe80::9", 0),
        ("2001:db8::1", 1),
    ] {
        let to: std::net::Ipv6Addr = to.parse().unwrap();
        let tcp = [&[3, 232, 0, 80][..], &[0; 8], &[0x50, SYN, 255, 255, 0, 0, 0, 0]].concat();
        let from: std::net::Ipv6Addr = "fd00::15".parse().unwrap();
        let head = [&[0x60, 0, 0, 0, 0, 20, 6, 64][..], &from.octets(), &to.octets()].concat();
        put(&mut bench, &[&[0x52, 0x55, 10, 0, 2, 2][..], &GUEST.0, &[0x86, 0xdd], &head, &tcp].concat());
        assert_eq!(bench.peers(), count, "{to}");
    }
    assert_eq!(bench.peer(0, |p| p.to), Some((far, 80).into()));
}

#[derive(Clone, Debug)]
enum Act {
    Segment { port: u8, seq: i32, ack: i32, flags: u8, window: u16, options: Vec<u8>, payload: usize },
    Connect(bool),
    Send(usize),
    End,
    Break,
    Room(usize),
    Pass(u64),
    Call,
    Bytes(Vec<u8>),
}

fn act() -> impl Strategy<Value = Act> {
    let near = prop_oneof![Just(0), -3_i32..3, -70_000_i32..70_000, any::<i32>()];
    let segment = (
        0_u8..3,
        near.clone(),
        near,
        any::<u8>(),
        any::<u16>(),
        proptest::collection::vec(any::<u8>(), 0..3),
        0_usize..3000,
    );
    prop_oneof![
        8 => segment.prop_map(|(port, seq, ack, flags, window, words, payload)| {
            let options = words.iter().flat_map(|w| [2, *w, 3, 3]).collect();
            Act::Segment { port, seq, ack, flags: if flags < 128 { flags & 0x3f } else { ACK }, window, options, payload }
        }),
        2 => any::<bool>().prop_map(Act::Connect),
        2 => (0_usize..200_000).prop_map(Act::Send),
        1 => Just(Act::End),
        1 => Just(Act::Break),
        2 => (0_usize..100_000).prop_map(Act::Room),
        2 => (0_u64..5_000_000_000).prop_map(Act::Pass),
        1 => Just(Act::Call),
        1 => proptest::collection::vec(any::<u8>(), 14..120).prop_map(Act::Bytes),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
    /// Nothing that guest or host do in any order makes it panic, go round in circles, hold much, or send what is no packet.
    #[test]
    fn any_segments_at_any_time_do_no_harm(acts in proptest::collection::vec(act(), 1..80), full: bool) {
        let forwards = vec!["tcp:127.0.0.1:80:1000".parse().unwrap()];
        let mut bench = bench(NatConfig { flows: 8, forwards, ..NatConfig::default() });
        let (mut next, mut theirs) = ([0_u32; 3], [0_u32; 3]);
        for act in acts {
            let peers = bench.peers();
            if full {
                bench.set_guest(vireo_frame::Ability::default(), 3);
            }
            match act {
                Act::Segment { port, seq, ack, flags, window, options, payload } => {
                    let n = usize::from(port);
                    let segment = Seg {
                        ports: (1000 + u16::from(port), 80),
                        seq: next[n].wrapping_add_signed(seq),
                        ack: theirs[n].wrapping_add_signed(ack),
                        flags, window, options, payload: vec![flags; payload],
                    };
                    bench.put(&Frame::whole(&segment.frame(OUTSIDE)).unwrap());
                }
                Act::Connect(well) if peers > 0 => {
                    bench.connect(peers - 1, if well { Ok(()) } else { Err(std::io::ErrorKind::ConnectionRefused) });
                }
                Act::Send(count) if peers > 0 => bench.send(peers - 1, &vec![9; count]),
                Act::End if peers > 0 => bench.end(peers - 1),
                Act::Break if peers > 0 => bench.break_off(peers - 1),
                Act::Room(count) if peers > 0 => { bench.peer(peers - 1, |p| p.room = 0); bench.make_room(peers - 1, count) }
                Act::Pass(time) => bench.pass(time),
                Act::Call => _ = bench.call(0, "198.51.100.1:7".parse().unwrap()),
                Act::Bytes(bytes) => bench.put(&Frame::whole(&bytes).unwrap()),
                _ => {}
            }
            bench.run();
            for (bytes, intent) in bench.frames() {
                prop_assert!(intent.segmentation.is_some() || bytes.len() <= 1514, "{} bytes", bytes.len());
                if bytes[12..14] == [8, 0] && bytes[23] == 6 {
                    let n = usize::from(bytes[37].wrapping_sub(0xe8)).min(2);
                    theirs[n] = u32::from_be_bytes(*bytes[38..].first_chunk().unwrap());
                    next[n] = u32::from_be_bytes(*bytes[42..].first_chunk().unwrap());
                }
            }
            prop_assert!(bench.stats().connections <= 8 && bench.held() <= 10 << 20);
        }
    }
}
