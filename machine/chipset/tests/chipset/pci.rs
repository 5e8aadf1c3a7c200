//! PCI configuration and the configuration space model.

use crate::rig::Rig;
use proptest::prelude::*;
use vireo_chipset::pci::{Bar, ConfigSpace, PciIdentity, PciLayoutError};

fn config_address(device: u32, register: u32) -> u32 {
    0x8000_0000 | device << 11 | register
}

#[test]
fn only_the_two_bridges_are_there() {
    let rig = Rig::new();
    assert_eq!(rig.config_read(0, 0), 0x1237_8086);
    assert_eq!(rig.config_read(0, 8) >> 8, 0x06_00_00);
    assert_eq!(rig.config_read(1, 0), 0x7000_8086);
    assert_eq!(rig.config_read(1, 8) >> 8, 0x06_01_00);
    assert!((2..32).all(|device| rig.config_read(device, 0) == 0xFFFF_FFFF));
    rig.outl(0xCF8, config_address(0, 0) | 1 << 16);
    assert_eq!(rig.inl(0xCFC), 0xFFFF_FFFF, "bus 1");
    rig.outl(0xCF8, 0);
    assert_eq!(rig.inl(0xCFC), 0xFFFF_FFFF, "not enabled");
}

#[test]
fn passes_the_detection_of_mechanism_1() {
    let rig = Rig::new();
    rig.outb(0xCFB, 0x01);
    rig.outl(0xCF8, 0x8000_0000);
    assert_eq!(rig.inl(0xCF8), 0x8000_0000);
    rig.outl(0xCF8, 0xFFFF_FFFF);
    assert_eq!(rig.inl(0xCF8), 0x80FF_FFFC);
}

#[test]
fn narrow_accesses_see_their_bytes() {
    let rig = Rig::new();
    rig.outl(0xCF8, config_address(1, 0));
    assert_eq!((rig.inw(0xCFE), rig.inb(0xCFD)), (0x7000, 0x80));
    rig.outl(0xCF8, config_address(1, 0x60));
    assert_eq!(rig.inl(0xCFC), 0x8080_8080);
    rig.outb(0xCFD, 0x0B);
    assert_eq!(rig.inl(0xCFC), 0x8080_0B80);
    rig.chipset.reset_all();
    assert_eq!(rig.config_read(1, 0x60), 0x8080_8080);
}

fn identity() -> PciIdentity {
    PciIdentity {
        vendor: 0x1AF4,
        device: 0x1042,
        revision: 1,
        class: 0x01_00_00,
        subsystem_vendor: 0x1AF4,
        subsystem: 2,
        multi_function: false,
        interrupt_pin: 1,
    }
}

fn dword(space: &ConfigSpace, offset: u8) -> u32 {
    let mut data = [0; 4];
    space.read(offset, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn base_addresses_size_and_decode() {
    let mut space = ConfigSpace::new(identity());
    space.add_bar(0, Bar::Io { size: 64 }).unwrap();
    space.add_bar(1, Bar::Memory32 { size: 4096, prefetchable: false }).unwrap();
    space.add_bar(4, Bar::Memory64 { size: 1 << 34, prefetchable: true }).unwrap();
    for (offset, expected) in
        [(0x10, 0xFFFF_FFC1), (0x14, 0xFFFF_F000), (0x18, 0), (0x20, 0x0000_000C), (0x24, 0xFFFF_FFFC)]
    {
        space.write(offset, &[0xFF; 4]);
        assert_eq!(dword(&space, offset), expected, "BAR at {offset:#x}");
    }
    space.write(0x14, &0xC000_1234u32.to_le_bytes());
    assert_eq!(space.bar_address(1), None, "decoding is off");
    space.write(0x04, &[0x02, 0]);
    assert_eq!(space.bar_address(1), Some(0xC000_1000));
    assert_eq!(space.bar_address(0), None);
    assert_eq!(space.bar_address(9), None);
    use PciLayoutError::{BarSize, BarUnavailable};
    let memory64 = |size| Bar::Memory64 { size, prefetchable: false };
    assert_eq!(space.add_bar(5, Bar::Io { size: 4 }), Err(BarUnavailable(5)));
    assert_eq!(space.add_bar(3, memory64(4096)), Err(BarUnavailable(3)));
    assert_eq!(space.add_bar(6, Bar::Io { size: 4 }), Err(BarUnavailable(6)));
    assert_eq!(space.add_bar(2, memory64(48)), Err(BarSize(2)));
    assert_eq!(space.add_bar(2, Bar::Io { size: 512 }), Err(BarSize(2)));
}

#[test]
fn capabilities_form_a_list() {
    let mut space = ConfigSpace::new(identity());
    assert_eq!(dword(&space, 4) >> 16 & 0x10, 0);
    let first = space.add_capability(0x09, &[5, 1, 2], &[]).unwrap();
    let second = space.add_capability(0x11, &[7, 0, 0, 0, 0, 0], &[0, 0xC0]).unwrap();
    assert_eq!(dword(&space, 4) >> 16 & 0x10, 0x10);
    assert_eq!(dword(&space, 0x34), u32::from(first));
    assert_eq!(dword(&space, first), u32::from_le_bytes([0x09, second, 5, 1]));
    space.write(second, &[0xFF; 8]);
    assert_eq!(dword(&space, second), u32::from_le_bytes([0x11, 0, 7, 0xC0]));
    assert_eq!(space.add_capability(0x09, &[0; 200], &[]), Err(PciLayoutError::CapabilitySpace(9)));
}

proptest! {
    #[test]
    fn configuration_space_survives_any_access(
        accesses in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..6)), 0..200)
    ) {
        let mut space = ConfigSpace::new(identity());
        space.add_bar(0, Bar::Memory64 { size: 4096, prefetchable: true }).unwrap();
        for (offset, data) in accesses {
            space.write(offset, &data);
            space.read(offset, &mut vec![0; data.len()]);
        }
        prop_assert_eq!(dword(&space, 0), 0x1042_1AF4);
        let saved = space.save();
        space.reset();
        space.restore(&saved).unwrap();
        prop_assert_eq!(space.save(), saved);
    }
}
