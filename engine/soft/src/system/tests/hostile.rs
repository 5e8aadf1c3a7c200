//! Guests that execute, load and point to anything: the engine must survive, whatever becomes of the guest.

use proptest::prelude::*;
use vireo_core::model::Vendor;

use super::guest::*;
use crate::cpu::Stop;

/// First bytes of system instructions, so that random code has enough of them.
const OPENINGS: &[&[u8]] = &[
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x20],
    &[0x0f, 0x22],
    &[0x0f, 0x23],
    &[0x0f, 0x30],
    &[0x0f, 0x05],
    &[0x0f, 0x07],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x8e],
    &[0xcf],
    &[0xcb],
    &[0xca],
    &[0xea],
    &[0x9a],
    &[0xff],
    &[0xcd],
    &[0x6d],
    &[0xf3, 0x6e],
    &[0x9d],
    &[0x0f, 0xb2],
];

fn instruction() -> impl Strategy<Value = Vec<u8>> {
    let opening = prop_oneof![
        proptest::sample::select(OPENINGS).prop_map(<[u8]>::to_vec),
        proptest::collection::vec(any::<u8>(), 1..3),
    ];
    let prefix = prop_oneof![Just(vec![]), Just(vec![0x66]), Just(vec![0x67]), Just(vec![0x48])];
    (prefix, opening, any::<[u8; 4]>()).prop_map(|(p, o, rest)| [p, o, rest.to_vec()].concat())
}

fn survive(mut g: Guest, code: &[Vec<u8>], registers: &[u64], tables: &[(u16, u64)]) {
    for (offset, v) in tables {
        g.write(GDT + u64::from(*offset % 0x3000), *v);
    }
    for (r, v) in (0u8..).zip(registers) {
        // Small values often: they are selectors, MSR numbers, addresses in RAM.
        g.cpu.regs.set(r, if v & 1 == 0 { *v } else { v >> 44 });
    }
    for (at, b) in (g.cpu.rip..).zip(code.concat()) {
        g.write(at, b);
    }
    for _ in 0..200 {
        match g.cpu.run_block(true) {
            Err(Stop::Fault | Stop::Trap) => {
                let fault = g.cpu.fault;
                if crate::system::deliver(&mut g.cpu, fault).is_err() {
                    return;
                }
            }
            Err(Stop::Shutdown) => return,
            _ => {}
        }
        assert!(g.cpu.cpl <= 3 && g.cpu.instruction_pointer_is_sane());
    }
}

impl crate::cpu::Cpu {
    /// RIP has no bits above those of its mode.
    fn instruction_pointer_is_sane(&self) -> bool {
        self.mode.is64() || self.rip <= 0xffff_ffff
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_code_in_any_mode(
        mode in 0..6,
        code in proptest::collection::vec(instruction(), 1..40),
        registers in proptest::collection::vec(any::<u64>(), 16),
        tables in proptest::collection::vec(any::<(u16, u64)>(), 0..64),
    ) {
        let mut g = match mode {
            0 | 1 => Guest::protected(),
            2 | 3 => Guest::long(Vendor::Intel),
            _ => Guest::long(Vendor::Amd),
        };
        match mode {
            1 => g.drop_to_user(sel::USER_CODE32, 0xc0fb),
            3 => g.drop_to_user(sel::USER_CODE64, 0xa0fb),
            5 => g.drop_to_user(sel::USER_CODE32, 0xc0fb),
            _ => {}
        }
        survive(g, &code, &registers, &tables);
    }
}
