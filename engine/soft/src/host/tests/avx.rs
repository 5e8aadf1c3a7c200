//! AVX: upper halves, their saving, and accesses that a mask leaves out.

use iced_x86::code_asm::*;
use vireo_core::state::{cr0, cr4};

use super::{DATA, Machine, RAM};
use crate::cpu::regs::gpr;
use crate::cpu::{Stop, vector};

const A: u128 = 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100;
const B: u128 = 0x8182_8384_8586_8788_898a_8b8c_8d8e_8f90;

/// A machine with AVX, RSI at its data. `None`, loudly: the host has none.
fn machine() -> Option<Machine> {
    if !std::arch::is_x86_feature_detected!("avx2") {
        println!("SKIPPED: this host has no AVX2, which the software engine has the host execute");
        return None;
    }
    let mut m = Machine::of("vireo-v3");
    m.cpu.regs.set(gpr::RSI, DATA);
    Some(m)
}

#[test]
fn sse_keeps_upper_halves_and_vex_clears_them() {
    let Some(mut m) = machine() else { return };
    for n in 0..3 {
        m.cpu.fpu.set_ymm(n, [A, B]);
    }
    m.run(|a| a.paddd(xmm0, xmm1));
    assert_eq!(m.cpu.fpu.ymm(0)[1], B);
    m.run(|a| a.vpaddd(xmm0, xmm1, xmm2));
    assert_eq!(m.cpu.fpu.ymm(0)[1], 0);
    m.run(|a| a.vpxor(ymm1, ymm1, ymm2));
    assert_eq!(m.cpu.fpu.ymm(1), [0, 0]);
    m.run(|a| a.vmovdqu(ymmword_ptr(rsi), ymm2));
    assert_eq!(m.memory(DATA)[16..32], B.to_le_bytes());
    m.run(|a| a.vblendvps(ymm3, ymm1, ymmword_ptr(rsi), ymm2));
    assert_eq!(m.cpu.fpu.ymm(3)[1], B, "the sign of each lane is set");
    m.run(|a| a.vzeroupper());
    assert_eq!((m.cpu.fpu.ymm(2), m.cpu.fpu.ymm(3)[1]), ([A, 0], 0));
    m.run(|a| a.vzeroall());
    assert_eq!(m.cpu.fpu.ymm(2), [0, 0]);
}

#[test]
fn avx_needs_its_state_enabled() {
    let Some(mut m) = machine() else { return };
    m.cpu.ctl.xcr0 = 3;
    m.faults(vector::UD, |a| a.vpxor(xmm0, xmm0, xmm0));
    m.faults(vector::UD, |a| a.vzeroupper());
    m.cpu.ctl.xcr0 = 7;
    m.cpu.ctl.cr4 &= !cr4::OSXSAVE;
    m.faults(vector::UD, |a| a.vldmxcsr(dword_ptr(rsi)));
    m.cpu.ctl.cr4 |= cr4::OSXSAVE;
    m.cpu.ctl.cr0 |= cr0::TS;
    m.faults(vector::NM, |a| a.vaddps(ymm0, ymm0, ymm0));
    // Unlike SSE it does not ask for CR4.OSFXSR, nor is it put out by CR0.EM.
    m.cpu.ctl.cr0 = m.cpu.ctl.cr0 & !cr0::TS | cr0::EM;
    m.cpu.ctl.cr4 &= !cr4::OSFXSR;
    m.run(|a| a.vaddps(ymm0, ymm0, ymm0));
}

#[test]
fn aligned_moves_fault_on_other_operands_and_arithmetic_does_not() {
    let Some(mut m) = machine() else { return };
    m.cpu.regs.set(gpr::RSI, DATA + 16);
    m.faults(vector::GP, |a| a.vmovaps(ymm0, ymmword_ptr(rsi)));
    m.run(|a| a.vmovaps(xmm0, xmmword_ptr(rsi)));
    m.run(|a| a.vaddps(ymm0, ymm0, ymmword_ptr(rsi + 1)));
}

#[test]
fn xsave_and_xrstor_carry_the_upper_halves() {
    let Some(mut m) = machine() else { return };
    let all = |m: &mut Machine, components: u64| {
        m.cpu.regs.set(gpr::RAX, components);
        m.cpu.regs.set(gpr::RDX, 0);
    };
    m.cpu.fpu.set_ymm(1, [A, B]);
    all(&mut m, 7);
    m.run(|a| a.xsave64(ptr(rsi)));
    assert_eq!(m.memory(DATA + 512)[0], 7);
    assert_eq!(m.memory(DATA + 576 + 16)[..16], B.to_le_bytes());
    m.cpu.fpu.set_ymm(1, [0, 0]);
    m.run(|a| a.xrstor64(ptr(rsi)));
    assert_eq!(m.cpu.fpu.ymm(1), [A, B]);
    // What is marked as unused becomes zero, whatever is there.
    m.memory(DATA + 512)[0] = 3;
    m.run(|a| a.xrstor64(ptr(rsi)));
    assert_eq!(m.cpu.fpu.ymm(1), [A, 0]);
    // And XSAVEOPT does not write what is not in use, but says so.
    m.run(|a| a.xsaveopt64(ptr(rsi)));
    assert_eq!(m.memory(DATA + 512)[0], 3);
    assert_eq!(m.memory(DATA + 576 + 16)[..16], B.to_le_bytes());
    // The component alone: XMM registers stay.
    m.memory(DATA + 512)[0] = 7;
    m.cpu.fpu.set_ymm(1, [5, 6]);
    all(&mut m, 4);
    m.run(|a| a.xrstor64(ptr(rsi)));
    assert_eq!(m.cpu.fpu.ymm(1), [5, B]);
    m.cpu.ctl.xcr0 = 3;
    m.faults(vector::GP, |a| a.xrstor64(ptr(rsi)));
}

#[test]
fn saved_state_has_upper_halves_only_where_the_model_has() {
    let Some(mut m) = machine() else { return };
    assert_eq!(m.cpu.fpu.save().image.len(), 576);
    m.cpu.fpu.set_ymm(9, [A, B]);
    let mut saved = m.cpu.fpu.save();
    m.cpu.fpu.set_ymm(9, [0, 0]);
    m.cpu.fpu.load(&saved, 7).unwrap();
    assert_eq!(m.cpu.fpu.ymm(9), [A, B]);
    assert!(m.cpu.fpu.load(&saved, 3).is_err());
    saved.image.truncate(600);
    assert!(m.cpu.fpu.load(&saved, 7).is_err());
}

#[test]
fn masked_elements_are_not_accessed() {
    let Some(mut m) = machine() else { return };
    let on = u128::from(1u32 << 31);
    // Of eight elements the first two are chosen; the third would be on the bus, beyond RAM.
    m.cpu.fpu.set_ymm(1, [on | on << 32, 0]);
    m.cpu.fpu.set_ymm(2, [A, B]);
    m.cpu.regs.set(gpr::RSI, RAM as u64 - 8);
    m.run(|a| a.vmaskmovps(ymmword_ptr(rsi), ymm1, ymm2));
    assert_eq!(m.memory(RAM as u64 - 8)[..8], A.to_le_bytes()[..8]);
    m.run(|a| a.vpmaskmovd(ymm3, ymm1, ymmword_ptr(rsi)));
    assert_eq!(m.cpu.fpu.ymm(3), [A & u128::from(u64::MAX), 0]);
}

#[test]
fn a_gather_that_faults_keeps_what_it_has() {
    /// VPGATHERQD XMM3, [RSI + XMM1], XMM2: the assembler knows the EVEX form only.
    const GATHER: [u8; 6] = [0xc4, 0xe2, 0x69, 0x91, 0x1c, 0x0e];
    let Some(mut m) = machine() else { return };
    m.memory(DATA)[..4].copy_from_slice(&7u32.to_le_bytes());
    // Element 0 at RSI, element 1 at an address that is not canonical.
    m.cpu.regs.set(gpr::RSI, DATA);
    m.cpu.fpu.set_ymm(1, [1 << 127, 0]);
    m.cpu.fpu.set_ymm(2, [u128::MAX, u128::MAX]);
    m.cpu.fpu.set_ymm(3, [A, B]);
    assert_eq!(m.try_bytes(&GATHER), Err(Stop::Fault));
    assert_eq!(m.cpu.fault.vector, vector::GP);
    let (done, mask) = (m.cpu.fpu.ymm(3), m.cpu.fpu.ymm(2));
    assert_eq!((done[0] as u64, mask[0] as u64), (A as u64 & !0xffff_ffff | 7, !0xffff_ffff));
    m.cpu.fpu.set_ymm(1, [0, 0]);
    assert_eq!(m.try_bytes(&GATHER), Ok(()));
    assert_eq!((m.cpu.fpu.ymm(3), m.cpu.fpu.ymm(2)), ([7 | 7 << 32, 0], [0, 0]));
}
