//! Hostile port and memory accesses, and saved states.

use crate::rig::Rig;
use proptest::prelude::*;
use vireo_chipset::{ChipsetState, RestoreError};

#[derive(Debug, Clone)]
enum Step {
    Read(u16, usize),
    Write(u16, Vec<u8>),
    MmioRead(u64, usize),
    MmioWrite(u64, Vec<u8>),
    Line(bool),
    Input(u8),
    Acknowledge,
    Eoi(u8),
    Advance(u64),
    AdvanceLate(u64),
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        4 => prop::sample::select(vec![0x20u16, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64,
            0x70, 0x71, 0x80, 0x92, 0xED, 0xCF8, 0xCF9, 0xCFC, 0xCFD, 0xCFF]),
        2 => 0x3F8u16..0x400,
        2 => 0x600u16..0x640,
        1 => any::<u16>(),
    ]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    (any::<[u8; 4]>(), prop::sample::select(vec![1usize, 2, 4])).prop_map(|(data, len)| data[..len].to_vec())
}

fn step() -> impl Strategy<Value = Step> {
    let mmio = || 0xFEC0_0000u64..0xFEC0_0050;
    prop_oneof![
        4 => (port(), prop::sample::select(vec![1usize, 2, 4])).prop_map(|(port, len)| Step::Read(port, len)),
        10 => (port(), bytes()).prop_map(|(port, data)| Step::Write(port, data)),
        1 => (mmio(), 0usize..9).prop_map(|(address, len)| Step::MmioRead(address, len)),
        3 => (prop::sample::select(vec![0xFEC0_0000u64, 0xFEC0_0010, 0xFEC0_0040]), bytes())
            .prop_map(|(address, data)| Step::MmioWrite(address, data)),
        1 => (mmio(), prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(a, data)| Step::MmioWrite(a, data)),
        2 => any::<bool>().prop_map(Step::Line),
        1 => any::<u8>().prop_map(Step::Input),
        2 => Just(Step::Acknowledge),
        1 => any::<u8>().prop_map(Step::Eoi),
        2 => (0u64..50_000_000).prop_map(Step::Advance),
        1 => (0u64..1_000_000_000_000).prop_map(Step::AdvanceLate),
    ]
}

fn run(rig: &Rig, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Read(port, len) => rig.chipset.pio.read(*port, &mut vec![0; *len]),
            Step::Write(port, data) => rig.chipset.pio.write(*port, data),
            Step::MmioRead(address, len) => rig.chipset.mmio.read(*address, &mut vec![0; *len]),
            Step::MmioWrite(address, data) => rig.chipset.mmio.write(*address, data),
            Step::Line(level) => {
                rig.irq11.set(*level);
                rig.gsi20.set(*level);
            }
            Step::Input(byte) => {
                rig.chipset.uart().push_input(&[*byte]);
            }
            Step::Acknowledge => {
                rig.acknowledge();
            }
            Step::Eoi(vector) => rig.chipset.ioapic().eoi(*vector),
            Step::Advance(ns) => rig.time.advance(*ns),
            Step::AdvanceLate(ns) => rig.time.advance_late(*ns),
        }
    }
}

/// What a guest can see without changing much: the registers of all devices, read once.
fn look(rig: &Rig) -> (Vec<u8>, Option<u8>, ChipsetState) {
    let ports = [0x20..0x22, 0xA0..0xA2, 0x4D0..0x4D2, 0x40..0x43, 0x60..0x65, 0x3F8..0x400, 0x600..0x624];
    let bytes = ports.into_iter().flatten().map(|port| rig.inb(port)).collect();
    (bytes, rig.acknowledge(), rig.chipset.save_all())
}

proptest! {
    #[test]
    fn any_accesses_leave_a_state_that_restores_exactly(
        before in prop::collection::vec(step(), 0..120),
        elapsed in 0u64..2_000_000_000,
    ) {
        let rig = Rig::new();
        run(&rig, &before);
        let saved = rig.chipset.save_all();
        let text = serde_json::to_string(&saved).unwrap();
        let read: ChipsetState = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(&read, &saved);

        let other = Rig::new();
        other.time.advance(vireo_chipset::clock::Clock::now_ns(&rig.time));
        other.chipset.restore_all(&read).unwrap();
        prop_assert_eq!(other.chipset.save_all(), saved);
        prop_assert_eq!(other.intr(), rig.intr());

        // And both go on alike.
        rig.time.advance(elapsed);
        other.time.advance(elapsed);
        rig.messages();
        other.messages();
        prop_assert_eq!(look(&other), look(&rig));
    }

    #[test]
    fn reset_always_gives_the_same_board(before in prop::collection::vec(step(), 0..80)) {
        let rig = Rig::new();
        run(&rig, &before);
        rig.irq11.set(false);
        rig.gsi20.set(false);
        rig.chipset.reset_all();
        prop_assert!(!rig.intr());
        let fresh = Rig::new();
        fresh.time.advance(vireo_chipset::clock::Clock::now_ns(&rig.time));
        fresh.chipset.reset_all();
        prop_assert_eq!(without_clock(&rig), without_clock(&fresh));
    }
}

/// The state but for the RTC, whose time and memory a battery keeps.
fn without_clock(rig: &Rig) -> serde_json::Value {
    let mut state = serde_json::to_value(rig.chipset.save_all()).unwrap();
    state.as_object_mut().unwrap().remove("rtc").unwrap();
    // A host that waits for room goes on waiting.
    state["uart"]["registers"].as_object_mut().unwrap().remove("host_waits").unwrap();
    state
}

/// The state of a new board with one value replaced.
fn damaged(path: &str, value: serde_json::Value) -> Result<(), RestoreError> {
    let rig = Rig::new();
    let before = rig.chipset.save_all();
    let mut json = serde_json::to_value(&before).unwrap();
    *json.pointer_mut(path).unwrap_or_else(|| panic!("no field {path}")) = value;
    let result = rig.chipset.restore_all(&serde_json::from_value(json).unwrap());
    assert_eq!(rig.chipset.save_all(), before, "nothing was taken over");
    result
}

#[test]
fn damaged_states_are_refused() {
    use serde_json::json;
    for path in ["", "/pic", "/ioapic", "/pit", "/rtc", "/uart", "/i8042", "/acpi", "/pci", "/host_bridge"] {
        let result = damaged(&format!("{path}/version"), json!(99));
        assert!(matches!(result, Err(RestoreError::Version { found: 99, supported: 1, .. })), "{path}");
    }
    for (path, value) in [
        ("/pic/master/top", json!(8)),
        ("/pic/slave/irr", json!(4)),
        ("/pic/master/lines", json!(4)),
        ("/ioapic/registers/redirection/3", json!(0x1_4000)),
        ("/ioapic/registers/lines", json!(1 << 24)),
        ("/pit/registers/counters/0/initial", json!(0)),
        ("/pit/registers/counters/2/gate", json!(true)),
        ("/rtc/registers/cmos", json!([0, 1])),
        ("/rtc/registers/index", json!(200)),
        ("/rtc/registers/held", json!(true)),
        ("/uart/registers/received", json!([0, 1])),
        ("/i8042/registers/command", json!(0xAA)),
        ("/acpi/registers/control", json!(0)),
        ("/pci/registers/address", json!(1)),
        ("/isa_bridge/bytes/0", json!(1)),
        ("/host_bridge/bytes", json!([1])),
    ] {
        assert!(matches!(damaged(path, value), Err(RestoreError::Invalid { .. })), "{path}");
    }
}
