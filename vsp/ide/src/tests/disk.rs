//! ATA commands.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vireo_block::{BlockDevice, Null, Operation, RamDisk};

use super::rig::*;
use crate::{IdeController, IdeDrive, IdeError};

fn word(data: &[u8], n: usize) -> u16 {
    u16::from_le_bytes([data[2 * n], data[2 * n + 1]])
}

#[test]
fn after_reset_devices_say_who_they_are() {
    let (rig, _) = Rig::disk();
    let registers = |rig: &Rig| (1..8).map(|at| rig.read(at)).collect::<Vec<_>>();
    assert_eq!(registers(&rig), [1, 1, 1, 0, 0, 0xA0, READY]);
    rig.write(DEVICE, 0x10);
    assert_eq!(registers(&rig), [0; 7], "nobody is there");
    rig.write(COMMAND, 0xEC);
    assert_eq!((rig.alternate(), rig.line().edges()), (0, 0));
    rig.write(COMMAND, 0x90);
    assert_eq!((rig.line().level(), registers(&rig)), (true, vec![1, 1, 1, 0, 0, 0xA0, READY]));
    assert!(!rig.line().level());
    let (rig, _) = Rig::cd();
    assert_eq!(registers(&rig), [1, 1, 1, 0x14, 0xEB, 0xA0, 0]);
}

#[test]
fn identify_by_pio() {
    let (rig, _) = Rig::disk();
    rig.write(COMMAND, 0xEC);
    assert_eq!((rig.alternate(), rig.line().level()), (DRQ, true));
    assert_eq!(rig.read(COMMAND), DRQ);
    assert!(!rig.line().level(), "the status takes the interrupt back");
    let data = rig.data_in(512);
    assert_eq!(
        (word(&data, 0), word(&data, 60), word(&data, 100), word(&data, 47)),
        (0x40, 2048, 2048, 0x8010)
    );
    assert_eq!((rig.alternate(), rig.line().edges()), (READY, 1));
}

#[test]
fn sectors_are_read_one_by_one_or_in_blocks() {
    let (rig, disk) = Rig::disk();
    rig.short(0x20, 5, 3);
    for n in 5..8 {
        assert_eq!(rig.read(COMMAND), DRQ);
        assert_eq!(rig.data_in(512), sector(n));
    }
    assert_eq!((rig.alternate(), rig.line().edges()), (READY, 3));
    rig.long(0x29, 100, 20);
    assert_eq!(rig.data_in(16 * 512), (100..116).flat_map(sector).collect::<Vec<_>>());
    assert_eq!(rig.data_in(4 * 512), (116..120).flat_map(sector).collect::<Vec<_>>());
    assert_eq!((rig.read(COMMAND), rig.line().edges()), (READY, 5));
    let asked = disk.asked.lock().unwrap().clone();
    assert_eq!(asked[3..], [(Operation::Read, 100 * 512, 16 * 512), (Operation::Read, 116 * 512, 4 * 512)]);
}

#[test]
fn sectors_are_written_one_by_one_or_in_blocks() {
    let (rig, disk) = Rig::disk();
    rig.short(0x30, 9, 2);
    assert_eq!((rig.read(COMMAND), rig.line().edges()), (DRQ, 0), "no interrupt before the first block");
    rig.data_out(&sector(700));
    assert_eq!((rig.read(COMMAND), rig.line().edges()), (DRQ, 1));
    rig.data_out(&sector(701));
    assert_eq!((rig.read(COMMAND), rig.line().edges()), (READY, 2));
    rig.write(COUNT, 4);
    rig.write(COMMAND, 0xC6);
    rig.long(0xCE, 20, 6);
    rig.data_out(&(800..804).flat_map(sector).collect::<Vec<_>>());
    rig.data_out(&(804..806).flat_map(sector).collect::<Vec<_>>());
    assert_eq!(rig.read(COMMAND), READY);
    let on_disk = disk.ram.contents();
    assert_eq!(on_disk[9 * 512..11 * 512], [sector(700), sector(701)].concat());
    assert_eq!(on_disk[20 * 512..26 * 512], (800..806).flat_map(sector).collect::<Vec<_>>());
    assert_eq!(disk.asked.lock().unwrap()[2], (Operation::Write { fua: true }, 20 * 512, 4 * 512));
}

#[test]
fn addresses_by_cylinder_and_head() {
    let (rig, _) = Rig::disk();
    rig.write(COUNT, 1);
    rig.write(LBA, 3);
    rig.write(LBA + 1, 1);
    rig.write(LBA + 2, 0);
    rig.write(DEVICE, 0x02);
    rig.write(COMMAND, 0x20);
    assert_eq!(rig.data_in(512), sector((16 + 2) * 63 + 2));
    // Four heads and ten sectors from now on.
    rig.write(COUNT, 10);
    rig.write(DEVICE, 0x03);
    rig.write(COMMAND, 0x91);
    rig.write(COUNT, 1);
    rig.write(COMMAND, 0x20);
    assert_eq!(rig.data_in(512), sector((4 + 3) * 10 + 2));
    rig.write(DEVICE, 0x04);
    rig.write(COMMAND, 0x20);
    assert_eq!((rig.read(COMMAND), rig.read(FEATURES)), (READY | 1, 0x10), "there is no head 4");
    rig.write(COMMAND, 0xEC);
    let data = rig.data_in(512);
    assert_eq!((word(&data, 54), word(&data, 55), word(&data, 56)), (51, 4, 10));
}

#[test]
fn what_is_not_there_is_not_found() {
    let (rig, disk) = Rig::disk();
    for command in [0x20, 0x30, 0xC4, 0xC5, 0xC8, 0xCA, 0x40, 0x70] {
        rig.short(command, 2048, 1);
        assert_eq!((rig.read(COMMAND), rig.read(FEATURES)), (READY | 1, 0x10), "{command:#x}");
    }
    for (lba, count) in [(2047, 2), (0, 0), (0xFFFF_FFFF_FFFF, 1)] {
        rig.long(0x25, lba, count);
        assert_eq!((rig.read(COMMAND), rig.read(FEATURES)), (READY | 1, 0x10));
    }
    assert!(disk.asked.lock().unwrap().is_empty());
}

#[test]
fn what_a_disk_lacks_is_refused() {
    let (rig, disk) = Rig::disk();
    // NOP, SMART, PACKET, READ NATIVE MAX, SECURITY, and what nobody knows.
    for command in [0x00, 0x08, 0xB0, 0xA0, 0xA1, 0xF8, 0x27, 0xF1, 0x06, 0xFF] {
        rig.write(COMMAND, command);
        assert_eq!((rig.read(COMMAND), rig.read(FEATURES)), (READY | 1, 4), "{command:#x}");
    }
    disk.ram.describe(|i| i.read_only = true);
    for command in [0x30, 0xC5, 0xCA] {
        rig.short(command, 0, 1);
        assert_eq!((rig.read(COMMAND), rig.read(FEATURES)), (READY | 1, 4), "{command:#x}");
    }
    rig.write(COUNT, 0);
    rig.write(COMMAND, 0xC6);
    assert_eq!(rig.read(COMMAND), READY);
    rig.short(0xC4, 0, 1);
    assert_eq!((rig.read(COMMAND), rig.read(FEATURES)), (READY | 1, 4), "blocks are switched off");
    for count in [3, 32, 255] {
        rig.write(COUNT, count);
        rig.write(COMMAND, 0xC6);
        assert_eq!(rig.read(COMMAND), READY | 1);
    }
}

#[test]
fn a_broken_disk_is_told_with_the_sector() {
    let (rig, disk) = Rig::disk();
    disk.broken.store(true, Ordering::SeqCst);
    rig.long(0x24, 0x123, 4);
    assert_eq!((rig.read(COMMAND), rig.read(FEATURES), rig.read(LBA)), (READY | 1, 0x40, 0x23));
    rig.short(0x30, 7, 1);
    rig.data_out(&sector(0));
    assert_eq!((rig.read(COMMAND), rig.read(FEATURES), rig.read(LBA)), (READY | 0x21, 4, 7));
    rig.short(0x40, 77, 200);
    assert_eq!((rig.read(COMMAND), rig.read(FEATURES), rig.read(LBA)), (READY | 1, 0x40, 77));
    rig.write(COMMAND, 0xE7);
    assert_eq!(rig.read(COMMAND), READY);
}

#[test]
fn verify_reads_all_and_moves_nothing() {
    let (rig, disk) = Rig::disk();
    rig.long(0x42, 3, 2000);
    assert_eq!((rig.read(COMMAND), rig.line().edges()), (READY, 1));
    assert_eq!(*disk.asked.lock().unwrap(), [(Operation::Read, 3 * 512, 2000 * 512)]);
}

#[test]
fn settings_are_told_back() {
    let (rig, disk) = Rig::disk();
    let feature = |feature, count| {
        rig.write(FEATURES, feature);
        rig.write(COUNT, count);
        rig.write(COMMAND, 0xEF);
        rig.read(COMMAND)
    };
    let identity = || {
        rig.write(COMMAND, 0xEC);
        rig.data_in(512)
    };
    assert_eq!((word(&identity(), 63), word(&identity(), 88)), (0x0407, 0x003F));
    assert_eq!(feature(0x03, 0x45), READY);
    assert_eq!((word(&identity(), 63), word(&identity(), 88)), (0x0007, 0x203F));
    assert_eq!(feature(0x03, 0x0C), READY);
    for mode in [0x0D, 0x23, 0x46, 0x18, 0xFF] {
        assert_eq!(feature(0x03, mode), READY | 1, "{mode:#x}");
    }
    assert_eq!(feature(0x77, 0), READY | 1);
    assert_eq!(feature(0x82, 0), READY);
    assert_eq!(word(&identity(), 85) & 0x20, 0);
    rig.short(0x30, 1, 1);
    rig.data_out(&sector(1));
    let asked = disk.asked.lock().unwrap().clone();
    assert_eq!(asked, [(Operation::Flush, 0, 0), (Operation::Write { fua: true }, 512, 512)], "no cache");
    assert_eq!(feature(0x02, 0), READY);
    assert_ne!(word(&identity(), 85) & 0x20, 0);
}

#[test]
fn standby_lasts_until_the_next_access() {
    let (rig, disk) = Rig::disk();
    let mode = || {
        rig.write(COMMAND, 0xE5);
        rig.read(COUNT)
    };
    assert_eq!(mode(), 0xFF);
    rig.write(COMMAND, 0xE0);
    assert_eq!(mode(), 0x00);
    assert_eq!(*disk.asked.lock().unwrap(), [(Operation::Flush, 0, 0)]);
    rig.short(0x20, 0, 1);
    rig.data_in(512);
    assert_eq!(mode(), 0xFF);
}

#[test]
fn registers_have_a_past() {
    let (rig, _) = Rig::disk();
    for value in [0x11, 0x22] {
        rig.write(LBA + 1, value);
    }
    rig.control(0x80);
    assert_eq!(rig.read(LBA + 1), 0x11);
    rig.write(COUNT, 1);
    assert_eq!(rig.read(LBA + 1), 0x22, "a write ends it");
}

#[test]
fn interrupts_can_be_off() {
    let (rig, _) = Rig::disk();
    rig.control(0x02);
    rig.write(COMMAND, 0xE7);
    assert_eq!((rig.alternate(), rig.line().edges()), (READY, 0));
    rig.control(0x00);
    assert!(rig.line().level(), "it was kept");
    rig.write(DEVICE, 0x10);
    assert!(!rig.line().level(), "it is not the selected device's");
    rig.write(DEVICE, 0x00);
    assert_eq!(rig.alternate(), READY);
    assert!(rig.line().level());
    rig.write(COMMAND, 0xE7);
    assert_eq!((rig.line().level(), rig.line().edges()), (true, 3), "each command has an edge of its own");
    rig.read(COMMAND);
    assert!(!rig.line().level());
}

#[test]
fn nobody_waits_for_a_disk_and_a_busy_device_takes_nothing() {
    let (rig, disk) = Rig::disk();
    disk.slow.store(true, Ordering::SeqCst);
    rig.short(0x20, 5, 1);
    assert_eq!((rig.read(COMMAND), rig.line().edges()), (BSY, 0));
    rig.write(LBA, 0x99);
    rig.write(COMMAND, 0xEC);
    assert_eq!((rig.read(COMMAND), rig.data_in(2)), (BSY, vec![0, 0]));
    assert_eq!(disk.release(), 1);
    assert_eq!((rig.line().edges(), rig.read(LBA)), (1, 5));
    assert_eq!(rig.data_in(512), sector(5));
}

#[test]
fn a_software_reset_waits_for_the_disk() {
    let (rig, disk) = Rig::disk();
    disk.slow.store(true, Ordering::SeqCst);
    rig.short(0x20, 5, 1);
    rig.control(0x04);
    rig.control(0x00);
    assert_eq!(rig.read(COMMAND), BSY);
    disk.release();
    assert_eq!((rig.read(COMMAND), rig.read(FEATURES), rig.line().edges()), (READY, 1, 0));
    // Nothing at work: it is over when the host says so.
    rig.short(0x30, 5, 1);
    rig.control(0x04);
    assert_eq!(rig.read(COMMAND), BSY);
    rig.control(0x00);
    assert_eq!((rig.read(COMMAND), rig.read(LBA)), (READY, 1));
}

#[test]
fn two_disks_share_a_channel() {
    let (a, b) = (TestDisk::new(100), TestDisk::new(50));
    let disk = |d: &Arc<TestDisk>| Some(IdeDrive::Disk(Arc::clone(d) as _));
    let rig = Rig::new([disk(&a), disk(&b), None, None]);
    rig.short(0x20, 60, 1);
    assert_eq!(rig.read(COMMAND), DRQ);
    // The host leaves it, and asks the other one.
    rig.write(DEVICE, 0x50);
    assert_eq!(rig.alternate(), READY);
    rig.write(LBA, 30);
    rig.write(COMMAND, 0x20);
    assert_eq!(rig.data_in(512), sector(30));
    rig.write(DEVICE, 0x40);
    assert_eq!(rig.alternate(), READY);
    b.slow.store(true, Ordering::SeqCst);
    rig.write(DEVICE, 0x50);
    rig.write(COMMAND, 0xE7);
    rig.write(DEVICE, 0x40);
    assert_eq!(rig.alternate(), BSY, "the channel has one command at a time");
    rig.write(COMMAND, 0xEC);
    b.release();
    assert_eq!((rig.alternate(), rig.line().level()), (READY, false));
    rig.write(DEVICE, 0x50);
    assert!(rig.line().level());
}

#[test]
fn disks_that_cannot_be_are_refused() {
    let refused = |disk: Arc<dyn BlockDevice>| {
        let lines = [Arc::new(Line::default()) as _, Arc::new(Line::default()) as _];
        IdeController::new(&memory(), lines, [None, Some(IdeDrive::Disk(disk)), None, None]).err()
    };
    let large = refused(Arc::new(RamDisk::new(8192, 4096)));
    assert!(matches!(large, Some(IdeError::SectorSize { place: "0.1", sector: 4096 })));
    assert!(matches!(refused(Arc::new(RamDisk::new(0, 512))), Some(IdeError::Size { size: 0, .. })));
    assert!(matches!(refused(Arc::new(Null::new(1 << 58))), Some(IdeError::Size { .. })));
    assert!(refused(Arc::new(Null::new(1 << 57))).is_none());
}
