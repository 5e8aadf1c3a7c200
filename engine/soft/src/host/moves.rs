//! SSE moves and bitwise logic: frequent, and exact without the host's help.

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use vireo_isa::Fp;

use crate::cpu::{Cpu, Exec};
use crate::exec::{Handler, Uop, register};

const SSE: Fp = Fp::Sse { mxcsr: false };

/// One host load of 16 bytes.
///
/// # Safety
/// `p` points to 16 readable bytes of guest memory.
#[inline(always)]
unsafe fn load16(p: *const u8) -> u128 {
    let v: __m128i;
    // SAFETY: the caller vouches for the address. Guests race on it, so the access is one instruction.
    unsafe {
        asm!("movups {v}, [{p}]", v = out(xmm_reg) v, p = in(reg) p,
            options(nostack, readonly, preserves_flags));
        std::mem::transmute(v)
    }
}

/// One host store of 16 bytes.
///
/// # Safety
/// `p` points to 16 writable bytes of guest memory.
#[inline(always)]
unsafe fn store16(p: *mut u8, v: u128) {
    // SAFETY: as for `load16`.
    unsafe {
        let v: __m128i = std::mem::transmute(v);
        asm!("movups [{p}], {v}", v = in(xmm_reg) v, p = in(reg) p, options(nostack, preserves_flags));
    }
}

impl Cpu {
    /// Reads the 16-byte memory operand.
    #[inline(always)]
    fn operand16<const ALIGNED: bool>(&mut self, u: &Uop) -> Exec<u128> {
        let at = self.aligned_linear(u, 16, if ALIGNED { 15 } else { 0 }, false)?;
        if let Some(p) = self.host_read(u.segment(), at, 16)? {
            // SAFETY: `host_read` found all 16 bytes in one mapped page.
            return Ok(unsafe { load16(p) });
        }
        let mut data = [0; 16];
        self.read_bytes(u.segment(), at, &mut data)?;
        Ok(u128::from_le_bytes(data))
    }

    /// Writes the 16-byte memory operand.
    #[inline(always)]
    fn set_operand16<const ALIGNED: bool>(&mut self, u: &Uop, v: u128) -> Exec {
        let at = self.aligned_linear(u, 16, if ALIGNED { 15 } else { 0 }, true)?;
        if let Some((p, page)) = self.host_write(u.segment(), at, 16)? {
            // SAFETY: `host_write` found all 16 bytes in one mapped, writable page.
            unsafe { store16(p, v) };
            self.after_host_write(page, at, 16);
            return Ok(());
        }
        self.write_bytes(u.segment(), at, &v.to_le_bytes())
    }
}

fn rr(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    cpu.fpu.set_xmm(u.dst, cpu.fpu.xmm(u.src));
    Ok(())
}
fn load<const ALIGNED: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let v = cpu.operand16::<ALIGNED>(u)?;
    cpu.fpu.set_xmm(u.dst, v);
    Ok(())
}
fn store<const ALIGNED: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let v = cpu.fpu.xmm(u.src);
    cpu.set_operand16::<ALIGNED>(u, v)
}

/// MOVD, MOVQ, MOVSS, MOVSD from memory: the rest of the register is cleared.
fn load_low<const SIZE: u32>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let at = u.linear(cpu, SIZE, false)?;
    let v = match SIZE {
        4 => u64::from(cpu.load::<u32>(u.segment(), at)?),
        _ => cpu.load::<u64>(u.segment(), at)?,
    };
    cpu.fpu.set_xmm(u.dst, v.into());
    Ok(())
}
/// MOVD, MOVQ, MOVSS, MOVSD, MOVLPS, MOVLPD to memory.
fn store_low<const SIZE: u32>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let at = u.linear(cpu, SIZE, true)?;
    let v = cpu.fpu.xmm(u.src);
    match SIZE {
        4 => cpu.store(u.segment(), at, v as u32),
        _ => cpu.store(u.segment(), at, v as u64),
    }
}
/// MOVHPS, MOVHPD to memory.
fn store_high(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let at = u.linear(cpu, 8, true)?;
    let v = (cpu.fpu.xmm(u.src) >> 64) as u64;
    cpu.store(u.segment(), at, v)
}
/// MOVLPS, MOVLPD (`HIGH` false), MOVHPS, MOVHPD from memory: the other half stays.
fn load_half<const HIGH: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let at = u.linear(cpu, 8, false)?;
    let v = u128::from(cpu.load::<u64>(u.segment(), at)?);
    let old = cpu.fpu.xmm(u.dst);
    let low = u128::from(u64::MAX);
    cpu.fpu.set_xmm(u.dst, if HIGH { old & low | v << 64 } else { old & !low | v });
    Ok(())
}
/// MOVSS, MOVSD between registers: the rest of the register stays.
fn merge_low<const SIZE: u32>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let mask = u128::MAX >> (128 - SIZE * 8);
    let v = cpu.fpu.xmm(u.dst) & !mask | cpu.fpu.xmm(u.src) & mask;
    cpu.fpu.set_xmm(u.dst, v);
    Ok(())
}
/// MOVQ between registers.
fn low_quad(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    cpu.fpu.set_xmm(u.dst, u128::from(cpu.fpu.xmm(u.src) as u64));
    Ok(())
}
/// MOVD, MOVQ from a general register.
fn from_gpr<const SIZE: u32>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let v = cpu.regs.get(u.src);
    cpu.fpu.set_xmm(u.dst, u128::from(if SIZE == 4 { v & 0xffff_ffff } else { v }));
    Ok(())
}
/// MOVD, MOVQ to a general register; 32 bits clear the upper half.
fn to_gpr<const SIZE: u32>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let v = cpu.fpu.xmm(u.src) as u64;
    cpu.regs.set(u.dst, if SIZE == 4 { v & 0xffff_ffff } else { v });
    Ok(())
}

const AND: u8 = 0;
const ANDN: u8 = 1;
const OR: u8 = 2;
const XOR: u8 = 3;

#[inline(always)]
fn logic<const OP: u8>(a: u128, b: u128) -> u128 {
    match OP {
        AND => a & b,
        ANDN => !a & b,
        OR => a | b,
        _ => a ^ b,
    }
}
fn logic_rr<const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let v = logic::<OP>(cpu.fpu.xmm(u.dst), cpu.fpu.xmm(u.src));
    cpu.fpu.set_xmm(u.dst, v);
    Ok(())
}
fn logic_rm<const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.check_fp(SSE)?;
    let b = cpu.operand16::<true>(u)?;
    let v = logic::<OP>(cpu.fpu.xmm(u.dst), b);
    cpu.fpu.set_xmm(u.dst, v);
    Ok(())
}

/// Where the two operands are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    XmmXmm,
    XmmMem,
    MemXmm,
    XmmGpr,
    GprXmm,
}

/// Recognises the operands and fills register numbers.
fn operands(i: &Instruction, u: &mut Uop) -> Option<Form> {
    if i.op_count() != 2 {
        return None;
    }
    let kind = |op| match i.op_kind(op) {
        OpKind::Memory => Some('m'),
        OpKind::Register if i.op_register(op).is_xmm() => Some('x'),
        OpKind::Register if i.op_register(op).is_gpr() => Some('r'),
        _ => None,
    };
    let form = match (kind(0)?, kind(1)?) {
        ('x', 'x') => Form::XmmXmm,
        ('x', 'm') => Form::XmmMem,
        ('m', 'x') => Form::MemXmm,
        ('x', 'r') => Form::XmmGpr,
        ('r', 'x') => Form::GprXmm,
        _ => return None,
    };
    let number = |op| match i.op_kind(op) {
        OpKind::Register if i.op_register(op).is_xmm() => i.op_register(op).number() as u8,
        OpKind::Register => register(i.op_register(op)),
        _ => 0,
    };
    (u.dst, u.src) = (number(0), number(1));
    Some(form)
}

/// Handler of a move or a bitwise operation on XMM registers.
pub fn select(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    use Form::*;
    let vector = vireo_isa::describe(i.code()).class == vireo_isa::Class::Sse;
    if !vector {
        return None;
    }
    let m = i.mnemonic();
    let size = || if i.memory_size().size() == 4 || i.op0_register().size() == 4 { 4 } else { 8 };
    let narrow = |op| i.op_register(op).size() == 4;
    Some(match (m, operands(i, u)?) {
        (M::Movaps | M::Movapd | M::Movdqa, f) => full::<true>(f)?,
        (M::Movups | M::Movupd | M::Movdqu | M::Lddqu, f) => full::<false>(f)?,
        (M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa, f) => full::<true>(f)?,
        (M::Movd | M::Movq | M::Movss | M::Movsd, XmmMem) if size() == 4 => load_low::<4>,
        (M::Movd | M::Movq | M::Movss | M::Movsd, XmmMem) => load_low::<8>,
        (M::Movd | M::Movq | M::Movss | M::Movsd, MemXmm) if size() == 4 => store_low::<4>,
        (M::Movd | M::Movq | M::Movss | M::Movsd, MemXmm) => store_low::<8>,
        (M::Movss, XmmXmm) => merge_low::<4>,
        (M::Movsd, XmmXmm) => merge_low::<8>,
        (M::Movq, XmmXmm) => low_quad,
        (M::Movd | M::Movq, XmmGpr) if narrow(1) => from_gpr::<4>,
        (M::Movd | M::Movq, XmmGpr) => from_gpr::<8>,
        (M::Movd | M::Movq, GprXmm) if narrow(0) => to_gpr::<4>,
        (M::Movd | M::Movq, GprXmm) => to_gpr::<8>,
        (M::Movlps | M::Movlpd, XmmMem) => load_half::<false>,
        (M::Movhps | M::Movhpd, XmmMem) => load_half::<true>,
        (M::Movlps | M::Movlpd, MemXmm) => store_low::<8>,
        (M::Movhps | M::Movhpd, MemXmm) => store_high,
        (M::Pand | M::Andps | M::Andpd, f) => bitwise::<AND>(f)?,
        (M::Pandn | M::Andnps | M::Andnpd, f) => bitwise::<ANDN>(f)?,
        (M::Por | M::Orps | M::Orpd, f) => bitwise::<OR>(f)?,
        (M::Pxor | M::Xorps | M::Xorpd, f) => bitwise::<XOR>(f)?,
        _ => return None,
    })
}

fn full<const ALIGNED: bool>(f: Form) -> Option<Handler> {
    Some(match f {
        Form::XmmXmm => rr,
        Form::XmmMem => load::<ALIGNED>,
        Form::MemXmm => store::<ALIGNED>,
        _ => return None,
    })
}

fn bitwise<const OP: u8>(f: Form) -> Option<Handler> {
    Some(match f {
        Form::XmmXmm => logic_rr::<OP>,
        Form::XmmMem => logic_rm::<OP>,
        _ => return None,
    })
}
