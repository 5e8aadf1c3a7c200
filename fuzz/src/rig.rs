//! A chipset that nobody listens to, and 16 MiB of guest memory.

use std::sync::Arc;
use std::time::Duration;

use vireo_board::Seat;
use vireo_chipset::lines::{ExtIntSink, MsiMessage, MsiSink, SerialSink, SystemEvent, SystemEventSink};
use vireo_chipset::simulated::SimulatedTime;
use vireo_chipset::{Chipset, ChipsetBuilder, Seams};
use vireo_firmware::map::ram_layout;
use vireo_memory::GuestMemory;

struct Nobody;

impl ExtIntSink for Nobody {
    fn set(&self, _: bool) {}
}
impl MsiSink for Nobody {
    fn deliver(&self, _: MsiMessage) {}
}
impl SystemEventSink for Nobody {
    fn raise(&self, _: SystemEvent) {}
}
impl SerialSink for Nobody {
    fn write(&self, _: &[u8]) {}
}

/// See the [module](self).
pub struct Rig {
    /// With the device.
    pub chipset: Chipset,
    /// RAM from address 0 on.
    pub memory: Arc<GuestMemory>,
}

impl Rig {
    /// RAM alone.
    pub fn memory() -> Arc<GuestMemory> {
        GuestMemory::new(ram_layout(16 << 20).expect("a layout")).expect("memory")
    }

    /// With what `plug` plugs in.
    pub fn new<T>(plug: impl FnOnce(&mut Seat<'_>) -> T) -> (Self, T) {
        let time = SimulatedTime::new(Duration::ZERO);
        let nobody = Arc::new(Nobody);
        let seams = Seams {
            clock: Arc::new(time.clone()),
            timers: Arc::new(time),
            ext_int: nobody.clone(),
            msi: nobody.clone(),
            events: nobody.clone(),
            serial: nobody,
        };
        let memory = Self::memory();
        let mut builder = ChipsetBuilder::new(&seams).expect("a chipset");
        let plugged = plug(&mut Seat {
            chipset: &mut builder,
            memory: &memory,
            hyperv: None,
            windows: &Arc::default(),
        });
        (Self { chipset: builder.build().expect("a chipset"), memory }, plugged)
    }

    /// A register of a PCI function's configuration.
    pub fn config(&self, slot: u32, register: u32) -> u32 {
        let mut data = [0; 4];
        self.chipset.pio.write(0xCF8, &(0x8000_0000 | slot << 11 | register).to_le_bytes());
        self.chipset.pio.read(0xCFC, &mut data);
        u32::from_le_bytes(data)
    }

    /// Where a structure (virtio 1.2 §4.1.4) is in the BAR of a virtio function.
    pub fn virtio_structure(&self, slot: u32, wanted: u8) -> u64 {
        let mut at = self.config(slot, 0x34) & 0xff;
        while at != 0 {
            let head = self.config(slot, at);
            if (head as u8, (head >> 24) as u8) == (9, wanted) {
                return self.config(slot, at + 8).into();
            }
            at = head >> 8 & 0xff;
        }
        panic!("a device without structure {wanted}");
    }
}
