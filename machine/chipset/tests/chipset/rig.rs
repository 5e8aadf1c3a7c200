//! A board whose sinks remember what they got.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vireo_chipset::layout::IOAPIC_BASE;
use vireo_chipset::lines::{
    ExtIntSink, IrqLine, MsiMessage, MsiSink, SerialSink, SystemEvent, SystemEventSink,
};
use vireo_chipset::pci::PciSlot;
use vireo_chipset::simulated::SimulatedTime;
use vireo_chipset::{Chipset, ChipsetBuilder, Seams};

/// 2024-02-29 23:59:58 UTC, a Thursday.
pub const WALL_START: u64 = 1_709_251_198;

#[derive(Default)]
pub struct Seen {
    intr: AtomicBool,
    routes_changed: AtomicU64,
    messages: Mutex<Vec<MsiMessage>>,
    events: Mutex<Vec<SystemEvent>>,
    output: Mutex<Vec<u8>>,
}

impl ExtIntSink for Seen {
    fn set(&self, asserted: bool) {
        self.intr.store(asserted, Ordering::SeqCst);
    }
}

impl MsiSink for Seen {
    fn deliver(&self, message: MsiMessage) {
        self.messages.lock().unwrap().push(message);
    }
    fn routes_changed(&self) {
        self.routes_changed.fetch_add(1, Ordering::SeqCst);
    }
}

impl SystemEventSink for Seen {
    fn raise(&self, event: SystemEvent) {
        self.events.lock().unwrap().push(event);
    }
}

impl SerialSink for Seen {
    fn write(&self, bytes: &[u8]) {
        self.output.lock().unwrap().extend(bytes);
    }
}

pub struct Rig {
    pub time: SimulatedTime,
    pub chipset: Chipset,
    /// A free ISA interrupt on each 8259A, and a pin only the I/O APIC has.
    pub irq5: Arc<dyn IrqLine>,
    pub irq11: Arc<dyn IrqLine>,
    pub gsi20: Arc<dyn IrqLine>,
    seen: Arc<Seen>,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With what `add` puts on the buses besides.
    pub fn with(add: impl FnOnce(&mut ChipsetBuilder)) -> Self {
        let time = SimulatedTime::new(Duration::from_secs(WALL_START));
        let seen = Arc::new(Seen::default());
        let seams = Seams {
            clock: Arc::new(time.clone()),
            timers: Arc::new(time.clone()),
            ext_int: seen.clone(),
            msi: seen.clone(),
            events: seen.clone(),
            serial: seen.clone(),
        };
        let mut builder = ChipsetBuilder::new(&seams).unwrap();
        assert!(builder.irq_line(2).is_none() && builder.irq_line(16).is_none());
        let [irq5, irq11] = [5, 11].map(|number| builder.irq_line(number).unwrap());
        let slot = PciSlot::new(4, 0).unwrap();
        assert!(builder.pci_pin(slot, 0).is_none() && builder.pci_pin(slot, 5).is_none());
        let gsi20 = builder.pci_pin(slot, 1).unwrap();
        add(&mut builder);
        Self { time, chipset: builder.build().unwrap(), irq5, irq11, gsi20, seen }
    }

    pub fn inb(&self, port: u16) -> u8 {
        let mut data = [0];
        self.chipset.pio.read(port, &mut data);
        data[0]
    }

    pub fn inw(&self, port: u16) -> u16 {
        let mut data = [0; 2];
        self.chipset.pio.read(port, &mut data);
        u16::from_le_bytes(data)
    }

    pub fn inl(&self, port: u16) -> u32 {
        let mut data = [0; 4];
        self.chipset.pio.read(port, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn outb(&self, port: u16, value: u8) {
        self.chipset.pio.write(port, &[value]);
    }

    pub fn outw(&self, port: u16, value: u16) {
        self.chipset.pio.write(port, &value.to_le_bytes());
    }

    pub fn outl(&self, port: u16, value: u32) {
        self.chipset.pio.write(port, &value.to_le_bytes());
    }

    pub fn ioapic_read(&self, register: u8) -> u32 {
        self.chipset.mmio.write(IOAPIC_BASE, &u32::from(register).to_le_bytes());
        let mut data = [0; 4];
        self.chipset.mmio.read(IOAPIC_BASE + 0x10, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn ioapic_write(&self, register: u8, value: u32) {
        self.chipset.mmio.write(IOAPIC_BASE, &u32::from(register).to_le_bytes());
        self.chipset.mmio.write(IOAPIC_BASE + 0x10, &value.to_le_bytes());
    }

    pub fn readl(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        self.chipset.mmio.read(address, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn writel(&self, address: u64, value: u32) {
        self.chipset.mmio.write(address, &value.to_le_bytes());
    }

    /// Configuration space of function 0 of `device`.
    pub fn config_read(&self, device: u32, register: u32) -> u32 {
        self.outl(0xCF8, 0x8000_0000 | device << 11 | register);
        self.inl(0xCFC)
    }

    pub fn config_write(&self, device: u32, register: u32, value: u32) {
        self.outl(0xCF8, 0x8000_0000 | device << 11 | register);
        self.outl(0xCFC, value);
    }

    /// Both 8259A as Linux sets them up: vectors 0x30 and 0x38, nothing masked.
    pub fn init_pic(&self) {
        self.init_pic_with(0x11, 0x01);
    }

    pub fn init_pic_with(&self, icw1: u8, icw4: u8) {
        for (base, vector, icw3) in [(0x20, 0x30, 0x04), (0xA0, 0x38, 0x02)] {
            self.outb(base, icw1);
            self.outb(base + 1, vector);
            self.outb(base + 1, icw3);
            self.outb(base + 1, icw4);
            self.outb(base + 1, 0);
        }
    }

    pub fn acknowledge(&self) -> Option<u8> {
        assert_eq!(self.intr(), self.chipset.pic().output());
        self.chipset.pic().acknowledge()
    }

    pub fn intr(&self) -> bool {
        self.seen.intr.load(Ordering::SeqCst)
    }

    pub fn routes_changed(&self) -> u64 {
        self.seen.routes_changed.load(Ordering::SeqCst)
    }

    /// The messages since the last call.
    pub fn messages(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.seen.messages.lock().unwrap())
    }

    pub fn events(&self) -> Vec<SystemEvent> {
        std::mem::take(&mut self.seen.events.lock().unwrap())
    }

    pub fn output(&self) -> Vec<u8> {
        std::mem::take(&mut self.seen.output.lock().unwrap())
    }
}
