//! Any accesses to a virtio disk, and any rings. It always comes to rest.
#![no_main]

use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vireo_block::RamDisk;
use vireo_board::Attachment;
use vireo_chipset::pci::PciSlot;
use vireo_fuzz::{Input, Rig};
use vireo_virtio::{Blk, VirtioPci};

const SLOT: u32 = 3;
/// Descriptors, available ring and used ring of the queue; beside it requests and their memory.
const QUEUE: u64 = 0x1_0000;
const SIZE: u64 = 16;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let disk = Arc::new(RamDisk::new(1 << 18, 512));
    let slot = PciSlot::new(SLOT as u8, 0).expect("a slot");
    let (rig, function) =
        Rig::new(|seat| VirtioPci::attach(seat, slot, "disk", Blk::new(disk, 2)).expect("a device"));
    function.resume();
    let bar = u64::from(rig.config(SLOT, 0x10) & !0xf);
    let (common, notify) = (bar + rig.virtio_structure(SLOT, 1), bar + rig.virtio_structure(SLOT, 2));
    let put = |at: u64, bytes: &[u8]| rig.chipset.mmio.write(at, bytes);
    let start = || {
        for (status, features) in
            [(0, None), (3, Some(u64::from(SIZE as u32) | 1 << 28 | 1 << 29 | 1 << 32)), (11, None)]
        {
            put(common + 20, &[status]);
            for (half, bits) in
                features.into_iter().flat_map(|f: u64| [(0_u32, f as u32), (1, (f >> 32) as u32)])
            {
                put(common + 8, &half.to_le_bytes());
                put(common + 12, &bits.to_le_bytes());
            }
        }
        put(common + 22, &0_u16.to_le_bytes());
        put(common + 24, &(SIZE as u16).to_le_bytes());
        for (field, address) in [(32, QUEUE), (40, QUEUE + 0x1000), (48, QUEUE + 0x2000)] {
            put(common + field, &(address as u32).to_le_bytes());
        }
        put(common + 28, &1_u16.to_le_bytes());
        put(common + 20, &[15]);
    };
    start();
    let mut available = 0_u16;
    while !input.is_empty() {
        match input.u8() % 8 {
            0 => put(
                bar + u64::from(input.u16() % 0x3000),
                &input.u32().to_le_bytes()[..1 << (bytes.len() % 3)],
            ),
            1 => rig.chipset.mmio.read(bar + u64::from(input.u16() % 0x3000), &mut [0; 4]),
            // A descriptor that may be right.
            2 | 3 => {
                let at = QUEUE + u64::from(input.u8() % 20) * 16;
                let address = if input.u8() % 8 == 0 { input.u64() } else { QUEUE + u64::from(input.u16()) };
                let len = if input.u8() % 8 == 0 {
                    input.u32()
                } else {
                    [1, 16, 512, 4096][usize::from(input.u8() % 4)]
                };
                let flags = u32::from(input.u8() % 8) | u32::from(input.u8() % 20) << 16;
                let descriptor =
                    [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes()].concat();
                rig.memory.write(at, &descriptor).expect("RAM");
            }
            // A request's header, or anything.
            4 => {
                let at = QUEUE + u64::from(input.u16());
                rig.memory.write(at, &input.array::<16>()).expect("RAM");
            }
            5 | 6 => {
                let slot = QUEUE + 0x1004 + u64::from(available) % SIZE * 2;
                rig.memory.write_obj(slot, u16::from(input.u8() % 18)).expect("RAM");
                available = available.wrapping_add(1);
                rig.memory.write_obj(QUEUE + 0x1002, available).expect("RAM");
                put(notify, &0_u16.to_le_bytes());
            }
            _ => {
                start();
                available = 0;
            }
        }
    }
    assert!(function.pause(Instant::now() + Duration::from_secs(20)), "it does not come to rest");
});
