//! Any accesses to a virtio network adapter, any rings, and frames that come meanwhile. It always comes to rest.
#![no_main]

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vireo_board::Attachment;
use vireo_chipset::pci::PciSlot;
use vireo_frame::trial::Wire;
use vireo_frame::{Ability, Frame, Intent, Mac, OFFLOAD_HEADER};
use vireo_fuzz::{Input, Rig};
use vireo_virtio::{Net, VirtioPci};

const SLOT: u32 = 3;
/// The rings of queue n are so many bytes behind those of n - 1; beside them headers, commands and buffers.
const QUEUES: u64 = 0x1_0000;
const STEP: u64 = 0x4000;
const SIZE: u64 = 16;
const BUFFERS: u64 = 0x2_0000;

/// A frame for the guest, of any kind.
fn gives(wire: &Wire, input: &mut Input<'_>) {
    let (bytes, intent) = input.packet(65_000);
    let Some(adapter) = wire.adapter() else { return };
    for intent in [intent, Intent::default()] {
        if let Ok(frame) = Frame::new(&bytes, &[], intent) {
            _ = adapter.put(&frame);
        }
    }
    adapter.flush();
}

/// A frame of the guest's with its header, or with any.
fn sent(input: &mut Input<'_>) -> Vec<u8> {
    let (bytes, intent) = input.packet(30_000);
    let header = Frame::new(&bytes, &[], intent).map(|frame| frame.offload_header());
    let header = header.unwrap_or_else(|_| input.array::<OFFLOAD_HEADER>());
    [&header[..], &[0, 0], &bytes].concat()
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let able = input.u8();
    let bit = |n: u8| able & 1 << n != 0;
    let wire = Wire::new(Ability { checksum: bit(0), tcp4: bit(1), tcp6: bit(2), udp: bit(3), tag: false });
    let net = Net::new(Arc::clone(&wire) as _, Mac([2, 0, 0, 0, 0, 1]), if bit(4) { 2 } else { 1 });
    let slot = PciSlot::new(SLOT as u8, 0).expect("a slot");
    let (rig, function) = Rig::new(|seat| VirtioPci::attach(seat, slot, "net", net).expect("a device"));
    function.resume();
    let bar = u64::from(rig.config(SLOT, 0x10) & !0xf);
    let (common, notify) = (bar + rig.virtio_structure(SLOT, 1), bar + rig.virtio_structure(SLOT, 2));
    let put = |at: u64, bytes: &[u8]| rig.chipset.mmio.write(at, bytes);
    let start = |wanted: u64| {
        let mut offered = [0; 8];
        put(common, &0_u32.to_le_bytes());
        rig.chipset.mmio.read(common + 4, &mut offered[..4]);
        put(common, &1_u32.to_le_bytes());
        rig.chipset.mmio.read(common + 4, &mut offered[4..]);
        let features = u64::from_le_bytes(offered) & wanted | 1 << 32;
        put(common + 20, &[0]);
        put(common + 20, &[3]);
        for (half, bits) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            put(common + 8, &half.to_le_bytes());
            put(common + 12, &bits.to_le_bytes());
        }
        put(common + 20, &[11]);
        for queue in 0..3_u16 {
            let base = QUEUES + u64::from(queue) * STEP;
            put(common + 22, &queue.to_le_bytes());
            put(common + 24, &(SIZE as u16).to_le_bytes());
            for (field, address) in [(32, base), (40, base + 0x1000), (48, base + 0x2000)] {
                put(common + field, &(address as u32).to_le_bytes());
            }
            put(common + 28, &1_u16.to_le_bytes());
        }
        put(common + 20, &[15]);
    };
    start(u64::MAX);
    let mut available = [0_u16; 3];
    while !input.is_empty() {
        let queue = usize::from(input.u8() % 3);
        let base = QUEUES + queue as u64 * STEP;
        match input.u8() % 10 {
            0 => {
                let at = bar + u64::from(input.u16() % 0x3100);
                put(at, &input.u32().to_le_bytes()[..1 << (bytes.len() % 3)]);
            }
            1 => rig.chipset.mmio.read(bar + u64::from(input.u16() % 0x3000), &mut [0; 4]),
            // A descriptor that may be right.
            2 | 3 => {
                let at = base + u64::from(input.u8() % 18) * 16;
                let address =
                    if input.u8() % 8 == 0 { input.u64() } else { BUFFERS + u64::from(input.u16()) };
                let lengths = [1, 12, 60, 1526, 30_000];
                let len =
                    if input.u8() % 8 == 0 { input.u32() } else { lengths[usize::from(input.u8() % 5)] };
                let flags = u32::from(input.u8() % 8) | u32::from(input.u8() % 18) << 16;
                let descriptor =
                    [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes()].concat();
                rig.memory.write(at, &descriptor).expect("RAM");
            }
            // A header, a command, or anything.
            4 => {
                let at = BUFFERS + u64::from(input.u16());
                rig.memory.write(at, &input.array::<24>()).expect("RAM");
            }
            5 | 6 => {
                let place = base + 0x1004 + u64::from(available[queue]) % SIZE * 2;
                rig.memory.write_obj(place, u16::from(input.u8() % 17)).expect("RAM");
                available[queue] = available[queue].wrapping_add(1);
                rig.memory.write_obj(base + 0x1002, available[queue]).expect("RAM");
                put(notify + 4 * queue as u64, &(queue as u16).to_le_bytes());
            }
            7 => {
                wire.room.store(usize::from(input.u8()), Ordering::Release);
                gives(&wire, &mut input);
                wire.adapter().inspect(|adapter| adapter.room());
                wire.take();
            }
            // A chain of one buffer to send, with a frame.
            8 => {
                let (frame, at) = (sent(&mut input), BUFFERS + u64::from(input.u16()));
                rig.memory.write(at, &frame).expect("RAM");
                let chain = [&at.to_le_bytes()[..], &(frame.len() as u32).to_le_bytes(), &[0; 4]].concat();
                let place = QUEUES + STEP + u64::from(input.u8()) % SIZE * 16;
                rig.memory.write(place, &chain).expect("RAM");
            }
            _ => {
                start(input.u64());
                available = [0; 3];
            }
        }
    }
    assert!(function.pause(Instant::now() + Duration::from_secs(20)), "it does not come to rest");
});
