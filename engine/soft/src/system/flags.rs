//! Instructions on flags that need privilege or change interrupts: CLI, STI, PUSHF, POPF, CLAC, STAC.

use vireo_core::state::rflags;

use super::iret;
use super::stack::Stack;
use crate::cpu::{Cpu, Exec, Shadow};
use crate::exec::Uop;

/// Whether IF may be changed: always in real mode; else at IOPL, and in virtual-8086 mode only with IOPL 3.
fn check_interrupt_flag(cpu: &mut Cpu) -> Exec {
    // In virtual-8086 mode the CPL is 3, so the rule is the same.
    if cpu.cpl > cpu.iopl() { Err(cpu.gp(0)) } else { Ok(()) }
}

/// `cli`.
pub fn cli(cpu: &mut Cpu, _: &Uop) -> Exec {
    check_interrupt_flag(cpu)?;
    cpu.eflags &= !rflags::IF;
    Ok(())
}

/// `sti`: interrupts wait for one more instruction if they were off.
pub fn sti(cpu: &mut Cpu, _: &Uop) -> Exec {
    check_interrupt_flag(cpu)?;
    if cpu.eflags & rflags::IF == 0 {
        cpu.eflags |= rflags::IF;
        cpu.shadow = Shadow::Sti;
    }
    Ok(())
}

/// `pushf`: operand size in `aux`.
pub fn pushf(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.vm86() && cpu.iopl() < 3 {
        return Err(cpu.gp(0));
    }
    let v = cpu.rflags() & !(rflags::VM | rflags::RF);
    match u.aux {
        2 => cpu.push(v as u16),
        4 => cpu.push(v as u32),
        _ => cpu.push(v),
    }
}

/// Flags that POPF changes at this privilege.
fn popf_mask(cpl: u8, iopl: u8, size: u16) -> u64 {
    let mut mask = iret::ALWAYS | rflags::AC | rflags::ID;
    if cpl <= iopl {
        mask |= rflags::IF;
    }
    if cpl == 0 {
        mask |= rflags::IOPL;
    }
    if size == 2 { mask & 0xffff } else { mask }
}

/// `popf`: operand size in `aux`. RF is cleared, VM, VIF and VIP stay.
pub fn popf(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.vm86() && cpu.iopl() < 3 {
        return Err(cpu.gp(0));
    }
    let mut stack = Stack::current(cpu, 0);
    let new = stack.pop(cpu, u32::from(u.aux))?;
    stack.commit_pointer(cpu);
    let mask = popf_mask(cpu.cpl, cpu.iopl(), u.aux);
    let v = cpu.rflags() & !(mask | rflags::RF) | new & mask;
    cpu.set_rflags(v);
    Ok(())
}

/// `clac` (`imm` = 0) and `stac` (1): #UD above CPL 0.
pub fn alignment_flag(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.eflags = cpu.eflags & !rflags::AC | if u.imm == 1 { rflags::AC } else { 0 };
    cpu.mode_changed();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_code_changes_neither_iopl_nor_if() {
        let m = popf_mask(3, 0, 8);
        assert_eq!(m & (rflags::IOPL | rflags::IF | rflags::VM | rflags::RF), 0);
        assert_eq!(m & rflags::TF, rflags::TF);
    }

    #[test]
    fn privileged_levels_change_if_and_ring_0_iopl() {
        assert_eq!(popf_mask(1, 1, 4) & (rflags::IOPL | rflags::IF), rflags::IF);
        assert_eq!(popf_mask(0, 0, 4) & (rflags::IOPL | rflags::IF), rflags::IOPL | rflags::IF);
        assert_eq!(popf_mask(0, 0, 2) & rflags::ID, 0);
    }
}
