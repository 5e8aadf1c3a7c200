//! ACPI fixed hardware, the ways to reset, the keyboard controller and the idle ports.

use crate::rig::Rig;
use vireo_chipset::lines::SystemEvent::{PowerOff, Reset};

#[test]
fn s5_switches_off_and_nothing_else_does() {
    let rig = Rig::new();
    assert_eq!(rig.inw(0x604), 1, "SCI_EN is always set");
    rig.outw(0x604, 0);
    assert_eq!(rig.inw(0x604), 1);
    rig.outw(0x604, 1 << 13);
    rig.outw(0x604, 5 << 10);
    assert_eq!(rig.events(), []);
    assert_eq!(rig.inw(0x604), 5 << 10 | 1);
    rig.outw(0x604, 5 << 10 | 1 << 13);
    assert_eq!(rig.events(), [PowerOff]);
    assert_eq!(rig.inw(0x604), 5 << 10 | 1);
}

#[test]
fn power_button_raises_a_level_sci() {
    let rig = Rig::new();
    rig.ioapic_write(0x10 + 2 * 9, 0x49 | 1 << 15);
    rig.chipset.acpi().press_power_button();
    assert_eq!(rig.messages().len(), 0, "not enabled");
    assert_eq!(rig.inw(0x600), 0x100);
    rig.outw(0x602, 0xFFFF);
    assert_eq!(rig.inw(0x602), 0x0721);
    assert_eq!(rig.messages().len(), 1);
    rig.chipset.ioapic().eoi(0x49);
    assert_eq!(rig.messages().len(), 1, "still asserted");
    rig.outb(0x601, 0x01);
    assert_eq!(rig.inw(0x600), 0);
    rig.chipset.ioapic().eoi(0x49);
    assert_eq!(rig.messages().len(), 0);
}

#[test]
fn general_purpose_events() {
    let rig = Rig::new();
    rig.ioapic_write(0x10 + 2 * 9, 0x49 | 1 << 15);
    rig.outw(0x622, 1 << 3);
    rig.chipset.acpi().raise_gpe(2);
    rig.chipset.acpi().raise_gpe(16);
    assert_eq!(rig.messages().len(), 0);
    rig.chipset.acpi().raise_gpe(3);
    assert_eq!(rig.messages().len(), 1);
    assert_eq!(rig.inw(0x620), 1 << 3 | 1 << 2);
    rig.outw(0x620, 0xFFFF);
    assert_eq!(rig.inw(0x620), 0);
}

#[test]
fn every_way_to_reset() {
    let rig = Rig::new();
    rig.outb(0xCF9, 0x02);
    assert_eq!(rig.events(), []);
    rig.outb(0xCF9, 0x06);
    assert_eq!(rig.events(), [Reset]);
    rig.outb(0x64, 0xFE);
    assert_eq!(rig.events(), [Reset]);
    rig.outb(0x64, 0xFF);
    assert_eq!(rig.events(), []);
    rig.outb(0x64, 0xD1);
    rig.outb(0x60, 0x02);
    assert_eq!(rig.events(), [Reset]);
    rig.outb(0x92, 0x02);
    assert_eq!(rig.events(), []);
    rig.outb(0x92, 0x03);
    assert_eq!(rig.events(), [Reset]);
}

#[test]
fn keyboard_controller_answers_linux() {
    let rig = Rig::new();
    let command = |value: u8| {
        rig.outb(0x64, value);
        assert_eq!(rig.inb(0x64) & 0x21, 0x01, "an answer, not from the auxiliary device");
        rig.inb(0x60)
    };
    let mode = command(0x20);
    assert_eq!(command(0xAA), 0x55);
    assert_eq!(command(0xAB), 0x00);
    assert_eq!(command(0xA9), 0x01);
    rig.outb(0x64, 0x60);
    rig.outb(0x60, mode ^ 0x30);
    assert_eq!(command(0x20), mode ^ 0x30);
    // The loop-back of the auxiliary port does not work.
    rig.outb(0x64, 0xD3);
    rig.outb(0x60, 0x5A);
    assert_eq!(rig.inb(0x64) & 0x21, 0x01);
    rig.inb(0x60);
    assert_eq!(rig.inb(0x64) & 0x01, 0);
}

#[test]
fn missing_keyboard_times_out_with_an_interrupt() {
    let rig = Rig::new();
    rig.init_pic();
    rig.outb(0x64, 0x60);
    rig.outb(0x60, 0x05);
    rig.outb(0x60, 0xF2);
    assert_eq!(rig.inb(0x64) & 0x41, 0x41);
    assert_eq!(rig.acknowledge(), Some(0x31));
    assert_eq!(rig.inb(0x60), 0xFE);
    assert_eq!(rig.inb(0x64) & 0x41, 0);
}

#[test]
fn a20_is_one_line() {
    let rig = Rig::new();
    assert_eq!(rig.inb(0x92), 0x02);
    rig.outb(0x64, 0xDD);
    assert_eq!(rig.inb(0x92), 0x00);
    rig.outb(0x92, 0x02);
    rig.outb(0x64, 0xD0);
    assert_eq!(rig.inb(0x60), 0x03);
}

#[test]
fn delay_ports_are_claimed_and_others_float() {
    let rig = Rig::new();
    rig.outb(0x80, 0x55);
    rig.outb(0xED, 0x56);
    assert_eq!(rig.chipset.post_code(), 0x56);
    assert_eq!(rig.chipset.pio.unclaimed().writes, 0);
    assert_eq!(rig.inl(0x2F8), 0xFFFF_FFFF);
    rig.outb(0x2F8, 0);
    let unclaimed = rig.chipset.pio.unclaimed();
    assert_eq!((unclaimed.reads, unclaimed.writes), (4, 1));
}
