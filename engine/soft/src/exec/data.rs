//! Moves, exchanges, extensions, conditional moves.

use super::Uop;
use super::native::{Int, binary};
use crate::cpu::flags::Flags;
use crate::cpu::regs::{HIGH as AH, gpr};
use crate::cpu::{Cpu, Exec, vector};
use vireo_core::state::rflags;

/// `mov reg, reg`.
pub fn mov_rr<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = T::get(&cpu.regs, u.src);
    T::set(&mut cpu.regs, u.dst, v);
    Ok(())
}
/// `mov reg, imm`.
pub fn mov_ri<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    T::set(&mut cpu.regs, u.dst, T::from_u64(u.imm));
    Ok(())
}
/// `mov reg, mem`.
pub fn mov_rm<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = cpu.operand::<T>(u)?;
    T::set(&mut cpu.regs, u.dst, v);
    Ok(())
}
/// `mov mem, reg`.
pub fn mov_mr<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let at = u.linear(cpu, T::SIZE, true)?;
    let v = T::get(&cpu.regs, u.src);
    cpu.store(u.segment(), at, v)
}
/// `mov mem, imm`.
pub fn mov_mi<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let at = u.linear(cpu, T::SIZE, true)?;
    cpu.store(u.segment(), at, T::from_u64(u.imm))
}

/// Offset of a `mov` between the accumulator and an absolute address of full width, in `imm`.
fn absolute<T: Int>(cpu: &mut Cpu, u: &Uop, write: bool) -> Exec<u64> {
    cpu.segment_linear(u.segment(), u.imm & u.address_mask(), T::SIZE, write)
}
/// `mov acc, [moffs]`.
pub fn mov_acc_moffs<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let at = absolute::<T>(cpu, u, false)?;
    let v = cpu.load::<T>(u.segment(), at)?;
    T::set(&mut cpu.regs, gpr::RAX, v);
    Ok(())
}
/// `mov [moffs], acc`.
pub fn mov_moffs_acc<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let at = absolute::<T>(cpu, u, true)?;
    let v = T::get(&cpu.regs, gpr::RAX);
    cpu.store(u.segment(), at, v)
}

/// Sign-extends the value of width `S` bits that `v` holds.
#[inline(always)]
fn sign_extend<S: Int>(v: u64) -> u64 {
    let unused = 64 - S::SIZE * 8;
    ((v << unused) as i64 >> unused) as u64
}
#[inline(always)]
fn extend<S: Int, const SIGNED: bool>(v: S) -> u64 {
    if SIGNED { sign_extend::<S>(v.to_u64()) } else { v.to_u64() }
}
/// `movzx`/`movsx`/`movsxd reg, reg`.
pub fn extend_rr<D: Int, S: Int, const SIGNED: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = extend::<S, SIGNED>(S::get(&cpu.regs, u.src));
    D::set(&mut cpu.regs, u.dst, D::from_u64(v));
    Ok(())
}
/// `movzx`/`movsx`/`movsxd reg, mem`.
pub fn extend_rm<D: Int, S: Int, const SIGNED: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = extend::<S, SIGNED>(cpu.operand::<S>(u)?);
    D::set(&mut cpu.regs, u.dst, D::from_u64(v));
    Ok(())
}

/// `lea reg, mem`: the effective address cut to the address size, then to the operand size.
pub fn lea<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = u.offset(cpu) & u.address_mask();
    T::set(&mut cpu.regs, u.dst, T::from_u64(v));
    Ok(())
}

/// `xchg reg, reg`.
pub fn xchg_rr<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (a, b) = (T::get(&cpu.regs, u.dst), T::get(&cpu.regs, u.src));
    T::set(&mut cpu.regs, u.dst, b);
    T::set(&mut cpu.regs, u.src, a);
    Ok(())
}
/// `xchg mem, reg`: always locked (SDM vol. 2, XCHG).
pub fn xchg_mr<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let new = T::get(&cpu.regs, u.src);
    let old = std::cell::Cell::new(new);
    cpu.modify_locked::<T>(u, |_, a| {
        old.set(a);
        new
    })?;
    T::set(&mut cpu.regs, u.src, old.get());
    Ok(())
}

/// `[lock] xadd mem, reg`; `aux` = 1: locked.
pub fn xadd_mr<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (add, before) = (T::get(&cpu.regs, u.src), cpu.flags);
    let out = std::cell::Cell::new((add, before));
    let change = |_: &mut Cpu, a: T| {
        let (r, f) = T::binary::<{ binary::ADD }>(a, add, before);
        out.set((a, f));
        r
    };
    if u.aux == 1 {
        cpu.modify_locked::<T>(u, change)?
    } else {
        cpu.modify::<T>(u, change)?
    }
    let (old, f) = out.get();
    T::set(&mut cpu.regs, u.src, old);
    cpu.flags = f;
    Ok(())
}
/// `[lock] cmpxchg mem, reg`; `aux` = 1: locked. The destination is written in either case, so it must be writable.
pub fn cmpxchg_mr<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (acc, new, before) = (T::get(&cpu.regs, gpr::RAX), T::get(&cpu.regs, u.src), cpu.flags);
    let seen = std::cell::Cell::new(acc);
    let change = |_: &mut Cpu, a: T| {
        seen.set(a);
        if a == acc { new } else { a }
    };
    if u.aux == 1 {
        cpu.modify_locked::<T>(u, change)?
    } else {
        cpu.modify::<T>(u, change)?
    }
    let seen = seen.get();
    cpu.flags = T::binary::<{ binary::CMP }>(acc, seen, before).1;
    if seen != acc {
        T::set(&mut cpu.regs, gpr::RAX, seen);
    }
    Ok(())
}

/// `cmovcc reg, reg`. A 32-bit destination is zero-extended in either case.
pub fn cmov_rr<T: Int, const CC: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let from = if cpu.flags.condition(CC) { u.src } else { u.dst };
    let v = T::get(&cpu.regs, from);
    T::set(&mut cpu.regs, u.dst, v);
    Ok(())
}
/// `cmovcc reg, mem`: the load happens in either case.
pub fn cmov_rm<T: Int, const CC: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = cpu.operand::<T>(u)?;
    let v = if cpu.flags.condition(CC) { v } else { T::get(&cpu.regs, u.dst) };
    T::set(&mut cpu.regs, u.dst, v);
    Ok(())
}
/// `setcc reg`.
pub fn set_r<const CC: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.regs.set8(u.dst, u8::from(cpu.flags.condition(CC)));
    Ok(())
}
/// `setcc mem`.
pub fn set_m<const CC: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let at = u.linear(cpu, 1, true)?;
    let v = u8::from(cpu.flags.condition(CC));
    cpu.store(u.segment(), at, v)
}

/// `cbw`, `cwde`, `cdqe`: the lower half of the accumulator into all of it.
pub fn widen_acc<D: Int, S: Int>(cpu: &mut Cpu, _: &Uop) -> Exec {
    let v = sign_extend::<S>(S::get(&cpu.regs, gpr::RAX).to_u64());
    D::set(&mut cpu.regs, gpr::RAX, D::from_u64(v));
    Ok(())
}
/// `cwd`, `cdq`, `cqo`: the sign of the accumulator into DX.
pub fn sign_to_dx<T: Int>(cpu: &mut Cpu, _: &Uop) -> Exec {
    let v = (sign_extend::<T>(T::get(&cpu.regs, gpr::RAX).to_u64()) as i64 >> 63) as u64;
    T::set(&mut cpu.regs, gpr::RDX, T::from_u64(v));
    Ok(())
}

/// `bswap reg`, 32 or 64 bits.
pub fn bswap<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = T::get(&cpu.regs, u.dst).to_u64().swap_bytes() >> (64 - T::SIZE * 8);
    T::set(&mut cpu.regs, u.dst, T::from_u64(v));
    Ok(())
}

/// `xlat`: AL from DS:[BX + AL]; the operand's base register is BX, its index the byte in AL.
pub fn xlat(cpu: &mut Cpu, u: &Uop) -> Exec {
    let offset = cpu.regs.get(gpr::RBX).wrapping_add(u64::from(cpu.regs.get8(gpr::RAX))) & u.address_mask();
    let at = cpu.segment_linear(u.segment(), offset, 1, false)?;
    let v = cpu.load::<u8>(u.segment(), at)?;
    cpu.regs.set8(gpr::RAX, v);
    Ok(())
}

/// Nothing: NOP, prefetches, ENDBR.
pub fn nop(_: &mut Cpu, _: &Uop) -> Exec {
    Ok(())
}
/// #UD.
pub fn undefined(cpu: &mut Cpu, _: &Uop) -> Exec {
    Err(cpu.ud())
}

/// An instruction of more than 15 bytes.
pub fn too_long(cpu: &mut Cpu, _: &Uop) -> Exec {
    Err(cpu.gp(0))
}

/// `clc`, `stc` (`imm` = 0, 1), `cmc` (2).
pub fn carry(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = if u.imm == 2 { !cpu.flags.cf() } else { u.imm == 1 };
    cpu.flags.assign(rflags::CF, v);
    Ok(())
}
/// `cld`, `std` (`imm` = 0, 1).
pub fn direction(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.eflags = cpu.eflags & !rflags::DF | if u.imm == 1 { rflags::DF } else { 0 };
    Ok(())
}
/// `lahf`.
pub fn lahf(cpu: &mut Cpu, _: &Uop) -> Exec {
    let v = cpu.flags.to_rflags() as u8 | rflags::ONE as u8;
    cpu.regs.set8(AH, v);
    Ok(())
}
/// `sahf`: all but OF.
pub fn sahf(cpu: &mut Cpu, _: &Uop) -> Exec {
    let of = cpu.flags.to_rflags() & rflags::OF;
    cpu.flags = Flags::from_rflags(u64::from(cpu.regs.get8(AH)) | of);
    Ok(())
}
/// `salc` (undocumented): AL = CF ? FF : 00.
pub fn salc(cpu: &mut Cpu, _: &Uop) -> Exec {
    cpu.regs.set8(gpr::RAX, if cpu.flags.cf() { 0xff } else { 0 });
    Ok(())
}
/// `bound reg, mem`: #BR when the signed index is outside the pair of bounds. Processors of Intel read the upper one only if
/// needed, AMD's always.
pub fn bound<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let at = u.linear(cpu, 2 * T::SIZE, false)?;
    let signed = |v: T| sign_extend::<T>(v.to_u64()) as i64;
    let index = signed(T::get(&cpu.regs, u.dst));
    let low = cpu.load::<T>(u.segment(), at)?;
    if index < signed(low) && !cpu.is_amd() {
        return Err(cpu.raise(vector::BR, None));
    }
    let high = cpu.load::<T>(u.segment(), at.wrapping_add(u64::from(T::SIZE)))?;
    if index < signed(low) || index > signed(high) {
        return Err(cpu.raise(vector::BR, None));
    }
    Ok(())
}
