//! A controller as its driver uses it, and as no driver would.

mod hosted;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vireo_block::{BlockDevice, BlockInfo, RamDisk, Request};
use vireo_memory::{GuestMemory, Holes, RamLayout};
use vireo_scsi::{ScsiDisk, opcode};
use vireo_vmbus::driver::{Driver, Interrupts, Received};
use vireo_vmbus::ring::{RingPair, kind};
use vireo_vmbus::{Channel, Device};

use crate::protocol::operation;
use crate::{Controller, Provider, UnitError};

const BASE: u64 = 0x20_0000;
const DATA: u64 = 0x40_0000;

/// A disk that lets its requests wait until it is told to go on.
struct Slow {
    disk: RamDisk,
    held: Mutex<Option<Vec<Request>>>,
}

impl Slow {
    fn go_on(&self) {
        let held = self.held.lock().unwrap().take();
        self.disk.submit(&mut held.unwrap_or_default());
    }
}

impl BlockDevice for Slow {
    fn info(&self) -> BlockInfo {
        self.disk.info()
    }
    fn submit(&self, batch: &mut Vec<Request>) {
        match &mut *self.held.lock().unwrap() {
            Some(held) => held.append(batch),
            None => self.disk.submit(batch),
        }
    }
}

struct Rig {
    memory: Arc<GuestMemory>,
    driver: Driver,
    channel: Arc<Channel>,
    provider: Provider,
    controller: Arc<Controller>,
    interrupts: Interrupts,
    next: AtomicU32,
}

impl Rig {
    fn new() -> Self {
        let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
        let memory = GuestMemory::new(RamLayout::new(16 << 20, &holes).unwrap()).unwrap();
        let driver = Driver::new(&memory, BASE, 8, 8);
        let rings = RingPair::new(&memory, &driver.pages(), driver.split()).expect("rings");
        let interrupts = Interrupts::default();
        let channel = Channel::new(&memory, rings, [0; 120], 0, interrupts.sink());
        let controller = Controller::new();
        let provider = Provider::new(Weak::new(), 0, Arc::clone(&controller), 3);
        provider.open(0, Arc::clone(&channel)).expect("it opens");
        Self { memory, driver, channel, provider, controller, interrupts, next: AtomicU32::new(1) }
    }

    /// With a driver that has introduced itself, and these disks.
    fn with(disks: &[Arc<dyn BlockDevice>]) -> Self {
        let rig = Self::new();
        for disk in disks {
            let unit = ScsiDisk::new(Arc::clone(disk));
            rig.controller.add(None, Arc::new(unit)).expect("room");
        }
        for (operation, number) in [(7, 0), (9, 0x602), (10, 0), (8, 0)] {
            assert_eq!(rig.control(operation, number).1, 0);
        }
        for lun in 0..disks.len() as u8 {
            rig.scsi(lun, &[opcode::TEST_UNIT_READY], &[], 0);
        }
        rig
    }

    fn send(&self, operation: u32, body: &[u8], ranges: &[(u32, u32, &[u64])]) -> u64 {
        let mut packet = vec![0; 64];
        packet[..4].copy_from_slice(&operation.to_le_bytes());
        packet[12..12 + body.len()].copy_from_slice(body);
        let transaction = u64::from(self.next.fetch_add(1, Ordering::Relaxed));
        let kind = if ranges.is_empty() { kind::IN_BAND } else { kind::GPA_DIRECT };
        if self.driver.send(kind, transaction, ranges, &packet).expect("room") {
            self.channel.doorbell().ring();
        }
        transaction
    }

    /// Waits for the next packet, by interrupts alone: one that does not come is a failure.
    fn receive(&self) -> Received {
        let packet = self.interrupts.receive(&self.driver, Duration::from_secs(20)).expect("no interrupt");
        if self.driver.awaited_room() != 0 {
            self.channel.doorbell().ring();
        }
        packet
    }

    /// A request of the protocol's own: its answer, and status.
    fn control(&self, operation: u32, number: u16) -> (Vec<u8>, u32) {
        let transaction = self.send(operation, &number.to_le_bytes(), &[]);
        let got = self.receive();
        assert_eq!((got.kind, got.transaction), (kind::COMPLETION, transaction));
        let status = u32::from_le_bytes(got.data[8..12].try_into().unwrap());
        (got.data, status)
    }

    fn start(&self, unit: [u8; 3], cdb: &[u8], pages: &[u64], bytes: u32) -> u64 {
        let mut body = vec![52, 0, 0, 0, 0, unit[0], unit[1], unit[2], cdb.len() as u8, 20, 1, 0];
        body.extend(bytes.to_le_bytes());
        body.extend(cdb);
        let ranges = [(bytes, 0, pages)];
        self.send(operation::EXECUTE_SRB, &body, if pages.is_empty() { &[] } else { &ranges })
    }

    /// Runs a SCSI command: status of the block, SCSI status, bytes moved, sense.
    fn scsi(&self, lun: u8, cdb: &[u8], pages: &[u64], bytes: u32) -> (u8, u8, u32, Vec<u8>) {
        let transaction = self.start([0, 0, lun], cdb, pages, bytes);
        let got = self.receive();
        assert_eq!(got.transaction, transaction);
        ended(&got)
    }
}

fn ended(got: &Received) -> (u8, u8, u32, Vec<u8>) {
    let moved = u32::from_le_bytes(got.data[24..28].try_into().unwrap());
    (got.data[14], got.data[15], moved, got.data[28..28 + usize::from(got.data[21])].to_vec())
}

fn ram() -> Arc<RamDisk> {
    Arc::new(RamDisk::new(1 << 20, 512))
}

#[test]
fn the_driver_introduces_itself() {
    let rig = Rig::new();
    assert_eq!(rig.control(operation::BEGIN_INITIALIZATION, 0).1, 0);
    assert_ne!(rig.control(operation::END_INITIALIZATION, 0).1, 0, "no version yet");
    let early = rig.start([0, 0, 0], &[0], &[], 0);
    let got = rig.receive();
    assert_eq!((got.transaction, ended(&got).0), (early, 0x84), "not ready");
    for (version, known) in [(0x603, false), (0x602, true), (0x200, true), (0, false), (0x501, true)] {
        assert_eq!(rig.control(operation::QUERY_PROTOCOL_VERSION, version).1 == 0, known, "{version:#x}");
    }
    let (properties, status) = rig.control(operation::QUERY_PROPERTIES, 0);
    assert_eq!((status, &properties[16..28]), (0, &[3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 16, 0][..]));
    assert_eq!(rig.control(operation::END_INITIALIZATION, 0).1, 0);
    assert_ne!(rig.control(operation::CREATE_SUBCHANNELS, 4).1, 0, "more than there may be");
    assert_ne!(rig.control(0x99, 0).1, 0);
}

#[test]
fn disks_are_found_written_and_read() {
    let disk = ram();
    let rig = Rig::with(&[Arc::clone(&disk) as _, ram() as _]);
    rig.memory.write(DATA, &[0xa5; 4096]).unwrap();
    let pages = [DATA >> 12];
    let write = [opcode::WRITE_10, 0, 0, 0, 0, 8, 0, 0, 8];
    assert_eq!(rig.scsi(0, &write, &pages, 4096), (1, 0, 4096, vec![]));
    assert_eq!(disk.contents()[4096..8192], [0xa5; 4096]);
    let far = [(DATA + 0x10_0000) >> 12];
    let read = [opcode::READ_10, 0, 0, 0, 0, 8, 0, 0, 8];
    assert_eq!(rig.scsi(0, &read, &far, 4096).2, 4096);
    let mut bytes = [0; 4096];
    rig.memory.read(DATA + 0x10_0000, &mut bytes).unwrap();
    assert_eq!(bytes, [0xa5; 4096]);
    assert_eq!(rig.scsi(0, &[opcode::REPORT_LUNS], &pages, 64).2, 24);
    let (srb, scsi, _, sense) = rig.scsi(0, &[opcode::READ_10, 0, 0xff], &pages, 512);
    assert_eq!((srb, scsi, sense[2], sense[12]), (0x84, 2, 5, 0x21));
}

#[test]
fn where_nothing_is_the_driver_finds_nothing() {
    let rig = Rig::with(&[ram() as _]);
    let pages = [DATA >> 12];
    assert_eq!(rig.scsi(9, &[opcode::TEST_UNIT_READY], &[], 0).0, 0x20, "invalid LUN");
    assert_eq!(
        (rig.scsi(9, &[opcode::INQUIRY], &pages, 36).2, rig.memory.read_obj::<u8>(DATA).unwrap()),
        (36, 0x7f)
    );
    rig.start([0, 1, 0], &[opcode::REPORT_LUNS], &pages, 64);
    assert_eq!(ended(&rig.receive()).2, 8, "an empty list at another target");
}

#[test]
fn disks_come_go_and_grow_while_the_driver_works() {
    let disk = ram();
    let rig = Rig::with(&[Arc::clone(&disk) as _]);
    let announced = || {
        let got = rig.receive();
        assert_eq!((got.kind, got.transaction, got.data[0]), (kind::IN_BAND, 0, 11));
    };
    let lun = rig.controller.add(None, Arc::new(ScsiDisk::new(ram()))).unwrap();
    assert_eq!(lun, 1);
    announced();
    assert_eq!(rig.scsi(1, &[opcode::TEST_UNIT_READY], &[], 0).3[12], 0x29);
    rig.controller.remove(1).unwrap();
    announced();
    assert_eq!(rig.scsi(1, &[opcode::TEST_UNIT_READY], &[], 0).0, 0x20);
    // Its number is not another's before the guest has let go of it.
    assert_eq!(rig.controller.add(Some(1), Arc::new(ScsiDisk::new(ram()))), Err(UnitError::Leaving(1)));
    assert_eq!(rig.controller.add(None, Arc::new(ScsiDisk::new(ram()))), Ok(2));
    announced();
    // Where the guest has let go of none, there is none to be had for a while; which is not the same as too many.
    for lun in 3..64 {
        assert_eq!(rig.controller.add(None, Arc::new(ScsiDisk::new(ram()))), Ok(lun));
        announced();
        rig.controller.remove(lun).unwrap();
        announced();
    }
    assert_eq!(rig.controller.add(None, Arc::new(ScsiDisk::new(ram()))), Err(UnitError::AllLeaving));
    rig.controller.look();
    disk.resize(2 << 20);
    rig.controller.look();
    announced();
    let (srb, _, _, sense) = rig.scsi(0, &[opcode::TEST_UNIT_READY], &[], 0);
    assert_eq!((srb, sense[2], sense[12], sense[13]), (0x82, 6, 0x2a, 9));
    assert!(
        rig.controller.remove(7).is_err()
            && rig.controller.add(Some(64), Arc::new(ScsiDisk::new(ram()))).is_err()
    );
}

#[test]
fn a_disk_that_is_slow_keeps_no_other_waiting() {
    let slow = Arc::new(Slow { disk: RamDisk::new(1 << 20, 512), held: Mutex::default() });
    let rig = Rig::with(&[Arc::clone(&slow) as _, ram() as _]);
    *slow.held.lock().unwrap() = Some(Vec::new());
    let pages = [DATA >> 12];
    let read = [opcode::READ_10, 0, 0, 0, 0, 0, 0, 0, 1];
    // More than the ring holds at a time.
    for _ in 0..1500 {
        rig.start([0, 0, 0], &read, &pages, 512);
        assert_eq!(rig.scsi(1, &read, &pages, 512).0, 1);
    }
    slow.go_on();
    for _ in 0..1500 {
        assert_eq!(ended(&rig.receive()).0, 1);
    }
}

#[test]
fn a_pause_waits_for_what_is_under_way_and_nothing_starts_in_it() {
    let slow = Arc::new(Slow { disk: RamDisk::new(1 << 20, 512), held: Mutex::default() });
    let rig = &Rig::with(&[Arc::clone(&slow) as _]);
    *slow.held.lock().unwrap() = Some(Vec::new());
    let read = [opcode::READ_10, 0, 0, 0, 0, 0, 0, 0, 1];
    rig.start([0, 0, 0], &read, &[DATA >> 12], 512);
    while slow.held.lock().unwrap().as_ref().is_none_or(Vec::is_empty) {
        std::thread::yield_now();
    }
    std::thread::scope(|s| {
        let soon = || Instant::now() + Duration::from_secs(20);
        assert!(!rig.provider.pause(Instant::now()), "it is busy");
        let pause = s.spawn(move || rig.provider.pause(soon()));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!pause.is_finished());
        slow.go_on();
        assert!(pause.join().unwrap());
    });
    assert_eq!(ended(&rig.receive()).0, 1);
    rig.start([0, 0, 0], &read, &[DATA >> 12], 512);
    std::thread::sleep(Duration::from_millis(20));
    assert!(rig.driver.receive().is_none());
    rig.provider.resume();
    assert_eq!(ended(&rig.receive()).0, 1);
}

#[test]
fn who_does_not_read_answers_gets_no_more_work_done() {
    let rig = Rig::with(&[ram() as _]);
    let read = [opcode::READ_10, 0, 0, 0, 0, 0, 0, 0, 1];
    let mut body = vec![52, 0, 0, 0, 0, 0, 0, 0, read.len() as u8, 20, 1, 0, 0, 2, 0, 0];
    body.extend(read);
    let mut packet = vec![3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    packet.extend(body);
    packet.resize(64, 0);
    let mut sent = 0_u64;
    let mut refused = 0;
    while refused < 200 {
        match rig.driver.send(kind::IN_BAND, sent, &[], &packet) {
            Some(signal) => {
                sent += 1;
                refused = 0;
                if signal {
                    rig.channel.doorbell().ring();
                }
            }
            None => {
                refused += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    // Both rings, and what the host keeps.
    assert!((4096..6000).contains(&sent), "{sent}");
    for _ in 0..sent {
        rig.receive();
    }
}

#[test]
fn a_machine_that_goes_lets_its_disks_go() {
    let disk = ram();
    let rig = Rig::with(&[Arc::clone(&disk) as _]);
    assert!(Arc::strong_count(&disk) > 1);
    drop(rig);
    assert_eq!(Arc::strong_count(&disk), 1);
}

#[test]
fn what_is_no_request_does_not_look_like_a_success() {
    let rig = Rig::with(&[ram() as _]);
    let read = [opcode::READ_10, 0, 0, 0, 0, 0, 0, 0, 1];
    let (srb, scsi, moved, sense) = rig.scsi(0, &read, &[0xa0], 512);
    assert_eq!((srb, scsi, moved, sense[2]), (0x84, 2, 0, 5), "no RAM");
    let pages: Vec<u64> = (0..600).map(|n| (DATA >> 12) + 2 * (n % 300)).collect();
    assert_eq!(rig.scsi(0, &read, &pages, 600 * 4096).0, 0x84, "more than drivers are told");
}

#[test]
fn nothing_is_told_while_paused_and_a_closed_channels_requests_are_waited_for() {
    let slow = Arc::new(Slow { disk: RamDisk::new(1 << 20, 512), held: Mutex::default() });
    let rig = Rig::with(&[Arc::clone(&slow) as _]);
    let soon = || Instant::now() + Duration::from_secs(20);
    assert!(rig.provider.pause(soon()));
    rig.controller.add(None, Arc::new(ScsiDisk::new(ram()))).unwrap();
    assert!(rig.driver.receive().is_none());
    rig.provider.resume();
    assert_eq!(rig.receive().kind, kind::IN_BAND);

    *slow.held.lock().unwrap() = Some(Vec::new());
    rig.start([0, 0, 0], &[opcode::READ_10, 0, 0, 0, 0, 0, 0, 0, 1], &[DATA >> 12], 512);
    while slow.held.lock().unwrap().as_ref().is_none_or(Vec::is_empty) {
        std::thread::yield_now();
    }
    rig.provider.close(0);
    assert!(!rig.provider.pause(Instant::now()), "it may still write guest memory");
    slow.go_on();
    assert!(rig.provider.pause(soon()));
}

#[test]
fn a_channel_that_is_closed_is_left_alone() {
    let slow = Arc::new(Slow { disk: RamDisk::new(1 << 20, 512), held: Mutex::default() });
    let rig = Rig::with(&[Arc::clone(&slow) as _]);
    *slow.held.lock().unwrap() = Some(Vec::new());
    rig.start([0, 0, 0], &[opcode::READ_10, 0, 0, 0, 0, 0, 0, 0, 1], &[DATA >> 12], 512);
    while slow.held.lock().unwrap().as_ref().is_none_or(Vec::is_empty) {
        std::thread::yield_now();
    }
    rig.provider.close(0);
    rig.controller.add(None, Arc::new(ScsiDisk::new(ram()))).unwrap();
    slow.go_on();
    assert!(rig.driver.receive().is_none());
    rig.provider.reset();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_packet_does_harm(
        packets in prop::collection::vec((0..20_u32, prop::collection::vec(any::<u8>(), 0..80), prop::collection::vec(any::<u64>(), 0..4), any::<u32>()), 1..40),
        noise in prop::collection::vec((0..8_u64, any::<u32>()), 0..4),
    ) {
        let rig = Rig::with(&[ram() as _]);
        for (operation, body, pages, bytes) in packets {
            let mut packet = operation.to_le_bytes().to_vec();
            packet.resize(12, 0);
            packet.extend(body);
            let ranges = [(bytes, 0, &pages[..])];
            let kind = if pages.is_empty() { kind::IN_BAND } else { kind::GPA_DIRECT };
            rig.driver.send(kind, 1, if pages.is_empty() { &[] } else { &ranges }, &packet);
            rig.channel.doorbell().ring();
            while rig.driver.receive().is_some() {}
        }
        for (word, value) in noise {
            rig.memory.write_obj(rig.driver.controls()[0] + word * 4, value).unwrap();
            rig.channel.doorbell().ring();
        }
        prop_assert!(rig.provider.pause(Instant::now() + Duration::from_secs(20)));
        rig.provider.close(0);
    }
}
