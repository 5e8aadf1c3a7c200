//! The drive's commands, without a transport.

use std::sync::Arc;

use proptest::prelude::*;
use vireo_block::{Null, RamDisk};

use super::*;

fn drive(blocks: usize) -> Cd {
    let mut cd = Cd::new(Some(Arc::new(RamDisk::new(blocks * 2048, 512))));
    assert_eq!(cd.execute(&[0]), Reply::Check);
    assert_eq!(cd.sense(), Sense::POWER_ON);
    cd
}

fn data(cd: &mut Cd, cdb: &[u8]) -> Vec<u8> {
    match cd.execute(cdb) {
        Reply::Data(data) => data,
        other => panic!("{cdb:x?}: {other:?}, {:?}", cd.sense()),
    }
}

fn fails(cd: &mut Cd, cdb: &[u8]) -> Sense {
    assert_eq!(cd.execute(cdb), Reply::Check, "{cdb:x?}");
    cd.sense()
}

#[test]
fn attention_comes_first_but_for_a_few() {
    let mut cd = Cd::new(None);
    assert_eq!(data(&mut cd, &[0x12, 0, 0, 0, 36]).len(), 36);
    assert_eq!(data(&mut cd, &[3, 0, 0, 0, 18])[2], 6);
    assert_eq!(fails(&mut cd, &[0]), Sense::NO_MEDIUM);
    assert_eq!(data(&mut cd, &[3, 0, 0, 0, 18])[12..14], [0x3A, 1]);
    assert_eq!(data(&mut cd, &[3, 0, 0, 0, 18])[2], 0, "it was told");
    for command in [0x25, 0x28, 0x42, 0x43, 0x51, 0xA8, 0x2B] {
        assert_eq!(fails(&mut cd, &[command]), Sense::NO_MEDIUM, "{command:#x}");
    }
    assert_eq!(fails(&mut cd, &[0x04]), Sense::INVALID_COMMAND);
}

#[test]
fn capacity_and_contents() {
    let mut cd = drive(1000);
    assert_eq!(data(&mut cd, &[0x25]), [0, 0, 3, 0xE7, 0, 0, 8, 0]);
    let toc = data(&mut cd, &[0x43, 2, 0, 0, 0, 0, 0, 0, 255]);
    // 1000 blocks and 150 of lead-in are 15 s and 25 frames.
    assert_eq!(toc, [0, 18, 1, 1, 0, 0x14, 1, 0, 0, 0, 2, 0, 0, 0x14, 0xAA, 0, 0, 0, 15, 25]);
    let toc = data(&mut cd, &[0x43, 0, 0, 0, 0, 0, 0xAA, 0, 255]);
    assert_eq!(toc, [0, 10, 1, 1, 0, 0x14, 0xAA, 0, 0, 0, 3, 0xE8]);
    assert_eq!(data(&mut cd, &[0x43, 0, 1, 0, 0, 0, 0, 0, 255])[..4], [0, 10, 1, 1]);
    assert_eq!(data(&mut cd, &[0x43, 0, 0, 0, 0, 0, 0, 0, 12, 0x40]).len(), 12);
    assert_eq!(data(&mut cd, &[0x43, 0, 2, 0, 0, 0, 0, 0, 255]).len(), 48);
    assert_eq!(fails(&mut cd, &[0x43, 0, 0, 0, 0, 0, 2, 0, 255]), Sense::INVALID_FIELD);
    assert_eq!(fails(&mut cd, &[0x43, 0, 5, 0, 0, 0, 0, 0, 255]), Sense::INVALID_FIELD);
    assert_eq!(data(&mut cd, &[0x51, 0, 0, 0, 0, 0, 0, 0, 255])[..8], [0, 32, 0x0E, 1, 1, 1, 1, 0x20]);
    assert_eq!(data(&mut cd, &[0x42, 0, 0x40, 1, 0, 0, 0, 0, 255])[..8], [0, 0x15, 0, 12, 1, 0x14, 1, 1]);
    assert_eq!(data(&mut cd, &[0x42, 0, 0x40, 2, 0, 0, 0, 0, 255]).len(), 24);
}

#[test]
fn reads_end_with_the_medium() {
    let mut cd = drive(10);
    assert_eq!(cd.execute(&[0x28, 0, 0, 0, 0, 3, 0, 0, 7]), Reply::Read { at: 6144, len: 14336 });
    assert_eq!(cd.execute(&[0x28, 0, 0, 0, 0, 3, 0, 0, 0]), Reply::Good);
    assert_eq!(fails(&mut cd, &[0x28, 0, 0, 0, 0, 3, 0, 0, 8]), Sense::OUT_OF_RANGE);
    assert_eq!(fails(&mut cd, &[0xA8, 0, 255, 255, 255, 255, 255, 255, 255, 255]), Sense::OUT_OF_RANGE);
    cd.unreadable();
    assert_eq!(data(&mut cd, &[3, 0, 0, 0, 18])[12], 0x11);
}

#[test]
fn the_tray_opens_unless_locked() {
    let mut cd = drive(10);
    let event = |cd: &mut Cd| data(cd, &[0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8])[4..6].to_vec();
    assert_eq!(event(&mut cd), [0, 2]);
    cd.execute(&[0x1E, 0, 0, 0, 1]);
    assert_eq!(fails(&mut cd, &[0x1B, 0, 0, 0, 2]), Sense::REMOVAL_PREVENTED);
    assert_eq!(cd.remove(false), Err(Locked));
    assert_eq!(event(&mut cd), [1, 2]);
    cd.execute(&[0x1E]);
    assert_eq!(cd.execute(&[0x1B, 0, 0, 0, 2]), Reply::Good);
    assert_eq!(event(&mut cd), [3, 1]);
    assert_eq!(fails(&mut cd, &[0]), Sense::NO_MEDIUM_OPEN);
    assert_eq!(data(&mut cd, &[0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8])[1], 0x10);
    assert_eq!(cd.execute(&[0x1B, 0, 0, 0, 3]), Reply::Good);
    assert_eq!((event(&mut cd), cd.execute(&[0])), (vec![2, 2], Reply::Good));
    assert_eq!(data(&mut cd, &[0x4A, 1, 0, 0, 2, 0, 0, 0, 8]), [0, 2, 0x80, 0x10]);
    assert_eq!(fails(&mut cd, &[0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8]), Sense::INVALID_FIELD);
}

#[test]
fn profiles_follow_the_medium() {
    let profile = |cd: &mut Cd| data(cd, &[0x46, 0, 0, 0, 0, 0, 0, 0, 255])[7];
    assert_eq!(profile(&mut Cd::new(None)), 0);
    assert_eq!(profile(&mut drive(10)), 0x08);
    let mut dvd = Cd::new(Some(Arc::new(Null::new(4 << 30))));
    assert_eq!(profile(&mut dvd), 0x10);
    let all = data(&mut dvd, &[0x46, 0, 0, 0, 0, 0, 0, 4, 0]);
    assert_eq!(all.len() - 4, u32::from_be_bytes([all[0], all[1], all[2], all[3]]) as usize);
    assert_eq!(data(&mut dvd, &[0x46, 2, 0, 0x1F, 0, 0, 0, 4, 0])[8..], [0, 0x1F, 1, 0]);
    assert_eq!(data(&mut dvd, &[0x46, 1, 0, 0x1E, 0, 0, 0, 4, 0])[8..], [0, 0x1F, 1, 0]);
}

#[test]
fn mode_pages() {
    let mut cd = drive(10);
    let all = data(&mut cd, &[0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 255]);
    assert_eq!((all.len(), all[1], all[2], all[8], all[16], all[17]), (36, 34, 1, 1, 0x2A, 18));
    assert_eq!(data(&mut cd, &[0x5A, 0, 0x6A, 0, 0, 0, 0, 0, 255])[10..], [0; 18], "nothing can be changed");
    assert_eq!(fails(&mut cd, &[0x5A, 0, 0xEA, 0, 0, 0, 0, 0, 255]), Sense::NOT_SAVED);
    assert_eq!(fails(&mut cd, &[0x5A, 0, 0x08, 0, 0, 0, 0, 0, 255]), Sense::INVALID_FIELD);
}

proptest! {
    #[test]
    fn any_command_has_an_answer(commands in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..50)) {
        let mut cd = drive(100);
        for command in &commands {
            match cd.execute(command) {
                Reply::Good => {}
                Reply::Data(data) => prop_assert!(!data.is_empty() && data.len() <= 1 << 16),
                Reply::Read { at, len } => prop_assert!(len > 0 && at + len <= 100 * 2048),
                Reply::Check => prop_assert_ne!(cd.sense(), Sense::NONE),
            }
        }
    }
}
