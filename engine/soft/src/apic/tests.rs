//! The local APIC against chapter 11 of the SDM.

use proptest::prelude::*;
use vireo_core::MsiMessage;

use super::local::{Apic, Effect, reg};
use super::message::{DeliveryMode, Destination, Message};
use super::route::{Routing, route};
use crate::clock::host_tsc_hz;

const X2APIC_ON: u64 = 0xfee0_0000 | 0xc00;

fn enabled() -> Apic {
    let mut a = Apic::new(0);
    a.write(reg::SVR, 0x1ff, 0);
    a
}

#[test]
fn disabled_by_software_after_reset_it_takes_nothing() {
    let mut a = Apic::new(3);
    a.raise(0x40, false);
    assert_eq!(a.deliverable(), None);
    assert_eq!(a.read(reg::ID, 0), Some(3 << 24));
    assert_eq!(a.read(reg::SVR, 0), Some(0xff));
}

#[test]
fn interrupts_are_delivered_by_priority_and_nested() {
    let mut a = enabled();
    a.raise(0x31, false);
    a.raise(0x52, false);
    assert_eq!(a.deliverable(), Some(0x52));
    a.accept(0x52);
    assert_eq!(a.deliverable(), None, "0x31 is of lower class than what is in service");
    a.raise(0x61, false);
    assert_eq!(a.deliverable(), Some(0x61));
    a.accept(0x61);
    assert_eq!(a.read(reg::PPR, 0), Some(0x60));
    a.write(reg::EOI, 0, 0);
    a.write(reg::EOI, 0, 0);
    assert_eq!(a.deliverable(), Some(0x31));
}

#[test]
fn task_priority_holds_interrupts_back() {
    let mut a = enabled();
    a.set_cr8(5);
    a.raise(0x5f, false);
    assert_eq!(a.deliverable(), None);
    a.set_cr8(4);
    assert_eq!(a.deliverable(), Some(0x5f));
}

#[test]
fn only_level_triggered_interrupts_tell_their_end() {
    let mut a = enabled();
    for (vector, level) in [(0x40, false), (0x41, true)] {
        a.raise(vector, level);
        a.accept(vector);
        let expected = if level { Effect::Eoi(vector) } else { Effect::None };
        assert_eq!(a.write(reg::EOI, 0, 0), Some(expected));
    }
}

#[test]
fn illegal_vectors_are_errors() {
    let mut a = enabled();
    a.write(reg::LVT_ERROR, 0xfe, 0);
    a.raise(5, false);
    assert_eq!(a.deliverable(), Some(0xfe));
    a.write(reg::ESR, 0, 0);
    assert_eq!(a.read(reg::ESR, 0), Some(1 << 6));
    assert_eq!(a.write_icr(0x0f), Effect::None);
    a.write(reg::ESR, 0, 0);
    assert_eq!(a.read(reg::ESR, 0), Some(1 << 5));
}

#[test]
fn the_base_register_knows_the_legal_transitions() {
    let mut a = Apic::new(0);
    assert!(a.set_base(0xfee0_0000 | 1 << 10, 40).is_err(), "x2APIC without enable");
    assert!(a.set_base(X2APIC_ON, 40).is_ok());
    assert!(a.set_base(0xfee0_0000 | 1 << 11, 40).is_err(), "back to xAPIC");
    assert!(a.set_base(0xfee0_0000, 40).is_ok());
    assert!(a.set_base(X2APIC_ON, 40).is_err(), "from disabled straight to x2APIC");
    assert!(a.set_base(1 << 41 | 1 << 11, 40).is_err(), "beyond the physical width");
    assert_eq!(a.base() & 1 << 8, 1 << 8, "the BSP flag is read-only");
}

#[test]
fn the_timer_counts_down_once_or_for_ever() {
    let mut a = enabled();
    let tick = host_tsc_hz() as f64 / 1e9 * 16.0;
    a.write(reg::TIMER_DIVIDE, 3, 0);
    a.write(reg::LVT_TIMER, 0x40, 0);
    a.write(reg::TIMER_INITIAL, 1000, 0);
    let deadline = a.deadline().expect("it runs");
    assert!((deadline as f64 - 1000.0 * tick).abs() < tick);
    let half = a.read(reg::TIMER_CURRENT, deadline / 2).unwrap();
    assert!((499..=501).contains(&half), "{half}");
    assert!(!a.serve_timer(deadline - 1));
    assert!(a.serve_timer(deadline));
    assert_eq!((a.deliverable(), a.deadline()), (Some(0x40), None));

    a.write(reg::LVT_TIMER, 0x41 | 1 << 17, 0);
    a.write(reg::TIMER_INITIAL, 1000, 0);
    assert!(a.serve_timer(deadline * 7 + 5));
    let next = a.deadline().expect("a periodic timer goes on");
    assert!(next > deadline * 7 && next <= deadline * 8 + 8, "missed periods are one");
}

#[test]
fn the_tsc_deadline_fires_once_and_only_in_its_mode() {
    let mut a = enabled();
    a.set_tsc_deadline(500);
    assert_eq!(a.deadline(), None);
    a.write(reg::LVT_TIMER, 0x50 | 2 << 17, 0);
    a.set_tsc_deadline(500);
    assert!(!a.serve_timer(499));
    assert!(a.serve_timer(500));
    assert_eq!((a.tsc_deadline(), a.deliverable()), (0, Some(0x50)));
}

#[test]
fn destinations_name_the_right_processors() {
    let of = |id, logical, flat, x2apic| Routing {
        id,
        logical,
        flat,
        x2apic,
        enabled: true,
        software_enabled: true,
        priority: 0,
    };
    let all = [of(0, 1, true, false), of(1, 2, true, false), of(2, 4, true, false)];
    let targets = |d, source| {
        let m = Message { mode: DeliveryMode::Fixed, vector: 0x40, level: false, destination: d };
        let mut found = Vec::new();
        route(&m, source, all.iter().copied(), |i| found.push(i));
        found
    };
    assert_eq!(targets(Destination::Physical { id: 1, wide: false }, None), [1]);
    assert_eq!(targets(Destination::Physical { id: 0xff, wide: false }, None), [0, 1, 2]);
    assert_eq!(targets(Destination::Logical { id: 5, wide: false }, None), [0, 2]);
    assert_eq!(targets(Destination::Others, Some(1)), [0, 2]);
    assert_eq!(targets(Destination::Myself, Some(1)), [1]);
    assert!(of(17, 0, true, true).matches(&Destination::Logical { id: 1 << 16 | 2, wide: true }));
    assert!(!of(17, 0, true, true).matches(&Destination::Logical { id: 2, wide: true }));
}

#[test]
fn messages_of_devices() {
    let m = Message::from_msi(&MsiMessage { address: 0xfee0_1004, data: 0xc041 }).unwrap();
    assert_eq!((m.vector, m.level), (0x41, true));
    assert_eq!(m.destination, Destination::Logical { id: 1, wide: false });
    assert_eq!(Message::from_msi(&MsiMessage { address: 0xfec0_0000, data: 0x41 }), None);
}

proptest! {
    #[test]
    fn no_register_write_panics_and_saved_state_is_whole(
        x2apic: bool,
        writes in proptest::collection::vec((0u32..0x40, any::<u32>(), 0u64..1 << 40), 0..60),
    ) {
        let mut a = enabled();
        if x2apic {
            a.set_base(X2APIC_ON | 1 << 8, 40).unwrap();
        }
        let mut now = 0;
        for (r, v, passed) in writes {
            now += passed;
            a.serve_timer(now);
            a.write(r * 16, v, now);
            a.read(r * 16, now);
            if let Some(v) = a.deliverable() {
                a.accept(v);
            }
        }
        let saved = a.save(now);
        let mut b = Apic::new(0);
        b.load(&saved, now);
        prop_assert_eq!(b.save(now), saved);
    }
}
