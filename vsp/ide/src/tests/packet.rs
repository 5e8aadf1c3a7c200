//! Packets to a CD drive.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::rig::*;
use crate::{IdeError, Place};

/// Gives a packet, with a byte count.
fn packet(rig: &Rig, features: u8, count: u16, bytes: &[u8]) {
    let mut packet = [0; 12];
    packet[..bytes.len()].copy_from_slice(bytes);
    let [low, high] = count.to_le_bytes();
    for (at, value) in [(FEATURES, features), (LBA + 1, low), (LBA + 2, high), (COMMAND, 0xA0)] {
        rig.write(at, value);
    }
    assert_eq!((rig.alternate(), rig.read(COUNT)), (DRQ, 1));
    rig.data_out(&packet);
}

/// What the drive says: status, error, reason, byte count.
fn said(rig: &Rig) -> (u8, u8, u8, u16) {
    let count = u16::from_le_bytes([rig.read(LBA + 1), rig.read(LBA + 2)]);
    (rig.read(COMMAND), rig.read(FEATURES), rig.read(COUNT), count)
}

fn sense(rig: &Rig) -> (u8, u8, u8) {
    packet(rig, 0, 18, &[3, 0, 0, 0, 18]);
    let data = rig.data_in(18);
    assert_eq!(rig.alternate(), READY);
    (data[2], data[12], data[13])
}

/// A drive that has told that it was switched on.
fn ready() -> (Rig, Arc<TestDisk>) {
    let (rig, medium) = Rig::cd();
    packet(&rig, 0, 0, &[0]);
    assert_eq!(said(&rig).0, READY | 1);
    assert_eq!(sense(&rig), (6, 0x29, 0));
    (rig, medium)
}

fn blocks(range: std::ops::Range<usize>) -> Vec<u8> {
    (4 * range.start..4 * range.end).flat_map(sector).collect()
}

#[test]
fn it_says_that_it_is_no_disk() {
    let (rig, _) = Rig::cd();
    for command in [0xEC, 0x20] {
        rig.write(COMMAND, command);
        assert_eq!(said(&rig), (READY | 1, 4, 1, 0xEB14));
    }
    rig.write(COMMAND, 0xA1);
    let data = rig.data_in(512);
    assert_eq!((data[0], data[1], rig.alternate()), (0xC0, 0x85, READY));
    for command in [0xC8, 0x30, 0xFF] {
        rig.write(COMMAND, command);
        assert_eq!(rig.read(COMMAND), READY | 1);
    }
}

#[test]
fn answers_come_in_pieces_of_the_length_asked_for() {
    let (rig, _) = ready();
    let edges = rig.line().edges();
    packet(&rig, 0, 10, &[0x12, 0, 0, 0, 36]);
    let mut data = Vec::new();
    for n in [10, 10, 10, 6] {
        assert_eq!(said(&rig), (DRQ, 0, 2, n));
        data.extend(rig.data_in(n.into()));
    }
    assert_eq!(said(&rig), (READY, 0, 3, 6));
    assert_eq!(rig.line().edges() - edges, 5);
    assert_eq!(&data[8..28], b"Vireo   Virtual CD/D");
    // An odd length: the last word is half full.
    packet(&rig, 0, 0xFFFF, &[0x12, 0, 0, 0, 5]);
    assert_eq!(said(&rig).3, 5);
    assert_eq!(rig.data_in(6), [5, 0x80, 0, 0x21, 31, 0]);
    assert_eq!(rig.alternate(), READY);
    packet(&rig, 0, 1, &[0x12, 0, 0, 0, 36]);
    assert_eq!(said(&rig), (READY | 1, 4, 3, 1), "no byte at a time");
}

#[test]
fn blocks_are_read_word_by_word() {
    let (rig, medium) = ready();
    packet(&rig, 0, 4096, &[0x28, 0, 0, 0, 0, 2, 0, 0, 40]);
    for n in 0..20 {
        assert_eq!(said(&rig), (DRQ, 0, 2, 4096));
        assert_eq!(rig.data_in(4096), blocks(2 + 2 * n..4 + 2 * n));
    }
    assert_eq!(said(&rig).0, READY);
    let lengths: Vec<_> = medium.asked.lock().unwrap().iter().map(|a| a.2).collect();
    assert_eq!(lengths, [64 << 10, 16 << 10]);
    packet(&rig, 0, 4096, &[0xA8, 0, 0, 0, 0, 63, 0, 0, 0, 2]);
    assert_eq!(said(&rig).0, READY | 1);
    assert_eq!(sense(&rig), (5, 0x21, 0));
}

#[test]
fn blocks_are_read_by_bus_master() {
    let (rig, medium) = ready();
    medium.slow.store(true, Ordering::SeqCst);
    rig.list(&[(0x20_0000, 1024), (0x30_0000, 0x8000_1000)]);
    packet(&rig, 1, 0, &[0x28, 0, 0, 0, 0, 60, 0, 0, 2]);
    rig.set_bus_master(0, 9);
    assert_eq!((rig.bus_master(2), rig.alternate()), (1, BSY));
    medium.release();
    assert_eq!((rig.bus_master(2), said(&rig).0, said(&rig).2), (4, READY, 3));
    let got = [rig.bytes(0x20_0000, 1024), rig.bytes(0x30_0000, 3072)].concat();
    assert_eq!(got, blocks(60..62));
    // Answers go the same way.
    rig.set_bus_master(0, 0);
    rig.list(&[(0x20_0000, 4), (0x30_0000, 0x8000_0020)]);
    packet(&rig, 1, 0, &[0x12, 0, 0, 0, 36]);
    rig.set_bus_master(0, 9);
    assert_eq!((rig.bus_master(2), said(&rig).0), (4, READY));
    assert_eq!(
        (rig.bytes(0x20_0000, 4), rig.bytes(0x30_0004, 5)),
        (vec![5, 0x80, 0, 0x21], b"Vireo".to_vec())
    );
}

#[test]
fn a_scratched_medium_is_told() {
    let (rig, medium) = ready();
    medium.broken.store(true, Ordering::SeqCst);
    packet(&rig, 0, 2048, &[0x28, 0, 0, 0, 0, 1, 0, 0, 1]);
    assert_eq!((said(&rig).0, said(&rig).1), (READY | 1, 0x30));
    assert_eq!(sense(&rig), (3, 0x11, 0));
}

#[test]
fn media_are_changed() {
    let (rig, _) = ready();
    packet(&rig, 0, 0, &[0x1E, 0, 0, 0, 1]);
    assert!(matches!(rig.ide.remove(Place::SecondaryMaster, false), Err(IdeError::Locked { .. })));
    packet(&rig, 0, 8, &[0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8]);
    assert_eq!(rig.data_in(8)[4..6], [1, 2], "the user wants it out");
    packet(&rig, 0, 0, &[0x1E]);
    rig.ide.remove(Place::SecondaryMaster, false).expect("not locked");
    packet(&rig, 0, 0, &[0]);
    assert_eq!(sense(&rig), (6, 0x28, 0));
    packet(&rig, 0, 0, &[0]);
    assert_eq!(sense(&rig), (2, 0x3A, 1));
    rig.ide.insert(Place::SecondaryMaster, TestDisk::new(8)).expect("a drive");
    packet(&rig, 0, 0, &[0]);
    assert_eq!(sense(&rig), (6, 0x28, 0));
    packet(&rig, 0, 8, &[0x25]);
    assert_eq!(rig.data_in(8), [0, 0, 0, 1, 0, 0, 8, 0]);
    assert!(matches!(rig.ide.remove(Place::PrimaryMaster, true), Err(IdeError::NoCd { place: "0.0" })));
    let large = Arc::new(vireo_block::RamDisk::new(8192, 4096));
    assert!(matches!(rig.ide.insert(Place::SecondaryMaster, large), Err(IdeError::SectorSize { .. })));
}

#[test]
fn a_medium_may_go_in_the_middle_of_a_read() {
    let (rig, medium) = ready();
    medium.slow.store(true, Ordering::SeqCst);
    packet(&rig, 0, 2048, &[0x28, 0, 0, 0, 0, 0, 0, 0, 33]);
    rig.ide.remove(Place::SecondaryMaster, true).expect("by force");
    medium.release();
    assert_eq!(rig.data_in(65536), blocks(0..32));
    assert_eq!((said(&rig).0, said(&rig).1), (READY | 1, 0x30));
}

#[test]
fn a_device_reset_waits_for_the_medium() {
    let (rig, medium) = ready();
    medium.slow.store(true, Ordering::SeqCst);
    packet(&rig, 0, 2048, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]);
    rig.write(COMMAND, 0x08);
    assert_eq!(rig.alternate(), BSY);
    medium.release();
    assert_eq!(said(&rig), (0, 1, 1, 0xEB14));
    // In the middle of a packet, at once.
    rig.write(COMMAND, 0xA0);
    rig.write(COMMAND, 0x08);
    assert_eq!(said(&rig), (0, 1, 1, 0xEB14));
}
