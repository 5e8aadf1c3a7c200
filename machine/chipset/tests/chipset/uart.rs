//! 16550A.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::rig::Rig;

const DATA: u16 = 0x3F8;
const IER: u16 = 0x3F9;
const IIR: u16 = 0x3FA;
const LCR: u16 = 0x3FB;
const MCR: u16 = 0x3FC;
const LSR: u16 = 0x3FD;
const MSR: u16 = 0x3FE;
const SCRATCH: u16 = 0x3FF;

fn rig_with_fifo(trigger: u8) -> Rig {
    let rig = Rig::new();
    rig.init_pic();
    rig.outb(IIR, trigger << 6 | 0x07);
    rig.outb(MCR, 0x08);
    rig
}

#[test]
fn passes_the_detection_of_a_16550a() {
    let rig = Rig::new();
    rig.outb(SCRATCH, 0xA5);
    assert_eq!(rig.inb(SCRATCH), 0xA5);
    rig.outb(IER, 0xFF);
    assert_eq!(rig.inb(IER), 0x0F);
    rig.outb(IER, 0);
    rig.outb(MCR, 0x10 | 0x0A);
    assert_eq!(rig.inb(MSR) & 0xF0, 0x90);
    rig.outb(MCR, 0);
    rig.outb(IIR, 0x01);
    assert_eq!(rig.inb(IIR), 0xC1);
    rig.outb(LCR, 0x83);
    rig.outb(DATA, 0x34);
    rig.outb(IER, 0x12);
    assert_eq!((rig.inb(DATA), rig.inb(IER)), (0x34, 0x12));
    rig.outb(LCR, 0x03);
    assert_eq!(rig.inb(IER), 0);
    assert_eq!(rig.output(), b"");
}

#[test]
fn output_and_transmit_interrupt() {
    let rig = rig_with_fifo(0);
    rig.chipset.pio.write(DATA, b"h");
    rig.outb(DATA, b'i');
    assert_eq!(rig.output(), b"hi");
    assert_eq!(rig.inb(LSR), 0x60);
    assert_eq!(rig.acknowledge(), None);
    // Enabling it with the transmitter empty raises it; reading IIR clears it.
    rig.outb(IER, 0x02);
    assert_eq!(rig.acknowledge(), Some(0x34));
    rig.outb(0x20, 0x20);
    assert_eq!(rig.inb(IIR), 0xC2);
    assert_eq!(rig.inb(IIR), 0xC1);
    rig.outb(DATA, b'!');
    assert_eq!(rig.acknowledge(), Some(0x34));
    rig.outb(0x20, 0x20);
    // A byte written without looking at IIR makes an edge again.
    rig.outb(DATA, b'!');
    assert_eq!(rig.acknowledge(), Some(0x34));
}

#[test]
fn out2_gates_the_interrupt() {
    let rig = rig_with_fifo(0);
    rig.outb(MCR, 0);
    rig.outb(IER, 0x02);
    assert!(!rig.intr());
    rig.outb(MCR, 0x08);
    assert!(rig.intr());
}

#[test]
fn received_bytes_trigger_and_time_out() {
    let rig = rig_with_fifo(2);
    rig.outb(IER, 0x01);
    assert_eq!(rig.chipset.uart().push_input(b"1234567"), 7);
    assert_eq!(rig.inb(IIR), 0xCC, "below the level: time-out");
    assert_eq!(rig.chipset.uart().push_input(b"8"), 1);
    assert_eq!(rig.inb(IIR), 0xC4);
    assert_eq!(rig.acknowledge(), Some(0x34));
    for expected in b'1'..=b'8' {
        assert_eq!(rig.inb(LSR), 0x61);
        assert_eq!(rig.inb(DATA), expected);
    }
    assert_eq!((rig.inb(LSR), rig.inb(IIR)), (0x60, 0xC1));
    assert_eq!(rig.inb(DATA), 0);
}

#[test]
fn full_fifo_holds_the_host_until_there_is_room() {
    let rig = rig_with_fifo(0);
    let calls = Arc::new(AtomicU32::new(0));
    let counter = calls.clone();
    rig.chipset.uart().on_space(Box::new(move || {
        counter.fetch_add(1, Ordering::SeqCst);
    }));
    assert_eq!(rig.chipset.uart().push_input(&[b'x'; 20]), 16);
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    rig.inb(DATA);
    rig.inb(DATA);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(rig.chipset.uart().push_input(&[b'x'; 2]), 2);
    // Without FIFO there is room for one.
    rig.outb(IIR, 0);
    assert_eq!(rig.inb(LSR), 0x60, "switching the FIFO off clears it");
    assert_eq!(rig.chipset.uart().push_input(b"ab"), 1);
}

#[test]
fn loopback_receives_what_it_sends_and_overruns() {
    let rig = rig_with_fifo(0);
    rig.outb(MCR, 0x10);
    assert_eq!(rig.chipset.uart().push_input(b"x"), 0);
    for byte in 0..17 {
        rig.outb(DATA, byte);
    }
    assert_eq!(rig.output(), b"");
    rig.outb(IER, 0x07);
    assert_eq!(rig.inb(IIR), 0xC6, "line status comes first");
    assert_eq!(rig.inb(LSR), 0x63);
    assert_eq!(rig.inb(LSR), 0x61);
    assert_eq!(rig.inb(IIR), 0xC4);
    assert_eq!((0..16).map(|_| rig.inb(DATA)).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
    assert_eq!(rig.inb(IIR), 0xC2);
}

#[test]
fn modem_status_deltas_interrupt_and_clear() {
    let rig = rig_with_fifo(0);
    assert_eq!(rig.inb(MSR), 0xB0);
    rig.outb(MCR, 0x10);
    assert_eq!(rig.inb(MSR), 0x0B);
    rig.outb(MCR, 0x1F);
    assert_eq!(rig.inb(MSR), 0xFB);
    rig.outb(IER, 0x08);
    assert_eq!(rig.inb(IIR), 0xC1);
    rig.outb(MCR, 0x1B);
    assert_eq!(rig.inb(IIR), 0xC0);
    assert_eq!(rig.inb(MSR), 0xB4, "trailing edge of the ring");
    assert_eq!(rig.inb(IIR), 0xC1);
}
