//! Network adapters: frames both ways, offloads, commands, and what happens when somebody has no room.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use vireo_board::Attachment;
use vireo_frame::trial::Wire;
use vireo_frame::{Ability, Checksum, Intent, Mac, SegmentKind, Segmentation};
use vireo_virtio::Net;

use crate::rig::{EVENT_IDX, HANGS, NEEDS_RESET, Rig, Ring, VERSION_1, waits};

pub const ADDRESS: Mac = Mac([0, 0x15, 0x5d, 1, 2, 3]);
const NONE: Ability = Ability { checksum: false, tcp4: false, tcp6: false, udp: false, tag: false };

const CSUM: u64 = 1;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_OFFLOADS: u64 = 1 << 2;
const GUEST_TSO4: u64 = 1 << 7;
const GUEST_TSO6: u64 = 1 << 8;
const HOST_TSO4: u64 = 1 << 11;
const MERGE: u64 = 1 << 15;
const CONTROL: u64 = 1 << 17 | 1 << 18 | 1 << 20 | 1 << 23;
const ANNOUNCE: u64 = 1 << 21;
const MQ: u64 = 1 << 22;
const RSS: u64 = 1 << 60;

/// Where frames are in guest memory, to be sent and to be received.
const SENT: u64 = 0x20_0000;
const RECEIVED: u64 = 0x40_0000;
const COMMAND: u64 = 0x60_0000;

pub struct Lab {
    pub wire: Arc<Wire>,
    pub net: Arc<Net>,
    pub rig: Rig,
    pub receive: Ring,
    pub transmit: Ring,
    pub control: Ring,
}

impl Lab {
    pub fn new(ability: Ability, features: u64) -> Self {
        Self::with_pairs(ability, features, 1)
    }

    fn with_pairs(ability: Ability, features: u64, pairs: u16) -> Self {
        let wire = Wire::new(ability);
        let net = Net::new(Arc::clone(&wire) as _, ADDRESS, pairs);
        let rig = Rig::new(Arc::clone(&net) as _);
        let (receive, transmit, control) = start(&rig, features, pairs);
        Self { wire, net, rig, receive, transmit, control }
    }

    /// Sends bytes behind a header, in pieces of these lengths; waits until they are gone.
    fn send(&mut self, header: [u8; 12], bytes: &[u8], pieces: &[usize]) {
        self.queue(header, bytes, pieces);
        self.transmit.run(&self.rig);
    }

    fn queue(&mut self, header: [u8; 12], bytes: &[u8], pieces: &[usize]) {
        let all = [&header[..], bytes].concat();
        self.rig.memory.write(SENT, &all).unwrap();
        let (mut at, mut chain) = (0, Vec::new());
        for len in pieces.iter().copied().chain([all.len()]) {
            let len = len.min(all.len() - at);
            chain.push((SENT + at as u64, len as u32, false));
            at += len;
        }
        chain.retain(|(_, len, _)| *len > 0);
        self.transmit.add(&self.rig, &chain);
    }

    /// Buffers for frames, side by side.
    fn buffers(&mut self, count: u32, len: u32) {
        for n in 0..count {
            self.receive.add(&self.rig, &[(RECEIVED + u64::from(n * len), len, true)]);
        }
    }

    fn received(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rig.memory.read(RECEIVED, &mut bytes).unwrap();
        bytes
    }

    /// A command; its status.
    fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        self.rig.memory.write(COMMAND, &[&[class, command], data].concat()).unwrap();
        let data = (COMMAND + 2, data.len() as u32, false);
        self.control.add(&self.rig, &[(COMMAND, 2, false), data, (COMMAND - 1, 1, true)]);
        self.control.run(&self.rig);
        self.rig.memory.read_obj(COMMAND - 1).unwrap()
    }

    fn config(&self, at: u64) -> u64 {
        self.rig.read::<2>(self.rig.device + at)
    }
}

/// Receive and transmit queue of the first pair, and the control queue.
pub fn start(rig: &Rig, features: u64, pairs: u16) -> (Ring, Ring, Ring) {
    rig.negotiate(VERSION_1 | features);
    let control = if features & (MQ | RSS) != 0 { u64::from(pairs) * 2 } else { 2 };
    let ring = |index| Ring::new(rig, index, 64, 0x1_0000 + index * 0x4000);
    let rings = (ring(0), ring(1), ring(control));
    rig.driver_ok();
    rings
}

fn frame(to: Mac, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|n| (n * 7 + n / 251) as u8).collect();
    bytes[..6].copy_from_slice(&to.0);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

/// A TCP segment over IPv4 with so much payload, to be summed, and its header.
fn segment(payload: usize) -> Vec<u8> {
    let mut bytes = frame(ADDRESS, 54 + payload);
    bytes[12..14].copy_from_slice(&[8, 0]);
    bytes[14..34].fill(0);
    (bytes[14], bytes[23]) = (0x45, 6);
    bytes[16..18].copy_from_slice(&(40 + payload as u16).to_be_bytes());
    bytes[34..54].fill(0);
    bytes[46] = 0x50;
    bytes
}

const SUMMED: Intent =
    Intent { checksum: Checksum::Wanted { start: 34, offset: 16 }, segmentation: None, tag: None };
const CUT: Intent =
    Intent { segmentation: Some(Segmentation { kind: SegmentKind::Tcp4, size: 1000 }), ..SUMMED };
const SUMMED_HEADER: [u8; 12] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
const CUT_HEADER: [u8; 12] = [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0, 0, 0];

#[test]
fn the_guest_learns_address_mtu_carrier_and_speed() {
    let lab = Lab::new(NONE, 0);
    assert_eq!([0, 2, 4].map(|at| lab.config(at)), [0x1500, 0x015d, 0x0302]);
    assert_eq!([6, 8, 10].map(|at| lab.config(at)), [0, 1, 9000]);
    lab.rig.enable_msix(4);
    lab.rig.set_common::<2>(16, 0);
    let adapter = lab.wire.adapter().unwrap();
    adapter.set_carrier(true, 10_000_000_000);
    assert_eq!((lab.config(6), lab.rig.read::<4>(lab.rig.device + 12)), (1, 10_000));
    adapter.set_carrier(true, 10_000_000_000);
    adapter.set_carrier(false, 0);
    assert_eq!((lab.config(6), lab.rig.read::<4>(lab.rig.device + 12)), (0, 0xffff_ffff));
    assert_eq!(lab.rig.messages(), [0x40; 2], "each change once");
}

#[test]
fn frames_go_out_with_their_intents() {
    let mut lab = Lab::new(Ability::ALL, CSUM | HOST_TSO4);
    let all = [
        (frame(ADDRESS, 14), [0; 12], Intent::default()),
        (frame(ADDRESS, 60), [0; 12], Intent::default()),
        (frame(ADDRESS, 1514), [0; 12], Intent::default()),
        (segment(900), SUMMED_HEADER, SUMMED),
        (segment(60_000), CUT_HEADER, CUT),
    ];
    for (bytes, header, intent) in all {
        // The header by itself, in one with the frame, and borders everywhere.
        for pieces in [&[12][..], &[], &[10, 1, 1, 5, 300], &[12, 14, 40, 1, 1, 1, 200, 4096], &[600, 900]] {
            lab.send(header, &bytes, pieces);
            assert!(lab.wire.take() == [(bytes.clone(), intent)], "{} {pieces:?}", bytes.len());
        }
    }
    assert!(lab.wire.flushes.load(Ordering::Acquire) > 0);
}

#[test]
fn what_the_network_cannot_do_is_done_before() {
    let mut lab = Lab::new(NONE, CSUM | HOST_TSO4);
    lab.send(CUT_HEADER, &segment(2500), &[12]);
    let lengths: Vec<usize> = lab.wire.take().iter().map(|(bytes, _)| bytes.len()).collect();
    assert_eq!(lengths, [1054, 1054, 554]);
}

#[test]
fn what_is_no_frame_is_lost_and_nothing_else() {
    let mut lab = Lab::new(Ability::ALL, CSUM | HOST_TSO4);
    let good = frame(ADDRESS, 100);
    lab.send([0; 12], &good[..13], &[]);
    lab.send([0; 12], &frame(ADDRESS, 65_558), &[30_000]);
    // Sums beyond the frame, or in its Ethernet header; cuts of what is no TCP, of no size, of an unknown kind.
    lab.send([1, 0, 0, 0, 0, 0, 90, 0, 16, 0, 0, 0], &good, &[]);
    lab.send([1, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0], &good, &[]);
    lab.send([1, 0, 0, 0, 0, 0, 5, 0, 2, 0, 0, 0], &good, &[]);
    lab.send(CUT_HEADER, &good, &[]);
    lab.send([1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0], &segment(3000), &[]);
    lab.send([1, 3, 54, 0, 0, 4, 34, 0, 16, 0, 0, 0], &segment(3000), &[]);
    assert!(lab.wire.take().is_empty());
    lab.send([0; 12], &good, &[]);
    assert_eq!(lab.wire.take(), [(good, Intent::default())]);
    assert_eq!(lab.rig.status() & NEEDS_RESET, 0);
}

#[test]
fn a_frame_waits_for_a_full_network_and_not_a_pause_for_it() {
    let mut lab = Lab::new(NONE, CSUM | HOST_TSO4);
    lab.wire.room.store(2, Ordering::Release);
    // Three segments, of which two have room.
    lab.queue(CUT_HEADER, &segment(2500), &[12]);
    lab.rig.notify(1);
    waits("two segments", || lab.wire.got.lock().unwrap().len() == 2);
    lab.rig.settle();
    assert_eq!(lab.transmit.used_index(&lab.rig), 0, "it is still the device's");
    assert!(lab.rig.function.pause(Instant::now() + HANGS), "and not in flight");
    let state = lab.rig.function.save();
    lab.wire.room.store(usize::MAX, Ordering::Release);
    lab.wire.adapter().unwrap().room();
    assert_eq!(lab.wire.got.lock().unwrap().len(), 2, "paused");
    lab.rig.function.resume();
    lab.transmit.wait(&lab.rig);
    let lengths: Vec<usize> = lab.wire.take().iter().map(|(bytes, _)| bytes.len()).collect();
    assert_eq!(lengths, [1054, 1054, 554], "none twice");
    drop(state);
    // And without a pause, when the network tells.
    lab.wire.room.store(0, Ordering::Release);
    lab.queue([0; 12], &frame(ADDRESS, 60), &[]);
    lab.rig.notify(1);
    lab.rig.settle();
    lab.wire.room.store(1, Ordering::Release);
    lab.wire.adapter().unwrap().room();
    lab.transmit.wait(&lab.rig);
    assert_eq!(lab.wire.take(), [(frame(ADDRESS, 60), Intent::default())]);
}

#[test]
fn frames_come_in_as_many_buffers_as_they_take() {
    let mut lab = Lab::new(NONE, MERGE);
    for (len, buffers) in [(60, 1), (988, 1), (989, 2), (9014, 10), (65_000, 66)] {
        if buffers > 60 {
            continue;
        }
        let bytes = frame(ADDRESS, len);
        lab.buffers(buffers, 1000);
        lab.wire.gives(&bytes, Intent::default()).unwrap();
        let mut left = 12 + len as u32;
        for _ in 0..buffers {
            let (_, written) = lab.receive.wait(&lab.rig);
            assert_eq!(written, left.min(1000));
            left -= written;
        }
        let got = lab.received(12 + len);
        assert_eq!((&got[..10], &got[10..12]), (&[0; 10][..], &(buffers as u16).to_le_bytes()[..]));
        assert!(got[12..] == bytes, "{len}");
    }
}

#[test]
fn the_driver_is_told_of_frames_together() {
    let mut lab = Lab::new(NONE, MERGE | EVENT_IDX);
    lab.rig.enable_msix(4);
    lab.receive.set_used_event(&lab.rig, 0);
    lab.buffers(3, 2000);
    for _ in 0..3 {
        lab.wire.gives(&frame(ADDRESS, 60), Intent::default()).unwrap();
    }
    assert_eq!((lab.receive.used_index(&lab.rig), lab.rig.messages()), (3, vec![]));
    lab.wire.adapter().unwrap().flush();
    lab.wire.adapter().unwrap().flush();
    assert_eq!(lab.rig.messages(), [0x41]);
    // The driver does not want to be told before the sixth.
    lab.receive.set_used_event(&lab.rig, 5);
    lab.buffers(3, 2000);
    for expected in [&[][..], &[], &[0x41]] {
        lab.wire.gives(&frame(ADDRESS, 60), Intent::default()).unwrap();
        lab.wire.adapter().unwrap().flush();
        assert_eq!(lab.rig.messages(), expected);
    }
}

#[test]
fn what_is_still_to_be_done_is_told_to_those_who_do_it() {
    let mut lab = Lab::new(NONE, MERGE | GUEST_CSUM | GUEST_TSO4 | GUEST_OFFLOADS | CONTROL);
    waits("what the driver can", || lab.wire.adapter_ability.lock().unwrap().tcp4);
    let can = *lab.wire.adapter_ability.lock().unwrap();
    assert_eq!(can, Ability { checksum: true, tcp4: true, ..NONE });
    let good = Intent { checksum: Checksum::Good, ..Intent::default() };
    let all = [(SUMMED, SUMMED_HEADER), (CUT, CUT_HEADER), (good, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])];
    for (intent, header) in all {
        lab.buffers(1, 5000);
        lab.wire.gives(&segment(3000), intent).unwrap();
        lab.receive.wait(&lab.rig);
        assert_eq!(lab.received(10), header[..10]);
    }
    // Without offloads nothing is said, and nobody gives what wants them.
    assert_eq!(lab.command(5, 0, &0u64.to_le_bytes()), 0);
    assert_eq!(*lab.wire.adapter_ability.lock().unwrap(), NONE);
    lab.buffers(1, 5000);
    lab.wire.gives(&segment(3000), CUT).unwrap();
    assert_eq!(lab.net.lost(), 1);
    lab.wire.gives(&segment(100), good).unwrap();
    lab.receive.wait(&lab.rig);
    assert_eq!(lab.received(10), [0; 10]);
    // More than was agreed on cannot be switched on.
    assert_eq!(lab.command(5, 0, &(GUEST_CSUM | GUEST_TSO6).to_le_bytes()), 1);
    assert_eq!(lab.command(5, 0, &GUEST_CSUM.to_le_bytes()), 0);
    assert!(lab.wire.adapter_ability.lock().unwrap().checksum);
}

#[test]
fn the_network_waits_for_buffers() {
    let mut lab = Lab::new(NONE, MERGE);
    let bytes = frame(ADDRESS, 2500);
    assert!(lab.wire.gives(&bytes, Intent::default()).is_err());
    lab.buffers(2, 1000);
    lab.rig.notify(0);
    waits("word of room", || lab.wire.is_told());
    assert!(lab.wire.gives(&bytes, Intent::default()).is_err(), "not enough yet");
    assert_eq!(lab.receive.used_index(&lab.rig), 0);
    lab.buffers(1, 1000);
    lab.rig.notify(0);
    waits("word of room", || lab.wire.is_told());
    lab.wire.gives(&bytes, Intent::default()).unwrap();
    assert_eq!(lab.receive.used_index(&lab.rig), 3);

    // With event indices the driver tells when it has given more than there was.
    let mut lab = Lab::new(NONE, MERGE | EVENT_IDX);
    lab.buffers(2, 1000);
    assert!(lab.wire.gives(&bytes, Intent::default()).is_err());
    let event: u16 = lab.rig.memory.read_obj(lab.receive.device_area() + 4 + 8 * 64).unwrap();
    assert_eq!(event, 2);
}

#[test]
fn a_buffer_that_is_too_short_loses_the_frame_and_not_itself() {
    let mut lab = Lab::new(NONE, 0);
    lab.buffers(1, 1526);
    lab.wire.gives(&frame(ADDRESS, 1515), Intent::default()).unwrap();
    assert_eq!((lab.net.lost(), lab.receive.used_index(&lab.rig)), (1, 0));
    lab.wire.gives(&frame(ADDRESS, 1514), Intent::default()).unwrap();
    assert_eq!(lab.receive.wait(&lab.rig).1, 1526);
    assert_eq!(lab.received(12)[10..], [1, 0]);
    // A queue full of what is too little is never enough.
    let mut lab = Lab::new(NONE, MERGE);
    lab.buffers(64, 10);
    lab.wire.gives(&frame(ADDRESS, 1514), Intent::default()).unwrap();
    assert_eq!((lab.net.lost(), lab.receive.used_index(&lab.rig)), (1, 0));
}

#[test]
fn nothing_comes_while_it_rests() {
    let mut lab = Lab::new(NONE, MERGE);
    lab.rig.enable_msix(4);
    lab.buffers(4, 2000);
    lab.wire.gives(&frame(ADDRESS, 60), Intent::default()).unwrap();
    assert!(lab.rig.function.pause(Instant::now() + HANGS));
    lab.rig.seen.take_told();
    // Nor is it told of what came before: that comes later.
    lab.wire.adapter().unwrap().flush();
    assert!(lab.wire.gives(&frame(ADDRESS, 61), Intent::default()).is_err());
    assert_eq!((lab.rig.seen.take_told(), lab.rig.messages()), (vec![], vec![]));
    lab.rig.function.resume();
    waits("word of room", || lab.wire.is_told());
    waits("word of what came before", || lab.rig.messages() == [0x41]);
    lab.wire.gives(&frame(ADDRESS, 61), Intent::default()).unwrap();
    assert_eq!(lab.receive.used_index(&lab.rig), 2);
    lab.rig.reset();
    lab.wire.gives(&frame(ADDRESS, 62), Intent::default()).unwrap();
    assert_eq!(lab.net.lost(), 1, "there is no driver");
}

#[test]
fn the_driver_gets_what_it_wants() {
    let group = Mac([1, 0, 0x5e, 0, 0, 1]);
    let (other, second) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
    let mut lab = Lab::new(NONE, MERGE | CONTROL);
    lab.buffers(60, 100);
    let wanted = |lab: &Lab| {
        [ADDRESS, other, second, group, Mac::BROADCAST].map(|to| {
            let before = lab.receive.used_index(&lab.rig);
            lab.wire.gives(&frame(to, 60), Intent::default()).unwrap();
            lab.receive.used_index(&lab.rig) != before
        })
    };
    assert_eq!(wanted(&lab), [true; 5], "before it says anything");
    assert_eq!(lab.command(0, 0, &[0]), 0);
    assert_eq!(wanted(&lab), [true, false, false, false, true]);
    let table = |stations: &[Mac], groups: &[Mac]| {
        let list = |l: &[Mac]| {
            let addresses: Vec<u8> = l.iter().flat_map(|m| m.0).collect();
            [&(l.len() as u32).to_le_bytes()[..], &addresses].concat()
        };
        [list(stations), list(groups)].concat()
    };
    assert_eq!(lab.command(1, 0, &table(&[second], &[group])), 0);
    assert_eq!(wanted(&lab), [true, false, true, true, true]);
    assert_eq!(lab.wire.filter.lock().unwrap().groups, Some(BTreeSet::from([group])));
    // Modes: all groups, all stations, no group, no station, no broadcast.
    for (mode, expected) in [
        (1, [true, false, true, true, true]),
        (2, [true; 5]),
        (3, [true, false, true, false, true]),
        (4, [false, false, false, true, true]),
        (5, [true, false, true, true, false]),
        (0, [true; 5]),
    ] {
        assert_eq!(lab.command(0, mode, &[1]), 0);
        assert_eq!(wanted(&lab), expected, "{mode}");
        assert_eq!(lab.command(0, mode, &[0]), 0);
    }
    // More than is kept: all of them, rather than too few.
    assert_eq!(lab.command(1, 0, &table(&[], &[second; 65])), 0);
    assert_eq!(lab.command(1, 0, &table(&[], &[])), 0);
    // Its own address.
    assert_eq!(lab.command(1, 1, &other.0), 0);
    assert_eq!((lab.net.address(), lab.config(0)), (other, 2));
    assert_eq!(*lab.wire.address.lock().unwrap(), Some(other));
    assert_eq!(lab.command(1, 1, &lab.wire.forbidden.0.clone()), 1);
    assert_eq!(lab.command(1, 1, &group.0), 1);
    assert_eq!(lab.net.address(), other);
    lab.rig.reset();
    assert_eq!(lab.net.address(), ADDRESS);
    _ = start(&lab.rig, MERGE | CONTROL, 1);
    waits("the address", || *lab.wire.address.lock().unwrap() == Some(ADDRESS));
}

#[test]
fn a_driver_is_told_of_its_carrier_when_the_device_goes_on() {
    let lab = Lab::new(NONE, MERGE);
    lab.rig.enable_msix(4);
    lab.rig.set_common::<2>(16, 0);
    assert!(lab.rig.function.pause(Instant::now() + HANGS));
    lab.wire.adapter().unwrap().set_carrier(true, 10_000_000_000);
    assert_eq!((lab.rig.messages(), lab.config(6)), (vec![], 1));
    let saved = lab.rig.function.save();
    lab.rig.function.resume();
    waits("word of the carrier", || lab.rig.messages() == [0x40]);
    lab.rig.settle();
    assert!(lab.rig.messages().is_empty(), "once");
    // As if it were another machine.
    lab.rig.function.restore(&saved).unwrap();
    waits("word of it there", || lab.rig.messages().contains(&0x40));
}

#[test]
fn commands_that_are_none_are_refused() {
    let mut lab = Lab::new(NONE, MERGE | CONTROL);
    let none: [(u8, u8, &[u8]); 12] = [
        (0, 0, &[]),
        (0, 6, &[1]),
        (1, 0, &[]),
        (1, 0, &[1, 0, 0, 0]),
        (1, 0, &[0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6, 0, 0, 0, 0]),
        (1, 1, &[2, 0, 0]),
        (2, 0, &[1, 0]),
        (3, 0, &[]),
        (4, 0, &[1, 0]),
        (4, 1, &[1; 40]),
        (5, 0, &[0; 8]),
        (99, 0, &[0; 4000]),
    ];
    for (class, command, data) in none {
        assert_eq!(lab.command(class, command, data), 1, "{class} {command}");
    }
    // Longer than any command: the rest is not looked at.
    assert_eq!(lab.command(1, 0, &[0; 60_000]), 0);
    lab.control.add(&lab.rig, &[(COMMAND, 2, false)]);
    lab.rig.notify(2);
    waits("no room for the status", || lab.rig.status() & NEEDS_RESET != 0);
}

#[test]
fn several_pairs_of_queues() {
    // One that does not know of them has its control queue behind the first pair.
    let mut lab = Lab::with_pairs(NONE, MERGE | CONTROL, 4);
    assert_eq!((lab.config(8), lab.rig.common::<2>(18)), (4, 9));
    assert_eq!(lab.command(0, 0, &[0]), 0);
    let mut lab = Lab::with_pairs(NONE, MERGE | CONTROL | MQ, 4);
    for (pairs, status) in [(0_u16, 1), (5, 1), (4, 0)] {
        assert_eq!(lab.command(4, 0, &pairs.to_le_bytes()), status);
    }
    let rings: Vec<Ring> = (1..4).map(|n| Ring::new(&lab.rig, 2 * n, 64, 0x8_0000 + n * 0x4000)).collect();
    lab.buffers(60, 100);
    for mut ring in rings {
        for n in 0..60 {
            ring.add(&lab.rig, &[(RECEIVED + 0x1_0000 + n * 100, 100, true)]);
        }
    }
    // Connections are spread, and each stays where it is.
    let mut used = Vec::new();
    for port in 0..24_u16 {
        let mut bytes = segment(4);
        bytes[34..36].copy_from_slice(&port.to_be_bytes());
        for _ in 0..2 {
            lab.wire.gives(&bytes, Intent::default()).unwrap();
            let index = |ring: u64| lab.rig.memory.read_obj::<u16>(ring + 0x2002).unwrap();
            used.push([0x1_0000, 0x8_4000, 0x8_8000, 0x8_c000].map(index));
        }
    }
    assert!(used.last().unwrap().iter().all(|n| *n > 0), "{used:?}");
    assert!(used.last().unwrap().iter().all(|n| n.is_multiple_of(2)), "{used:?}");
    assert_eq!(used.last().unwrap().iter().sum::<u16>(), 48);
}

#[test]
fn the_driver_says_which_queue_a_connection_goes_to() {
    let mut lab = Lab::with_pairs(NONE, MERGE | CONTROL | RSS, 2);
    assert_eq!(
        (lab.config(16) >> 8, lab.config(18), lab.rig.read::<4>(lab.rig.device + 20)),
        (40, 128, 0x3f)
    );
    let key = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
        0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
        0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];
    let config = |kinds: u8, unclassified: u8, table: &[u16], transmit: u8, key: &[u8]| {
        let table: Vec<u8> = table.iter().flat_map(|q| q.to_le_bytes()).collect();
        let mask = (table.len() / 2).wrapping_sub(1) as u16;
        let [low, high] = mask.to_le_bytes();
        [&[kinds, 0, 0, 0, low, high, unclassified, 0], &table[..], &[transmit, 0, key.len() as u8], key]
            .concat()
    };
    // What it cannot be: kinds, a table of three, queues that there are not, a key that is too long, or not there.
    let long = [7; 41];
    let mut short = config(1, 0, &[0, 1], 2, &key);
    short.pop();
    for none in [
        config(0x40, 0, &[0, 1], 2, &key),
        config(1, 0, &[0, 1, 1], 2, &key),
        config(1, 0, &[0, 2], 2, &key),
        config(1, 2, &[0, 1], 2, &key),
        config(1, 0, &[0, 1], 3, &key),
        config(1, 0, &[0, 1], 2, &long),
        config(1, 0, &[0; 256], 2, &key),
        short,
        vec![],
    ] {
        assert_eq!(lab.command(4, 1, &none), 1, "{none:?}");
    }
    let mut second = Ring::new(&lab.rig, 2, 64, 0x8_0000);
    for n in 0..20 {
        second.add(&lab.rig, &[(RECEIVED + 0x1_0000 + n * 100, 100, true)]);
    }
    lab.buffers(20, 100);
    // The connection of the published example: 0x51ccc178 with ports, 0x323e8fc2 without.
    let mut bytes = segment(4);
    bytes[26..34].copy_from_slice(&[66, 9, 149, 187, 161, 142, 100, 80]);
    bytes[34..38].copy_from_slice(&[0x0a, 0xea, 0x06, 0xe6]);
    let goes_to = |lab: &Lab, bytes: &[u8]| {
        let before = lab.receive.used_index(&lab.rig);
        lab.wire.gives(bytes, Intent::default()).unwrap();
        u16::from(lab.receive.used_index(&lab.rig) == before)
    };
    let table = |at: usize| (0..128).map(|n| u16::from(n == at)).collect::<Vec<_>>();
    for (kinds, at, queue) in [(2, 0x78, 1), (2, 0x42, 0), (1, 0x42, 1), (1, 0x78, 0), (4, 0x78, 0)] {
        assert_eq!(lab.command(4, 1, &config(kinds, 0, &table(at), 2, &key)), 0);
        assert_eq!(goes_to(&lab, &bytes), queue, "{kinds} {at:#x}");
    }
    assert_eq!(lab.command(4, 1, &config(2, 1, &[0], 2, &key)), 0);
    assert_eq!(goes_to(&lab, &frame(ADDRESS, 60)), 1, "no hash");
}

#[test]
fn a_driver_announces_itself_when_it_is_asked() {
    let mut lab = Lab::new(NONE, MERGE | CONTROL | ANNOUNCE);
    lab.rig.enable_msix(4);
    lab.rig.set_common::<2>(16, 0);
    lab.wire.adapter().unwrap().set_carrier(true, 0);
    lab.net.announce();
    assert_eq!((lab.config(6), lab.rig.messages()), (3, vec![0x40, 0x40]));
    assert_eq!(lab.command(3, 0, &[]), 0);
    assert_eq!(lab.config(6), 1);
    let lab = Lab::new(NONE, MERGE | CONTROL);
    lab.net.announce();
    assert_eq!(lab.config(6), 0, "one that cannot");
}

#[test]
fn what_a_driver_has_set_is_in_the_saved_state() {
    let mut lab = Lab::new(NONE, MERGE | CONTROL | GUEST_CSUM | GUEST_OFFLOADS);
    assert_eq!(lab.command(0, 0, &[0]), 0);
    assert_eq!(lab.command(5, 0, &0u64.to_le_bytes()), 0);
    assert_eq!(lab.command(1, 1, &[2, 0, 0, 0, 0, 9]), 0);
    let text = serde_json::to_string(&lab.rig.function.save()).unwrap();
    // The same memory, as if it were another machine.
    lab.rig.reset();
    lab.rig.function.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(lab.net.address(), Mac([2, 0, 0, 0, 0, 9]));
    lab.buffers(2, 100);
    lab.wire.gives(&frame(ADDRESS, 60), Intent::default()).unwrap();
    assert_eq!(lab.receive.used_index(&lab.rig), 0, "no longer its address");
    lab.wire.gives(&frame(Mac([2, 0, 0, 0, 0, 9]), 60), Intent::default()).unwrap();
    assert_eq!(lab.receive.used_index(&lab.rig), 1);
    lab.rig.settle();
    assert_eq!(*lab.wire.adapter_ability.lock().unwrap(), NONE);
    assert_eq!(serde_json::to_string(&lab.rig.function.save()).unwrap().len(), text.len());
}

#[test]
fn a_device_that_goes_leaves_its_network() {
    let lab = Lab::new(NONE, MERGE);
    let wire = Arc::clone(&lab.wire);
    assert!(wire.adapter().is_some());
    drop(lab);
    assert!(wire.adapter().is_none());
    assert_eq!(Arc::strong_count(&wire), 1);
}
