//! A controller with memory, a disk that works when it is told to, and lines that are watched.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vireo_block::{BlockDevice, BlockError, BlockInfo, Operation, RamDisk, Request};
use vireo_chipset::lines::IrqLine;
use vireo_chipset::pci::PciFunction;
use vireo_memory::{GuestMemory, Holes, RamLayout};

use crate::{Drives, IdeController, IdeDrive};

pub const FEATURES: usize = 1;
pub const COUNT: usize = 2;
pub const LBA: usize = 3;
pub const DEVICE: usize = 6;
pub const COMMAND: usize = 7;

pub const READY: u8 = 0x50;
pub const DRQ: u8 = 0x58;
pub const BSY: u8 = 0x80;

/// Counts rising edges.
#[derive(Default)]
pub struct Line {
    level: AtomicBool,
    edges: AtomicUsize,
}

impl IrqLine for Line {
    fn set(&self, asserted: bool) {
        if asserted && !self.level.swap(asserted, Ordering::SeqCst) {
            self.edges.fetch_add(1, Ordering::SeqCst);
        }
        self.level.store(asserted, Ordering::SeqCst);
    }
}

impl Line {
    pub fn level(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }

    pub fn edges(&self) -> usize {
        self.edges.load(Ordering::SeqCst)
    }
}

/// A disk in memory that can be slow or broken, and tells what it was asked for.
pub struct TestDisk {
    pub ram: RamDisk,
    /// Requests wait for [`TestDisk::release`].
    pub slow: AtomicBool,
    /// All but flushes fail.
    pub broken: AtomicBool,
    pub asked: Mutex<Vec<(Operation, u64, u64)>>,
    waiting: Mutex<Vec<Request>>,
}

impl TestDisk {
    /// Of sectors that each hold their own number.
    pub fn new(sectors: usize) -> Arc<Self> {
        let ram = RamDisk::new(sectors * 512, 512);
        let disk = Self {
            ram,
            slow: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            asked: Mutex::default(),
            waiting: Mutex::default(),
        };
        let bytes: Vec<u8> = (0..sectors).flat_map(sector).collect();
        let buffers = vec![vireo_block::Buffer::host(&vireo_block::HostBuffer::of(&bytes))];
        let done = Box::new(|r: Result<(), BlockError>| r.expect("filled"));
        let (at, len) = (0, bytes.len() as u64);
        disk.ram.submit(&mut vec![Request {
            operation: Operation::Write { fua: false },
            at,
            len,
            buffers,
            done,
        }]);
        Arc::new(disk)
    }

    /// Completes what waits; how many requests that was.
    pub fn release(&self) -> usize {
        let mut waiting = std::mem::take(&mut *self.waiting.lock().unwrap());
        let n = waiting.len();
        self.work(&mut waiting);
        n
    }

    fn work(&self, batch: &mut Vec<Request>) {
        if !self.broken.load(Ordering::SeqCst) {
            return self.ram.submit(batch);
        }
        for request in batch.drain(..) {
            let result = if request.operation == Operation::Flush {
                Ok(())
            } else {
                Err(BlockError::Image("broken".into()))
            };
            request.complete(result);
        }
    }
}

/// What a sector holds at first.
pub fn sector(n: usize) -> Vec<u8> {
    (n as u32).to_le_bytes().repeat(128)
}

impl BlockDevice for TestDisk {
    fn info(&self) -> BlockInfo {
        self.ram.info()
    }

    fn submit(&self, batch: &mut Vec<Request>) {
        self.asked.lock().unwrap().extend(batch.iter().map(|r| (r.operation, r.at, r.len)));
        if self.slow.load(Ordering::SeqCst) {
            self.waiting.lock().unwrap().append(batch);
        } else {
            self.work(batch);
        }
    }
}

pub struct Rig {
    pub memory: Arc<GuestMemory>,
    pub lines: [Arc<Line>; 2],
    pub ide: Arc<IdeController>,
    /// The channel that is driven.
    pub channel: usize,
}

pub fn memory() -> Arc<GuestMemory> {
    let holes = Holes { legacy: 0xA0000..0x10_0000, pci: 0xC000_0000..0x1_0000_0000 };
    GuestMemory::new(RamLayout::new(16 << 20, &holes).expect("a layout")).expect("memory")
}

impl Rig {
    pub fn new(drives: Drives) -> Self {
        let (memory, lines) = (memory(), [Arc::default(), Arc::default()]);
        let irqs = lines.each_ref().map(|l: &Arc<Line>| Arc::clone(l) as Arc<dyn IrqLine>);
        let ide = IdeController::new(&memory, irqs, drives).expect("a controller");
        Self { memory, lines, ide, channel: 0 }
    }

    /// With one disk of 2048 sectors as the first drive.
    pub fn disk() -> (Self, Arc<TestDisk>) {
        let disk = TestDisk::new(2048);
        let drives = [Some(IdeDrive::Disk(Arc::clone(&disk) as _)), None, None, None];
        (Self::new(drives), disk)
    }

    /// With a CD of 64 blocks as the third drive, on the second channel, which is driven.
    pub fn cd() -> (Self, Arc<TestDisk>) {
        let medium = TestDisk::new(256);
        let drives = [None, None, Some(IdeDrive::Cd(Some(Arc::clone(&medium) as _))), None];
        let mut rig = Self::new(drives);
        rig.channel = 1;
        (rig, medium)
    }

    pub fn read(&self, at: usize) -> u8 {
        let mut data = [0];
        self.ide.channel(self.channel).read(at, &mut data);
        data[0]
    }

    pub fn write(&self, at: usize, value: u8) {
        self.ide.channel(self.channel).write(at, &[value]);
    }

    pub fn control(&self, value: u8) {
        self.ide.channel(self.channel).write_control(value);
    }

    pub fn alternate(&self) -> u8 {
        self.ide.channel(self.channel).alternate_status()
    }

    pub fn line(&self) -> &Line {
        &self.lines[self.channel]
    }

    pub fn data_in(&self, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        for word in data.chunks_mut(2) {
            self.ide.channel(self.channel).read(0, word);
        }
        data
    }

    pub fn data_out(&self, data: &[u8]) {
        for word in data.chunks(4) {
            self.ide.channel(self.channel).write(0, word);
        }
    }

    /// Registers of a command with an address of 28 bits.
    pub fn short(&self, command: u8, lba: u32, count: u8) {
        let [low, mid, high, top] = lba.to_le_bytes();
        let registers = [(COUNT, count), (LBA, low), (LBA + 1, mid), (LBA + 2, high), (DEVICE, 0x40 | top)];
        for (at, value) in registers {
            self.write(at, value);
        }
        self.write(COMMAND, command);
    }

    /// Registers of a command with an address of 48 bits.
    pub fn long(&self, command: u8, lba: u64, count: u16) {
        let b = lba.to_le_bytes();
        self.write(DEVICE, 0x40);
        for (count, bytes) in [((count >> 8) as u8, &b[3..6]), (count as u8, &b[..3])] {
            self.write(COUNT, count);
            for (n, byte) in bytes.iter().enumerate() {
                self.write(LBA + n, *byte);
            }
        }
        self.write(COMMAND, command);
    }

    pub fn bus_master(&self, at: usize) -> u8 {
        let mut data = [0];
        self.ide.bar_read(4, (8 * self.channel + at) as u64, &mut data);
        data[0]
    }

    pub fn set_bus_master(&self, at: usize, value: u8) {
        self.ide.bar_write(4, (8 * self.channel + at) as u64, &[value]);
    }

    /// Writes a list at 0x1000, leads the bus master there, and clears its status.
    pub fn list(&self, entries: &[(u32, u32)]) {
        for (n, (address, flags)) in entries.iter().enumerate() {
            let entry = [address.to_le_bytes(), flags.to_le_bytes()].concat();
            self.memory.write(0x1000 + 8 * n as u64, &entry).expect("RAM");
        }
        self.ide.bar_write(4, (8 * self.channel + 4) as u64, &0x1000_u32.to_le_bytes());
        self.set_bus_master(2, 0x06);
    }

    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(gpa, &mut bytes).expect("RAM");
        bytes
    }
}
