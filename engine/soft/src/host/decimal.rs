//! The decimal adjustments, which 64-bit hosts do not execute (SDM vol. 2, AAA to DAS; undefined flags as
//! Intel processors leave them).

use iced_x86::{Instruction, Mnemonic as M};
use vireo_core::state::rflags::{AF, CF, OF, PF, SF, ZF};

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

fn has_af(cpu: &Cpu) -> bool {
    cpu.flags.to_rflags() & AF != 0
}

/// AAA, or AAS with `SUB`.
fn ascii<const SUB: bool>(cpu: &mut Cpu, _: &Uop) -> Exec {
    let ax = cpu.regs.get(gpr::RAX) as u16;
    let carry = ax & 0xf > 9 || has_af(cpu);
    let mut ax = match (carry, SUB) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(6).wrapping_sub(0x100),
    };
    ax &= 0xff0f;
    cpu.regs.set16(gpr::RAX, ax);
    set_result_flags(cpu, ax as u8);
    cpu.flags.assign(CF | AF, carry);
    cpu.flags.assign(OF, false);
    Ok(())
}

/// DAA, or DAS with `SUB`.
fn packed<const SUB: bool>(cpu: &mut Cpu, _: &Uop) -> Exec {
    let (old, old_cf) = (cpu.regs.get8(AL), cpu.flags.cf());
    let step = |v: u8, by: u8| if SUB { v.overflowing_sub(by) } else { v.overflowing_add(by) };
    let (mut v, mut cf) = (old, false);
    let low = old & 0xf > 9 || has_af(cpu);
    if low {
        let (next, borrow) = step(v, 6);
        (v, cf) = (next, old_cf || borrow);
    }
    let high = old > 0x99 || old_cf;
    if high {
        v = step(v, 0x60).0;
        cf = true;
    }
    cpu.regs.set8(AL, v);
    set_result_flags(cpu, v);
    cpu.flags.assign(AF, low);
    cpu.flags.assign(CF, cf);
    cpu.flags.assign(OF, false);
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
