//! Saving and loading floating-point state as a whole: FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR, LDMXCSR, STMXCSR.
//!
//! Components are x87, SSE and AVX, as far as the model has them. Compaction and supervisor state are not offered.

use iced_x86::{Code, Instruction};
use vireo_core::state::FxImage;
use vireo_isa::Fp;

use super::fpu::{AVX, MXCSR_MASK, Pointers, SSE, X87};
use crate::cpu::regs::gpr::{RAX, RDX};
use crate::cpu::{Cpu, Exec};
use crate::exec::{Handler, Uop};

/// Size of the legacy area, of legacy area and header, and of the AVX component behind them.
const LEGACY: u32 = 512;
const WITH_HEADER: u32 = 576;
const HIGH_HALVES: u32 = 256;

/// Handler of one of these instructions. `imm`: 64-bit pointers.
pub fn select(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    use Code::*;
    u.imm = u64::from(matches!(i.code(), Fxsave64_m512byte | Fxrstor64_m512byte))
        | u64::from(matches!(i.code(), Xsave64_mem | Xsaveopt64_mem | Xrstor64_mem));
    Some(match i.code() {
        Ldmxcsr_m32 => ldmxcsr::<false>,
        Stmxcsr_m32 => stmxcsr::<false>,
        VEX_Vldmxcsr_m32 => ldmxcsr::<true>,
        VEX_Vstmxcsr_m32 => stmxcsr::<true>,
        Fxsave_m512byte | Fxsave64_m512byte => fxsave,
        Fxrstor_m512byte | Fxrstor64_m512byte => fxrstor,
        Xsave_mem | Xsave64_mem => xsave::<false>,
        Xsaveopt_mem | Xsaveopt64_mem => xsave::<true>,
        Xrstor_mem | Xrstor64_mem => xrstor,
        _ => return None,
    })
}

/// The unit that an access to MXCSR needs.
const fn mxcsr_unit(vex: bool) -> Fp {
    if vex { Fp::Avx { mxcsr: false } } else { Fp::Sse { mxcsr: false } }
}

fn ldmxcsr<const VEX: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(mxcsr_unit(VEX))?;
    let at = u.linear(cpu, 4, false)?;
    let v = cpu.load::<u32>(u.segment(), at)?;
    if v & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    cpu.fpu.mxcsr = v;
    Ok(())
}

fn stmxcsr<const VEX: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(mxcsr_unit(VEX))?;
    let at = u.linear(cpu, 4, true)?;
    let v = cpu.fpu.mxcsr;
    cpu.store(u.segment(), at, v)
}

/// Where the XMM registers that the mode can name end in a legacy area.
fn xmm_end(cpu: &Cpu) -> usize {
    160 + 16 * usize::from(cpu.vector_registers())
}

/// Bytes of the AVX component that the mode can name.
fn high_end(cpu: &Cpu) -> usize {
    16 * usize::from(cpu.vector_registers())
}

/// Bytes of an XSAVE area with the components asked for.
fn area_size(asked: u64) -> u32 {
    WITH_HEADER + if asked & AVX != 0 { HIGH_HALVES } else { 0 }
}

/// The legacy area as FXSAVE would write it.
fn legacy_area(cpu: &mut Cpu, wide: bool) -> FxImage {
    let mut fx = cpu.fpu.x87_image();
    let p = cpu.fpu.pointers();
    fx.0[6..8].copy_from_slice(&p.fop.to_le_bytes());
    fx.0[8..16].copy_from_slice(&pointer(wide, p.fip, p.fcs));
    fx.0[16..24].copy_from_slice(&pointer(wide, p.fdp, p.fds));
    fx.0[24..28].copy_from_slice(&cpu.fpu.mxcsr.to_le_bytes());
    fx.0[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    for (i, b) in (0..16).zip(fx.0[160..416].chunks_exact_mut(16)) {
        b.copy_from_slice(&cpu.fpu.xmm(i).to_le_bytes());
    }
    fx
}

/// 64 bits of offset, or 32 of offset and 16 of selector (SDM vol. 1, table 10-2).
fn pointer(wide: bool, offset: u64, selector: u16) -> [u8; 8] {
    (if wide { offset } else { offset & 0xffff_ffff | u64::from(selector) << 32 }).to_le_bytes()
}

fn word(data: &[u8; 512], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| data[at + i]))
}

/// The pointers in a legacy area.
fn pointers_in(data: &[u8; 512], wide: bool) -> Pointers {
    let (ip, dp) = (word(data, 8), word(data, 16));
    let fop = u16::from_le_bytes([data[6], data[7]]) & 0x7ff;
    if wide {
        return Pointers { fip: ip, fcs: 0, fdp: dp, fds: 0, fop };
    }
    let low = |v: u64| v & 0xffff_ffff;
    Pointers { fip: low(ip), fcs: (ip >> 32) as u16, fdp: low(dp), fds: (dp >> 32) as u16, fop }
}

/// Loads XMM registers from a legacy area.
fn load_xmm(cpu: &mut Cpu, data: &[u8; 512]) {
    for (i, b) in (0..).zip(data[160..xmm_end(cpu)].as_chunks().0) {
        cpu.fpu.set_xmm(i, u128::from_le_bytes(*b));
    }
}

/// Linear address of an area, aligned as `align_mask` says.
///
/// Unlike SSE operands, these are looked at for canonical addresses before alignment; and, which shows in CR2, at their
/// second page before their first.
fn area(cpu: &mut Cpu, u: &Uop, size: u32, align_mask: u64, write: bool) -> Exec<u64> {
    let at = u.linear(cpu, size, write)?;
    let s = u.segment();
    if cpu.long_mode() && !Cpu::canonical(at) {
        return Err(cpu.segment_fault(s));
    }
    if at & align_mask != 0 {
        return Err(cpu.gp(0));
    }
    let last_page = at.wrapping_add(u64::from(size) - 1) & !0xfff;
    if last_page != at & !0xfff {
        if write { cpu.check_write(s, last_page, 1)? } else { cpu.host_read(s, last_page, 1).map(|_| ())? }
    }
    if write {
        cpu.check_write(s, at, size)?;
    }
    Ok(at)
}

fn fxsave(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(Fp::Fxsave)?;
    let at = area(cpu, u, LEGACY, 15, true)?;
    let fx = legacy_area(cpu, u.imm != 0);
    cpu.write_bytes(u.segment(), at, &fx.0[..xmm_end(cpu)])
}

fn fxrstor(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(Fp::Fxsave)?;
    let at = area(cpu, u, LEGACY, 15, false)?;
    let mut data = [0; LEGACY as usize];
    cpu.read_bytes(u.segment(), at, &mut data)?;
    let mxcsr = word(&data, 24) as u32;
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    cpu.fpu.set_x87_image(&FxImage(data), pointers_in(&data, u.imm != 0));
    cpu.fpu.mxcsr = mxcsr;
    load_xmm(cpu, &data);
    Ok(())
}

/// EDX:EAX and XCR0.
fn requested(cpu: &Cpu) -> u64 {
    let asked = cpu.regs.get(RDX) << 32 | cpu.regs.get(RAX) & 0xffff_ffff;
    asked & cpu.ctl.xcr0
}

/// The components that are not in their initial state (SDM vol. 1, 13.6); x87 always counts as in use.
fn in_use(cpu: &Cpu) -> u64 {
    let any = |half: usize| (0..cpu.vector_registers()).any(|i| cpu.fpu.ymm(i)[half] != 0);
    X87 | if any(0) { SSE } else { 0 } | if any(1) { AVX } else { 0 }
}

/// XSAVE, or XSAVEOPT with `OPT` (SDM vol. 1, 13.7 and 13.9).
fn xsave<const OPT: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(Fp::Xsave)?;
    let (asked, used) = (requested(cpu), in_use(cpu));
    let at = area(cpu, u, area_size(asked), 63, true)?;
    let s = u.segment();
    let fx = legacy_area(cpu, u.imm != 0);
    let saved = if OPT { asked & used } else { asked };
    if saved & X87 != 0 {
        cpu.write_bytes(s, at, &fx.0[..24])?;
        cpu.write_bytes(s, at.wrapping_add(32), &fx.0[32..160])?;
    }
    // MXCSR goes with the request, not with the use.
    if asked & (SSE | AVX) != 0 {
        cpu.write_bytes(s, at.wrapping_add(24), &fx.0[24..32])?;
    }
    if saved & SSE != 0 {
        cpu.write_bytes(s, at.wrapping_add(160), &fx.0[160..xmm_end(cpu)])?;
    }
    if saved & AVX != 0 {
        let high = cpu.fpu.high().map(u128::to_le_bytes);
        let end = high_end(cpu);
        cpu.write_bytes(s, at.wrapping_add(WITH_HEADER.into()), &high.as_flattened()[..end])?;
    }
    let header = at.wrapping_add(LEGACY.into());
    let old = cpu.load::<u64>(s, header)?;
    cpu.store(s, header, old & !asked | asked & used)
}

/// XRSTOR of the standard form (SDM vol. 1, 13.8).
fn xrstor(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(Fp::Xsave)?;
    let asked = requested(cpu);
    let at = area(cpu, u, area_size(asked), 63, false)?;
    let s = u.segment();
    let (mut data, mut header) = ([0; LEGACY as usize], [0; 64]);
    let mut high = [0; HIGH_HALVES as usize];
    cpu.read_bytes(s, at, &mut data)?;
    cpu.read_bytes(s, at.wrapping_add(LEGACY.into()), &mut header)?;
    let present = u64::from_le_bytes(std::array::from_fn(|i| header[i]));
    if present & !cpu.ctl.xcr0 != 0 || header[8..24].iter().any(|b| *b != 0) {
        return Err(cpu.gp(0));
    }
    if asked & present & AVX != 0 {
        cpu.read_bytes(s, at.wrapping_add(WITH_HEADER.into()), &mut high)?;
    }
    let mxcsr = word(&data, 24) as u32;
    if asked & (SSE | AVX) != 0 && mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    if asked & X87 != 0 {
        if present & X87 != 0 {
            cpu.fpu.set_x87_image(&FxImage(data), pointers_in(&data, u.imm != 0));
        } else {
            cpu.fpu.set_x87_image(&FxImage::INIT, Pointers::default());
        }
    }
    if asked & (SSE | AVX) != 0 {
        cpu.fpu.mxcsr = mxcsr;
    }
    if asked & SSE != 0 {
        load_xmm(cpu, if present & SSE != 0 { &data } else { &[0; LEGACY as usize] });
    }
    if asked & AVX != 0 {
        let end = high_end(cpu);
        cpu.fpu.set_high(high[..end].as_chunks().0.iter().map(|b| u128::from_le_bytes(*b)));
    }
    Ok(())
}

impl Cpu {
    /// Whether x87 instruction pointers have the form of real mode.
    pub(super) fn real_style_pointers(&self) -> bool {
        !self.protected()
    }
}
