//! Pauses, saved states, and the end.

use std::sync::Arc;
use std::time::Instant;

use vireo_board::Attachment;
use vireo_chipset::RestoreError;
use vireo_frame::{Ability, Intent};

use crate::rig::{ADDRESS, HEAD, ICR, IMS, RX, Rig, TX, TX_BUFFERS, frame, waits};

#[test]
fn at_rest_it_touches_nothing() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    rig.write(IMS, 0x84);
    rig.buffers(4, 2048);
    rig.wire.gives(&frame(ADDRESS, 60), Intent::default()).unwrap();
    assert!(rig.card.pause(Instant::now()));
    rig.memory.write(TX_BUFFERS, &frame(ADDRESS, 70)).unwrap();
    rig.transmit(&[[TX_BUFFERS, 70 | 1 << 24]]);
    let adapter = rig.wire.adapter().unwrap();
    adapter.set_carrier(true, 1);
    adapter.flush();
    assert!(rig.wire.gives(&frame(ADDRESS, 61), Intent::default()).is_err());
    assert!(!rig.interrupts());
    assert_eq!((rig.read(TX + HEAD), rig.read(RX + HEAD)), (0, 1));
    rig.card.resume();
    waits("word of room", || rig.wire.is_told());
    assert!(rig.interrupts());
    assert_eq!(rig.read(ICR) & 0x84, 0x84);
    rig.wire.gives(&frame(ADDRESS, 61), Intent::default()).unwrap();
    assert_eq!((rig.sent(), rig.read(RX + HEAD)), (vec![(frame(ADDRESS, 70), Intent::default())], 2));
}

#[test]
fn a_saved_state_goes_on_in_another_card() {
    let rig = Rig::new(Ability::ALL);
    rig.start(0);
    rig.buffers(4, 2048);
    rig.wire.gives(&frame(ADDRESS, 60), Intent::default()).unwrap();
    // Half a frame.
    rig.memory.write(TX_BUFFERS, &frame(ADDRESS, 70)).unwrap();
    rig.transmit(&[[TX_BUFFERS, 30]]);
    waits("half a frame", || rig.read(TX + HEAD) == 1);
    assert!(rig.card.pause(Instant::now()));
    let state = rig.card.save();
    let text = serde_json::to_string(&state).unwrap();
    let other = Rig::new(Ability::ALL);
    assert!(other.card.pause(Instant::now()));
    let mut pages = vec![0; 0x30_0000];
    rig.memory.read(0, &mut pages[..0xa_0000]).unwrap();
    rig.memory.read(0x10_0000, &mut pages[0x10_0000..]).unwrap();
    other.memory.write(0, &pages[..0xa_0000]).unwrap();
    other.memory.write(0x10_0000, &pages[0x10_0000..]).unwrap();
    other.card.restore(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(other.card.save().clone(), {
        // That the cable is another one is told.
        let mut value = serde_json::to_value(&state).unwrap();
        let causes = value["registers"]["icr"].as_u64().unwrap() | 4;
        value["registers"]["icr"] = causes.into();
        serde_json::from_value(value).unwrap()
    });
    other.card.resume();
    *other.tx_tail.lock().unwrap() = 1;
    other.transmit(&[[TX_BUFFERS + 30, 40 | 1 << 24]]);
    assert_eq!(other.sent(), [(frame(ADDRESS, 70), Intent::default())]);
    other.wire.gives(&frame(ADDRESS, 61), Intent::default()).unwrap();
    assert_eq!((other.read(RX + HEAD), other.received(1).bytes.len()), (2, 65));

    let refused = |path: &str, to: serde_json::Value| {
        let mut value = serde_json::to_value(&state).unwrap();
        *value.pointer_mut(path).unwrap() = to;
        rig.card.restore(&serde_json::from_value(value).unwrap()).unwrap_err()
    };
    assert!(matches!(refused("/version", 9.into()), RestoreError::Version { found: 9, .. }));
    for (path, to) in [
        ("/registers/mta", serde_json::json!([])),
        ("/registers/phy", serde_json::json!([1, 2])),
        ("/registers/microwire/bits", 99.into()),
        ("/registers/microwire/next", 1024.into()),
        ("/registers/partial/bytes", serde_json::json!(vec![0; 70_000])),
    ] {
        assert!(matches!(refused(path, to), RestoreError::Invalid { .. }), "{path}");
    }
}

#[test]
fn a_card_that_goes_leaves_its_network() {
    let rig = Rig::new(Ability::ALL);
    let wire = Arc::clone(&rig.wire);
    drop(rig);
    assert!(wire.adapter().is_none());
    assert_eq!(Arc::strong_count(&wire), 1);
}
