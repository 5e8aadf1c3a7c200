//! Push, pop, stack frames.

use super::Uop;
use super::native::Int;
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, seg};

impl Cpu {
    /// The stack pointer at the width of the stack.
    #[inline(always)]
    pub fn stack_pointer(&self) -> u64 {
        self.regs.get(gpr::RSP) & self.mode.stack_mask()
    }
    /// Sets the stack pointer at the width of the stack.
    #[inline(always)]
    pub fn set_stack_pointer(&mut self, v: u64) {
        let mask = self.mode.stack_mask();
        if mask == 0xffff {
            self.regs.set16(gpr::RSP, v as u16);
        } else {
            self.regs.set(gpr::RSP, v & mask);
        }
    }
    /// Linear address of `size` bytes at stack offset `sp`.
    #[inline(always)]
    pub fn stack_linear(&mut self, sp: u64, size: u32, write: bool) -> Exec<u64> {
        if self.mode.flat() {
            return Ok(sp & self.mode.stack_mask());
        }
        self.segment_linear(seg::SS, sp & self.mode.stack_mask(), size, write)
    }
    /// Pushes.
    #[inline(always)]
    pub fn push<T: Int>(&mut self, v: T) -> Exec {
        let sp = self.stack_pointer().wrapping_sub(u64::from(T::SIZE)) & self.mode.stack_mask();
        let at = self.stack_linear(sp, T::SIZE, true)?;
        self.store(seg::SS, at, v)?;
        self.set_stack_pointer(sp);
        Ok(())
    }
    /// Pops.
    #[inline(always)]
    pub fn pop<T: Int>(&mut self) -> Exec<T> {
        let sp = self.stack_pointer();
        let at = self.stack_linear(sp, T::SIZE, false)?;
        let v = self.load::<T>(seg::SS, at)?;
        self.set_stack_pointer(sp.wrapping_add(u64::from(T::SIZE)));
        Ok(v)
    }
}

/// `push reg`.
pub fn push_r<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = T::get(&cpu.regs, u.src);
    cpu.push(v)
}
/// `push imm`.
pub fn push_i<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.push(T::from_u64(u.imm))
}
/// `push mem`.
pub fn push_m<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = cpu.operand::<T>(u)?;
    cpu.push(v)
}
/// `pop reg`.
pub fn pop_r<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = cpu.pop::<T>()?;
    T::set(&mut cpu.regs, u.dst, v);
    Ok(())
}
/// `pop mem`: the address is computed with the stack pointer already raised (SDM vol. 2, POP).
pub fn pop_m<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let before = cpu.regs.get(gpr::RSP);
    let v = cpu.pop::<T>()?;
    let done = match u.linear(cpu, T::SIZE, true) {
        Ok(at) => cpu.store(u.segment(), at, v),
        Err(e) => Err(e),
    };
    if done.is_err() {
        cpu.regs.set(gpr::RSP, before);
    }
    done
}

/// `pusha`/`pushad`: AX CX DX BX SP BP SI DI.
pub fn pusha<T: Int>(cpu: &mut Cpu, _: &Uop) -> Exec {
    let before = cpu.regs.get(gpr::RSP);
    // All or nothing: the lowest slot first, so that a fault comes before any change of SP.
    let low = cpu.stack_pointer().wrapping_sub(8 * u64::from(T::SIZE)) & cpu.mode.stack_mask();
    let at = cpu.stack_linear(low, T::SIZE, true)?;
    cpu.check_write(seg::SS, at, T::SIZE)?;
    for r in 0..8 {
        let v = if r == gpr::RSP { T::from_u64(before) } else { T::get(&cpu.regs, r) };
        if let Err(e) = cpu.push(v) {
            cpu.regs.set(gpr::RSP, before);
            return Err(e);
        }
    }
    Ok(())
}
/// `popa`/`popad`: SP's slot is skipped.
pub fn popa<T: Int>(cpu: &mut Cpu, _: &Uop) -> Exec {
    let before = cpu.regs.get(gpr::RSP);
    let mut values = [T::from_u64(0); 8];
    for slot in values.iter_mut().rev() {
        match cpu.pop::<T>() {
            Ok(v) => *slot = v,
            Err(e) => {
                cpu.regs.set(gpr::RSP, before);
                return Err(e);
            }
        }
    }
    for (r, v) in (0u8..).zip(values).filter(|(r, _)| *r != gpr::RSP) {
        T::set(&mut cpu.regs, r, v);
    }
    Ok(())
}

/// `leave`.
pub fn leave<T: Int>(cpu: &mut Cpu, _: &Uop) -> Exec {
    let sp = cpu.regs.get(gpr::RBP) & cpu.mode.stack_mask();
    let at = cpu.stack_linear(sp, T::SIZE, false)?;
    let v = cpu.load::<T>(seg::SS, at)?;
    cpu.set_stack_pointer(sp.wrapping_add(u64::from(T::SIZE)));
    T::set(&mut cpu.regs, gpr::RBP, v);
    Ok(())
}

/// `enter size, level`: size in `imm`, level in `aux` (SDM vol. 2, ENTER).
pub fn enter<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let before = cpu.regs.get(gpr::RSP);
    let done = enter_frame::<T>(cpu, u);
    if done.is_err() {
        cpu.regs.set(gpr::RSP, before);
    }
    done
}

fn enter_frame<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let level = u.aux % 32;
    let old_bp = T::get(&cpu.regs, gpr::RBP);
    cpu.push(old_bp)?;
    let frame = cpu.stack_pointer();
    if level > 0 {
        let mut bp = cpu.regs.get(gpr::RBP) & cpu.mode.stack_mask();
        for _ in 1..level {
            bp = bp.wrapping_sub(u64::from(T::SIZE)) & cpu.mode.stack_mask();
            let at = cpu.stack_linear(bp, T::SIZE, false)?;
            let v = cpu.load::<T>(seg::SS, at)?;
            cpu.push(v)?;
        }
        cpu.push(T::from_u64(frame))?;
    }
    let sp = cpu.stack_pointer().wrapping_sub(u.imm) & cpu.mode.stack_mask();
    // The new top must be writable, or ENTER faults (SDM vol. 2).
    let at = cpu.stack_linear(sp, T::SIZE, true)?;
    cpu.check_write(seg::SS, at, T::SIZE)?;
    cpu.set_stack_pointer(sp);
    T::set(&mut cpu.regs, gpr::RBP, T::from_u64(frame));
    Ok(())
}
