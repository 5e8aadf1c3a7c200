//! The decimal adjustments, which 64-bit hosts do not execute (SDM vol. 2 and AMD APM vol. 3, AAA to DAS).
//!
//! Flags that the manuals leave undefined are as the processors leave them. Intel's go by the result; AMD's are those of
//! the one addition or subtraction that adjusts, for AAA and AAS of all of AX, before the digits in between are cleared.

use iced_x86::{Instruction, Mnemonic as M};
use vireo_core::state::rflags::{AF, CF, OF, PF, SF, ZF};

use crate::cpu::flags::Flags;
use crate::cpu::regs::{HIGH, gpr};
use crate::cpu::{Cpu, Exec, vector};
use crate::exec::native::{Int, binary};
use crate::exec::{Handler, Uop};

const AL: u8 = gpr::RAX;
const AH: u8 = gpr::RAX + HIGH;

fn set_result_flags(cpu: &mut Cpu, v: u8) {
    cpu.flags.assign(SF, v & 0x80 != 0);
    cpu.flags.assign(ZF, v == 0);
    cpu.flags.assign(PF, v.count_ones().is_multiple_of(2));
}

/// Adds or subtracts, and gives the flags of that.
fn adjust<T: Int, const SUB: bool>(cpu: &Cpu, v: T, by: u64) -> (T, Flags) {
    let by = T::from_u64(by);
    match SUB {
        true => T::binary::<{ binary::SUB }>(v, by, cpu.flags),
        false => T::binary::<{ binary::ADD }>(v, by, cpu.flags),
    }
}

/// Flags of an adjustment, but for AF and CF; `flags`: of the operation in it.
fn set_flags(cpu: &mut Cpu, result: u8, flags: Flags) {
    if cpu.is_amd() {
        cpu.flags = flags;
    } else {
        set_result_flags(cpu, result);
        cpu.flags.assign(OF, false);
    }
}

fn has_af(cpu: &Cpu) -> bool {
    cpu.flags.to_rflags() & AF != 0
}

/// AAA, or AAS with `SUB`.
fn ascii<const SUB: bool>(cpu: &mut Cpu, _: &Uop) -> Exec {
    let ax = cpu.regs.get(gpr::RAX) as u16;
    let carry = ax & 0xf > 9 || has_af(cpu);
    let (adjusted, flags) = adjust::<u16, SUB>(cpu, ax, if carry { 0x106 } else { 0 });
    let ax = adjusted & 0xff0f;
    cpu.regs.set16(gpr::RAX, ax);
    set_flags(cpu, ax as u8, flags);
    cpu.flags.assign(CF | AF, carry);
    Ok(())
}

/// DAA, or DAS with `SUB`.
fn packed<const SUB: bool>(cpu: &mut Cpu, _: &Uop) -> Exec {
    let (old, old_cf) = (cpu.regs.get8(AL), cpu.flags.cf());
    let low = old & 0xf > 9 || has_af(cpu);
    let high = old > 0x99 || old_cf;
    let carried = if SUB { old < 6 } else { old > 0xff - 6 };
    let by = if low { 6 } else { 0 } + if high { 0x60 } else { 0 };
    let (v, flags) = adjust::<u8, SUB>(cpu, old, by);
    cpu.regs.set8(AL, v);
    set_flags(cpu, v, flags);
    cpu.flags.assign(AF, low);
    cpu.flags.assign(CF, high || low && carried);
    Ok(())
}

/// AAM.
fn multiply(cpu: &mut Cpu, u: &Uop) -> Exec {
    let base = u.imm as u8;
    let al = cpu.regs.get8(AL);
    let (Some(tens), Some(ones)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(cpu.raise(vector::DE, None));
    };
    cpu.regs.set8(AH, tens);
    cpu.regs.set8(AL, ones);
    set_result_flags(cpu, ones);
    cpu.flags.assign(CF | AF | OF, false);
    Ok(())
}

/// AAD. Its undefined flags are those of the addition in it.
fn divide(cpu: &mut Cpu, u: &Uop) -> Exec {
    let tens = cpu.regs.get8(AH).wrapping_mul(u.imm as u8);
    let (v, flags) = u8::binary::<{ binary::ADD }>(cpu.regs.get8(AL), tens, cpu.flags);
    cpu.regs.set16(gpr::RAX, u16::from(v));
    cpu.flags = flags;
    Ok(())
}

/// Handler of a decimal adjustment.
pub fn select(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Aaa => ascii::<false>,
        M::Aas => ascii::<true>,
        M::Daa => packed::<false>,
        M::Das => packed::<true>,
        M::Aam => {
            u.imm = u64::from(i.immediate8());
            multiply
        }
        M::Aad => {
            u.imm = u64::from(i.immediate8());
            divide
        }
        _ => return None,
    })
}
