//! Any accesses to an IDE controller's ports, with a disk, a CD drive and a bus master.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use vireo_block::RamDisk;
use vireo_fuzz::{Input, Rig};
use vireo_ide::{IdeController, IdeDrive};

/// Where the list of a bus master is.
const LIST: u64 = 0x1000;
/// The controller's place, as the chipset of a PC has it.
const SLOT: u32 = 1;
const FUNCTION: u32 = 1;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let disk = |sectors: usize| Arc::new(RamDisk::new(sectors * 512, 512)) as _;
    let drives = [Some(IdeDrive::Disk(disk(300))), Some(IdeDrive::Cd(Some(disk(256)))), None, None];
    let (rig, _ide) = Rig::new(|seat| IdeController::plug(seat, drives).expect("a controller"));
    let pio = &rig.chipset.pio;
    let masters = (rig.config(SLOT, FUNCTION << 8 | 0x20) & 0xfffc) as u16;
    while !input.is_empty() {
        match input.u8() % 8 {
            // A register; the last of them takes commands.
            0 | 1 => pio.write(0x1f0 + u16::from(input.u8() % 8), &[input.u8()]),
            2 => pio.read(0x1f0 + u16::from(input.u8() % 8), &mut [0]),
            3 => {
                for _ in 0..u16::from(input.u8()) * 4 {
                    pio.read(0x1f0, &mut [0; 4]);
                }
            }
            4 => {
                let len = usize::from(input.u8());
                input.bytes(len).chunks(2).for_each(|word| pio.write(0x1f0, word));
            }
            5 => pio.write(0x3f6, &[input.u8()]),
            6 if masters != 0 => {
                let at = masters + u16::from(input.u8() % 16);
                pio.write(at, &input.u32().to_le_bytes()[..1 << (at % 2)]);
                pio.write(masters + 4, &(LIST as u32).to_le_bytes());
            }
            _ => {
                let entry = u64::from(input.u8() % 8);
                _ = rig.memory.write(LIST + entry * 8, &input.array::<8>());
            }
        }
    }
});
