//! Frames in pieces, and what is done to them, held against a second way of counting.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::headers::{Segment, ether_type};
use crate::trial::{any_packet, packet};
use crate::{Ability, Checksum, Frame, Full, HEAD_MAX, Intent, SegmentKind, Segmentation, Tag, fit};

/// The sum of RFC 1071, word by word.
fn slow_sum(bytes: &[u8]) -> u16 {
    let word = |w: &[u8]| u32::from(w[0]) << 8 | u32::from(w.get(1).copied().unwrap_or(0));
    bytes
        .chunks(2)
        .map(word)
        .fold(0, |a, w| (a + w) % 0xffff + u32::from(a + w > 0 && (a + w) % 0xffff == 0) * 0xffff) as u16
}

/// Whether a frame's checksums are right.
fn is_right(frame: &[u8], at: usize) -> bool {
    let v6 = frame[at] >> 4 == 6;
    let (addresses, start, protocol) = if v6 {
        (&frame[at + 8..at + 40], at + 40, frame[at + 6])
    } else {
        (&frame[at + 12..at + 20], at + 20, frame[at + 9])
    };
    let length = (frame.len() - start) as u16;
    let pseudo = [addresses, &length.to_be_bytes(), &[0, protocol], &frame[start..]].concat();
    let says = u16::from_be_bytes([frame[at + if v6 { 4 } else { 2 }], frame[at + if v6 { 5 } else { 3 }]]);
    let whole = usize::from(says) == frame.len() - if v6 { start } else { at };
    whole && slow_sum(&pseudo) == 0xffff && (v6 || slow_sum(&frame[at..start]) == 0xffff)
}

fn pieces(frame: &Frame<'_>, ability: &Ability) -> Vec<(Vec<u8>, Intent)> {
    let (mut all, mut done, mut scratch, mut turn) = (Vec::new(), 0, Vec::new(), 0);
    loop {
        let put = &mut |f: &Frame<'_>| {
            turn += 1;
            // Every third time there is no room.
            if turn % 3 == 0 {
                return Err(Full);
            }
            let mut bytes = Vec::new();
            f.append_to(&mut bytes).expect("private");
            all.push((bytes, f.intent()));
            Ok(())
        };
        if fit(frame, ability, &mut done, &mut scratch, put).is_ok() {
            return all;
        }
    }
}

proptest! {
    #[test]
    fn segments_are_right_packets_and_have_all_bytes(
        v6: bool, udp: bool, options in 0usize..11, payload in proptest::collection::vec(any::<u8>(), 1..20_000),
        size in 1u16..9000, tag in proptest::option::of(any::<u16>()),
    ) {
        let size = size.max(payload.len() as u16 / 64 + 1);
        prop_assume!(payload.len() > usize::from(size));
        let options = if udp { 0 } else { options };
        let (bytes, mut intent) = packet(v6, udp, options, &payload);
        let kind = if udp { SegmentKind::Udp } else if v6 { SegmentKind::Tcp6 } else { SegmentKind::Tcp4 };
        intent.segmentation = Some(Segmentation { kind, size });
        intent.tag = tag.map(Tag);
        let frame = Frame::new(&bytes, &[], intent).unwrap();
        let got = pieces(&frame, &Ability::default());
        let (shift, headers) = (if tag.is_some() { 4 } else { 0 }, bytes.len() - payload.len());
        prop_assert_eq!(got.len(), payload.len().div_ceil(size.into()));
        let mut joined = Vec::new();
        for (n, (segment, intent)) in got.iter().enumerate() {
            prop_assert_eq!((intent.segmentation, intent.tag), (None, None));
            if let Some(tag) = tag {
                prop_assert_eq!(&segment[12..16], &[&[0x81, 0][..], &tag.to_be_bytes()].concat()[..]);
            }
            prop_assert!(is_right(segment, 14 + shift), "{}", n);
            let body = &segment[headers + shift..];
            if !udp {
                let tcp = headers + shift - 20 - options * 4;
                let sequence = u32::from_be_bytes(*segment[tcp + 4..].first_chunk().unwrap());
                prop_assert_eq!(sequence, 0xffff_fff0_u32.wrapping_add(joined.len() as u32));
                let flags = 0x10 | if n == 0 { 0x80 } else { 0 } | if n + 1 == got.len() { 9 } else { 0 };
                prop_assert_eq!(segment[tcp + 13], flags);
            }
            prop_assert!(body.len() == usize::from(size) || n + 1 == got.len());
            joined.extend_from_slice(body);
        }
        prop_assert_eq!(joined, payload);
    }

    #[test]
    fn a_checksum_is_filled_in_or_left_to_who_takes_it(v6: bool, udp: bool, payload in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let (mut bytes, intent) = packet(v6, udp, 0, &payload);
        let Checksum::Wanted { start, offset } = intent.checksum else { unreachable!() };
        let (addresses, end) = if v6 { (22, 54) } else { (26, 34) };
        let pseudo = [&bytes[addresses..end], &[0, if udp { 17 } else { 6 }], &((bytes.len() - usize::from(start)) as u16).to_be_bytes()].concat();
        let at = usize::from(start + offset);
        bytes[at..at + 2].copy_from_slice(&slow_sum(&pseudo).to_be_bytes());
        if udp {
            // Its length, which segments get by themselves.
            let length = (bytes.len() as u16 - start).to_be_bytes();
            bytes[usize::from(start) + 4..][..2].copy_from_slice(&length);
        }
        let frame = Frame::new(&bytes, &[], intent).unwrap();
        let left = pieces(&frame, &Ability { checksum: true, ..Ability::default() });
        prop_assert_eq!(&left, &[(bytes.clone(), intent)]);
        let done = pieces(&frame, &Ability::default());
        prop_assert_eq!(done[0].1.checksum, Checksum::Good);
        let mut made = done[0].0.clone();
        if !v6 {
            // The header's own sum is its maker's.
            let sum = !slow_sum(&made[14..34]);
            made[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        prop_assert!(is_right(&made, 14));
    }
}

/// What a switch has decided by, of a frame that is TCP or UDP: stations, addresses, ports.
fn judged(frame: &[u8]) -> Option<Vec<u8>> {
    let place = Segment::of(frame)?;
    let addresses = if place.ether_type == ether_type::IPV6 { 8..40 } else { 12..20 };
    let (addresses, ports) = (&frame[place.ip..][addresses], frame.get(place.at..place.at + 4)?);
    Some([&frame[..12], addresses, &[place.protocol], ports].concat())
}

/// Whether the sum of a segment is right, whatever is before it.
fn is_summed(segment: &[u8]) -> bool {
    let place = Segment::of(segment).expect("TCP or UDP");
    let addresses = if place.ether_type == ether_type::IPV6 { 8..40 } else { 12..20 };
    let rest = &segment[place.at..];
    let length = (rest.len() as u16).to_be_bytes();
    slow_sum(&[&segment[place.ip..][addresses], &length, &[0, place.protocol], rest].concat()) == 0xffff
}

/// What is made of a frame for somebody, whatever it is: nothing that they cannot take, or that others would have decided otherwise on.
/// Whether it was cut.
fn what_is_made_is_as_it_should(
    bytes: &[u8],
    frame: &Frame<'_>,
    ability: &Ability,
) -> Result<bool, TestCaseError> {
    let (said, got) = (frame.intent(), pieces(frame, ability));
    let is_cut = said.segmentation.is_some() && !ability.takes(&Intent { tag: None, ..said });
    let is_tagged = said.tag.is_some() && !ability.tag;
    // A tag may leave no room for headers.
    let is_full = is_tagged && Segment::of(bytes).is_some_and(|place| place.at + 60 > HEAD_MAX - 8);
    prop_assert!(!got.is_empty() || is_full);
    for (piece, intent) in &got {
        prop_assert!(ability.takes(intent), "{:?}", intent);
        if matches!(said.checksum, Checksum::Wanted { .. }) {
            prop_assert_eq!(judged(piece), judged(bytes));
        }
        if is_cut && !ability.checksum {
            prop_assert!(is_summed(piece));
        } else if !is_cut && !is_full {
            prop_assert_eq!(piece.len(), bytes.len() + if is_tagged { 4 } else { 0 });
        }
    }
    Ok(is_cut)
}

/// Also that enough of it is a frame whose sum is to be made, and of that is cut: else nothing was looked at.
#[test]
fn what_is_said_of_any_bytes_harms_nobody() {
    let (all, taken, cut) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::default() };
    let strategy = (proptest::collection::vec(any::<u8>(), 0..200), any::<[bool; 5]>());
    let outcome = TestRunner::new(config).run(&strategy, |(chosen, [checksum, tcp4, tcp6, udp, tag])| {
        let mut chosen = chosen.into_iter();
        let (bytes, intent) = any_packet(9000, &mut || chosen.next().unwrap_or(0));
        all.set(all.get() + 1);
        let Ok(frame) = Frame::new(&bytes, &[], intent) else { return Ok(()) };
        let is_wanted = matches!(frame.intent().checksum, Checksum::Wanted { .. });
        taken.set(taken.get() + usize::from(is_wanted));
        let some = Ability { checksum, tcp4, tcp6, udp, tag };
        for ability in [some, Ability::default()] {
            let is_cut = what_is_made_is_as_it_should(&bytes, &frame, &ability)?;
            cut.set(cut.get() + usize::from(is_cut));
        }
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    let (all, taken, cut) = (all.get(), taken.get(), cut.get());
    assert!(taken > all / 3 && cut > all / 10, "of {all} frames {taken} were to be summed, and {cut} cut");
}

#[test]
fn a_header_of_virtio_says_what_an_intent_says() {
    let (mut bytes, plain) = packet(true, false, 3, &[7; 3000]);
    let cut = Some(Segmentation { kind: SegmentKind::Tcp6, size: 1200 });
    let all = [
        Intent::default(),
        Intent { checksum: Checksum::Good, ..Intent::default() },
        plain,
        Intent { segmentation: cut, ..plain },
    ];
    for intent in all {
        let header = Frame::new(&bytes, &[], intent).unwrap().offload_header();
        assert_eq!(Intent::from_offload_header(&header), Ok(intent));
    }
    // As Linux has it: flags, kind, bytes of headers, size of segments, where TCP starts, where its sum is.
    let header = |bytes: &[u8]| Frame::new(bytes, &[], all[3]).unwrap().offload_header();
    bytes[54 + 13] &= !0x80;
    assert_eq!(header(&bytes), [1, 4, 86, 0, 0xb0, 4, 54, 0, 16, 0]);
    bytes[54 + 13] |= 0x80;
    assert_eq!(header(&bytes), [1, 0x84, 86, 0, 0xb0, 4, 54, 0, 16, 0]);
    assert!(Intent::from_offload_header(&[1, 3, 0, 0, 0, 4, 34, 0, 6, 0]).is_err(), "fragments of UDP");
}

#[test]
fn what_is_no_frame_is_refused() {
    let bytes = [0; 400];
    let wanted = |start, offset| Intent { checksum: Checksum::Wanted { start, offset }, ..Intent::default() };
    assert!(Frame::whole(&bytes[..13]).is_err() && Frame::whole(&bytes[..14]).is_ok());
    assert!(Frame::new(&bytes[..60], &[], wanted(34, 16)).is_err(), "it has no sum at all");
    assert!(Frame::new(&bytes, &[], wanted(u16::MAX, u16::MAX)).is_err());
    let cut =
        Intent { segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1 }), ..wanted(34, 16) };
    assert!(Frame::new(&bytes, &[], cut).is_err(), "no IP");
}

/// What is put where a checksum was said to be must not change anything else: what the switch has decided by.
#[test]
fn a_checksum_is_made_where_the_headers_have_one_and_nowhere_else() {
    for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
        let (bytes, right) = packet(v6, udp, 0, &[7; 100]);
        assert!(Frame::new(&bytes, &[], right).is_ok());
        let Checksum::Wanted { start, offset } = right.checksum else { unreachable!() };
        for (start, offset) in
            [(14, 12), (start, 0), (start, offset + 2), (start - 4, offset + 4), (start + 8, offset)]
        {
            let intent = Intent { checksum: Checksum::Wanted { start, offset }, ..Intent::default() };
            assert!(Frame::new(&bytes, &[], intent).is_err(), "{start} {offset}");
        }
        // It is another protocol, a piece of a packet, or of another version than its kind says.
        for (at, value) in [(if v6 { 20 } else { 23 }, 1), (14, if v6 { 0x45 } else { 0x65 })] {
            let mut other = bytes.clone();
            other[at] = value;
            assert!(Frame::new(&other, &[], right).is_err(), "{at}");
        }
        if !v6 {
            let mut part = bytes.clone();
            part[20] = 0x20;
            assert!(Frame::new(&part, &[], right).is_err(), "a fragment");
        }
    }
}

/// An IPv4 frame whose IP says that it is of version 6 was cut as the latter, of which it had not as many bytes.
#[test]
fn a_frame_is_cut_as_its_kind_says() {
    let (mut bytes, mut intent) = packet(false, true, 0, &[7; 18]);
    intent.segmentation = Some(Segmentation { kind: SegmentKind::Udp, size: 1 });
    assert_eq!(pieces(&Frame::new(&bytes, &[], intent).unwrap(), &Ability::default()).len(), 18);
    bytes[14] = 0x65;
    assert!(Frame::new(&bytes, &[], intent).is_err());
    // Behind options of IPv4 and extension headers of IPv6, where they say.
    let (mut bytes, mut intent) = packet(true, false, 0, &[7; 4000]);
    bytes[20] = 60;
    bytes.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
    bytes[18..20].copy_from_slice(&(4028u16).to_be_bytes());
    intent.checksum = Checksum::Wanted { start: 62, offset: 16 };
    intent.segmentation = Some(Segmentation { kind: SegmentKind::Tcp6, size: 1000 });
    let frame = Frame::new(&bytes, &[], intent).unwrap();
    assert_eq!((frame.headers(), pieces(&frame, &Ability::default()).len()), (82, 4));
}

#[test]
fn a_frame_is_not_cut_into_thousands() {
    let (bytes, mut intent) = packet(false, false, 0, &[7; 60_000]);
    let mut of = |size| {
        intent.segmentation = Some(Segmentation { kind: SegmentKind::Tcp4, size });
        Frame::new(&bytes, &[], intent).is_ok()
    };
    assert!(of(536) && of(118) && !of(117) && !of(1) && !of(0));
}
