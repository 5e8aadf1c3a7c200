//! The PCI transport: what it says of itself, negotiation, interrupts, the window in configuration space.

use std::sync::Arc;

use proptest::prelude::*;
use vireo_block::RamDisk;
use vireo_chipset::RestoreError;
use vireo_virtio::{Blk, Rng, VirtioState};

use crate::rig::{DRIVER_OK, EVENT_IDX, FEATURES_OK, INDIRECT, NEEDS_RESET, Rig, Ring, VERSION_1};

fn blk() -> Rig {
    Rig::new(Blk::new(Arc::new(RamDisk::new(1 << 20, 512)), 2))
}

#[test]
fn it_is_a_modern_device() {
    let rig = blk();
    assert_eq!(rig.config_read(0), 0x1042_1AF4);
    assert_eq!(rig.config_read(8), 0x0180_0001);
    assert_eq!(rig.config_read(0x2C), 0x1042_1AF4);
    assert_eq!(rig.config_read(0x3C) >> 8 & 0xFF, 1);
    // MSI-X: one vector for the configuration, one for each queue.
    assert_eq!(rig.config_read(rig.msix_capability) >> 16, 2);
    assert_eq!(rig.common::<2>(18), 2, "queues");
    let rng = Rig::new(Rng::new());
    assert_eq!(rng.config_read(0), 0x1044_1AF4);
    assert_eq!(rng.offered(), VERSION_1 | EVENT_IDX | INDIRECT);
}

#[test]
fn only_what_is_offered_can_be_agreed_on() {
    let rig = blk();
    let offered = rig.offered();
    for (features, agreed) in
        [(0, false), (EVENT_IDX, false), (VERSION_1 | 1 << 63, false), (offered, true), (VERSION_1, true)]
    {
        rig.reset();
        rig.choose(features);
        rig.set_status(3 | FEATURES_OK | DRIVER_OK);
        let expected = if agreed { 3 | FEATURES_OK | DRIVER_OK } else { 3 };
        assert_eq!(rig.status(), expected, "{features:#x}");
        rig.choose(1 << 40);
        rig.set_common::<4>(8, 0);
        assert_eq!(rig.common::<4>(12) == 0, !agreed || features as u32 == 0, "chosen once");
    }
    rig.set_common::<4>(0, 2);
    assert_eq!(rig.common::<4>(4), 0, "no features beyond 64");
}

#[test]
fn queues_take_what_can_be() {
    let rig = blk();
    rig.negotiate(VERSION_1);
    rig.set_common::<2>(22, 1);
    assert_eq!((rig.common::<2>(24), rig.common::<2>(30)), (256, 1));
    for (size, becomes) in [(100, 256), (512, 256), (0, 256), (128, 128)] {
        rig.set_common::<2>(24, size);
        assert_eq!(rig.common::<2>(24), becomes);
    }
    for (vector, becomes) in [(2, 2), (3, 0xFFFF), (0xFFFF, 0xFFFF)] {
        for field in [16, 26] {
            rig.set_common::<2>(field, vector);
            assert_eq!(rig.common::<2>(field), becomes);
        }
    }
    rig.set_common::<4>(32, 0x1234_5670);
    rig.set_common::<4>(36, 0x1);
    rig.set_common::<8>(48, 0x2_0000_1230);
    rig.set_common::<4>(40, 0x1001);
    assert_eq!(
        (rig.common::<8>(32), rig.common::<8>(40), rig.common::<8>(48)),
        (0x1_1234_5670, 0, 0x2_0000_1230),
        "misaligned is not taken"
    );
    rig.set_common::<2>(28, 1);
    rig.set_common::<4>(32, 0);
    rig.set_common::<2>(24, 64);
    assert_eq!((rig.common::<4>(32), rig.common::<2>(24)), (0x1234_5670, 128), "in use");
    rig.set_common::<2>(22, 7);
    assert_eq!((rig.common::<2>(24), rig.common::<2>(26), rig.common::<2>(28)), (0, 0xFFFF, 0));
    // Rings that are not in RAM.
    rig.driver_ok();
    assert_eq!(rig.status() & NEEDS_RESET, NEEDS_RESET);
    rig.reset();
    rig.set_common::<2>(22, 1);
    assert_eq!((rig.common::<8>(32), rig.common::<2>(24), rig.common::<2>(28)), (0, 256, 0));
}

/// A request for random numbers, which interrupts.
fn ask(rig: &Rig, ring: &mut Ring) {
    ring.add(rig, &[(0x10_0000, 16, true)]);
    assert_eq!(ring.run(rig).1, 16);
    // The interrupt comes after the used entry.
    rig.settle();
}

#[test]
fn messages_interrupt_where_there_are_any() {
    let rig = Rig::new(Rng::new());
    rig.enable_msix(2);
    rig.negotiate(VERSION_1);
    rig.set_common::<2>(16, 0);
    let mut ring = Ring::new(&rig, 0, 8, 0x1_0000);
    rig.driver_ok();
    ask(&rig, &mut ring);
    assert_eq!((rig.messages(), rig.read::<1>(rig.isr)), (vec![0x41], 0));
    // Masked: it waits.
    rig.write::<4>(rig.msix_table + 16 + 12, 1);
    ask(&rig, &mut ring);
    assert_eq!(rig.messages(), [0; 0]);
    rig.write::<4>(rig.msix_table + 16 + 12, 0);
    assert_eq!(rig.messages(), [0x41]);
    // A driver that wants none, by the flag and by no vector.
    rig.memory.write_obj(ring.driver_area(), 1u16).unwrap();
    ask(&rig, &mut ring);
    rig.memory.write_obj(ring.driver_area(), 0u16).unwrap();
    rig.set_common::<2>(22, 0);
    rig.set_common::<2>(26, 0xFFFF);
    ask(&rig, &mut ring);
    assert_eq!(rig.messages(), [0; 0]);
}

#[test]
fn the_pin_interrupts_where_there_are_no_messages() {
    let rig = Rig::new(Rng::new());
    // Pin A of slot 3 is I/O APIC input 19; level triggered, vector 0x55.
    for (register, value) in [(0x10 + 2 * 19, 0xA055u32), (0x11 + 2 * 19, 0)] {
        rig.chipset.mmio.write(0xFEC0_0000, &u32::to_le_bytes(register));
        rig.chipset.mmio.write(0xFEC0_0010, &value.to_le_bytes());
    }
    let eoi = || rig.chipset.ioapic().eoi(0x55);
    let vectors = || rig.messages().iter().map(|data| data & 0xFF).collect::<Vec<_>>();
    let interrupt_status = || rig.config_read(4) >> 19 & 1;
    rig.negotiate(VERSION_1);
    let mut ring = Ring::new(&rig, 0, 8, 0x1_0000);
    rig.driver_ok();
    ask(&rig, &mut ring);
    assert_eq!((vectors(), interrupt_status()), (vec![0x55], 1));
    eoi();
    assert_eq!(vectors(), [0x55], "still asserted");
    assert_eq!((rig.read::<1>(rig.isr), rig.read::<1>(rig.isr)), (1, 0));
    eoi();
    assert_eq!((vectors(), interrupt_status()), (vec![], 0));
    // Forbidden by the command register: the status says it all the same.
    rig.config_write(4, &0x0406u16.to_le_bytes());
    ask(&rig, &mut ring);
    assert_eq!((vectors(), interrupt_status()), (vec![], 1));
    rig.config_write(4, &0x0006u16.to_le_bytes());
    assert_eq!(vectors(), [0x55]);
    rig.reset();
    eoi();
    assert_eq!((vectors(), interrupt_status()), (vec![], 0), "a reset takes it back");
}

#[test]
fn event_indices_say_when_to_interrupt() {
    let rig = Rig::new(Rng::new());
    rig.enable_msix(2);
    rig.negotiate(VERSION_1 | EVENT_IDX);
    let mut ring = Ring::new(&rig, 0, 8, 0x1_0000);
    ring.set_used_event(&rig, 2);
    rig.driver_ok();
    ask(&rig, &mut ring);
    ask(&rig, &mut ring);
    assert_eq!(rig.messages(), [0; 0]);
    ask(&rig, &mut ring);
    assert_eq!(rig.messages(), [0x41]);
    // And the device says when to notify: for what comes next.
    let avail_event: u16 = rig.memory.read_obj(ring.device_area() + 4 + 8 * 8).unwrap();
    assert_eq!(avail_event, 3);
}

#[test]
fn the_window_in_configuration_space_reaches_the_bar() {
    let rig = blk();
    let window = rig.cfg_capability;
    let set = |offset: u32, len: u32| {
        rig.config_write(window + 4, &[0]);
        rig.config_write(window + 8, &offset.to_le_bytes());
        rig.config_write(window + 12, &len.to_le_bytes());
    };
    set(20, 1);
    rig.config_write(window + 16, &[3]);
    assert_eq!(rig.status(), 3);
    assert_eq!(rig.config_read(window + 16) & 0xFF, 3);
    set(0, 4);
    rig.config_write(window + 16, &1u32.to_le_bytes());
    assert_eq!(rig.common::<4>(0), 1);
    set(rig.device as u32, 4);
    assert_eq!(rig.config_read(window + 16), 2048, "sectors");
    // Nothing is reached by what cannot be.
    for (offset, len) in [(0x8000, 4), (2, 4), (20, 3), (20, 0), (u32::MAX, 1), (20, 1 << 31)] {
        set(offset, len);
        rig.config_write(window + 16, &[0; 4]);
        rig.config_read(window + 16);
    }
    assert_eq!(rig.status(), 3);
}

#[test]
fn damaged_states_are_refused() {
    let rig = blk();
    rig.negotiate(VERSION_1);
    Ring::new(&rig, 0, 8, 0x1_0000);
    let saved = serde_json::to_value(rig.function.save()).unwrap();
    let refused = |path: &str, value: serde_json::Value| {
        let mut state = saved.clone();
        *state.pointer_mut(path).unwrap() = value;
        rig.function.restore(&serde_json::from_value::<VirtioState>(state).unwrap()).unwrap_err()
    };
    assert!(matches!(refused("/version", 9.into()), RestoreError::Version { found: 9, .. }));
    for (path, value) in [
        ("/kind", 3.into()),
        ("/registers/status", 0x80u8.wrapping_add(0x30).into()),
        ("/registers/status", 7.into()),
        ("/registers/driver_features", 0.into()),
        ("/registers/driver_features", u64::MAX.into()),
        ("/queues", serde_json::json!([])),
        ("/queues/0/size", 3.into()),
        ("/queues/0/max_size", 128.into()),
        ("/queues/1/descriptors", 1.into()),
        ("/space/bytes/0", 0.into()),
        ("/msix/registers/control", 1.into()),
    ] {
        assert!(matches!(refused(path, value), RestoreError::Invalid { .. }), "{path}");
    }
    rig.function.restore(&serde_json::from_value(saved).unwrap()).unwrap();
}

#[derive(Debug, Clone)]
enum Step {
    Read(u64, usize),
    Write(u64, Vec<u8>),
    Config(u8, Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    let offset = || {
        prop_oneof![
            6 => 0u64..64,
            2 => 0x1000u64..0x1004,
            2 => 0x2000u64..0x2040,
            2 => 0x3000u64..0x3010,
            2 => 0x4000u64..0x4040,
            1 => 0u64..0x8000,
        ]
    };
    let bytes = || prop::collection::vec(any::<u8>(), 1..17);
    prop_oneof![
        (offset(), 1usize..17).prop_map(|(at, len)| Step::Read(at, len)),
        (offset(), bytes()).prop_map(|(at, data)| Step::Write(at, data)),
        (0u64..60, prop::sample::select(vec![1usize, 2, 4, 8]), any::<u8>())
            .prop_map(|(at, len, value)| Step::Write(at, vec![value; len])),
        (any::<u8>(), any::<[u8; 4]>()).prop_map(|(at, data)| Step::Config(at & !3, data.to_vec())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    /// Whatever a guest does to registers: the state restores exactly into another device, and a reset makes all good.
    #[test]
    fn any_accesses_leave_a_state_that_restores(steps in prop::collection::vec(step(), 0..80)) {
        let rig = blk();
        for step in steps {
            match step {
                Step::Read(at, len) => rig.chipset.mmio.read(rig.bar + at, &mut vec![0; len]),
                Step::Write(at, data) => rig.chipset.mmio.write(rig.bar + at, &data),
                // The BAR and the command register stay, or nothing would be reached any more.
                Step::Config(at, data) if !(4..8).contains(&at) && !(0x10..0x14).contains(&at) => {
                    rig.config_write(at.into(), &data);
                }
                Step::Config(..) => {}
            }
        }
        rig.settle();
        let saved = rig.function.save();
        let other = blk();
        other.function.restore(&saved).unwrap();
        prop_assert_eq!(other.function.save(), saved);
        rig.negotiate(VERSION_1);
        prop_assert_eq!(rig.status(), 3 | FEATURES_OK);
    }
}
