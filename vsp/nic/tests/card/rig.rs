//! A chipset with a card, and a driver for it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vireo_board::{Attachment, Seat};
use vireo_chipset::lines::{ExtIntSink, MsiMessage, MsiSink, SerialSink, SystemEvent, SystemEventSink};
use vireo_chipset::pci::PciSlot;
use vireo_chipset::simulated::SimulatedTime;
use vireo_chipset::{Chipset, ChipsetBuilder, Seams};
use vireo_firmware::map::ram_layout;
use vireo_frame::trial::Wire;
use vireo_frame::{Ability, Mac};
use vireo_memory::GuestMemory;
use vireo_nic::E1000;

/// So long nothing takes that does not hang.
pub const HANGS: Duration = Duration::from_secs(60);
pub const ADDRESS: Mac = Mac([0, 0x15, 0x5d, 1, 2, 3]);
const SLOT: u32 = 4;

pub const CTRL: u64 = 0;
pub const ICR: u64 = 0xc0;
pub const IMS: u64 = 0xd0;
pub const RCTL: u64 = 0x100;
pub const TCTL: u64 = 0x400;
pub const RX: u64 = 0x2800;
pub const TX: u64 = 0x3800;
pub const HEAD: u64 = 0x10;
pub const TAIL: u64 = 0x18;

/// Rings and buffers in guest memory.
pub const RX_RING: u64 = 0x1_0000;
pub const TX_RING: u64 = 0x2_0000;
pub const RX_BUFFERS: u64 = 0x10_0000;
pub const TX_BUFFERS: u64 = 0x20_0000;
/// Descriptors of each ring.
pub const COUNT: u64 = 32;

struct Quiet;
impl ExtIntSink for Quiet {
    fn set(&self, _: bool) {}
}
impl MsiSink for Quiet {
    fn deliver(&self, _: MsiMessage) {}
}
impl SystemEventSink for Quiet {
    fn raise(&self, _: SystemEvent) {}
}
impl SerialSink for Quiet {
    fn write(&self, _: &[u8]) {}
}

pub struct Rig {
    pub chipset: Chipset,
    pub memory: Arc<GuestMemory>,
    pub card: Arc<E1000>,
    pub wire: Arc<Wire>,
    pub bar: u64,
    pub ports: u16,
    /// The guest's next descriptors.
    pub rx_tail: Mutex<u64>,
    pub tx_tail: Mutex<u64>,
}

impl Rig {
    /// A card that runs, on a network that takes this.
    pub fn new(ability: Ability) -> Self {
        let time = SimulatedTime::new(Duration::ZERO);
        let quiet = Arc::new(Quiet);
        let seams = Seams {
            clock: Arc::new(time.clone()),
            timers: Arc::new(time),
            ext_int: quiet.clone(),
            msi: quiet.clone(),
            events: quiet.clone(),
            serial: quiet,
        };
        let memory = GuestMemory::new(ram_layout(16 << 20).unwrap()).unwrap();
        let mut builder = ChipsetBuilder::new(&seams).unwrap();
        let slot = PciSlot::new(SLOT as u8, 0).unwrap();
        let windows = Arc::default();
        let mut seat = Seat { chipset: &mut builder, memory: &memory, hyperv: None, windows: &windows };
        let wire = Wire::new(ability);
        let card = E1000::plug(&mut seat, slot, "card", Arc::clone(&wire) as _, ADDRESS).unwrap();
        let chipset = builder.build().unwrap();
        let (rx_tail, tx_tail) = (Mutex::default(), Mutex::default());
        let mut rig = Self { chipset, memory, card, wire, bar: 0, ports: 0, rx_tail, tx_tail };
        rig.bar = u64::from(rig.config(0x10) & !0xf);
        rig.ports = (rig.config(0x18) & !3) as u16;
        rig.card.resume();
        rig
    }

    pub fn config(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.chipset.pio.write(0xCF8, &(0x8000_0000 | SLOT << 11 | register).to_le_bytes());
        self.chipset.pio.read(0xCFC, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.chipset.mmio.read(self.bar + register, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write(&self, register: u64, value: u32) {
        self.chipset.mmio.write(self.bar + register, &value.to_le_bytes());
    }

    /// Whether the card interrupts: its status bit in configuration space.
    pub fn interrupts(&self) -> bool {
        self.config(4) & 1 << 19 != 0
    }

    /// Resets it and sets both rings up; with these bits of RCTL besides.
    pub fn start(&self, rctl: u32) {
        self.write(CTRL, 1 << 26);
        for (ring, base) in [(RX, RX_RING), (TX, TX_RING)] {
            self.memory.fill(base, COUNT * 16, 0).unwrap();
            self.write(ring, base as u32);
            self.write(ring + 8, COUNT as u32 * 16);
        }
        *self.rx_tail.lock().unwrap() = 0;
        *self.tx_tail.lock().unwrap() = 0;
        // Reset leaves both heads at zero. Broadcasts are wanted.
        self.write(RCTL, 1 << 1 | 1 << 15 | rctl);
        self.write(TCTL, 1 << 1 | 1 << 3);
    }

    /// Gives the card so many buffers more to receive into, `step` bytes apart.
    pub fn buffers(&self, count: u64, step: u64) {
        let mut tail = self.rx_tail.lock().unwrap();
        for _ in 0..count {
            let at = RX_RING + *tail * 16;
            self.memory.write_obj(at, RX_BUFFERS + *tail * step).unwrap();
            self.memory.write_obj(at + 8, 0u64).unwrap();
            *tail = (*tail + 1) % COUNT;
        }
        self.write(RX + TAIL, *tail as u32);
    }

    /// Puts descriptors into the transmit ring, and tells the card.
    pub fn transmit(&self, descriptors: &[[u64; 2]]) {
        let mut tail = self.tx_tail.lock().unwrap();
        for [low, high] in descriptors {
            self.memory.write_obj(TX_RING + *tail * 16, *low).unwrap();
            self.memory.write_obj(TX_RING + *tail * 16 + 8, *high).unwrap();
            *tail = (*tail + 1) % COUNT;
        }
        self.write(TX + TAIL, *tail as u32);
    }

    /// Waits until the card has taken all descriptors, and returns what the network got.
    pub fn sent(&self) -> Vec<(Vec<u8>, vireo_frame::Intent)> {
        let tail = *self.tx_tail.lock().unwrap();
        waits("the ring", || u64::from(self.read(TX + HEAD)) == tail);
        // The last one is on its way.
        let flushes = self.wire.flushes.load(Ordering::Acquire);
        waits("the network", || {
            self.wire.flushes.load(Ordering::Acquire) > flushes || !self.wire.got.lock().unwrap().is_empty()
        });
        self.wire.take()
    }

    /// Descriptor `n` of the receive ring, after its address.
    pub fn received(&self, n: u64) -> Received {
        let at = RX_RING + n * 16;
        let word: u64 = self.memory.read_obj(at + 8).unwrap();
        let [l0, l1, _, _, status, errors, t0, t1] = word.to_le_bytes();
        let length = u16::from_le_bytes([l0, l1]);
        let mut bytes = vec![0; length.into()];
        self.memory.read(self.memory.read_obj(at).unwrap(), &mut bytes).unwrap();
        Received { bytes, status, errors, tag: u16::from_le_bytes([t0, t1]) }
    }
}

#[derive(Debug)]
pub struct Received {
    pub bytes: Vec<u8>,
    pub status: u8,
    pub errors: u8,
    pub tag: u16,
}

/// Waits until `done`; what takes longer than [`HANGS`] hangs.
pub fn waits(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + HANGS;
    while !done() {
        assert!(Instant::now() < end, "{what} does not come");
        std::thread::yield_now();
    }
}

pub fn frame(to: Mac, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|n| (n * 7 + n / 251) as u8).collect();
    bytes[..6].copy_from_slice(&to.0);
    bytes[12..14].copy_from_slice(&[0x88, 0xb5]);
    bytes
}
