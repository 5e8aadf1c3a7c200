//! 8259A pair and I/O APIC.

use crate::rig::Rig;
use vireo_chipset::lines::MsiMessage;

const EOI: u8 = 0x20;

#[test]
fn nothing_gets_through_before_initialisation() {
    let rig = Rig::new();
    rig.irq5.pulse();
    assert!(!rig.intr());
    assert_eq!(rig.acknowledge(), None);
}

#[test]
fn edge_is_served_once_and_in_order_of_priority() {
    let rig = Rig::new();
    rig.init_pic();
    rig.irq11.set(true);
    rig.irq5.set(true);
    // Everything of the slave comes before input 5 of the master.
    assert_eq!(rig.acknowledge(), Some(0x3B));
    assert!(!rig.intr(), "5 has to wait for the end of 11");
    rig.outb(0xA0, EOI);
    rig.outb(0x20, EOI);
    assert_eq!(rig.acknowledge(), Some(0x35));
    rig.outb(0x20, EOI);
    assert_eq!(rig.acknowledge(), None, "no new edge");
    rig.irq5.pulse();
    assert_eq!(rig.acknowledge(), Some(0x35));
}

#[test]
fn request_goes_with_its_line() {
    let rig = Rig::new();
    rig.init_pic();
    rig.irq5.set(true);
    assert!(rig.intr());
    rig.irq5.set(false);
    assert!(!rig.intr());
    rig.irq11.set(true);
    rig.outb(0xA1, 0xFF);
    assert_eq!(rig.acknowledge(), None);
    rig.outb(0xA1, 0);
    assert_eq!(rig.acknowledge(), Some(0x3B));
}

#[test]
fn level_repeats_until_the_line_falls() {
    let rig = Rig::new();
    rig.init_pic();
    rig.outw(0x4D0, 0xFFFF);
    assert_eq!(rig.inw(0x4D0), 0xDEF8);
    rig.irq11.set(true);
    for _ in 0..2 {
        assert_eq!(rig.acknowledge(), Some(0x3B));
        rig.outb(0xA0, EOI);
        rig.outb(0x20, EOI);
    }
    rig.irq11.set(false);
    assert_eq!(rig.acknowledge(), None);
}

#[test]
fn registers_read_back() {
    let rig = Rig::new();
    rig.init_pic();
    rig.outb(0x21, 0x5A);
    assert_eq!(rig.inb(0x21), 0x5A);
    rig.outb(0x21, 0);
    rig.irq5.set(true);
    assert_eq!(rig.inb(0x20), 0x20, "IRR");
    rig.outb(0x20, 0x0B);
    assert_eq!(rig.inb(0x20), 0, "ISR");
    rig.acknowledge();
    assert_eq!(rig.inb(0x20), 0x20);
    rig.outb(0x20, 0x0A);
    assert_eq!(rig.inb(0x20), 0);
}

#[test]
fn poll_takes_into_service() {
    let rig = Rig::new();
    rig.init_pic();
    rig.outb(0x20, 0x0C);
    assert_eq!(rig.inb(0x20), 0);
    rig.irq5.set(true);
    rig.outb(0x20, 0x0C);
    assert_eq!(rig.inb(0x20), 0x85);
    assert_eq!(rig.acknowledge(), None);
    rig.outb(0x20, 0x0B);
    assert_eq!(rig.inb(0x20), 0x20);
}

#[test]
fn rotation_and_specific_eoi() {
    let rig = Rig::new();
    rig.init_pic();
    // Lowest priority 2: 5 now comes before the slave.
    rig.outb(0x20, 0xC2);
    rig.irq11.set(true);
    rig.irq5.set(true);
    assert_eq!(rig.acknowledge(), Some(0x35));
    // Specific EOI of another level changes nothing.
    rig.outb(0x20, 0x66);
    assert_eq!(rig.acknowledge(), None);
    rig.outb(0x20, 0x65);
    assert_eq!(rig.acknowledge(), Some(0x3B));
    // Rotate on non-specific EOI: 2 becomes the lowest again, now by its own service.
    rig.outb(0xA0, EOI);
    rig.outb(0x20, 0xA0);
    rig.irq11.pulse();
    rig.irq5.pulse();
    assert_eq!(rig.acknowledge(), Some(0x35));
}

#[test]
fn automatic_eoi_leaves_nothing_in_service() {
    let rig = Rig::new();
    rig.init_pic_with(0x11, 0x03);
    for _ in 0..3 {
        rig.irq5.pulse();
        assert_eq!(rig.acknowledge(), Some(0x35));
    }
    rig.outb(0x20, 0x0B);
    assert_eq!(rig.inb(0x20), 0);
}

#[test]
fn special_mask_lets_lower_levels_in() {
    let rig = Rig::new();
    rig.init_pic();
    rig.irq11.set(true);
    assert_eq!(rig.acknowledge(), Some(0x3B));
    rig.irq5.set(true);
    assert_eq!(rig.acknowledge(), None);
    rig.outb(0x21, 0x04);
    rig.outb(0x20, 0x68);
    assert_eq!(rig.acknowledge(), Some(0x35));
}

const ENTRY20: u8 = 0x10 + 2 * 20;
const LEVEL: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;
const REMOTE_IRR: u32 = 1 << 14;

fn message(destination: u64, data: u32) -> MsiMessage {
    MsiMessage { address: 0xFEE0_0000 | destination << 12, data: data | 1 << 14 }
}

#[test]
fn ioapic_identifies_itself() {
    let rig = Rig::new();
    assert_eq!(rig.ioapic_read(1), 0x0017_0020);
    assert_eq!(rig.ioapic_read(ENTRY20), MASKED);
    rig.ioapic_write(0, 0xFFFF_FFFF);
    assert_eq!(rig.ioapic_read(0), 0x0F00_0000);
    assert_eq!(rig.ioapic_read(0x40), 0);
}

#[test]
fn ioapic_edge_is_sent_once_and_lost_while_masked() {
    let rig = Rig::new();
    rig.gsi20.pulse();
    rig.ioapic_write(ENTRY20 + 1, 0x0300_0000);
    rig.ioapic_write(ENTRY20, 0x51);
    assert_eq!(rig.messages(), []);
    rig.gsi20.set(true);
    assert_eq!(rig.messages(), []);
    rig.gsi20.pulse();
    assert_eq!(rig.messages(), [message(3, 0x51)]);
}

#[test]
fn ioapic_level_waits_for_eoi() {
    let rig = Rig::new();
    rig.gsi20.set(true);
    rig.ioapic_write(ENTRY20, 0x61 | LEVEL);
    assert_eq!(rig.messages(), [message(0, 0x61 | LEVEL)]);
    assert!(rig.chipset.ioapic().routes()[20].unwrap().is_level());
    assert_eq!(rig.ioapic_read(ENTRY20) & REMOTE_IRR, REMOTE_IRR);
    rig.gsi20.pulse();
    rig.chipset.ioapic().eoi(0x60);
    assert_eq!(rig.messages(), []);
    rig.chipset.ioapic().eoi(0x61);
    assert_eq!(rig.messages(), [message(0, 0x61 | LEVEL)]);
    rig.gsi20.set(false);
    // The EOI register does the same.
    rig.chipset.mmio.write(0xFEC0_0040, &0x61u32.to_le_bytes());
    assert_eq!(rig.ioapic_read(ENTRY20) & REMOTE_IRR, 0);
    assert_eq!(rig.messages(), []);
}

#[test]
fn ioapic_switch_to_edge_forgets_remote_irr() {
    let rig = Rig::new();
    rig.gsi20.set(true);
    rig.ioapic_write(ENTRY20, 0x61 | LEVEL);
    rig.ioapic_write(ENTRY20, 0x61 | MASKED);
    rig.ioapic_write(ENTRY20, 0x61 | LEVEL | MASKED);
    assert_eq!(rig.ioapic_read(ENTRY20) & REMOTE_IRR, 0);
    assert_eq!(rig.messages().len(), 1);
    let changes = rig.routes_changed();
    rig.ioapic_write(ENTRY20, 0x61 | LEVEL | MASKED);
    assert_eq!(rig.routes_changed(), changes, "the same entry again is no change");
}

#[test]
fn isa_interrupts_reach_both_controllers() {
    let rig = Rig::new();
    rig.init_pic();
    rig.ioapic_write(0x10 + 2 * 5, 0x45 | 1 << 11);
    rig.irq5.set(true);
    assert_eq!(rig.acknowledge(), Some(0x35));
    assert_eq!(rig.messages(), [MsiMessage { address: 0xFEE0_0004, data: 0x4045 }]);
}
