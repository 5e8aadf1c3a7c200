//! Bit tests and scans, double shifts, byte-swapping moves, wide compare-and-exchange.

use super::Uop;
use super::native::Int;
use crate::cpu::flags::Flags;
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, vector};
use vireo_core::state::rflags;

/// Bit tests in the order of the opcode map.
#[allow(missing_docs)]
pub mod test {
    pub const BT: u8 = 0;
    pub const BTS: u8 = 1;
    pub const BTR: u8 = 2;
    pub const BTC: u8 = 3;
}

/// Scans and counts.
#[allow(missing_docs)]
pub mod scan {
    pub const BSF: u8 = 0;
    pub const BSR: u8 = 1;
    pub const TZCNT: u8 = 2;
    pub const LZCNT: u8 = 3;
    pub const POPCNT: u8 = 4;
}

/// Operations of 16, 32 and 64 bits.
pub trait Bits: Int {
    /// A bit test; `bit` is taken modulo the width.
    fn test<const OP: u8>(a: Self, bit: Self, f: Flags) -> (Self, Flags);
    /// A scan of `b`; `a` is the destination's old value, which BSF and BSR of zero keep.
    fn scan<const OP: u8>(a: Self, b: Self, f: Flags) -> (Self, Flags);
    /// SHLD (`LEFT`) or SHRD.
    fn double_shift<const LEFT: bool>(a: Self, b: Self, count: u8, f: Flags) -> (Self, Flags);
}

macro_rules! op2f {
    ($op:literal, $m:literal, $a:ident, $b:ident, $f:ident) => {{
        let (mut r, mut f): (Self, u16) = ($a, $f.0);
        // SAFETY: arithmetic on registers only.
        unsafe {
            std::arch::asm!(
                "add al, 0x7f", "sahf", concat!($op, " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                a = inout(reg) r, b = in(reg) $b, inout("ax") f, options(pure, nomem, nostack));
        }
        (r, Flags(f))
    }};
}

macro_rules! bits {
    ($t:ty, $m:literal) => {
        impl Bits for $t {
            #[inline(always)]
            fn test<const OP: u8>(a: Self, bit: Self, f: Flags) -> (Self, Flags) {
                match OP {
                    test::BT => op2f!("bt", $m, a, bit, f),
                    test::BTS => op2f!("bts", $m, a, bit, f),
                    test::BTR => op2f!("btr", $m, a, bit, f),
                    _ => op2f!("btc", $m, a, bit, f),
                }
            }
            #[inline(always)]
            fn scan<const OP: u8>(a: Self, b: Self, f: Flags) -> (Self, Flags) {
                match OP {
                    scan::BSF => op2f!("bsf", $m, a, b, f),
                    scan::BSR => op2f!("bsr", $m, a, b, f),
                    scan::TZCNT => op2f!("tzcnt", $m, a, b, f),
                    scan::LZCNT => op2f!("lzcnt", $m, a, b, f),
                    _ => op2f!("popcnt", $m, a, b, f),
                }
            }
            #[inline(always)]
            fn double_shift<const LEFT: bool>(a: Self, b: Self, n: u8, f: Flags) -> (Self, Flags) {
                let (mut r, mut f): (Self, u16) = (a, f.0);
                macro_rules! op {
                    ($op:literal) => {
                        // SAFETY: arithmetic on registers only.
                        unsafe {
                            std::arch::asm!(
                                "add al, 0x7f", "sahf", concat!($op, " {a", $m, "}, {b", $m, "}, cl"), "lahf", "seto al",
                                a = inout(reg) r, b = in(reg) b, in("cl") n, inout("ax") f,
                                options(pure, nomem, nostack));
                        }
                    };
                }
                if LEFT { op!("shld") } else { op!("shrd") }
                (r, Flags(f))
            }
        }
    };
}
bits!(u16, ":x");
bits!(u32, ":e");
bits!(u64, ":r");

/// The bit number: an immediate (`aux` bit 0 clear) or a register.
fn bit<T: Bits>(cpu: &Cpu, u: &Uop) -> T {
    if u.aux & 1 == 0 { T::from_u64(u.imm) } else { T::get(&cpu.regs, u.src) }
}

/// `bt`, `bts`, `btr`, `btc` of a register.
pub fn test_r<T: Bits, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (r, f) = T::test::<OP>(T::get(&cpu.regs, u.dst), bit::<T>(cpu, u), cpu.flags);
    cpu.flags = f;
    if OP != test::BT {
        T::set(&mut cpu.regs, u.dst, r);
    }
    Ok(())
}

/// The same of memory; `aux` bit 1: locked. A bit number in a register is signed and reaches beyond the operand
/// (SDM vol. 2, 3.1.1.9).
pub fn test_m<T: Bits, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let n = bit::<T>(cpu, u);
    let mut offset = u.offset(cpu);
    if u.aux & 1 == 1 {
        let width = T::SIZE * 8;
        let unused = 64 - width;
        let signed = (n.to_u64() << unused) as i64 >> unused;
        let elements = signed >> width.trailing_zeros();
        offset = offset.wrapping_add((elements as u64).wrapping_mul(u64::from(T::SIZE)));
    }
    let at = u.linear_of(cpu, offset, T::SIZE, OP != test::BT)?;
    let before = cpu.flags;
    if OP == test::BT {
        let a = cpu.load::<T>(u.segment(), at)?;
        cpu.flags = T::test::<OP>(a, n, before).1;
        return Ok(());
    }
    let out = std::cell::Cell::new(before);
    let change = |_: &mut Cpu, a: T| {
        let (r, f) = T::test::<OP>(a, n, before);
        out.set(f);
        r
    };
    let done = match u.aux & 2 {
        0 => cpu.modify_at::<T>(u.segment(), at, change),
        _ => cpu.modify_locked_at::<T>(u.segment(), at, change),
    };
    done?;
    cpu.flags = out.get();
    Ok(())
}

/// `bsf`, `bsr`, `tzcnt`, `lzcnt`, `popcnt reg, reg`.
pub fn scan_rr<T: Bits, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = T::get(&cpu.regs, u.src);
    finish_scan::<T, OP>(cpu, u, b)
}
/// The same of memory.
pub fn scan_rm<T: Bits, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = cpu.operand::<T>(u)?;
    finish_scan::<T, OP>(cpu, u, b)
}
fn finish_scan<T: Bits, const OP: u8>(cpu: &mut Cpu, u: &Uop, b: T) -> Exec {
    let (r, f) = T::scan::<OP>(T::get(&cpu.regs, u.dst), b, cpu.flags);
    cpu.flags = f;
    // BSF and BSR of zero leave all 64 bits alone, even at 32-bit width.
    if OP > scan::BSR || b.to_u64() != 0 {
        T::set(&mut cpu.regs, u.dst, r);
    }
    Ok(())
}

/// The count of a double shift: `imm`, or CL when `aux` is 1.
fn count(cpu: &Cpu, u: &Uop) -> u8 {
    if u.aux == 0 { u.imm as u8 } else { cpu.regs.get8(gpr::RCX) }
}

/// `shld`/`shrd reg, reg, count`.
pub fn double_shift_r<T: Bits, const LEFT: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (a, b) = (T::get(&cpu.regs, u.dst), T::get(&cpu.regs, u.src));
    let (r, f) = T::double_shift::<LEFT>(a, b, count(cpu, u), cpu.flags);
    cpu.flags = f;
    T::set(&mut cpu.regs, u.dst, r);
    Ok(())
}
/// `shld`/`shrd mem, reg, count`.
pub fn double_shift_m<T: Bits, const LEFT: bool>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (b, n, before) = (T::get(&cpu.regs, u.src), count(cpu, u), cpu.flags);
    let out = std::cell::Cell::new(before);
    cpu.modify::<T>(u, |_, a| {
        let (r, f) = T::double_shift::<LEFT>(a, b, n, before);
        out.set(f);
        r
    })?;
    cpu.flags = out.get();
    Ok(())
}

/// `cmpxchg8b mem`: always by one locked host instruction where the operand allows.
pub fn cmpxchg8b(cpu: &mut Cpu, u: &Uop) -> Exec {
    let pair = |cpu: &Cpu, high, low| cpu.regs.get(high) << 32 | cpu.regs.get(low) & 0xffff_ffff;
    let (expected, new) = (pair(cpu, gpr::RDX, gpr::RAX), pair(cpu, gpr::RCX, gpr::RBX));
    let seen = std::cell::Cell::new(expected);
    cpu.modify_locked::<u64>(u, |_, a| {
        seen.set(a);
        if a == expected { new } else { a }
    })?;
    let seen = seen.get();
    cpu.flags.assign(rflags::ZF, seen == expected);
    if seen != expected {
        cpu.regs.set32(gpr::RAX, seen as u32);
        cpu.regs.set32(gpr::RDX, (seen >> 32) as u32);
    }
    Ok(())
}

/// `cmpxchg16b mem`: #GP(0) unless aligned to 16 bytes, so never in two pages.
pub fn cmpxchg16b(cpu: &mut Cpu, u: &Uop) -> Exec {
    let at = u.linear(cpu, 16, true)?;
    if at & 15 != 0 {
        return Err(cpu.raise(vector::GP, Some(0)));
    }
    let pair = |cpu: &Cpu, high, low| u128::from(cpu.regs.get(high)) << 64 | u128::from(cpu.regs.get(low));
    let (expected, new) = (pair(cpu, gpr::RDX, gpr::RAX), pair(cpu, gpr::RCX, gpr::RBX));
    let seen = match cpu.host_write(u.segment(), at, 16)? {
        Some((p, page)) => {
            // SAFETY: 16 aligned bytes of writable guest memory; the CPU model has CX16 only where the host has it.
            let seen = unsafe { exchange16(p, expected, new) };
            cpu.look_after_write(page, (at & 0xfff) as u32, 16);
            seen
        }
        None => {
            let mut bytes = [0; 16];
            cpu.read_bytes(u.segment(), at, &mut bytes)?;
            let seen = u128::from_le_bytes(bytes);
            let back = if seen == expected { new } else { seen };
            cpu.write_bytes(u.segment(), at, &back.to_le_bytes())?;
            seen
        }
    };
    cpu.flags.assign(rflags::ZF, seen == expected);
    if seen != expected {
        cpu.regs.set(gpr::RAX, seen as u64);
        cpu.regs.set(gpr::RDX, (seen >> 64) as u64);
    }
    Ok(())
}

/// LOCK CMPXCHG16B; gives what was there.
///
/// # Safety
/// `p` points to 16 aligned, writable bytes; the host has CX16.
unsafe fn exchange16(p: *mut u8, old: u128, new: u128) -> u128 {
    let (mut low, mut high) = (old as u64, (old >> 64) as u64);
    // SAFETY: as the caller vouches. RBX belongs to the compiler and is put back; the operands are pinned, because class
    // `reg` includes RBX, which is not the address any more when the instruction comes.
    unsafe {
        std::arch::asm!(
            "xchg rsi, rbx", "lock cmpxchg16b xmmword ptr [rdi]", "mov rbx, rsi",
            inout("rsi") new as u64 => _, in("rdi") p, in("rcx") (new >> 64) as u64,
            inout("rax") low, inout("rdx") high, options(nostack));
    }
    u128::from(high) << 64 | u128::from(low)
}
