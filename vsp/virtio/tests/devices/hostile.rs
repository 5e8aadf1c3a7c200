//! Drivers that break the rules: no panic, bounded work, and a reset makes all good.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use vireo_block::RamDisk;
use vireo_frame::trial::{Wire, any_packet};
use vireo_frame::{Ability, Checksum, Frame, Intent, SegmentKind, Segmentation};
use vireo_virtio::{Blk, Console, Device, Net, Rng};

use crate::blk::{IN, header, request, start};
use crate::disk::Held;
use crate::net::{self, ADDRESS};
use crate::rig::{
    EVENT_IDX, INDIRECT, NEEDS_RESET, NEXT, Rig, Ring, Seen, TABLE, VERSION_1, WRITE, descriptor, waits,
};

fn ram_disk() -> Rig {
    Rig::new(Blk::new(Arc::new(RamDisk::new(1 << 20, 512)), 1))
}

/// After whatever happened: the device comes to rest, can be reset, and works.
fn is_mended(rig: &Rig) {
    rig.settle();
    let mut ring = start(rig, 0);
    assert_eq!(request(rig, &mut ring, IN, 0, Some((512, true))), 0);
}

/// Breaks a disk by what `break_it` does to its ring.
fn breaks(why: &str, break_it: impl FnOnce(&Rig, &mut Ring)) {
    let rig = ram_disk();
    let mut ring = start(&rig, INDIRECT);
    header(&rig, IN, 0);
    break_it(&rig, &mut ring);
    rig.notify(0);
    waits(why, || rig.status() & NEEDS_RESET != 0);
    rig.settle();
    assert_eq!(ring.used_index(&rig), 0, "{why}");
    is_mended(&rig);
}

const HEADER: u64 = 0x10_0000;
const LIST: u64 = 0x20_0000;

#[test]
fn chains_that_are_none_break_the_device() {
    breaks("a loop", |rig, ring| {
        ring.describe(rig, 0, HEADER, 16, NEXT, 1);
        ring.describe(rig, 1, HEADER, 16, NEXT, 0);
        ring.make_available(rig, 0);
    });
    breaks("a head beyond the queue", |rig, ring| ring.make_available(rig, 64));
    breaks("a next beyond the queue", |rig, ring| {
        ring.describe(rig, 0, HEADER, 16, NEXT, 64);
        ring.make_available(rig, 0);
    });
    breaks("an index that jumps", |rig, ring| ring.set_available(rig, 65));
    breaks("an index that goes back", |rig, ring| ring.set_available(rig, 0xFFFF));
    breaks("to read after to write", |rig, ring| {
        ring.add(rig, &[(HEADER, 16, false), (HEADER, 512, true), (HEADER, 16, false)]);
    });
    for (address, len) in
        [(1 << 40, 16), (u64::MAX - 7, 16), (0xA_0000, 16), (0xFF_FFF8, 16), (HEADER, u32::MAX)]
    {
        breaks("memory that is none", |rig, ring| {
            ring.add(rig, &[(address, len, false), (HEADER, 1, true)]);
        });
    }
    breaks("more than 4 GiB", |rig, ring| {
        ring.add(rig, &[(HEADER, 16, false), (HEADER, 0x9000_0000, true), (HEADER, 0x9000_0000, true)]);
    });
}

#[test]
fn tables_that_are_none_break_the_device() {
    breaks("a table in a table", |rig, ring| {
        ring.describe(rig, 0, LIST, 16, TABLE, 0);
        descriptor(rig, LIST, LIST, 16, TABLE, 0);
        ring.make_available(rig, 0);
    });
    breaks("a table that is no RAM", |rig, ring| {
        ring.describe(rig, 0, 1 << 40, 16, TABLE, 0);
        ring.make_available(rig, 0);
    });
    breaks("a table of no length", |rig, ring| {
        ring.describe(rig, 0, LIST, 0, TABLE, 0);
        ring.make_available(rig, 0);
    });
    breaks("a table of one and a half", |rig, ring| {
        ring.describe(rig, 0, LIST, 24, TABLE, 0);
        ring.make_available(rig, 0);
    });
    breaks("a table that is too large", |rig, ring| {
        ring.describe(rig, 0, LIST, 16 << 16, TABLE, 0);
        ring.make_available(rig, 0);
    });
    breaks("a loop in a table", |rig, ring| {
        descriptor(rig, LIST, HEADER, 1, NEXT, 0);
        ring.describe(rig, 0, LIST, 16 * 65_535, TABLE, 0);
        ring.make_available(rig, 0);
    });
    breaks("too many descriptors", |rig, ring| {
        ring.add_indirect(rig, LIST, &[(HEADER, 1, false); 300]);
    });
}

#[test]
fn one_chain_cannot_be_in_flight_more_often_than_the_queue_is_long() {
    let disk = Held::new(1 << 20);
    let rig = Rig::new(Blk::new(disk.clone(), 1));
    let mut ring = start(&rig, 0);
    header(&rig, IN, 0);
    ring.add(&rig, &[(HEADER, 16, false), (0x11_0000, 512, true), (0x10_1000, 1, true)]);
    for _ in 0..63 {
        ring.make_available(&rig, 0);
    }
    rig.notify(0);
    waits("all of them", || disk.held() == 64);
    ring.make_available(&rig, 0);
    rig.notify(0);
    waits("the end of patience", || rig.status() & NEEDS_RESET != 0);
    assert_eq!(disk.held(), 64);
    disk.complete_all();
    rig.settle();
    rig.reset();
}

#[test]
fn rings_in_places_that_are_none_break_the_device() {
    for (field, address) in
        [(32, 0xFF_FFF0), (40, 0x9_FFFE), (48, 0xA_0000), (48, 1 << 50), (32, u64::MAX - 15)]
    {
        let rig = ram_disk();
        rig.negotiate(VERSION_1);
        rig.set_common::<2>(22, 0);
        for (field, address) in [(32, 0x1_0000), (40, 0x1_1000), (48, 0x1_2000), (field, address)] {
            rig.set_common::<8>(field, address);
        }
        rig.set_common::<2>(28, 1);
        rig.driver_ok();
        rig.notify(0);
        waits("the need of a reset", || rig.status() & NEEDS_RESET != 0);
        is_mended(&rig);
    }
}

#[test]
fn memory_that_changes_meanwhile_harms_nobody() {
    let rig = ram_disk();
    let mut ring = start(&rig, INDIRECT);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                // Descriptors, table, header, indices: words of them change while they are read.
                let (base, len) =
                    [(0x1_0000, 64), (LIST, 64), (HEADER, 16), (0x1_1000, 16)][(n >> 60) as usize % 4];
                let at = base + (((n >> 32) % len) & !3);
                let value = [0, 1, HEADER as u32, 512, 0xFFFF_FFFF, 0x1_0003][(n >> 50) as usize % 6];
                rig.memory.write_obj(at, value).unwrap();
            }
        });
        for round in 0..300u16 {
            header(&rig, IN, 0);
            ring.describe(&rig, 0, HEADER, 16, NEXT, 1);
            ring.describe(&rig, 1, 0x11_0000, 512, NEXT | WRITE, 2);
            ring.describe(&rig, 2, 0x10_1000, 1, WRITE, 0);
            ring.describe(&rig, 3, LIST, 48, TABLE, 0);
            ring.make_available(&rig, round % 4);
            rig.notify(0);
            if rig.status() & NEEDS_RESET != 0 {
                ring = start(&rig, INDIRECT);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    is_mended(&rig);
}

fn console() -> Rig {
    Rig::with_sink(Arc::<Seen>::default(), |seen| {
        let console = Console::new(seen.clone());
        console.push_input(&[7; 4096]);
        console
    })
}

/// Addresses that may hit anything: rings, tables, buffers, ends of RAM, nothing.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => prop::sample::select(vec![0x1_0000u64, 0x1_1000, 0x1_2000, HEADER, LIST, 0x11_0000, 0x10_1000]),
        2 => 0u64..16 << 20,
        1 => prop::sample::select(vec![0x9_FFFFu64, 0xA_0000, 0xFF_FFFF, 1 << 32, u64::MAX]),
        1 => any::<u64>(),
    ]
}

/// Address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

fn descriptors() -> impl Strategy<Value = Vec<Descriptor>> {
    let len = prop_oneof![
        4 => prop::sample::select(vec![0u32, 1, 15, 16, 17, 48, 512, 513, 4096, 0x10_0000]),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![6 => 0u16..4, 2 => 0u16..8, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0u16..16, 1 => any::<u16>()];
    prop::collection::vec((address(), len, flags, next), 16)
}

/// A ring for each queue of a device.
fn rings_of(rig: &Rig) -> Vec<Ring> {
    (0..rig.common::<2>(18)).map(|index| Ring::new(rig, index, 16, 0x1_0000 + index * 0x4000)).collect()
}

/// Gives all rings these descriptors, and the list of indirect ones those of the table.
fn describe_all(rig: &Rig, rings: &mut [Ring], descriptors: &[Descriptor], table: &[Descriptor]) {
    for ring in rings {
        for (at, (address, len, flags, next)) in (0..).zip(descriptors) {
            ring.describe(rig, at, *address, *len, *flags, *next);
            let (address, len, flags, next) = table[usize::from(at)];
            descriptor(rig, LIST + 16 * u64::from(at), address, len, flags, next);
        }
    }
}

/// Makes a chain available on all rings; `available`: and says that there are so many.
fn offer_all(rig: &Rig, rings: &mut [Ring], head: u16, available: Option<u16>) {
    for (index, ring) in (0..).zip(rings) {
        ring.make_available(rig, head);
        if let Some(available) = available {
            ring.set_available(rig, available);
        }
        rig.notify(index);
    }
}

/// An adapter, and a network that always has a frame for it.
fn adapter() -> (Rig, Arc<Wire>) {
    adapter_on(Ability { checksum: true, ..Ability::default() })
}

fn adapter_on(ability: Ability) -> (Rig, Arc<Wire>) {
    let wire = Wire::new(ability);
    (Rig::new(Net::new(Arc::clone(&wire) as _, ADDRESS, 2)), wire)
}

fn gives(wire: &Wire, len: usize) {
    let mut bytes = vec![0x45; len];
    bytes[12..14].copy_from_slice(&[8, 0]);
    (bytes[20], bytes[21], bytes[23]) = (0, 0, 6);
    let cut = Some(Segmentation { kind: SegmentKind::Tcp4, size: 100 });
    let plain = Intent::default();
    let to_cut =
        Intent { checksum: Checksum::Wanted { start: 34, offset: 16 }, segmentation: cut, tag: None };
    for intent in [plain, to_cut] {
        _ = wire.gives(&bytes, intent);
    }
    wire.adapter().inspect(|adapter| adapter.flush());
}

/// After whatever happened, frames go both ways.
fn adapter_is_mended(rig: &Rig, wire: &Wire) {
    rig.settle();
    rig.reset();
    let (mut receive, mut transmit, _) = net::start(rig, 0, 2);
    rig.memory.fill(0x30_0000, 100, 0).unwrap();
    wire.take();
    transmit.add(rig, &[(0x30_0000, 72, false)]);
    transmit.run(rig);
    waits("a frame", || wire.take().iter().any(|(bytes, _)| *bytes == [0; 60]));
    receive.add(rig, &[(0x30_0000, 2000, true)]);
    wire.gives(&[7; 60], Intent::default()).unwrap();
    assert_eq!(receive.wait(rig).1, 72);
}

#[test]
fn what_an_adapter_cannot_take_breaks_it() {
    type Breaks<'a> = &'a dyn Fn(&Rig, &mut Ring);
    let all: [(&str, Breaks); 6] = [
        ("a buffer without room", &|rig, ring| _ = ring.add(rig, &[(HEADER, 100, false)])),
        ("a buffer that is no RAM", &|rig, ring| _ = ring.add(rig, &[(1 << 40, 100, true)])),
        ("a loop", &|rig, ring| {
            ring.describe(rig, 0, HEADER, 0, NEXT | WRITE, 0);
            ring.make_available(rig, 0);
        }),
        ("a head beyond the queue", &|rig, ring| ring.make_available(rig, 64)),
        ("an index that jumps", &|rig, ring| ring.set_available(rig, 65)),
        ("a buffer longer than RAM", &|rig, ring| {
            ring.add(rig, &[(HEADER, u32::MAX, true)]);
        }),
    ];
    for (why, break_it) in all {
        let (rig, wire) = adapter();
        let (mut receive, _, _) = net::start(&rig, 1 << 15, 2);
        break_it(&rig, &mut receive);
        wire.gives(&[1; 1500], Intent::default()).unwrap();
        assert_ne!(rig.status() & NEEDS_RESET, 0, "{why}");
        assert_eq!(receive.used_index(&rig), 0, "{why}");
        adapter_is_mended(&rig, &wire);
    }
}

/// Rings, tables and headers change while frames go both ways, and the device is reset now and then.
#[test]
fn an_adapter_survives_what_changes_under_it() {
    let (rig, wire) = adapter();
    let features = 1 << 15 | 1 << 1 | 1 << 7 | INDIRECT | EVENT_IDX;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let area = [0x1_0000, 0x1_1000, 0x1_4000, 0x1_5000, LIST, HEADER][(n >> 61) as usize % 6];
                let value = [0, 1, HEADER as u32, 2000, 0xFFFF_FFFF, 0x1_0003][(n >> 50) as usize % 6];
                rig.memory.write_obj(area + (((n >> 32) % 128) & !3), value).unwrap();
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                gives(&wire, 60);
                gives(&wire, 3000);
            }
        });
        for round in 0..400u16 {
            let (mut receive, mut transmit, _) = net::start(&rig, features, 2);
            for n in 0..16 {
                receive.describe(&rig, n, HEADER + 4096, 1700, WRITE, 0);
                transmit.describe(&rig, n, HEADER, 12, NEXT, (n + 1) % 16);
                receive.make_available(&rig, n);
                transmit.make_available(&rig, n);
                rig.notify(u64::from(n + round) % 2);
            }
            rig.reset();
        }
        stop.store(true, Ordering::Relaxed);
    });
    adapter_is_mended(&rig, &wire);
}

/// What a driver does to an adapter.
#[derive(Clone, Debug)]
struct Misdeeds {
    descriptors: Vec<Descriptor>,
    table: Vec<Descriptor>,
    /// What is before the frames in memory; `None`: what a packet there has.
    header: Option<[u8; 12]>,
    /// By which that packet is made.
    chosen: Vec<u8>,
    command: [u8; 16],
    heads: Vec<u16>,
    jump: Option<u16>,
    features: u64,
    /// What the network takes.
    able: [bool; 4],
}

fn misdeeds() -> impl Strategy<Value = Misdeeds> {
    let rings = (descriptors(), descriptors());
    let sent = (any::<Option<[u8; 12]>>(), prop::collection::vec(any::<u8>(), 0..100), any::<[bool; 4]>());
    let calls = (
        any::<[u8; 16]>(),
        prop::collection::vec(prop_oneof![8 => 0u16..16, 1 => any::<u16>()], 1..24),
        prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)],
        any::<u64>(),
    );
    (rings, sent, calls).prop_map(|(rings, sent, calls)| {
        let ((descriptors, table), (header, chosen, able), (command, heads, jump, features)) =
            (rings, sent, calls);
        Misdeeds { descriptors, table, header, chosen, command, heads, jump, features, able }
    })
}

impl Misdeeds {
    /// Puts what may be sent where most descriptors are: bytes with any header, or a packet with that of its own. The latter is sent
    /// before all misdeeds, which break the device soon, and may wait for room meanwhile. Whether it is a frame to which something is
    /// to be done.
    fn begin(&self, rig: &Rig, rings: &mut [Ring], wire: &Wire) -> bool {
        rig.memory.fill(HEADER, 0x1_0000, 0x45).unwrap();
        rig.memory.write(HEADER + 24, &[8, 0]).unwrap();
        rig.memory.write(0x11_0000, &self.command.map(|b| b % 7)).unwrap();
        describe_all(rig, rings, &self.descriptors, &self.table);
        if let Some(header) = self.header {
            rig.memory.write(HEADER, &header).unwrap();
            return false;
        }
        let mut chosen = self.chosen.iter().copied();
        let (bytes, intent) = any_packet(4000, &mut || chosen.next().unwrap_or(0));
        let frame = Frame::new(&bytes, &[], intent);
        let header = frame.map_or([0xff; 10], |frame| frame.offload_header());
        rig.memory.write(HEADER, &[&header, &self.command[..2], &bytes].concat()).unwrap();
        rings[1].describe(rig, 0, HEADER, 12 + bytes.len() as u32, 0, 0);
        wire.room.store([usize::MAX, 2, 1][usize::from(self.command[2] % 3)], Ordering::Release);
        rings[1].make_available(rig, 0);
        rig.notify(1);
        waits("the packet", || rings[1].used_index(rig) == 1 || wire.room.load(Ordering::Acquire) == 0);
        frame.is_ok_and(|frame| matches!(frame.intent().checksum, Checksum::Wanted { .. }))
    }

    /// Whether the driver had a frame to which something was to be done; the network gets it then.
    fn do_all(&self) -> bool {
        let [checksum, tcp4, tcp6, udp] = self.able;
        let (rig, wire) = adapter_on(Ability { checksum, tcp4, tcp6, udp, tag: false });
        rig.negotiate(rig.offered() & (self.features | VERSION_1));
        let mut rings = rings_of(&rig);
        rig.driver_ok();
        let has_one = self.begin(&rig, &mut rings, &wire);
        for (n, head) in self.heads.iter().enumerate() {
            offer_all(&rig, &mut rings, *head, self.jump.filter(|_| n == 7));
            gives(&wire, [60, 2000, 40_000][n % 3]);
            if n == 5 {
                wire.room.store(1, Ordering::Release);
            }
        }
        rig.settle();
        wire.room.store(usize::MAX, Ordering::Release);
        wire.adapter().unwrap().room();
        rig.settle();
        let got_one = wire.take().iter().any(|(_, intent)| intent.checksum != Checksum::Unknown);
        assert!(got_one || !has_one, "the packet is lost");
        adapter_is_mended(&rig, &wire);
        has_one
    }
}

/// Also that enough of the frames are such: where a header asks for something before what is none, nothing is done.
#[test]
fn any_rings_leave_an_adapter_that_can_be_reset() {
    let made = Cell::new(0);
    let config = ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(300) };
    let outcome = TestRunner::new(config).run(&misdeeds(), |misdeeds| {
        made.set(made.get() + u32::from(misdeeds.do_all()));
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    assert!(made.get() > 40, "{}", made.get());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn any_rings_leave_a_device_that_can_be_reset(
        kind in 0usize..3,
        (ring_descriptors, table) in (descriptors(), descriptors()),
        (disk_kind, sector) in (prop::sample::select(vec![0u32, 1, 4, 8, 11, 13, 99]), prop_oneof![0u64..4096, any::<u64>()]),
        heads in prop::collection::vec(prop_oneof![8 => 0u16..16, 1 => any::<u16>()], 1..24),
        jump in prop_oneof![4 => Just(None), 1 => any::<u16>().prop_map(Some)],
        event_idx in any::<bool>(),
    ) {
        let rig = match kind {
            0 => ram_disk(),
            1 => Rig::new(Rng::new() as Arc<dyn Device>),
            _ => console(),
        };
        rig.negotiate(VERSION_1 | INDIRECT | if event_idx { EVENT_IDX } else { 0 });
        let mut rings = rings_of(&rig);
        rig.driver_ok();
        header(&rig, disk_kind, sector);
        describe_all(&rig, &mut rings, &ring_descriptors, &table);
        for (n, head) in heads.iter().enumerate() {
            offer_all(&rig, &mut rings, *head, jump.filter(|_| n == 7));
        }
        rig.settle();
        rig.reset();
        // And the next driver finds a device that works, whatever it is.
        rig.negotiate(VERSION_1);
        let mut ring = Ring::new(&rig, rings.len() as u64 - 1, 16, 0x30_0000);
        rig.driver_ok();
        match kind {
            0 => prop_assert_eq!(request(&rig, &mut ring, IN, 0, Some((512, true))), 0),
            1 => {
                ring.add(&rig, &[(0x11_0000, 16, true)]);
                prop_assert!(ring.run(&rig).1 > 0);
            }
            _ => {
                ring.add(&rig, &[(0x11_0000, 16, false)]);
                ring.run(&rig);
            }
        }
    }
}
