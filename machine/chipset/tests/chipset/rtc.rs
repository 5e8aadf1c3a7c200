//! MC146818 and CMOS memory.

use crate::rig::Rig;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn read(rig: &Rig, index: u8) -> u8 {
    rig.outb(0x70, index);
    rig.inb(0x71)
}

fn write(rig: &Rig, index: u8, value: u8) {
    rig.outb(0x70, index);
    rig.outb(0x71, value);
}

/// Century, year, month, day, weekday, hour, minute, second.
fn time(rig: &Rig) -> [u8; 8] {
    [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| read(rig, index))
}

#[test]
fn shows_the_wall_clock_and_carries_over_a_leap_day() {
    let rig = Rig::new();
    assert_eq!(time(&rig), [0x20, 0x24, 0x02, 0x29, 5, 0x23, 0x59, 0x58]);
    rig.time.advance(2 * SECOND);
    assert_eq!(time(&rig), [0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00]);
    assert_eq!(read(&rig, 0x0D), 0x80);
}

#[test]
fn binary_and_twelve_hours() {
    let rig = Rig::new();
    write(&rig, 0x0B, 0x04);
    assert_eq!(time(&rig), [20, 24, 2, 29, 5, 11 | 0x80, 59, 58]);
    rig.time.advance(2 * SECOND);
    assert_eq!(time(&rig)[5], 12, "midnight is 12 AM");
    write(&rig, 0x0B, 0x00);
    rig.time.advance(12 * 3600 * SECOND);
    assert_eq!(time(&rig)[5], 0x92, "noon is 12 PM");
}

#[test]
fn update_in_progress_comes_before_the_second() {
    let rig = Rig::new();
    assert_eq!(read(&rig, 0x0A), 0x26);
    rig.time.advance(SECOND - 245_000);
    assert_eq!(read(&rig, 0x0A), 0xA6);
    rig.time.advance(245_000);
    assert_eq!(read(&rig, 0x0A), 0x26);
}

#[test]
fn set_as_linux_does_it_starts_half_a_second_later() {
    let rig = Rig::new();
    rig.time.advance(300 * MS);
    write(&rig, 0x0B, 0x82);
    write(&rig, 0x0A, 0x76);
    for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x59)] {
        write(&rig, index, value);
    }
    rig.time.advance(5 * SECOND);
    assert_eq!(read(&rig, 0), 0x59, "held");
    write(&rig, 0x0B, 0x02);
    write(&rig, 0x0A, 0x26);
    rig.time.advance(499 * MS);
    assert_eq!(time(&rig), [0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59]);
    rig.time.advance(MS);
    assert_eq!(time(&rig), [0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00]);
}

#[test]
fn running_clock_takes_single_writes() {
    let rig = Rig::new();
    write(&rig, 2, 0x10);
    assert_eq!(time(&rig)[5..], [0x23, 0x10, 0x58]);
    rig.time.advance(SECOND);
    assert_eq!(time(&rig)[5..], [0x23, 0x10, 0x59]);
}

#[test]
fn update_interrupt_comes_each_second_until_register_c_is_read() {
    let rig = Rig::new();
    rig.init_pic();
    read(&rig, 0x0C);
    write(&rig, 0x0B, 0x12);
    for _ in 0..3 {
        rig.time.advance(SECOND);
        assert_eq!(rig.acknowledge(), Some(0x38));
        assert_eq!(read(&rig, 0x0C) & 0x90, 0x90);
        rig.outb(0xA0, 0x20);
        rig.outb(0x20, 0x20);
        assert_eq!(rig.acknowledge(), None);
    }
    assert_eq!(read(&rig, 0x0C), 0);
}

#[test]
fn alarm_matches_with_wildcards() {
    let rig = Rig::new();
    rig.init_pic();
    for (index, value) in [(1, 0x05), (3, 0x01), (5, 0xFF)] {
        write(&rig, index, value);
    }
    read(&rig, 0x0C);
    write(&rig, 0x0B, 0x22);
    // 23:59:58 to 00:01:05 are 67 s.
    rig.time.advance(67 * SECOND - 1);
    assert_eq!(rig.acknowledge(), None);
    rig.time.advance(1);
    assert_eq!(rig.acknowledge(), Some(0x38));
    assert_eq!(read(&rig, 0x0C) & 0xA0, 0xA0);
}

#[test]
fn flags_rise_without_interrupts() {
    let rig = Rig::new();
    read(&rig, 0x0C);
    for (index, value) in [(1, 0x00), (3, 0x00), (5, 0x12)] {
        write(&rig, index, value);
    }
    rig.time.advance(3600 * SECOND);
    assert_eq!(read(&rig, 0x0C), 0x50);
    rig.time.advance(24 * 3600 * SECOND);
    assert_eq!(read(&rig, 0x0C), 0x70);
}

#[test]
fn periodic_interrupt_at_1024_hz() {
    let rig = Rig::new();
    rig.init_pic();
    read(&rig, 0x0C);
    write(&rig, 0x0B, 0x42);
    let mut ticks = 0;
    for _ in 0..10_000 {
        rig.time.advance(100_000);
        if rig.acknowledge() == Some(0x38) {
            assert_eq!(read(&rig, 0x0C) & 0xC0, 0xC0);
            rig.outb(0xA0, 0x20);
            rig.outb(0x20, 0x20);
            ticks += 1;
        }
    }
    assert_eq!(ticks, 1024);
    // Late by a hundred periods: one interrupt.
    rig.time.advance_late(100 * MS);
    assert_eq!(rig.acknowledge(), Some(0x38));
    read(&rig, 0x0C);
    rig.outb(0xA0, 0x20);
    rig.outb(0x20, 0x20);
    assert_eq!(rig.acknowledge(), None);
}

#[test]
fn memory_and_nmi_mask() {
    let rig = Rig::new();
    rig.chipset.rtc().set_cmos(0x10, 0x42);
    rig.chipset.rtc().set_cmos(0x0B, 0xFF);
    assert_eq!(read(&rig, 0x10), 0x42);
    assert_eq!(read(&rig, 0x0B), 0x02);
    write(&rig, 0x7F, 0xA5);
    assert!(rig.chipset.rtc().nmi_enabled());
    assert_eq!(read(&rig, 0xFF), 0xA5);
    assert!(!rig.chipset.rtc().nmi_enabled());
    rig.chipset.reset_all();
    assert_eq!(read(&rig, 0x7F), 0xA5);
}
