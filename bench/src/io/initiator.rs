//! A driver of our SCSI controller in this process: it keeps each channel's queue full, as a guest's fio does by libaio. No
//! processor is virtualised, so what is measured is rings, provider, SCSI and disk.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use vireo_block::BlockDevice;
use vireo_memory::{GuestMemory, Holes, RamLayout};
use vireo_scsi::{ScsiDisk, opcode};
use vireo_storvsp::{Controller, Provider};
use vireo_vdisk::trial::Random;
use vireo_vmbus::driver::{Driver, Received};
use vireo_vmbus::ring::{RingPair, kind};
use vireo_vmbus::{Channel, Device};

/// Bytes of a request.
pub const UNIT: u64 = 4096;
/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Data pages of each ring: Linux's storvsc takes so many.
const RING_PAGES: u32 = 32;
/// Guest memory of a channel: its rings, then a page for each request.
const CHANNEL: u64 = 2 << 20;
/// Where the first channel's is, in guest-physical addresses.
const BASE: u64 = 2 << 20;
/// Where the pages of its requests start in it.
const PAGES: u64 = 1 << 20;
/// Most requests of a channel.
const DEPTH_MAX: usize = 256;
/// Far beyond what the worst host takes for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Operations of the protocol, in the order of an introduction, each with its argument (version 6.2).
const INTRODUCTION: [(u32, u16); 4] = [(7, 0), (9, 0x602), (10, 0), (8, 0)];
const EXECUTE_SRB: u32 = 3;

/// What a driver asks for: single units at random places.
#[derive(Clone, Copy)]
pub struct Load {
    /// Writes, or reads.
    pub write: bool,
    /// Requests under way, in each channel.
    pub depth: usize,
    /// Bytes of the disk that are used.
    pub size: u64,
    /// How long.
    pub time: Duration,
}

/// What came of it.
#[derive(Clone, Copy)]
pub struct Figure {
    /// Requests per second, of all channels.
    pub rate: f64,
    /// Processor time of the channels' threads for a request, in nanoseconds.
    pub cost: f64,
}

/// A channel, and the driver's side of it.
struct Side {
    driver: Driver,
    channel: Arc<Channel>,
    /// Who waits for interrupts.
    waiter: Arc<Mutex<Option<Thread>>>,
    /// Guest-physical address of the requests' pages.
    pages: u64,
}

/// A controller with one disk, and its driver.
pub struct Initiator {
    sides: Vec<Side>,
    provider: Provider,
}

impl Initiator {
    /// With so many channels.
    pub fn new(disk: Arc<dyn BlockDevice>, channels: u16) -> Self {
        let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
        let layout = RamLayout::new(32 << 20, &holes).expect("a size that memory can have");
        let memory = GuestMemory::new(layout).expect("memory");
        let controller = Controller::new();
        controller.add(Some(0), Arc::new(ScsiDisk::new(disk))).expect("an empty controller has room");
        let provider = Provider::new(Weak::new(), 0, controller, channels);
        let side = |number: u16| {
            let base = BASE + u64::from(number) * CHANNEL;
            let driver = Driver::new(&memory, base, RING_PAGES, RING_PAGES);
            let rings = RingPair::new(&memory, &driver.pages(), driver.split()).expect("rings in RAM");
            let waiter: Arc<Mutex<Option<Thread>>> = Arc::default();
            let told = Arc::clone(&waiter);
            let interrupt = Box::new(move |_| {
                if let Some(thread) = &*told.lock().unwrap_or_else(PoisonError::into_inner) {
                    thread.unpark();
                }
            });
            let channel = Channel::new(&memory, rings, [0; 120], 0, interrupt);
            provider.open(number, Arc::clone(&channel)).expect("the host gives a thread");
            Side { driver, channel, waiter, pages: base + PAGES }
        };
        let sides = (0..channels).map(side).collect();
        let initiator = Self { sides, provider };
        initiator.sides[0].introduce();
        initiator
    }

    /// Keeps all queues full for a time.
    pub fn run(&self, load: Load) -> Figure {
        assert!(load.depth <= DEPTH_MAX, "a page for each request");
        let stop = AtomicBool::new(false);
        let before = worker_time();
        let start = Instant::now();
        let done: u64 = std::thread::scope(|scope| {
            let stop = &stop;
            let threads: Vec<_> = self
                .sides
                .iter()
                .enumerate()
                .map(|(n, side)| scope.spawn(move || side.keep_full(load, n as u64, stop)))
                .collect();
            std::thread::sleep(load.time);
            stop.store(true, Ordering::Relaxed);
            threads.into_iter().map(|t| t.join().expect("a driver that works")).sum()
        });
        let (elapsed, cost) = (start.elapsed(), worker_time().saturating_sub(before));
        Figure { rate: done as f64 / elapsed.as_secs_f64(), cost: cost.as_nanos() as f64 / done as f64 }
    }
}

impl Drop for Initiator {
    fn drop(&mut self) {
        (0..self.sides.len() as u16).for_each(|number| self.provider.close(number));
    }
}

impl Side {
    fn introduce(&self) {
        for (operation, argument) in INTRODUCTION {
            let mut packet = [0; 64];
            packet[..4].copy_from_slice(&operation.to_le_bytes());
            packet[12..14].copy_from_slice(&argument.to_le_bytes());
            self.send(kind::IN_BAND, 0, &[], &packet);
            assert_eq!(self.poll().data[8..12], [0; 4], "operation {operation} is taken");
        }
        // The first command is told that the unit has just been switched on.
        self.command(0, &[opcode::TEST_UNIT_READY], &[]);
        self.poll();
    }

    fn send(&self, kind: u16, transaction: u64, ranges: &[(u32, u32, &[u64])], packet: &[u8; 64]) {
        if self.driver.send(kind, transaction, ranges, packet).expect("a ring with room for all requests") {
            self.channel.doorbell().ring();
        }
    }

    fn command(&self, transaction: u64, cdb: &[u8], pages: &[u64]) {
        let bytes = (pages.len() as u64 * UNIT) as u32;
        let mut packet = [0; 64];
        packet[..4].copy_from_slice(&EXECUTE_SRB.to_le_bytes());
        // Of struct vmscsi_request: its length, the command's and the sense data's, direction, bytes, command.
        (packet[12], packet[20], packet[21], packet[22]) = (52, cdb.len() as u8, 20, 1);
        packet[24..28].copy_from_slice(&bytes.to_le_bytes());
        packet[28..28 + cdb.len()].copy_from_slice(cdb);
        match pages {
            [] => self.send(kind::IN_BAND, transaction, &[], &packet),
            pages => self.send(kind::GPA_DIRECT, transaction, &[(bytes, 0, pages)], &packet),
        }
    }

    /// The next packet, without an interrupt.
    fn poll(&self) -> Received {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.driver.receive() {
                Some(packet) => return packet,
                None => assert!(Instant::now() < end, "the controller answers"),
            }
            std::thread::yield_now();
        }
    }

    /// A unit at a random place for request `slot`.
    fn ask(&self, slot: u64, load: Load, random: &mut Random) {
        let block = (random.below(load.size / UNIT) * (UNIT / SECTOR)) as u32;
        let mut cdb = [0; 10];
        cdb[0] = if load.write { opcode::WRITE_10 } else { opcode::READ_10 };
        cdb[2..6].copy_from_slice(&block.to_be_bytes());
        cdb[7..9].copy_from_slice(&((UNIT / SECTOR) as u16).to_be_bytes());
        self.command(slot, &cdb, &[(self.pages + slot * UNIT) / UNIT]);
    }

    /// Follows each answer by a request until told to stop; how many were answered. As Linux's driver, it masks interrupts
    /// while it finds answers.
    fn keep_full(&self, load: Load, seed: u64, stop: &AtomicBool) -> u64 {
        *self.waiter.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        let mut random = Random(seed + 1);
        (0..load.depth as u64).for_each(|slot| self.ask(slot, load, &mut random));
        let (mut done, mut pending) = (0, load.depth);
        while pending > 0 {
            self.driver.mask(true);
            while let Some(answer) = self.driver.receive() {
                assert_eq!(answer.data[14], 1, "a request that succeeds");
                if self.driver.awaited_room() != 0 {
                    self.channel.doorbell().ring();
                }
                done += 1;
                match stop.load(Ordering::Relaxed) {
                    true => pending -= 1,
                    false => self.ask(answer.transaction, load, &mut random),
                }
            }
            self.driver.mask(false);
            if pending > 0 && self.driver.is_empty() {
                let slept = Instant::now();
                std::thread::park_timeout(PATIENCE);
                assert!(slept.elapsed() < PATIENCE, "an interrupt comes");
            }
        }
        done
    }
}

/// Processor time that the threads of channels have had so far; zero where the kernel does not tell.
fn worker_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let time = |task: std::fs::DirEntry| {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).ok();
        let worker = read("comm")?.trim() == "storvsp";
        let time = read("schedstat").filter(|_| worker)?;
        time.split(' ').next()?.parse().ok().map(Duration::from_nanos)
    };
    tasks.filter_map(time).sum()
}
