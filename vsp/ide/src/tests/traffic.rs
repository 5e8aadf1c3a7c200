//! Any accesses, in any order.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vireo_chipset::pci::PciFunction;

use super::rig::*;
use crate::{IdeDrive, Place};

#[derive(Clone, Debug)]
enum Access {
    Write(usize, u8),
    /// A command that exists.
    Command(u8),
    Read(usize),
    DataIn(usize),
    DataOut(Vec<u8>),
    /// A whole command to the disk: code, address, count.
    Disk(u8, u64, u16),
    /// A whole packet to the CD: by bus master or not, byte count, the bytes.
    Packet(bool, u16, Vec<u8>),
    /// A list for the bus master.
    List(Vec<(u32, u32)>),
    Start(bool),
    Control(u8),
    BusMaster(usize, u8),
    /// Memory that lists and their regions are in.
    Memory(u16, u64),
    Slow(bool),
    Broken(bool),
    Release,
    Medium(bool),
    Reset,
    /// Saved, and restored.
    Saved,
}

const COMMANDS: &[u8] = &[
    0x00, 0x06, 0x08, 0x10, 0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x3D, 0x40, 0x42, 0x70, 0x90,
    0x91, 0xA0, 0xA1, 0xC4, 0xC5, 0xC6, 0xC8, 0xCA, 0xCE, 0xE0, 0xE1, 0xE5, 0xE7, 0xEA, 0xEC, 0xEF,
];

const PACKETS: &[u8] = &[
    0x00, 0x03, 0x12, 0x1B, 0x1E, 0x25, 0x28, 0x2B, 0x42, 0x43, 0x46, 0x4A, 0x51, 0x5A, 0xA8, 0xBB, 0xBD,
    0xFF,
];

fn access() -> impl Strategy<Value = Access> {
    let small = prop_oneof![3 => 0_u8..4, 1 => any::<u8>()];
    let sector = prop_oneof![3 => 0_u64..310, 1 => any::<u64>()];
    let limit = prop_oneof![1 => 0_u16..4, 3 => any::<u16>()];
    let any_packet = (prop::sample::select(PACKETS), prop::collection::vec(small.clone(), 11))
        .prop_map(|(code, rest)| [vec![code], rest].concat());
    let read = (0_u8..70, 0_u8..40).prop_map(|(lba, n)| vec![0x28, 0, 0, 0, 0, lba, 0, 0, n, 0, 0, 0]);
    let packet = (any::<bool>(), limit, prop_oneof![any_packet, read])
        .prop_map(|(dma, limit, bytes)| Access::Packet(dma, limit, bytes));
    let region = prop_oneof![
        4 => (0_u32..0x00F0_0000, 0_u32..0x1_0000),
        1 => (0_u32..0x0100_0000, 0_u32..0x1_0000).prop_map(|(a, n)| (a, n | 1 << 31)),
        1 => any::<(u32, u32)>(),
    ];
    let device = prop::sample::select(&[0x00, 0x10, 0x40, 0x50]);
    let command = prop::sample::select(COMMANDS);
    prop_oneof![
        4 => (1_usize..7, small.clone()).prop_map(|(at, v)| Access::Write(at, v)),
        4 => device.prop_map(|v| Access::Write(DEVICE, v)),
        1 => any::<u8>().prop_map(|v| Access::Write(COMMAND, v)),
        4 => command.clone().prop_map(Access::Command),
        4 => (1_usize..8).prop_map(Access::Read),
        4 => (1_usize..3000).prop_map(Access::DataIn),
        2 => prop::collection::vec(any::<u8>(), 1..2000).prop_map(Access::DataOut),
        8 => (command, sector, prop_oneof![Just(1_u16), 1_u16..40])
            .prop_map(|(code, lba, count)| Access::Disk(code, lba, count)),
        8 => packet,
        6 => prop::collection::vec(region, 1..20).prop_map(Access::List),
        8 => any::<bool>().prop_map(Access::Start),
        1 => any::<u8>().prop_map(Access::Control),
        2 => (0_usize..16, small).prop_map(|(at, v)| Access::BusMaster(at, v)),
        1 => (0_u16..64, any::<u64>()).prop_map(|(at, v)| Access::Memory(at, v)),
        1 => any::<bool>().prop_map(Access::Slow),
        1 => any::<bool>().prop_map(Access::Broken),
        3 => Just(Access::Release),
        1 => any::<bool>().prop_map(Access::Medium),
        1 => Just(Access::Reset),
        2 => Just(Access::Saved),
    ]
}

struct Subject {
    rig: Rig,
    disks: [Arc<TestDisk>; 2],
}

impl Subject {
    fn new() -> Self {
        let disks = [TestDisk::new(300), TestDisk::new(256)];
        let drives = [
            Some(IdeDrive::Disk(Arc::clone(&disks[0]) as _)),
            Some(IdeDrive::Cd(Some(Arc::clone(&disks[1]) as _))),
            None,
            None,
        ];
        Self { rig: Rig::new(drives), disks }
    }

    /// Whatever the guest did before: a reset and IDENTIFY work.
    fn works(&self) -> Result<(), TestCaseError> {
        let rig = &self.rig;
        self.release();
        rig.control(0x04);
        rig.control(0x00);
        prop_assert_eq!(rig.read(COMMAND), READY);
        self.disks.iter().for_each(|d| d.slow.store(false, Ordering::SeqCst));
        rig.write(COMMAND, 0xEC);
        prop_assert_eq!(rig.read(COMMAND), DRQ);
        prop_assert_eq!(&rig.data_in(512)[54..64], b"iVer oiVtr");
        Ok(())
    }

    /// Ends what the disks have: some accesses wait for it, and nobody else would.
    fn release(&self) {
        for disk in &self.disks {
            disk.release();
        }
    }

    fn apply(&self, access: &Access) {
        let rig = &self.rig;
        match access {
            Access::Write(at, value) => rig.write(*at, *value),
            Access::Command(code) => rig.write(COMMAND, *code),
            Access::Read(at) => _ = rig.read(*at),
            Access::DataIn(len) => _ = rig.data_in(*len),
            Access::DataOut(data) => rig.data_out(data),
            Access::Disk(code, lba, count) => {
                // TRIM, if the command is about that.
                rig.write(FEATURES, 1);
                rig.long(*code, *lba, *count);
            }
            Access::Packet(dma, limit, bytes) => {
                let [low, high] = limit.to_le_bytes();
                let registers = [(DEVICE, 0x10), (FEATURES, u8::from(*dma)), (LBA + 1, low), (LBA + 2, high)];
                for (at, value) in registers {
                    rig.write(at, value);
                }
                rig.write(COMMAND, 0xA0);
                rig.data_out(bytes);
            }
            Access::List(entries) => rig.list(entries),
            Access::Start(start) => self.apply(&Access::BusMaster(0, u8::from(*start))),
            Access::Control(value) => rig.control(*value),
            Access::BusMaster(at, value) => {
                // To stop it is to wait.
                if at % 8 == 0 && value & 1 == 0 {
                    self.release();
                }
                rig.ide.bar_write(4, *at as u64, &[*value]);
            }
            Access::Memory(at, value) => {
                rig.memory.write_obj(0x1000 + u64::from(*at) * 8, *value).expect("RAM")
            }
            Access::Slow(slow) => self.disks.iter().for_each(|d| d.slow.store(*slow, Ordering::SeqCst)),
            Access::Broken(broken) => {
                self.disks.iter().for_each(|d| d.broken.store(*broken, Ordering::SeqCst))
            }
            Access::Release => self.release(),
            Access::Medium(true) => {
                rig.ide.insert(Place::PrimarySlave, Arc::clone(&self.disks[1]) as _).expect("a drive");
            }
            Access::Medium(false) => _ = rig.ide.remove(Place::PrimarySlave, false),
            Access::Reset => {
                self.release();
                rig.ide.reset();
            }
            Access::Saved => {
                self.release();
                let state = rig.ide.save();
                rig.ide.restore(&state).expect("what was saved can be restored");
                assert_eq!(rig.ide.save(), state);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Nothing panics, nothing hangs, and a disk is asked for what it has only.
    #[test]
    fn the_controller_survives(accesses in prop::collection::vec(access(), 1..150)) {
        let subject = Subject::new();
        for access in &accesses {
            subject.apply(access);
        }
        subject.works()?;
        let total = [300 * 512, 256 * 512];
        for (disk, size) in subject.disks.iter().zip(total) {
            for (_, at, len) in disk.asked.lock().unwrap().iter() {
                prop_assert!(at + len <= size);
            }
        }
    }

    /// The same with two processors, and disks that complete on a thread of their own.
    #[test]
    fn accesses_and_completions_race(
        accesses in prop::collection::vec(access(), 1..150),
        others in prop::collection::vec(access(), 1..150),
    ) {
        let subject = Subject::new();
        let processor = |accesses: &[Access]| {
            for access in accesses.iter().filter(|a| !matches!(a, Access::Reset | Access::Saved)) {
                subject.apply(access);
            }
        };
        std::thread::scope(|scope| {
            let processors = [scope.spawn(|| processor(&accesses)), scope.spawn(|| processor(&others))];
            while !processors.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                subject.release();
                std::thread::yield_now();
            }
        });
        subject.works()?;
    }
}
