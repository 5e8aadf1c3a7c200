//! What the link takes: super-frames either way, little room, other MTUs.

use vireo_frame::{Ability, Checksum, Intent, SegmentKind, Segmentation};

use super::*;

#[test]
fn bulk_goes_in_super_frames_where_the_guest_takes_them() {
    for (ability, frames, cut) in [(Ability::ALL, 1, true), (Ability::default(), 41, false)] {
        let mut bench = bench(NatConfig::default());
        bench.set_guest(ability, usize::MAX);
        let (_, theirs, peer) = connected(&mut bench, &[2, 4, 5, 0xb4], 60_000);
        let data: Vec<u8> = (0..100_000_u32).map(|n| (n / 7) as u8).collect();
        bench.send(peer, &data);
        bench.run();
        let got = bench.frames();
        assert_eq!(got.len(), frames);
        assert_eq!(
            got.iter()
                .any(|(_, i)| i.segmentation == Some(Segmentation { kind: SegmentKind::Tcp4, size: 1460 })),
            cut
        );
        let wanted = |(_, i): &(Vec<u8>, Intent)| matches!(i.checksum, Checksum::Wanted { .. });
        assert!(got.iter().all(|frame| wanted(frame) == cut));
        let longest = got.iter().map(|(bytes, _)| bytes.len()).max().unwrap();
        // Whole segments only, as many as fit the window.
        assert_eq!(longest, if cut { 54 + 41 * 1460 } else { 1514 });
        assert_eq!(
            segments_of(&got).last().unwrap().seq.wrapping_sub(theirs) as usize,
            59_860 - if cut { 59_860 } else { 1460 }
        );
    }
}

/// Segments of TCP among frames that are whole.
fn segments_of(frames: &[(Vec<u8>, Intent)]) -> Vec<Seg> {
    let number = |bytes: &Vec<u8>| u32::from_be_bytes(*bytes[38..].first_chunk().unwrap());
    frames.iter().map(|(bytes, _)| Seg { seq: number(bytes), ..Seg::default() }).collect()
}

#[test]
fn a_super_frame_of_the_guest_is_taken_as_it_is() {
    let mut bench = bench(NatConfig::default());
    let (ours, theirs, peer) = connected(&mut bench, &[], 60_000);
    let payload: Vec<u8> = (0..60_000_u32).map(|n| (n / 5) as u8).collect();
    let mut frame = Seg {
        ports: (1000, 80),
        seq: ours,
        ack: theirs,
        flags: ACK,
        window: 9,
        payload: payload.clone(),
        ..Seg::default()
    }
    .frame(OUTSIDE);
    // Drivers of netvsc leave the packet's length to who cuts it.
    frame[16..18].fill(0);
    let intent = Intent {
        checksum: Checksum::Wanted { start: 34, offset: 16 },
        segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1460 }),
        tag: None,
    };
    bench.put(&Frame::new(&frame, &[], intent).unwrap());
    bench.run();
    assert!(bench.peer(peer, |p| p.got == payload));
    assert_eq!(segments(&mut bench)[0].ack, ours + 60_000);
    let datagrams = udp(OUTSIDE, (5, 6), &payload[..5000]);
    let intent = Intent {
        checksum: Checksum::Wanted { start: 34, offset: 6 },
        segmentation: Some(Segmentation { kind: SegmentKind::Udp, size: 1200 }),
        tag: None,
    };
    bench.put(&Frame::new(&datagrams, &[], intent).unwrap());
    assert_eq!(
        bench.talk(0, |t| t.got.iter().map(|g| g.0.len()).collect::<Vec<_>>()),
        [1200, 1200, 1200, 1200, 200]
    );
}

#[test]
fn a_guest_without_room_gets_all_when_it_has_some() {
    let mut bench = bench(NatConfig::default());
    let (_, theirs, peer) = connected(&mut bench, &[], 60_000);
    bench.set_guest(Ability::default(), 0);
    let data: Vec<u8> = (0..40_000_u32).map(|n| (n / 7) as u8).collect();
    bench.send(peer, &data);
    bench.run();
    put(&mut bench, &udp(OUTSIDE, (5, 5), b"?"));
    bench.say(0, Ok(b"!"), None);
    let mut got = Vec::new();
    for _ in 0..100 {
        bench.set_guest(Ability::default(), 1);
        bench.run();
        let frames = bench.packets();
        assert!(frames.len() <= 1);
        got.extend(frames.iter().filter_map(|p| Seg::read(p)));
    }
    let mut at = theirs;
    for segment in got {
        assert_eq!(segment.seq, at);
        at = at.wrapping_add(segment.payload.len() as u32);
    }
    assert_eq!(at.wrapping_sub(theirs), 40_000);
    assert_eq!(bench.stats().sent_again, 0);
}

#[test]
fn packets_are_as_long_as_the_link_and_the_guest_take_them() {
    for (mtu, offered, longest) in
        [(1280, 1460_u16, 1240), (65_521, 65_000, 65_000), (65_521, 65_535, 65_481), (9000, 0, 64)]
    {
        let mut bench = bench(NatConfig { mtu, ..NatConfig::default() });
        bench.set_guest(Ability::default(), usize::MAX);
        let offer = offered.to_be_bytes();
        let syn = Seg {
            ports: (1000, 80),
            flags: SYN,
            window: 65_535,
            options: vec![2, 4, offer[0], offer[1]],
            ..Seg::default()
        };
        put(&mut bench, &syn.frame(OUTSIDE));
        bench.connect(0, Ok(()));
        bench.send(0, &[7; 66_000]);
        bench.run();
        let answer = segments(&mut bench).pop().unwrap();
        assert_eq!(u16::from_be_bytes([answer.options[2], answer.options[3]]) as u32, mtu - 40);
        let ack = Seg {
            ports: (1000, 80),
            seq: 1,
            ack: answer.seq.wrapping_add(1),
            flags: ACK,
            window: 65_535,
            ..Seg::default()
        };
        put(&mut bench, &ack.frame(OUTSIDE));
        let longest_sent = segments(&mut bench).iter().map(|s| s.payload.len()).max().unwrap();
        assert_eq!(longest_sent, longest, "{mtu}");
    }
}
