//! A chipset with one virtio device, and a driver for it that can also break every rule.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vireo_board::{Attachment, Seat};
use vireo_chipset::lines::{ExtIntSink, MsiMessage, MsiSink, SerialSink, SystemEvent, SystemEventSink};
use vireo_chipset::pci::PciSlot;
use vireo_chipset::simulated::SimulatedTime;
use vireo_chipset::{Chipset, ChipsetBuilder, Seams};
use vireo_firmware::map::ram_layout;
use vireo_memory::{GuestMemory, WriteObserver};
use vireo_virtio::{Device, VirtioPci};

/// So long nothing takes that does not hang.
pub const HANGS: Duration = Duration::from_secs(60);

pub const VERSION_1: u64 = 1 << 32;
pub const EVENT_IDX: u64 = 1 << 29;
pub const INDIRECT: u64 = 1 << 28;

pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 64;

#[derive(Default)]
pub struct Seen {
    messages: Mutex<Vec<MsiMessage>>,
    output: Mutex<Vec<u8>>,
    told: Mutex<Vec<(u64, u64)>>,
}

impl ExtIntSink for Seen {
    fn set(&self, _: bool) {}
}
impl MsiSink for Seen {
    fn deliver(&self, message: MsiMessage) {
        self.messages.lock().unwrap().push(message);
    }
}
impl SystemEventSink for Seen {
    fn raise(&self, _: SystemEvent) {}
}
impl SerialSink for Seen {
    fn write(&self, bytes: &[u8]) {
        self.output.lock().unwrap().extend(bytes);
    }
}

struct Observer(Arc<Seen>);
impl WriteObserver for Observer {
    fn host_wrote(&self, gpa: u64, len: u64) {
        self.0.told.lock().unwrap().push((gpa, len));
    }
}

impl Seen {
    pub fn output(&self) -> Vec<u8> {
        self.output.lock().unwrap().clone()
    }
    /// The writes to guest memory that were told since the last call.
    pub fn take_told(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

const SLOT: u32 = 3;

pub struct Rig {
    pub chipset: Chipset,
    pub memory: Arc<GuestMemory>,
    pub function: Arc<VirtioPci>,
    pub seen: Arc<Seen>,
    pub bar: u64,
    /// Offsets in the BAR, as the capabilities tell them.
    common: u64,
    pub isr: u64,
    pub device: u64,
    notify: u64,
    pub msix_table: u64,
    /// Of capabilities in configuration space.
    pub msix_capability: u32,
    pub cfg_capability: u32,
}

impl Rig {
    /// A device that runs.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Self::with_sink(Arc::default(), |_| device)
    }

    /// The device may use what the rig sees.
    pub fn with_sink(seen: Arc<Seen>, device: impl FnOnce(&Arc<Seen>) -> Arc<dyn Device>) -> Self {
        let time = SimulatedTime::new(Duration::ZERO);
        let seams = Seams {
            clock: Arc::new(time.clone()),
            timers: Arc::new(time),
            ext_int: seen.clone(),
            msi: seen.clone(),
            events: seen.clone(),
            serial: seen.clone(),
        };
        let memory = GuestMemory::new(ram_layout(16 << 20).unwrap()).unwrap();
        assert!(memory.set_observer(Box::new(Observer(seen.clone()))));
        let mut builder = ChipsetBuilder::new(&seams).unwrap();
        let slot = PciSlot::new(SLOT as u8, 0).unwrap();
        let mut seat =
            Seat { chipset: &mut builder, memory: &memory, hyperv: None, windows: &Arc::default() };
        let function = VirtioPci::attach(&mut seat, slot, "device", device(&seen)).unwrap();
        let chipset = builder.build().unwrap();
        let mut rig = Self {
            chipset,
            memory,
            function,
            seen,
            bar: 0,
            common: 0,
            isr: 0,
            device: 0,
            notify: 0,
            msix_table: 0,
            msix_capability: 0,
            cfg_capability: 0,
        };
        rig.find_structures();
        rig.function.resume();
        rig
    }

    fn find_structures(&mut self) {
        self.bar = u64::from(self.config_read(0x10) & !0xF);
        let mut at = self.config_read(0x34) & 0xFF;
        while at != 0 {
            let head = self.config_read(at);
            let (id, kind) = (head as u8, (head >> 24) as u8);
            let offset = u64::from(self.config_read(at + 8));
            match (id, kind) {
                (0x11, _) => {
                    self.msix_capability = at;
                    self.msix_table = u64::from(self.config_read(at + 4) & !7);
                }
                (0x09, 1) => self.common = offset,
                (0x09, 2) => {
                    self.notify = offset;
                    assert_eq!(self.config_read(at + 16), 4);
                }
                (0x09, 3) => self.isr = offset,
                (0x09, 4) => self.device = offset,
                (0x09, 5) => self.cfg_capability = at,
                _ => panic!("capability {id:#x} {kind}"),
            }
            at = head >> 8 & 0xFF;
        }
    }

    pub fn config_read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.chipset.pio.write(0xCF8, &(0x8000_0000 | SLOT << 11 | register).to_le_bytes());
        self.chipset.pio.read(0xCFC, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn config_write(&self, register: u32, data: &[u8]) {
        self.chipset.pio.write(0xCF8, &(0x8000_0000 | SLOT << 11 | register & !3).to_le_bytes());
        self.chipset.pio.write(0xCFC + (register & 3) as u16, data);
    }

    pub fn read<const N: usize>(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.chipset.mmio.read(self.bar + offset, &mut data[..N]);
        u64::from_le_bytes(data)
    }

    pub fn write<const N: usize>(&self, offset: u64, value: u64) {
        self.chipset.mmio.write(self.bar + offset, &value.to_le_bytes()[..N]);
    }

    /// A field of the common configuration.
    pub fn common<const N: usize>(&self, field: u64) -> u64 {
        self.read::<N>(self.common + field)
    }

    pub fn set_common<const N: usize>(&self, field: u64, value: u64) {
        self.write::<N>(self.common + field, value);
    }

    pub fn status(&self) -> u8 {
        self.common::<1>(20) as u8
    }

    pub fn set_status(&self, status: u8) {
        self.set_common::<1>(20, status.into());
    }

    pub fn reset(&self) {
        self.set_status(0);
        waits("the reset", || self.status() == 0);
    }

    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.set_common::<4>(0, select);
            self.common::<4>(4)
        };
        half(0) | half(1) << 32
    }

    pub fn choose(&self, features: u64) {
        for (select, half) in [(0, features & 0xFFFF_FFFF), (1, features >> 32)] {
            self.set_common::<4>(8, select);
            self.set_common::<4>(12, half);
        }
    }

    /// From reset to the driver's choice of features.
    pub fn negotiate(&self, features: u64) {
        self.reset();
        self.set_status(1);
        self.set_status(3);
        self.choose(features);
        self.set_status(3 | FEATURES_OK);
        assert_ne!(self.status() & FEATURES_OK, 0, "features {features:#x} of {:#x}", self.offered());
    }

    pub fn driver_ok(&self) {
        self.set_status(3 | FEATURES_OK | DRIVER_OK);
    }

    pub fn notify(&self, queue: u64) {
        self.write::<2>(self.notify + 4 * queue, queue);
    }

    /// Enables MSI-X; vector n has data 0x40 + n.
    pub fn enable_msix(&self, vectors: u64) {
        for vector in 0..vectors {
            let entry = self.msix_table + 16 * vector;
            self.write::<4>(entry, 0xFEE0_0000);
            self.write::<4>(entry + 4, 0);
            self.write::<4>(entry + 8, 0x40 + vector);
            self.write::<4>(entry + 12, 0);
        }
        self.config_write(self.msix_capability + 2, &0x8000u16.to_le_bytes());
    }

    /// Vectors of the messages since the last call.
    pub fn messages(&self) -> Vec<u32> {
        self.seen.messages.lock().unwrap().drain(..).map(|m| m.data).collect()
    }

    /// Waits until the device rests, and lets it go on.
    pub fn settle(&self) {
        assert!(self.function.pause(Instant::now() + HANGS), "the device does not come to rest");
        self.function.resume();
    }
}

/// Waits until `done`; what takes longer than [`HANGS`] hangs.
pub fn waits(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + HANGS;
    while !done() {
        assert!(Instant::now() < end, "{what} does not come");
        std::thread::yield_now();
    }
}

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const TABLE: u16 = 4;

/// A queue in guest memory, as a driver has it.
pub struct Ring {
    index: u64,
    size: u16,
    base: u64,
    free: u16,
    available: u16,
    used: u16,
}

impl Ring {
    /// Puts queue `index` at `base` (a page), with `size` entries, and enables it; its vector is `index` + 1.
    pub fn new(rig: &Rig, index: u64, size: u16, base: u64) -> Self {
        let ring = Self { index, size, base, free: 0, available: 0, used: 0 };
        rig.memory.fill(base, 0x4000, 0).unwrap();
        rig.set_common::<2>(22, index);
        rig.set_common::<2>(24, size.into());
        rig.set_common::<2>(26, index + 1);
        for (field, address) in [(32, base), (40, ring.driver_area()), (48, ring.device_area())] {
            rig.set_common::<4>(field, address & 0xFFFF_FFFF);
            rig.set_common::<4>(field + 4, address >> 32);
        }
        rig.set_common::<2>(28, 1);
        assert_eq!(rig.common::<2>(28), 1);
        ring
    }

    /// Up to 256 descriptors are on the first page.
    pub fn driver_area(&self) -> u64 {
        self.base + 0x1000
    }

    pub fn device_area(&self) -> u64 {
        self.base + 0x2000
    }

    pub fn describe(&self, rig: &Rig, at: u16, address: u64, len: u32, flags: u16, next: u16) {
        descriptor(rig, self.base + 16 * u64::from(at), address, len, flags, next);
    }

    /// Makes a chain available: address, length, whether the device writes it.
    pub fn add(&mut self, rig: &Rig, pieces: &[(u64, u32, bool)]) -> u16 {
        let head = self.free;
        for (i, (address, len, write)) in pieces.iter().enumerate() {
            let next = (self.free + 1) % self.size;
            let more = if i + 1 < pieces.len() { NEXT } else { 0 };
            let flags = more | if *write { WRITE } else { 0 };
            self.describe(rig, self.free, *address, *len, flags, next);
            self.free = next;
        }
        self.make_available(rig, head);
        head
    }

    /// The same by an indirect table at `table`.
    pub fn add_indirect(&mut self, rig: &Rig, table: u64, pieces: &[(u64, u32, bool)]) -> u16 {
        for (i, (address, len, write)) in pieces.iter().enumerate() {
            let more = if i + 1 < pieces.len() { NEXT } else { 0 };
            let flags = more | if *write { WRITE } else { 0 };
            descriptor(rig, table + 16 * i as u64, *address, *len, flags, i as u16 + 1);
        }
        let head = self.free;
        self.free = (self.free + 1) % self.size;
        self.describe(rig, head, table, 16 * pieces.len() as u32, TABLE, 0);
        self.make_available(rig, head);
        head
    }

    pub fn make_available(&mut self, rig: &Rig, head: u16) {
        let slot = self.driver_area() + 4 + 2 * u64::from(self.available % self.size);
        rig.memory.write_obj(slot, head).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(rig, self.available);
    }

    pub fn set_available(&mut self, rig: &Rig, available: u16) {
        self.available = available;
        rig.memory.write_obj(self.driver_area() + 2, available).unwrap();
    }

    /// Which used entry the driver wants to be interrupted for.
    pub fn set_used_event(&self, rig: &Rig, event: u16) {
        rig.memory.write_obj(self.driver_area() + 4 + 2 * u64::from(self.size), event).unwrap();
    }

    pub fn used_index(&self, rig: &Rig) -> u16 {
        rig.memory.read_obj(self.device_area() + 2).unwrap()
    }

    /// Notifies, and waits for the next used entry: head and length.
    pub fn run(&mut self, rig: &Rig) -> (u16, u32) {
        rig.notify(self.index);
        self.wait(rig)
    }

    pub fn wait(&mut self, rig: &Rig) -> (u16, u32) {
        waits("the end of a request", || self.used_index(rig) != self.used);
        let entry = self.device_area() + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        (rig.memory.read_obj::<u32>(entry).unwrap() as u16, rig.memory.read_obj::<u32>(entry + 4).unwrap())
    }
}

pub fn descriptor(rig: &Rig, at: u64, address: u64, len: u32, flags: u16, next: u16) {
    rig.memory.write_obj(at, address).unwrap();
    rig.memory.write_obj(at + 8, len).unwrap();
    rig.memory.write_obj(at + 12, flags).unwrap();
    rig.memory.write_obj(at + 14, next).unwrap();
}
