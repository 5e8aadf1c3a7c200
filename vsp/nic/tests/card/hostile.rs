//! Guests that break the rules: no panic, bounded work, and a reset makes all good.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vireo_frame::{Ability, Checksum, Intent};

use crate::rig::{ADDRESS, CTRL, RX_RING, Rig, TX_BUFFERS, TX_RING, frame};

/// After whatever happened, frames go both ways.
fn is_mended(rig: &Rig) {
    rig.wire.room.store(usize::MAX, Ordering::Release);
    rig.wire.adapter().unwrap().room();
    rig.start(0);
    let bytes = frame(ADDRESS, 77);
    rig.memory.write(TX_BUFFERS, &bytes).unwrap();
    rig.wire.take();
    rig.transmit(&[[TX_BUFFERS, 77 | 1 << 24]]);
    crate::rig::waits("a frame", || rig.wire.take().iter().any(|(b, _)| *b == bytes));
    rig.buffers(2, 2048);
    rig.wire.gives(&bytes, Intent::default()).unwrap();
    assert_eq!(rig.received(0).bytes.len(), 81);
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => prop::sample::select(vec![TX_BUFFERS, RX_RING, TX_RING, 0x9_fff8, 0xff_fff0, 1 << 40, u64::MAX]),
        1 => any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = [u64; 2]> {
    let length = prop_oneof![Just(0u64), 1u64..2000, 0u64..1 << 20];
    let command = prop::sample::select(vec![0u64, 1, 4, 5, 9, 0x20, 0x21, 0x25, 0x2d, 0x60, 0x61, 0xff]);
    (address(), any::<u64>(), length, command, 0u64..3).prop_map(|(at, rest, length, command, kind)| {
        let high = rest & 0xffff_ffff_0000_0000 | command << 24 | kind << 20 | length & 0xf_ffff;
        // A context is not an address.
        if command & 0x20 != 0 && kind == 0 {
            [rest.rotate_left(7) & 0x0040_3f3f_0040_3f3f, high]
        } else {
            [at, high]
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn any_rings_leave_a_card_that_can_be_reset(
        tx in prop::collection::vec(descriptor(), 1..40), rx in prop::collection::vec((address(), any::<u64>()), 32),
        rctl in any::<u32>(), ctrl in any::<u32>(), tctl in any::<u32>(), lengths in any::<(u32, u32)>(), near in any::<bool>(),
        tails in prop::collection::vec(any::<u32>(), 1..6), none in any::<bool>(), room in 0usize..5,
    ) {
        let rig = Rig::new(if none { Ability::default() } else { Ability::ALL });
        rig.wire.room.store(room, Ordering::Release);
        rig.start(rctl);
        rig.write(CTRL, ctrl & !(1 << 26));
        for (n, (at, rest)) in (0..).zip(&rx) {
            rig.memory.write_obj(RX_RING + n * 16, *at).unwrap();
            rig.memory.write_obj(RX_RING + n * 16 + 8, *rest).unwrap();
        }
        if !near {
            rig.write(0x2808, lengths.0);
            rig.write(0x3808, lengths.1);
            rig.write(0x400, tctl | 2);
        }
        let mut wide = vec![0x45; 3000];
        wide[12..14].copy_from_slice(&[8, 0]);
        for (n, tail) in tails.iter().enumerate() {
            for part in tx.chunks(16) {
                rig.transmit(part);
            }
            let tail = if near { tail % 32 } else { *tail };
            rig.write(0x2818, tail);
            if n == 2 {
                rig.write(0x3818, tail);
                rig.write(0x3810, tail.rotate_left(9));
                rig.write(0x2810, tail.rotate_left(5));
            }
            for checksum in [Checksum::Unknown, Checksum::Good] {
                _ = rig.wire.gives(&wide, Intent { checksum, ..Intent::default() });
                _ = rig.wire.gives(&frame(ADDRESS, 60), Intent { checksum, ..Intent::default() });
            }
            rig.wire.adapter().unwrap().flush();
        }
        is_mended(&rig);
    }

    #[test]
    fn any_accesses_leave_a_card_that_can_be_reset(
        accesses in prop::collection::vec((0u64..0x2_0000, any::<u64>(), 1usize..9, any::<bool>(), any::<bool>()), 1..200),
    ) {
        let rig = Rig::new(Ability::ALL);
        rig.start(0);
        for (at, value, width, write, near) in accesses {
            // Where there are registers, mostly.
            let at = if near { [0, 0xc0, 0x100, 0x2800, 0x3800, 0x5400][at as usize % 6] + (at >> 3) % 0x40 } else { at };
            let width = width.min((0x2_0000 - at) as usize);
            if write {
                rig.chipset.mmio.write(rig.bar + at, &value.to_le_bytes()[..width]);
            } else {
                rig.chipset.mmio.read(rig.bar + at, &mut [0; 8][..width]);
            }
        }
        is_mended(&rig);
    }
}
