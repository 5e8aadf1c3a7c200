//! A channel's rings whose words and packets the guest sets as it likes, while they are read and written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vireo_fuzz::{Input, Rig};
use vireo_vmbus::driver::Driver;
use vireo_vmbus::ring::{Packet, RingPair, kind};

const BASE: u64 = 0x20_0000;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let memory = Rig::memory();
    let driver = Driver::new(&memory, BASE, 1, 1);
    let mut rings = RingPair::new(&memory, &driver.pages(), driver.split()).expect("rings");
    let mut packet = Packet::default();
    while !input.is_empty() {
        let ring = driver.controls()[usize::from(input.u8() % 2)];
        match input.u8() % 6 {
            // Control words, then data.
            0 => _ = memory.write_obj(ring + u64::from(input.u8() % 20) * 4, input.u32()),
            1 => {
                let at = ring + 4096 + u64::from(input.u16() % 4096);
                let len = usize::from(input.u8() % 64);
                _ = memory.write(at, input.bytes(len));
            }
            // A packet that a driver might send.
            2 => {
                let pages = [input.u64() % 5000, input.u64()];
                let ranges =
                    [(input.u32() % 9000, input.u32() % 5000, &pages[..usize::from(input.u8() % 3)])];
                let kinds = [kind::IN_BAND, kind::GPA_DIRECT, kind::COMPLETION, input.u16()];
                let kind = kinds[usize::from(input.u8() % 4)];
                let len = usize::from(input.u8());
                _ = driver.send(kind, input.u64(), &ranges, input.bytes(len));
            }
            3 => {
                // As a device does: it goes on as long as there are packets, and stops at the first that is none.
                for _ in 0..1000 {
                    match rings.incoming.next(&mut packet) {
                        Ok(true) => {
                            assert!(packet.data().len() <= 4096);
                            if let Ok(ranges) = packet.gpa_ranges(&memory, 100) {
                                assert!(ranges.len() <= 100);
                            }
                        }
                        Ok(false) | Err(_) => break,
                    }
                }
                rings.incoming.publish();
            }
            4 => _ = rings.incoming.unmask(),
            _ => {
                let len = usize::from(input.u16() % 4200);
                _ = rings.outgoing.write(kind::COMPLETION, 1, false, &vec![7; len]);
            }
        }
    }
});
