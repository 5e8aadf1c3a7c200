//! Where accesses go while a guest moves BARs, and the pins that functions share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vireo_chipset::layout::{PCI_BAR_MEMORY, PCI_BAR_PORTS, pci_gsi};
use vireo_chipset::pci::{Bar, BarWindow, ConfigSpace, PciFunction, PciIdentity, PciSlot};

use crate::rig::Rig;

/// Answers every byte of a BAR with `tag` plus the BAR's number, and keeps what is written.
struct Tagged {
    tag: u8,
    space: Mutex<ConfigSpace>,
    written: Mutex<Vec<(u8, u64, Vec<u8>)>>,
}

impl Tagged {
    fn new(tag: u8, bars: &[(usize, Bar)]) -> Arc<Self> {
        let mut space = ConfigSpace::new(PciIdentity {
            vendor: 0x1234,
            device: tag.into(),
            revision: 0,
            class: 0xFF_00_00,
            subsystem_vendor: 0,
            subsystem: 0,
            multi_function: false,
            interrupt_pin: 1,
        });
        for (index, bar) in bars {
            space.add_bar(*index, *bar).unwrap();
        }
        Arc::new(Self { tag, space: Mutex::new(space), written: Mutex::default() })
    }

    fn written(&self) -> Vec<(u8, u64, Vec<u8>)> {
        std::mem::take(&mut self.written.lock().unwrap())
    }
}

impl PciFunction for Tagged {
    fn config_read(&self, offset: u8, data: &mut [u8]) {
        self.space.lock().unwrap().read(offset, data);
    }
    fn config_write(&self, offset: u8, data: &[u8]) {
        self.space.lock().unwrap().write(offset, data);
    }
    fn windows(&self) -> Vec<BarWindow> {
        self.space.lock().unwrap().windows()
    }
    fn bar_read(&self, bar: u8, _: u64, data: &mut [u8]) {
        data.fill(self.tag + bar);
    }
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.written.lock().unwrap().push((bar, offset, data.to_vec()));
    }
    fn reset(&self) {
        self.space.lock().unwrap().reset();
    }
}

fn memory32(size: u32) -> Bar {
    Bar::Memory32 { size, prefetchable: false }
}

fn memory64(size: u64) -> Bar {
    Bar::Memory64 { size, prefetchable: true }
}

fn rig(functions: &[(u8, Arc<Tagged>)]) -> Rig {
    Rig::with(|builder| {
        for (device, function) in functions {
            builder.add_pci(PciSlot::new(*device, 0).unwrap(), function.clone()).unwrap();
        }
    })
}

/// Function 3 with all kinds of BARs, function 5 with a small one.
fn two() -> (Rig, Arc<Tagged>, Arc<Tagged>) {
    let first = Tagged::new(0x10, &[(0, Bar::Io { size: 64 }), (1, memory32(0x4000)), (4, memory64(0x100))]);
    let second = Tagged::new(0x20, &[(0, memory32(0x1000))]);
    (rig(&[(3, first.clone()), (5, second.clone())]), first, second)
}

#[test]
fn reset_assigns_every_bar_in_the_boards_windows() {
    let (rig, first, second) = two();
    let (memory, ports) = (PCI_BAR_MEMORY.start as u32, u32::from(PCI_BAR_PORTS.start));
    let look = || {
        let bars = |device, bars: &[u32]| -> Vec<u32> {
            bars.iter().map(|bar| rig.config_read(device, 0x10 + 4 * bar)).collect()
        };
        (bars(3, &[0, 1, 4, 5]), bars(5, &[0]), rig.config_read(3, 4) & 7, rig.config_read(5, 4) & 7)
    };
    let expected = (vec![ports | 1, memory, (memory + 0x4000) | 0xC, 0], vec![memory + 0x5000], 3, 2);
    assert_eq!(look(), expected);
    rig.chipset.pio.write(ports as u16 + 4, &[7, 8]);
    rig.writel(u64::from(memory) + 0x40FC, 9);
    assert_eq!(first.written(), [(0, 4, vec![7, 8]), (4, 0xFC, vec![9, 0, 0, 0])]);
    assert_eq!(rig.readl(u64::from(memory) + 0x5000), 0x2020_2020);
    assert!(second.written().is_empty());
    rig.config_write(3, 0x14, 0xC000_0000);
    rig.config_write(5, 4, 0);
    assert_eq!(rig.readl(u64::from(memory) + 0x5000), u32::MAX, "does not decode");
    rig.chipset.reset_all();
    assert_eq!(look(), expected);
}

#[test]
fn what_finds_no_room_is_left_to_the_guest() {
    let huge = Tagged::new(0, &[(0, memory32(1 << 31)), (2, memory64(1 << 40)), (4, memory32(16))]);
    let rig = rig(&[(3, huge)]);
    let bars: Vec<u32> = (0..6).map(|bar| rig.config_read(3, 0x10 + 4 * bar)).collect();
    assert_eq!(bars, [0, 0, 0xC, 0, PCI_BAR_MEMORY.start as u32, 0]);
    rig.config_write(3, 0x1C, 0x7F);
    assert_eq!(rig.config_read(3, 0x1C), 0, "the size is larger than that");
    rig.config_write(3, 0x1C, 0x100);
    assert_eq!(rig.readl(0x100_1234_5678), 0x0202_0202);
}

#[test]
fn accesses_follow_the_bars() {
    let (rig, first, _) = two();
    rig.config_write(3, 0x14, 0xD000_0000);
    assert_eq!(rig.readl(PCI_BAR_MEMORY.start), u32::MAX);
    assert_eq!(rig.readl(0xD000_3FFC), 0x1111_1111);
    assert_eq!(rig.readl(0xD000_4000), u32::MAX);
    rig.config_write(3, 0x24, 0x12);
    assert_eq!(rig.readl(0x12_F000_4010), 0x1414_1414);
    // Sizing with decoding on, as Linux does for some functions: nothing is where nothing can be.
    rig.config_write(3, 0x10, u32::MAX);
    rig.config_write(3, 0x24, u32::MAX);
    rig.config_write(3, 0x20, u32::MAX);
    assert_eq!((rig.inb(0xFFC0), rig.readl(0xFFFF_FFFF_FFFF_FF00)), (0xFF, u32::MAX));
    rig.config_write(3, 0x10, 0x3F8);
    rig.outb(0x3FF, 0x55);
    assert_eq!((rig.inb(0x3FF), rig.inb(0x3C0)), (0x55, 0x10), "the serial port goes before");
    rig.config_write(3, 4, 0);
    assert_eq!((rig.inb(0x3C0), rig.readl(0xD000_0000)), (0xFF, u32::MAX));
    assert!(first.written().is_empty());
}

#[test]
fn of_two_at_one_place_the_lower_slot_decodes() {
    let (rig, ..) = two();
    rig.config_write(5, 0x10, 0xF000_2000);
    assert_eq!(rig.readl(0xF000_2000), 0x1111_1111);
    rig.config_write(3, 0x14, 0xD000_0000);
    assert_eq!(rig.readl(0xF000_2000), 0x2020_2020);
}

#[test]
fn restored_functions_are_found_where_they_were() {
    let (rig, first, _) = two();
    rig.config_write(3, 0x14, 0xD000_0000);
    let (function, chipset) = (first.space.lock().unwrap().save(), rig.chipset.save_all());
    let (other, first, _) = two();
    first.space.lock().unwrap().restore(&function).unwrap();
    other.chipset.restore_all(&chipset).unwrap();
    assert_eq!(other.readl(0xD000_0000), 0x1111_1111);
    assert_eq!(other.readl(PCI_BAR_MEMORY.start), u32::MAX);
}

#[test]
fn a_pin_is_asserted_while_one_function_asserts_it() {
    let mut pins = Vec::new();
    let rig = Rig::with(|builder| {
        // INTA of device 3, INTB of device 2 and INTA of device 11 are one line; INTA of device 4 is another.
        for (device, pin) in [(3, 1), (2, 2), (11, 1), (4, 1)] {
            pins.push(builder.pci_pin(PciSlot::new(device, 0).unwrap(), pin).unwrap());
        }
    });
    let gsi = pci_gsi(3, 0);
    assert_eq!((pci_gsi(2, 1), pci_gsi(11, 0), pci_gsi(4, 0)), (gsi, gsi, gsi + 1));
    for (gsi, vector) in [(gsi, 0x41), (gsi + 1, 0x42)] {
        rig.ioapic_write(0x10 + 2 * gsi, 0xA000 | vector);
    }
    let vectors = || rig.messages().iter().map(|m| m.data as u8).collect::<Vec<_>>();
    pins[0].set(true);
    pins[1].set(true);
    pins[1].set(true);
    assert_eq!(vectors(), [0x41]);
    pins[0].set(false);
    rig.chipset.ioapic().eoi(0x41);
    assert_eq!(vectors(), [0x41], "still asserted by the other");
    pins[1].set(false);
    rig.chipset.ioapic().eoi(0x41);
    assert_eq!(vectors(), [0; 0]);
    pins[3].set(true);
    pins[2].set(true);
    assert_eq!(vectors(), [0x42, 0x41]);
    pins.remove(2);
    rig.chipset.ioapic().eoi(0x41);
    assert_eq!(vectors(), [0; 0], "a function that is gone asserts nothing");
}

#[test]
fn bars_may_move_while_others_are_used() {
    let (rig, ..) = two();
    let moved = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            for i in 0..2000 {
                rig.config_write(3, 0x14, 0xD000_0000 + (i % 2) * 0x10_0000);
            }
            moved.store(true, Ordering::Release);
        });
        while !moved.load(Ordering::Acquire) {
            assert_eq!(rig.readl(PCI_BAR_MEMORY.start + 0x5000), 0x2020_2020);
            let seen = rig.readl(0xD000_0000);
            assert!(seen == 0x1111_1111 || seen == u32::MAX, "{seen:#x}");
        }
    });
    assert_eq!((rig.readl(0xD000_0000), rig.readl(0xD010_0000)), (u32::MAX, 0x1111_1111));
}

proptest! {
    /// Whatever is written to configuration space: an access is answered by the first function that decodes the address, and
    /// by nobody where windows overlap and the first does not reach.
    #[test]
    fn any_configuration_routes_to_who_decodes(
        writes in prop::collection::vec((prop::sample::select(vec![3u32, 5]), 0u32..0x30, any::<u32>()), 0..60),
        addresses in prop::collection::vec(any::<u32>(), 1..8),
    ) {
        let (rig, first, second) = two();
        for (device, register, value) in writes {
            rig.config_write(device, register & !3, value);
        }
        let mut decoded: Vec<(std::ops::Range<u64>, u8)> = Vec::new();
        for function in [&first, &second] {
            for window in function.windows().into_iter().filter(|w| !w.ports) {
                let range = window.range;
                if decoded.iter().all(|(other, _)| range.end <= other.start || other.end <= range.start) {
                    decoded.push((range, function.tag + window.bar));
                }
            }
        }
        let starts = decoded.iter().map(|(range, _)| range.start);
        for address in starts.chain(addresses.into_iter().map(u64::from)).collect::<Vec<_>>() {
            if !(0xFEC0_0000..0xFEC0_1000).contains(&address) {
                let mut byte = [0];
                rig.chipset.mmio.read(address, &mut byte);
                let answer = decoded.iter().find(|(range, _)| range.contains(&address));
                prop_assert_eq!(byte[0], answer.map_or(0xFF, |(_, tag)| *tag));
            }
        }
    }
}
