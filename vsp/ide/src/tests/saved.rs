//! Saved state.

use std::sync::atomic::Ordering;

use vireo_chipset::RestoreError;

use super::rig::*;
use crate::{IdeDrive, IdeState};

fn through_json(state: &IdeState) -> IdeState {
    serde_json::from_str(&serde_json::to_string(state).expect("as text")).expect("from text")
}

/// Two controllers with the same drives.
fn pair() -> (Rig, Rig) {
    let rig = || {
        let drives = [
            Some(IdeDrive::Disk(TestDisk::new(2048))),
            Some(IdeDrive::Cd(Some(TestDisk::new(64)))),
            None,
            None,
        ];
        Rig::new(drives)
    };
    (rig(), rig())
}

#[test]
fn a_transfer_goes_on_where_it_was() {
    let (a, b) = pair();
    a.long(0x29, 100, 20);
    assert_eq!(a.data_in(100), sector(100)[..100]);
    let state = through_json(&a.ide.save());
    b.ide.restore(&state).expect("the same drives");
    let mut rest = sector(100).split_off(100);
    rest.extend((101..120).flat_map(sector));
    assert_eq!(b.data_in(20 * 512 - 100), rest);
    assert_eq!(b.read(COMMAND), READY);
    assert_eq!(a.data_in(20 * 512 - 100), rest, "the other one was not disturbed");
}

/// States of version 1 are read for ever, and are what is written as long as the version is 1.
#[test]
fn a_published_version_never_changes() {
    let (a, b) = pair();
    a.short(0x20, 100, 3);
    a.data_in(100);
    let golden: IdeState =
        serde_json::from_str(include_str!("golden/state.1.json")).expect("as it was written");
    assert_eq!(a.ide.save(), golden);
    b.ide.restore(&golden).expect("the same drives");
    assert_eq!(b.data_in(412), sector(100)[100..]);
    assert_eq!(b.data_in(512), sector(101));
}

#[test]
fn a_write_and_a_packet_go_on_too() {
    let (a, b) = pair();
    a.short(0x30, 9, 1);
    a.data_out(&sector(77)[..200]);
    b.ide.restore(&through_json(&a.ide.save())).expect("the same drives");
    b.data_out(&sector(77)[200..]);
    b.short(0x20, 9, 1);
    assert_eq!(b.data_in(512), sector(77));
    // The answer of a packet that waits for the bus master.
    a.write(DEVICE, 0x10);
    a.control(0x04);
    a.control(0);
    a.write(DEVICE, 0x10);
    a.write(FEATURES, 1);
    a.write(COMMAND, 0xA0);
    a.data_out(&[0x12, 0, 0, 0, 36, 0, 0, 0, 0, 0, 0, 0]);
    b.ide.restore(&through_json(&a.ide.save())).expect("the same drives");
    b.list(&[(0x20_0000, 0x8000_0024)]);
    b.set_bus_master(0, 9);
    assert_eq!((b.bus_master(2), b.bytes(0x20_0008, 5)), (4, b"Vireo".to_vec()));
}

#[test]
fn saving_waits_for_the_disk() {
    let (rig, disk) = Rig::disk();
    disk.slow.store(true, Ordering::SeqCst);
    rig.short(0x20, 5, 1);
    let state = std::thread::scope(|scope| {
        let saved = scope.spawn(|| rig.ide.save());
        while disk.release() == 0 {}
        saved.join().expect("saved")
    });
    let (other, _) = Rig::disk();
    other.ide.restore(&state).expect("the same drives");
    assert_eq!(other.read(COMMAND), DRQ);
    assert_eq!(other.data_in(512), sector(5));
}

#[test]
fn a_held_reset_is_kept() {
    let (a, b) = pair();
    a.control(0x04);
    b.ide.restore(&a.ide.save()).expect("the same drives");
    assert_eq!(b.read(COMMAND), BSY);
    b.control(0);
    assert_eq!(b.read(COMMAND), READY);
}

#[test]
fn an_interrupt_is_kept_and_not_made_anew() {
    let (a, b) = pair();
    a.write(COMMAND, 0xE7);
    a.set_bus_master(2, 0x04);
    b.ide.restore(&a.ide.save()).expect("the same drives");
    assert_eq!((b.line().level(), b.bus_master(2)), (true, 0));
    b.read(COMMAND);
    assert!(!b.line().level());
}

#[test]
fn other_drives_and_damage_are_refused() {
    let (a, b) = pair();
    let (other, _) = Rig::disk();
    assert!(matches!(other.ide.restore(&a.ide.save()), Err(RestoreError::Invalid { .. })));
    a.short(0x20, 0, 4);
    let good = serde_json::to_value(a.ide.save()).expect("as text");
    let damage = |path: &[&str], value: serde_json::Value| {
        let mut state = good.clone();
        let mut at = &mut state;
        for key in path {
            at = match key.parse::<usize>() {
                Ok(n) => &mut at[n],
                Err(_) => &mut at[*key],
            };
        }
        assert!(!at.is_null() || path == ["channels", "0", "owner"], "{path:?}");
        *at = value;
        let state: Result<IdeState, _> = serde_json::from_value(state);
        state.map(|s| b.ide.restore(&s))
    };
    let channel = ["channels", "0"];
    let cases: [(&[&str], serde_json::Value); 9] = [
        (&["device"], 0.into()),
        (&["control"], 0x10.into()),
        (&["owner"], 2.into()),
        (&["buffer"], vec![1, 2].into()),
        (&["phase", "Data", "end"], 70_000.into()),
        (&["phase", "Data", "at"], 512.into()),
        (&["phase", "Data", "task", "Pio", "block"], 0.into()),
        (&["phase", "Data", "task", "Pio", "lba"], (1_u64 << 50).into()),
        (&["drives", "0", "device", "Disk", "multiple"], 7.into()),
    ];
    for (path, value) in cases {
        let path = [&channel[..], path].concat();
        assert!(matches!(damage(&path, value), Ok(Err(RestoreError::Invalid { .. }))), "{path:?}");
    }
    assert!(matches!(damage(&["version"], 9.into()), Ok(Err(RestoreError::Version { found: 9, .. }))));
    assert!(b.ide.restore(&serde_json::from_value(good).expect("undamaged")).is_ok());
}
