//! Limits of instruction fetch, and code that changes.

use iced_x86::code_asm::*;
use vireo_core::model::Vendor;

use super::guest::*;
use crate::cpu::{Fault, Source, seg, vector};

const GP0: Fault = Fault { vector: vector::GP, error: Some(0), source: Source::Exception };

/// 32-bit code of three one-byte instructions and one of five bytes, in a segment that ends after `limit`.
fn limited(limit: u32) -> Guest {
    let mut g = Guest::protected();
    g.code(CODE, 32, |a| {
        a.inc(ecx)?;
        a.inc(ecx)?;
        a.inc(ecx)?;
        a.mov(eax, 5)?;
        a.hlt()
    });
    g.cpu.seg[seg::CS as usize].limit = limit;
    g.cpu.mode_changed();
    g
}

/// Runs whole blocks until something is raised or the guest halts.
fn run_blocks(g: &mut Guest) -> Result<(), Fault> {
    for _ in 0..100 {
        match g.cpu.run_block(false) {
            Ok(()) => {}
            Err(_) if g.cpu.activity == vireo_core::state::Activity::Halted => return Ok(()),
            Err(_) => return Err(g.cpu.fault),
        }
    }
    panic!("no end")
}

#[test]
fn code_ends_at_the_segment_limit() {
    for (limit, rip, increments) in [(CODE - 1, CODE, 0), (CODE + 1, CODE + 2, 2), (CODE + 6, CODE + 3, 3)] {
        let mut g = limited(limit as u32);
        assert_eq!(run_blocks(&mut g), Err(GP0));
        assert_eq!(
            (g.cpu.rip, g.cpu.regs.get(1), g.cpu.regs.get(0)),
            (rip, increments, 0),
            "limit {limit:#x}"
        );
    }
    let mut g = limited(CODE as u32 + 8);
    assert_eq!(run_blocks(&mut g), Ok(()));
    assert_eq!(g.cpu.regs.get(0), 5);
}

#[test]
fn a_smaller_limit_counts_for_code_that_ran_before() {
    let mut g = limited(u32::MAX);
    assert_eq!(run_blocks(&mut g), Ok(()));
    g.cpu.activity = vireo_core::state::Activity::Running;
    g.cpu.seg[seg::CS as usize].limit = CODE as u32 + 4;
    g.cpu.rip = CODE;
    g.cpu.mode_changed();
    assert_eq!(run_blocks(&mut g), Err(GP0));
    assert_eq!(g.cpu.rip, CODE + 3);
}

#[test]
fn an_instruction_of_16_bytes_is_a_general_protection_fault() {
    let mut g = Guest::long(Vendor::Intel);
    // 14 prefixes and a two-byte opcode; with one prefix less it is a NOP.
    g.write(CODE, [0x66_u8; 14]);
    g.write(CODE + 14, [0x8b_u8, 0xc0]);
    assert_eq!(g.step(), Err(GP0));
    g.cpu.rip = CODE + 1;
    assert_eq!(g.step(), Ok(()));
    assert_eq!(g.cpu.rip, CODE + 16);
}

#[test]
fn a_rip_relative_address_reaches_2_gib_beyond_its_instruction() {
    let mut g = Guest::long(Vendor::Intel);
    // Linear 2 GiB and above lead to the same 2 MiB.
    let pdpt = PAGES + 0x1000;
    g.write(pdpt + 16, g.read::<u64>(pdpt));
    // nop; mov eax, [rip + 7fffffff]
    g.write(CODE, [0x90_u8, 0x8b, 0x05, 0xff, 0xff, 0xff, 0x7f, 0xf4]);
    let at = CODE + 7 + 0x7fff_ffff;
    assert_eq!(at >> 31, 1, "the address is in the second half");
    let expected = g.read::<u32>(at & 0x1f_ffff);
    assert_eq!(run_blocks(&mut g), Ok(()));
    assert_eq!(g.cpu.regs.get(0), u64::from(expected));
}

#[test]
fn code_that_another_overwrote_is_gone_before_a_write_beside_it_ends() {
    let mut g = Guest::protected();
    g.code(CODE, 32, |a| {
        a.mov(byte_ptr(ebx), 0x41)?;
        a.nop()?;
        a.inc(eax)?;
        a.hlt()
    });
    g.cpu.regs.set(3, STACK);
    assert_eq!(run_blocks(&mut g), Ok(()));
    assert_eq!((g.cpu.regs.get(0), g.cpu.regs.get(1)), (1, 0));
    // Another vCPU writes to the same granule: it is announced no more, and the notice has not been taken yet.
    let shared = std::sync::Arc::clone(&g.cpu.shared);
    let page = (CODE >> 12) as u32;
    shared.watch.after_write(page, 40, 1, |granules| shared.code_changed(None, page, granules));
    // Now the guest overwrites its own `inc eax` by `inc ecx`.
    g.cpu.activity = vireo_core::state::Activity::Running;
    g.cpu.rip = CODE;
    g.cpu.regs.set(3, CODE + 4);
    assert_eq!(run_blocks(&mut g), Ok(()));
    assert_eq!((g.cpu.regs.get(0), g.cpu.regs.get(1)), (1, 1));
}
