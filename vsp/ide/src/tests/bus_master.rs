//! Transfers by bus master.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use vireo_block::Operation;

use super::rig::*;

#[test]
fn sectors_go_to_scattered_memory_and_back() {
    let (rig, disk) = Rig::disk();
    rig.list(&[(0x20_0000, 512), (0x30_0000, 256), (0x40_0000, 0x8000_0100)]);
    rig.long(0x25, 40, 2);
    assert_eq!((rig.read(COMMAND), rig.bus_master(2)), (DRQ, 0), "it waits for the bus master");
    rig.set_bus_master(0, 9);
    assert_eq!((rig.bus_master(2), rig.line().edges()), (4, 1));
    assert_eq!((rig.read(COMMAND), rig.bus_master(2)), (READY, 4));
    assert_eq!(rig.bytes(0x20_0000, 512), sector(40));
    assert_eq!(rig.bytes(0x30_0000, 256), sector(41)[..256]);
    assert_eq!(rig.bytes(0x40_0000, 256), sector(41)[256..]);
    rig.set_bus_master(0, 0);
    rig.list(&[(0x20_0000, 512), (0x30_0000, 256), (0x40_0000, 0x8000_0100)]);
    // Started first: the command then finds it so.
    rig.set_bus_master(0, 1);
    assert_eq!(rig.bus_master(2), 1);
    rig.long(0x3D, 1000, 2);
    assert_eq!((rig.bus_master(2), rig.read(COMMAND)), (4, READY));
    assert_eq!(disk.ram.contents()[1000 * 512..1002 * 512], [sector(40), sector(41)].concat());
    assert_eq!(disk.asked.lock().unwrap()[1], (Operation::Write { fua: true }, 1000 * 512, 1024));
}

#[test]
fn the_largest_transfer_is_one_request() {
    let disk = TestDisk::new(1 << 16);
    let drives = [Some(crate::IdeDrive::Disk(Arc::clone(&disk) as _)), None, None, None];
    let rig = Rig::new(drives);
    // 32 MiB do not fit into this memory: every region is the same one.
    rig.list(&[(0x20_0000, 0x0000); 512]);
    rig.long(0x25, 0, 0);
    rig.set_bus_master(0, 9);
    assert_eq!((rig.bus_master(2), rig.read(COMMAND)), (4, READY));
    assert_eq!(*disk.asked.lock().unwrap(), [(Operation::Read, 0, 32 << 20)]);
    assert_eq!(rig.bytes(0x20_0000, 512), sector(65408));
}

#[test]
fn lists_that_cannot_be_end_the_transfer() {
    let (rig, disk) = Rig::disk();
    rig.list(&[(0x20_0000, 0x8000_0100)]);
    rig.long(0x25, 0, 1);
    rig.set_bus_master(0, 9);
    assert_eq!((rig.bus_master(2), rig.read(COMMAND), rig.line().edges()), (0, READY, 0), "too short");
    rig.set_bus_master(0, 0);
    rig.list(&[(0xFFF0_0000, 0x8000_0200)]);
    rig.long(0x35, 0, 1);
    rig.set_bus_master(0, 9);
    assert_eq!((rig.bus_master(2), rig.line().edges()), (6, 1), "not RAM");
    assert_eq!((rig.read(COMMAND), rig.read(FEATURES)), (READY | 1, 4));
    assert!(disk.asked.lock().unwrap().is_empty());
}

#[test]
fn ranges_are_trimmed() {
    let (rig, disk) = Rig::disk();
    let trim = |entries: &[u64]| {
        let mut block = [0; 512];
        for (to, entry) in block.as_chunks_mut::<8>().0.iter_mut().zip(entries) {
            *to = entry.to_le_bytes();
        }
        rig.memory.write(0x5000, &block).expect("RAM");
        rig.set_bus_master(0, 0);
        rig.list(&[(0x5000, 0x100), (0x5100, 0x8000_0100)]);
        rig.write(FEATURES, 1);
        rig.long(0x06, 0, 1);
        rig.set_bus_master(0, 1);
        (rig.read(COMMAND), rig.read(FEATURES))
    };
    assert_eq!(trim(&[10 | 5 << 48, 0, 100 | 1 << 48]), (READY, 0));
    assert_eq!(*disk.asked.lock().unwrap(), [(Operation::Unmap, 5120, 2560), (Operation::Unmap, 51200, 512)]);
    assert_eq!(disk.ram.contents()[5120..7680], [0; 2560]);
    assert_eq!(trim(&[]), (READY, 0));
    assert_eq!(trim(&[2047 | 2 << 48]), (READY | 1, 0x10));
    assert_eq!(trim(&[u64::MAX; 64]), (READY | 1, 0x10));
    assert_eq!(disk.asked.lock().unwrap().len(), 2);
    disk.ram.describe(|i| i.unmap = false);
    assert_eq!(trim(&[10 | 5 << 48]), (READY | 1, 4));
}

#[test]
fn a_broken_disk_ends_it() {
    let (rig, disk) = Rig::disk();
    disk.broken.store(true, Ordering::SeqCst);
    rig.list(&[(0x20_0000, 0x8000_0200)]);
    rig.short(0xC8, 0x45, 1);
    rig.set_bus_master(0, 9);
    assert_eq!(
        (rig.bus_master(2), rig.read(COMMAND), rig.read(FEATURES), rig.read(LBA)),
        (4, READY | 1, 0x40, 0x45)
    );
}

#[test]
fn who_stops_it_has_the_memory_back() {
    let (rig, disk) = Rig::disk();
    disk.slow.store(true, Ordering::SeqCst);
    rig.list(&[(0x20_0000, 0x8000_0200)]);
    rig.short(0xC8, 3, 1);
    rig.set_bus_master(0, 9);
    assert_eq!((rig.bus_master(2), rig.read(COMMAND)), (1, BSY));
    let (sender, stopped) = mpsc::channel();
    std::thread::scope(|scope| {
        let rig = &rig;
        scope.spawn(move || {
            rig.set_bus_master(0, 0);
            sender.send(rig.bytes(0x20_0000, 512)).expect("somebody waits");
        });
        while rig.bus_master(0) != 0 {
            std::thread::yield_now();
        }
        assert!(stopped.try_recv().is_err(), "it waits");
        assert_eq!(disk.release(), 1);
        assert_eq!(stopped.recv().expect("stopped"), sector(3));
    });
    assert_eq!(rig.bus_master(2), 4);
}

#[test]
fn a_reset_waits_for_the_memory_too() {
    let (rig, disk) = Rig::disk();
    disk.slow.store(true, Ordering::SeqCst);
    rig.list(&[(0x20_0000, 0x8000_0200)]);
    rig.short(0xC8, 3, 1);
    rig.set_bus_master(0, 9);
    std::thread::scope(|scope| {
        let (ide, disk) = (&rig.ide, &disk);
        let reset = scope.spawn(move || vireo_chipset::pci::PciFunction::reset(&**ide));
        while disk.release() == 0 {}
        reset.join().expect("reset");
    });
    assert_eq!(
        (rig.bus_master(0), rig.bus_master(2), rig.read(COMMAND), rig.line().level()),
        (0, 0, READY, false)
    );
    assert_eq!(rig.bytes(0x20_0000, 512), sector(3));
}
