//! Any accesses to a network card's registers, any rings, and frames that come meanwhile.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use libfuzzer_sys::fuzz_target;
use vireo_board::Attachment;
use vireo_chipset::pci::PciSlot;
use vireo_frame::trial::Wire;
use vireo_frame::{Ability, Checksum, Frame, Intent, Mac};
use vireo_fuzz::{Input, Rig};
use vireo_nic::E1000;

const SLOT: u32 = 3;
const RX: u64 = 0x1_0000;
const TX: u64 = 0x2_0000;
const COUNT: u64 = 16;
const BUFFERS: u64 = 0x3_0000;
/// Registers that do something.
const REGISTERS: [u64; 16] = [
    0, 0x10, 0x14, 0x20, 0xc0, 0xc8, 0xd0, 0x100, 0x400, 0x2808, 0x2810, 0x3808, 0x3810, 0x5000, 0x5400,
    0x5404,
];

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let able = input.u8();
    let bit = |n: u8| able & 1 << n != 0;
    let wire = Wire::new(Ability { checksum: bit(0), tcp4: bit(1), tcp6: bit(2), udp: bit(3), tag: bit(4) });
    let slot = PciSlot::new(SLOT as u8, 0).expect("a slot");
    let (rig, card) = Rig::new(|seat| {
        E1000::plug(seat, slot, "card", Arc::clone(&wire) as _, Mac([2, 0, 0, 0, 0, 1])).expect("a card")
    });
    card.resume();
    let bar = u64::from(rig.config(SLOT, 0x10) & !0xf);
    let put = |at: u64, word: u32| rig.chipset.mmio.write(bar + at, &word.to_le_bytes());
    let start = || {
        put(0, 1 << 26);
        for (ring, base) in [(0x2800, RX), (0x3800, TX)] {
            put(ring, base as u32);
            put(ring + 8, COUNT as u32 * 16);
        }
        put(0x100, 1 << 1 | 1 << 3 | 1 << 5 | 1 << 15);
        put(0x400, 1 << 1 | 1 << 3);
    };
    start();
    while !input.is_empty() {
        match input.u8() % 9 {
            0 => put(REGISTERS[usize::from(input.u8() % 16)], input.u32()),
            1 => {
                let at = u64::from(input.u32() % 0x2_0000) & !3;
                put(at, input.u32());
            }
            2 => rig.chipset.mmio.read(bar + u64::from(input.u16()), &mut [0; 4]),
            // A descriptor to send: length, command, kind, address.
            3 | 4 => {
                let at = TX + u64::from(input.u8() % 16) * 16;
                let address =
                    if input.u8() % 8 == 0 { input.u64() } else { BUFFERS + u64::from(input.u16()) };
                let length = [1, 60, 1514, 0xffff][usize::from(input.u8() % 4)];
                let command = u32::from(input.u8()) << 24 | u32::from(input.u8() % 3) << 20 | length;
                rig.memory.write_obj(at, address).expect("RAM");
                rig.memory.write_obj(at + 8, u64::from(command) | u64::from(input.u32()) << 32).expect("RAM");
            }
            5 => {
                let at = RX + u64::from(input.u8() % 16) * 16;
                let address =
                    if input.u8() % 8 == 0 { input.u64() } else { BUFFERS + u64::from(input.u16()) };
                rig.memory.write_obj(at, address).expect("RAM");
            }
            6 => put(if input.u8() % 2 == 0 { 0x2818 } else { 0x3818 }, u32::from(input.u8() % 18)),
            7 => {
                wire.room.store(usize::from(input.u8()), Ordering::Release);
                let mut frame = vec![input.u8(); [14, 60, 1514, 9000, 16_384][usize::from(input.u8() % 5)]];
                let start = input.bytes(40);
                let length = start.len().min(frame.len());
                frame[..length].copy_from_slice(&start[..length]);
                let adapter = wire.adapter().expect("the card");
                for checksum in [Checksum::Unknown, Checksum::Good] {
                    let intent = Intent { checksum, ..Intent::default() };
                    _ = Frame::new(&frame, &[], intent).map(|frame| adapter.put(&frame));
                }
                adapter.flush();
                adapter.room();
                wire.take();
            }
            _ => start(),
        }
    }
});
