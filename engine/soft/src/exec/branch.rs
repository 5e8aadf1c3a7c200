//! Near branches.

use super::Uop;
use super::native::Int;
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, Stop, seg};

impl Cpu {
    /// Goes to `target` (already cut to the operand size) after the checks of a near branch.
    #[inline(always)]
    pub fn branch(&mut self, target: u64) -> Exec {
        if !self.may_branch(target) {
            return Err(self.gp(0));
        }
        self.rip = target;
        Err(Stop::EndBlock)
    }

    #[inline(always)]
    fn may_branch(&self, target: u64) -> bool {
        if self.mode.is64() {
            return Self::canonical(target);
        }
        target <= u64::from(self.seg[seg::CS as usize].limit)
    }
}

/// Target of a relative branch: offset from the block's start in `imm`, cut to the operand size `T`.
#[inline(always)]
fn relative<T: Int>(cpu: &Cpu, u: &Uop) -> u64 {
    T::from_u64(cpu.regs.block_rip().wrapping_add(u.imm)).to_u64()
}

/// `jmp rel`.
pub fn jmp<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let t = relative::<T>(cpu, u);
    cpu.branch(t)
}
/// `jcc rel`: not taken goes on in the block.
pub fn jcc<T: Int, const CC: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.flags.condition(CC) {
        let t = relative::<T>(cpu, u);
        return cpu.branch(t);
    }
    Ok(())
}
/// `jmp reg`.
pub fn jmp_r<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let t = T::get(&cpu.regs, u.src).to_u64();
    cpu.branch(t)
}
/// `jmp mem`.
pub fn jmp_m<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let t = cpu.operand::<T>(u)?.to_u64();
    cpu.branch(t)
}

/// Writes the return address, checks the target, then moves the stack pointer: the order of the host's processor, which
/// shows when the target is bad. AMD's look whether they can write it, then check the target, then write.
#[inline(always)]
fn call_to<T: Int>(cpu: &mut Cpu, u: &Uop, target: u64) -> Exec {
    let next = T::from_u64(cpu.next_rip(u));
    let sp = cpu.stack_pointer().wrapping_sub(u64::from(T::SIZE)) & cpu.mode.stack_mask();
    let at = cpu.stack_linear(sp, T::SIZE, true)?;
    if !cpu.may_branch(target) && cpu.is_amd() {
        cpu.check_write(seg::SS, at, T::SIZE)?;
        return Err(cpu.gp(0));
    }
    cpu.store(seg::SS, at, next)?;
    let end = cpu.branch(target);
    if end == Err(Stop::EndBlock) {
        cpu.set_stack_pointer(sp);
    }
    end
}
/// `call rel`.
pub fn call<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let t = relative::<T>(cpu, u);
    call_to::<T>(cpu, u, t)
}
/// `call reg`.
pub fn call_r<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let t = T::get(&cpu.regs, u.src).to_u64();
    call_to::<T>(cpu, u, t)
}
/// `call mem`.
pub fn call_m<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let t = cpu.operand::<T>(u)?.to_u64();
    call_to::<T>(cpu, u, t)
}
/// `ret` and `ret imm16`.
pub fn ret<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let sp = cpu.stack_pointer();
    let at = cpu.stack_linear(sp, T::SIZE, false)?;
    let target = cpu.load::<T>(seg::SS, at)?.to_u64();
    match cpu.branch(target) {
        Err(Stop::EndBlock) => {
            cpu.set_stack_pointer(sp.wrapping_add(u64::from(T::SIZE)).wrapping_add(u.imm));
            Err(Stop::EndBlock)
        }
        other => other,
    }
}

/// The counter of LOOP and JCXZ at the address size.
fn counter(cpu: &Cpu, u: &Uop) -> u64 {
    cpu.regs.get(gpr::RCX) & u.address_mask()
}
/// `jcxz`, `jecxz`, `jrcxz`.
pub fn jcxz<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    if counter(cpu, u) == 0 {
        let t = relative::<T>(cpu, u);
        return cpu.branch(t);
    }
    Ok(())
}
/// `loop` (`aux` = 2), `loopne` (0), `loope` (1): counts down at the address size.
pub fn loop_cc<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let n = counter(cpu, u).wrapping_sub(1) & u.address_mask();
    let taken = n != 0 && (u.aux == 2 || cpu.flags.zf() == (u.aux == 1));
    let t = relative::<T>(cpu, u);
    let end = if taken { cpu.branch(t) } else { Ok(()) };
    if end != Err(Stop::Fault) {
        match u.seg >> 4 {
            0 => cpu.regs.set16(gpr::RCX, n as u16),
            _ => cpu.regs.set(gpr::RCX, n),
        }
    }
    end
}
