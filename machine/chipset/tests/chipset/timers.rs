//! 8254, port 61h and ACPI PM timer.

use crate::rig::Rig;

/// Nanoseconds after which `cycles` of the 8254 have passed.
fn pit_ns(cycles: u64) -> u64 {
    (cycles * 1_000_000_000).div_ceil(1_193_182)
}

fn read_count(rig: &Rig, port: u16) -> u16 {
    u16::from_le_bytes([rig.inb(port), rig.inb(port)])
}

fn write_count(rig: &Rig, port: u16, count: u16) {
    for byte in count.to_le_bytes() {
        rig.outb(port, byte);
    }
}

/// Serves every tick while time passes in small steps, and says how many there were.
fn count_ticks(rig: &Rig, steps: u32, step_ns: u64) -> u32 {
    let mut ticks = 0;
    for _ in 0..steps {
        rig.time.advance(step_ns);
        while rig.acknowledge() == Some(0x30) {
            rig.outb(0x20, 0x20);
            ticks += 1;
        }
    }
    ticks
}

fn start_hz_100(rig: &Rig) {
    rig.init_pic();
    rig.outb(0x43, 0x34);
    write_count(rig, 0x40, 11932);
    // Setting the mode raises the output, which is an edge.
    if rig.acknowledge().is_some() {
        rig.outb(0x20, 0x20);
    }
}

#[test]
fn rate_generator_keeps_exact_phase() {
    let rig = Rig::new();
    start_hz_100(&rig);
    // 1000 periods of 11932 cycles, looked at every 1.7 ms.
    let total = pit_ns(1000 * 11932);
    let steps = (total / 1_700_000) as u32;
    assert_eq!(count_ticks(&rig, steps, 1_700_000), 999);
    rig.time.advance(pit_ns(1000 * 11932) - rig_now(&rig) - 1);
    assert_eq!(rig.acknowledge(), None);
    rig.time.advance(1);
    assert_eq!(rig.acknowledge(), Some(0x30));
}

fn rig_now(rig: &Rig) -> u64 {
    use vireo_chipset::clock::Clock;
    rig.time.now_ns()
}

#[test]
fn missed_ticks_are_one_and_the_phase_stays() {
    let rig = Rig::new();
    start_hz_100(&rig);
    rig.time.advance_late(pit_ns(57 * 11932 + 6000));
    assert_eq!(count_ticks(&rig, 1, 0), 1);
    rig.time.advance(pit_ns(58 * 11932) - rig_now(&rig) - 1);
    assert_eq!(rig.acknowledge(), None);
    rig.time.advance(1);
    assert_eq!(rig.acknowledge(), Some(0x30));
}

#[test]
fn late_square_wave_tick_is_not_lost() {
    let rig = Rig::new();
    rig.init_pic();
    rig.outb(0x43, 0x36);
    write_count(&rig, 0x40, 0);
    count_ticks(&rig, 1, 0);
    // In the low half of the period after the tick.
    rig.time.advance_late(pit_ns(65_536 + 50_000));
    assert_eq!(count_ticks(&rig, 1, 0), 1);
}

#[test]
fn one_shot_by_software_strobe_fires_once() {
    let rig = Rig::new();
    rig.init_pic();
    rig.outb(0x43, 0x38);
    count_ticks(&rig, 1, 0);
    write_count(&rig, 0x40, 1193);
    assert_eq!(count_ticks(&rig, 1, pit_ns(1193)), 0);
    assert_eq!(count_ticks(&rig, 1000, 1_000_000), 1);
    assert_eq!(rig.time.next_deadline(), None);
}

#[test]
fn shortest_period_does_not_storm() {
    let rig = Rig::new();
    rig.init_pic();
    rig.outb(0x43, 0x34);
    write_count(&rig, 0x40, 2);
    let ticks = count_ticks(&rig, 10_000, 10_000);
    assert!((900..=1100).contains(&ticks), "{ticks} ticks in 100 ms");
}

#[test]
fn terminal_count_and_gate_on_port_61() {
    let rig = Rig::new();
    rig.outb(0x61, 0x00);
    rig.outb(0x43, 0xB0);
    write_count(&rig, 0x42, 1000);
    rig.time.advance(pit_ns(500));
    assert_eq!(read_count(&rig, 0x42), 1000, "the gate is closed");
    rig.outb(0x61, 0x01);
    rig.time.advance(pit_ns(400));
    assert!((599..=600).contains(&read_count(&rig, 0x42)));
    rig.outb(0x61, 0x00);
    rig.time.advance(pit_ns(5000));
    assert!((599..=600).contains(&read_count(&rig, 0x42)));
    rig.outb(0x61, 0x01);
    assert_eq!(rig.inb(0x61) & 0x20, 0);
    rig.time.advance(pit_ns(601));
    assert_eq!(rig.inb(0x61) & 0x2F, 0x21);
    // The counting element wraps and goes on.
    assert!(read_count(&rig, 0x42) > 0xFFF0);
}

#[test]
fn hardware_triggered_one_shot() {
    let rig = Rig::new();
    rig.outb(0x43, 0xB2);
    write_count(&rig, 0x42, 100);
    assert_eq!(rig.inb(0x61) & 0x20, 0x20);
    rig.outb(0x61, 0x01);
    assert_eq!(rig.inb(0x61) & 0x20, 0);
    rig.time.advance(pit_ns(60));
    // A new trigger starts again.
    rig.outb(0x61, 0x00);
    rig.outb(0x61, 0x01);
    rig.time.advance(pit_ns(60));
    assert_eq!(rig.inb(0x61) & 0x20, 0);
    rig.time.advance(pit_ns(60));
    assert_eq!(rig.inb(0x61) & 0x20, 0x20);
}

#[test]
fn latch_and_read_back() {
    let rig = Rig::new();
    rig.outb(0x43, 0x34);
    write_count(&rig, 0x40, 5000);
    rig.time.advance(pit_ns(1000));
    rig.outb(0x43, 0x00);
    rig.time.advance(pit_ns(1000));
    rig.outb(0x43, 0x00);
    assert_eq!(read_count(&rig, 0x40), 4000, "the second latch is ignored");
    assert!((2999..=3000).contains(&read_count(&rig, 0x40)));
    // Status and count of counter 0: status first. Mode 2, two bytes, output high.
    rig.outb(0x43, 0xC2);
    assert_eq!(rig.inb(0x40), 0xB4);
    assert!((2999..=3000).contains(&read_count(&rig, 0x40)));
    // A control word without count: null count.
    rig.outb(0x43, 0x31);
    rig.outb(0x43, 0xE2);
    assert_eq!(rig.inb(0x40), 0x71);
    assert_eq!(rig.inb(0x43), 0xFF);
}

#[test]
fn bcd_counts_decimal_digits() {
    let rig = Rig::new();
    rig.outb(0x43, 0x35);
    write_count(&rig, 0x40, 0x1000);
    rig.time.advance(pit_ns(1));
    assert_eq!(read_count(&rig, 0x40), 0x0999);
}

#[test]
fn new_count_of_a_running_rate_generator_waits_for_its_period() {
    let rig = Rig::new();
    start_hz_100(&rig);
    rig.time.advance(pit_ns(5 * 11932 + 1000));
    count_ticks(&rig, 1, 0);
    write_count(&rig, 0x40, 2000);
    rig.time.advance(pit_ns(6 * 11932) - rig_now(&rig) - 1);
    assert_eq!(rig.acknowledge(), None);
    assert_eq!(count_ticks(&rig, 1, 1), 1);
    rig.time.advance(pit_ns(6 * 11932 + 2000) - rig_now(&rig) - 1);
    assert_eq!(rig.acknowledge(), None);
    assert_eq!(count_ticks(&rig, 1, 1), 1);
}

#[test]
fn refresh_bit_toggles() {
    let rig = Rig::new();
    let first = rig.inb(0x61) & 0x10;
    rig.time.advance(15_086);
    assert_ne!(rig.inb(0x61) & 0x10, first);
}

#[test]
fn pm_timer_runs_at_its_frequency() {
    let rig = Rig::new();
    let start = rig.inl(0x608);
    rig.time.advance(1_000_000_000);
    assert_eq!(rig.inl(0x608).wrapping_sub(start), 3_579_545);
}

#[test]
fn pm_timer_carry_raises_the_sci() {
    let rig = Rig::new();
    rig.ioapic_write(0x10 + 2 * 9, 0x49 | 1 << 15);
    rig.outw(0x602, 1);
    // Bit 31 rises after 599.9 s.
    rig.time.advance(599_000_000_000);
    assert!(rig.messages().is_empty());
    rig.time.advance(1_000_000_000);
    assert_eq!(rig.messages().len(), 1);
    assert_eq!(rig.inw(0x600), 1);
    rig.outw(0x600, 1);
    rig.chipset.ioapic().eoi(0x49);
    assert!(rig.messages().is_empty());
}
