//! Disks: every request, in every layout.

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vireo_block::{BlockDevice, BlockInfo, Operation, RamDisk, Request};
use vireo_virtio::Blk;

use crate::rig::{EVENT_IDX, INDIRECT, NEEDS_RESET, Rig, Ring, VERSION_1};

const FLUSH: u64 = 1 << 9;
const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x11_0000;
const STATUS: u64 = 0x10_1000;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;

/// A disk that keeps what it was asked.
struct Asked {
    disk: RamDisk,
    operations: Mutex<Vec<(Operation, u64, u64)>>,
}

impl BlockDevice for Asked {
    fn info(&self) -> BlockInfo {
        self.disk.info()
    }
    fn submit(&self, batch: &mut Vec<Request>) {
        let asked = batch.iter().map(|r| (r.operation, r.at, r.len));
        self.operations.lock().unwrap().extend(asked);
        self.disk.submit(batch);
    }
}

pub fn header(rig: &Rig, kind: u32, sector: u64) {
    rig.memory.write_obj(HEADER, kind).unwrap();
    rig.memory.write_obj(HEADER + 8, sector).unwrap();
}

/// A request in the usual layout; the status.
pub fn request(rig: &Rig, ring: &mut Ring, kind: u32, sector: u64, data: Option<(u32, bool)>) -> u8 {
    header(rig, kind, sector);
    rig.memory.write_obj(STATUS, 0xEEu8).unwrap();
    let mut pieces = vec![(HEADER, 16, false)];
    pieces.extend(data.map(|(len, write)| (DATA, len, write)));
    pieces.push((STATUS, 1, true));
    ring.add(rig, &pieces);
    ring.run(rig);
    rig.memory.read_obj(STATUS).unwrap()
}

pub fn start(rig: &Rig, features: u64) -> Ring {
    rig.negotiate(VERSION_1 | features);
    let ring = Ring::new(rig, 0, 64, 0x1_0000);
    rig.driver_ok();
    ring
}

fn asked(describe: impl FnOnce(&mut BlockInfo)) -> (Rig, Ring, Arc<Asked>) {
    let disk = RamDisk::new(1 << 20, 512);
    disk.describe(describe);
    let disk = Arc::new(Asked { disk, operations: Mutex::default() });
    let rig = Rig::new(Blk::new(Arc::clone(&disk) as _, 1));
    let ring = start(&rig, FLUSH);
    (rig, ring, disk)
}

fn fill(rig: &Rig, len: u64, value: u8) {
    rig.memory.fill(DATA, len, value).unwrap();
}

#[test]
fn what_is_written_is_on_the_disk_and_reads_back() {
    let (rig, mut ring, disk) = asked(|_| {});
    fill(&rig, 8192, 0x5A);
    assert_eq!(request(&rig, &mut ring, OUT, 3, Some((8192, false))), 0);
    let contents = disk.disk.contents();
    assert!(contents[1536..1536 + 8192].iter().all(|b| *b == 0x5A));
    assert_eq!((contents[1535], contents[1536 + 8192]), (0, 0));
    fill(&rig, 8192, 0);
    assert_eq!(request(&rig, &mut ring, IN, 2, Some((1024, true))), 0);
    assert_eq!(rig.memory.read_obj::<u64>(DATA + 504).unwrap(), 0);
    assert_eq!(rig.memory.read_obj::<u64>(DATA + 512).unwrap(), 0x5A5A_5A5A_5A5A_5A5A);
    assert_eq!(request(&rig, &mut ring, 4, 0, None), 0);
    let operations = disk.operations.lock().unwrap().clone();
    assert_eq!(
        operations,
        [
            (Operation::Write { fua: false }, 1536, 8192),
            (Operation::Read, 1024, 1024),
            (Operation::Flush, 0, 0)
        ]
    );
}

#[test]
fn without_flushes_what_is_written_is_durable() {
    let (rig, _, disk) = asked(|_| {});
    let mut ring = start(&rig, 0);
    assert_eq!(request(&rig, &mut ring, OUT, 0, Some((512, false))), 0);
    assert_eq!(disk.operations.lock().unwrap().clone(), [(Operation::Write { fua: true }, 0, 512)]);
}

#[test]
fn what_cannot_be_done_says_so() {
    let (rig, mut ring, disk) = asked(|_| {});
    let (io_error, unsupported) = (1, 2);
    for (kind, sector, data, status) in [
        (IN, 2048, Some((512, true)), io_error),
        (IN, u64::MAX, Some((512, true)), io_error),
        (IN, 1 << 55, Some((512, true)), io_error),
        (IN, 0, Some((100, true)), io_error),
        (IN, 0, None, io_error),
        (OUT, 2047, Some((1024, false)), io_error),
        (OUT, 0, None, io_error),
        (2, 0, None, unsupported),
        (0xFFFF_FFFF, 0, Some((512, true)), unsupported),
    ] {
        assert_eq!(request(&rig, &mut ring, kind, sector, data), status, "{kind} {sector} {data:?}");
    }
    assert!(disk.disk.contents().iter().all(|b| *b == 0));
    assert_eq!(rig.status() & NEEDS_RESET, 0);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let (rig, mut ring, disk) = asked(|info| info.read_only = true);
    assert_eq!(rig.offered() & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    fill(&rig, 512, 1);
    for kind in [OUT, 11, 13] {
        assert_eq!(request(&rig, &mut ring, kind, 0, Some((512, false))), 1);
    }
    assert_eq!(request(&rig, &mut ring, IN, 0, Some((512, true))), 0);
    assert!(disk.disk.contents().iter().all(|b| *b == 0));
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let (rig, mut ring, disk) = asked(|_| {});
    fill(&rig, 16384, 0xFF);
    assert_eq!(request(&rig, &mut ring, OUT, 0, Some((16384, false))), 0);
    let ranges = |list: &[(u64, u32, u32)]| {
        for (at, (sector, sectors, flags)) in (DATA..).step_by(16).zip(list) {
            rig.memory.write_obj(at, *sector).unwrap();
            rig.memory.write_obj(at + 8, *sectors).unwrap();
            rig.memory.write_obj(at + 12, *flags).unwrap();
        }
        Some((16 * list.len() as u32, false))
    };
    let (discard, zero) = (11, 13);
    let data = ranges(&[(0, 1, 0), (4, 2, 1), (30, 0, 0)]);
    assert_eq!(request(&rig, &mut ring, zero, 0, data), 0);
    let data = ranges(&[(16, 8, 0)]);
    assert_eq!(request(&rig, &mut ring, discard, 0, data), 0);
    let zeros: Vec<usize> = (0..32).filter(|s| disk.disk.contents()[s * 512] == 0).collect();
    assert_eq!(zeros, [0, 4, 5, 16, 17, 18, 19, 20, 21, 22, 23]);

    for (kind, list, status) in [
        (discard, vec![(0, 1, 1)], 2),
        (zero, vec![(0, 1, 2)], 2),
        (zero, vec![(0, (1 << 21) + 1, 0)], 1),
        (zero, vec![(u64::MAX, 1, 0)], 1),
        (zero, vec![(31, 1, 0), (2048, 1, 0)], 1),
        (zero, vec![(0, 0, 0); 17], 1),
        (zero, vec![(0, 0, 0); 16], 0),
        (zero, vec![], 1),
    ] {
        let data = ranges(&list);
        assert_eq!(request(&rig, &mut ring, kind, 0, data), status, "{kind} {list:?}");
    }
    assert_eq!(request(&rig, &mut ring, zero, 0, Some((24, false))), 1, "one and a half");
    let (rig, mut ring, _) = asked(|info| info.unmap = false);
    assert_eq!(rig.offered() & 1 << 13, 0);
    assert_eq!(request(&rig, &mut ring, discard, 0, Some((16, false))), 2);
}

#[test]
fn the_configuration_describes_the_disk() {
    let (rig, mut ring, disk) = asked(|info| {
        info.physical_sector = 4096;
        info.id = std::array::from_fn(|i| 0xA0 + i as u8);
    });
    let config = |at: u64| rig.read::<4>(rig.device + at);
    assert_eq!((config(0), config(12), config(20)), (2048, 254, 512));
    assert_eq!((config(24) & 0xFF, config(32) >> 16, config(44)), (3, 1, 8));
    assert_eq!(request(&rig, &mut ring, 8, 0, Some((20, true))), 0);
    let mut id = [0; 20];
    rig.memory.read(DATA, &mut id).unwrap();
    // The last six bytes are laid over the first.
    assert_eq!(&id, b"0a0a0e0e0a0aa6a7a8a9");
    assert_eq!(request(&rig, &mut ring, 8, 0, Some((4, true))), 0);

    // It grows: the driver is told, once.
    rig.enable_msix(2);
    rig.set_common::<2>(16, 0);
    let generation = rig.common::<1>(21);
    disk.disk.resize(2 << 20);
    assert_eq!(request(&rig, &mut ring, 4, 0, None), 0);
    rig.settle();
    assert_eq!(rig.messages(), [0x40, 0x41]);
    assert_eq!((config(0), rig.common::<1>(21)), (4096, generation + 1));
    assert_eq!(request(&rig, &mut ring, IN, 4095, Some((512, true))), 0);
}

#[test]
fn queues_work_side_by_side() {
    let disk = Arc::new(RamDisk::new(1 << 20, 512));
    let rig = Rig::new(Blk::new(disk, 4));
    rig.negotiate(VERSION_1);
    let mut rings: Vec<Ring> =
        (0..4).map(|index| Ring::new(&rig, index, 16, 0x1_0000 + index * 0x4000)).collect();
    rig.driver_ok();
    header(&rig, IN, 0);
    for round in 0..40 {
        for ring in &mut rings {
            ring.add(&rig, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
        }
        for ring in &mut rings {
            assert_eq!(ring.run(&rig).1, 513, "{round}");
        }
    }
}

#[test]
fn an_unmapped_status_or_header_breaks_the_device_and_a_reset_mends_it() {
    for pieces in [
        &[(HEADER, 16, false)][..],
        &[(HEADER, 8, false), (STATUS, 1, true)],
        &[(STATUS, 1, true)],
        &[(HEADER, 16, false), (DATA, 0, true)],
    ] {
        let (rig, mut ring, _) = asked(|_| {});
        rig.enable_msix(2);
        rig.set_common::<2>(16, 0);
        ring.add(&rig, pieces);
        rig.notify(0);
        crate::rig::waits("the need of a reset", || rig.status() & NEEDS_RESET != 0);
        rig.settle();
        assert_eq!(rig.messages(), [0x40]);
        let mut ring = start(&rig, 0);
        assert_eq!(request(&rig, &mut ring, IN, 0, Some((512, true))), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// A request may be cut into pieces anywhere, in the ring or in a table; and every byte of guest memory that changes is
    /// told to the observer.
    #[test]
    fn any_layout_moves_the_same_bytes(
        cuts in prop::collection::btree_set(1u64..1552, 0..20),
        (indirect, event_idx, write) in any::<(bool, bool, bool)>(),
    ) {
        let disk = Arc::new(RamDisk::new(1 << 20, 512));
        let rig = Rig::new(Blk::new(Arc::clone(&disk) as _, 1));
        let feature = |on: bool, bit: u64| if on { bit } else { 0 };
        let mut ring = start(&rig, feature(indirect, INDIRECT) | feature(event_idx, EVENT_IDX));
        // Header, 1536 bytes of data, status; in this order at many places.
        header(&rig, if write { OUT } else { IN }, 1);
        let mut bytes = vec![0; 16];
        rig.memory.read(HEADER, &mut bytes).unwrap();
        bytes.extend((0..1536).map(|i| if write { i as u8 } else { 0xEE }));
        bytes.push(0xEE);
        let to_write = |at: u64| if write { at >= 1552 } else { at >= 16 };
        let boundary = if write { 1552 } else { 16 };
        let mut ends: Vec<u64> = cuts.into_iter().chain([boundary, 1553]).collect();
        ends.sort_unstable();
        ends.dedup();
        let (mut start, mut place, mut pieces, mut places) = (0, DATA, Vec::new(), Vec::new());
        for end in ends {
            rig.memory.write(place, &bytes[start as usize..end as usize]).unwrap();
            pieces.push((place, (end - start) as u32, to_write(start)));
            places.push((start, end, place));
            (start, place) = (end, place + end - start + 37);
        }
        let mut before = vec![0; 16 << 20];
        let snapshot = |bytes: &mut Vec<u8>| {
            for span in rig.memory.layout().spans() {
                rig.memory.read(span.gpa, &mut bytes[span.gpa as usize..span.end() as usize]).unwrap();
            }
        };
        let (_, len) = {
            if indirect { ring.add_indirect(&rig, 0x20_0000, &pieces) } else { ring.add(&rig, &pieces) };
            rig.seen.take_told();
            snapshot(&mut before);
            ring.run(&rig)
        };
        rig.settle();
        let told = rig.seen.take_told();
        let mut after = vec![0; 16 << 20];
        snapshot(&mut after);
        prop_assert_eq!(len, if write { 1 } else { 1537 });
        for (start, end, place) in places {
            for (i, at) in (start..end).zip(place..) {
                let expected = match i {
                    1552 => 0,
                    16.. if !write => 0,
                    _ => bytes[i as usize],
                };
                prop_assert_eq!(after[at as usize], expected, "byte {}", i);
            }
        }
        if write {
            prop_assert_eq!(&disk.contents()[512..2048], &bytes[16..1552]);
        }
        let changed = (0..before.len()).filter(|at| before[*at] != after[*at]);
        for at in changed.map(|at| at as u64) {
            prop_assert!(told.iter().any(|(gpa, len)| (*gpa..gpa + len).contains(&at)), "{:#x}", at);
        }
    }
}
