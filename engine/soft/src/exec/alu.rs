//! Arithmetic, logic and shifts.

use super::Uop;
use super::native::{Int, binary};
use crate::cpu::flags::Flags;
use crate::cpu::{Cpu, Exec};

impl Cpu {
    /// Reads the memory operand.
    #[inline(always)]
    pub fn operand<T: Int>(&mut self, u: &Uop) -> Exec<T> {
        let at = u.linear(self, T::SIZE, false)?;
        self.load(u.segment(), at)
    }

    /// Reads, changes and writes the memory operand, after the check that it can be written.
    #[inline(always)]
    pub fn modify<T: Int>(&mut self, u: &Uop, change: impl Fn(&mut Self, T) -> T) -> Exec {
        let at = u.linear(self, T::SIZE, true)?;
        self.modify_at(u.segment(), at, change)
    }

    /// As [`Cpu::modify`], at a linear address.
    #[inline(always)]
    pub fn modify_at<T: Int>(&mut self, seg: u8, at: u64, change: impl Fn(&mut Self, T) -> T) -> Exec {
        if let Some((p, page)) = self.host_write(seg, at, T::SIZE)? {
            // SAFETY: `host_write` found the whole operand in one mapped, writable page.
            let old = unsafe { T::load(p) };
            let new = change(self, old);
            // SAFETY: as above.
            unsafe { T::store(p, new) };
            self.look_after_write(page, (at & 0xfff) as u32, T::SIZE);
            return Ok(());
        }
        let old = self.load(seg, at)?;
        let new = change(self, old);
        self.store(seg, at, new)
    }

    /// As [`Cpu::modify`], atomically for all vCPUs. Operands in two pages, or not in RAM, are only atomic against other
    /// such operands.
    #[inline(always)]
    pub fn modify_locked<T: Int>(&mut self, u: &Uop, change: impl Fn(&mut Self, T) -> T) -> Exec {
        let at = u.linear(self, T::SIZE, true)?;
        self.modify_locked_at(u.segment(), at, change)
    }

    /// As [`Cpu::modify_locked`], at a linear address.
    #[inline(always)]
    pub fn modify_locked_at<T: Int>(&mut self, seg: u8, at: u64, change: impl Fn(&mut Self, T) -> T) -> Exec {
        let Some((p, page)) = self.host_write(seg, at, T::SIZE)? else {
            return self.modify_split(seg, at, change);
        };
        // SAFETY: `host_write` found the whole operand in one mapped, writable page.
        let mut old = unsafe { T::load(p) };
        loop {
            let new = change(self, old);
            // SAFETY: as above.
            match unsafe { T::compare_exchange(p, old, new) } {
                Ok(()) => break,
                Err(found) => old = found,
            }
        }
        self.look_after_write(page, (at & 0xfff) as u32, T::SIZE);
        Ok(())
    }

    #[cold]
    fn modify_split<T: Int>(&mut self, seg: u8, at: u64, change: impl Fn(&mut Self, T) -> T) -> Exec {
        let shared = std::sync::Arc::clone(&self.shared);
        let _all = shared.split_lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = self.load(seg, at)?;
        let new = change(self, old);
        self.store(seg, at, new)
    }
}

#[inline(always)]
fn finish<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop, (r, f): (T, Flags)) -> Exec {
    cpu.flags = f;
    if !binary::is_compare(OP) {
        T::set(&mut cpu.regs, u.dst, r);
    }
    Ok(())
}

/// `op reg, reg`.
pub fn rr<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let r = T::binary::<OP>(T::get(&cpu.regs, u.dst), T::get(&cpu.regs, u.src), cpu.flags);
    finish::<T, OP>(cpu, u, r)
}
/// `op reg, imm`.
pub fn ri<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let r = T::binary::<OP>(T::get(&cpu.regs, u.dst), T::from_u64(u.imm), cpu.flags);
    finish::<T, OP>(cpu, u, r)
}
/// `op reg, mem`.
pub fn rm<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = cpu.operand::<T>(u)?;
    let r = T::binary::<OP>(T::get(&cpu.regs, u.dst), b, cpu.flags);
    finish::<T, OP>(cpu, u, r)
}
/// `op mem, reg`.
pub fn mr<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = T::get(&cpu.regs, u.src);
    memory::<T, OP>(cpu, u, b)
}
/// `op mem, imm`.
pub fn mi<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    memory::<T, OP>(cpu, u, T::from_u64(u.imm))
}

#[inline(always)]
fn memory<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop, b: T) -> Exec {
    if binary::is_compare(OP) {
        let a = cpu.operand::<T>(u)?;
        cpu.flags = T::binary::<OP>(a, b, cpu.flags).1;
        return Ok(());
    }
    let before = cpu.flags;
    let out = std::cell::Cell::new(before);
    cpu.modify::<T>(u, |_, a| {
        let (r, f) = T::binary::<OP>(a, b, before);
        out.set(f);
        r
    })?;
    cpu.flags = out.get();
    Ok(())
}

/// `lock op mem, reg` (`aux` = 0) or `lock op mem, imm` (`aux` = 1).
pub fn locked<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = if u.aux == 0 { T::get(&cpu.regs, u.src) } else { T::from_u64(u.imm) };
    let before = cpu.flags;
    let out = std::cell::Cell::new(before);
    cpu.modify_locked::<T>(u, |_, a| {
        let (r, f) = T::binary::<OP>(a, b, before);
        out.set(f);
        r
    })?;
    cpu.flags = out.get();
    Ok(())
}

/// `op reg`.
pub fn unary_r<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (r, f) = T::unary::<OP>(T::get(&cpu.regs, u.dst), cpu.flags);
    cpu.flags = f;
    T::set(&mut cpu.regs, u.dst, r);
    Ok(())
}
/// `op mem`.
pub fn unary_m<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let before = cpu.flags;
    let out = std::cell::Cell::new(before);
    cpu.modify::<T>(u, |_, a| {
        let (r, f) = T::unary::<OP>(a, before);
        out.set(f);
        r
    })?;
    cpu.flags = out.get();
    Ok(())
}
/// `lock op mem`.
pub fn unary_locked<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let before = cpu.flags;
    let out = std::cell::Cell::new(before);
    cpu.modify_locked::<T>(u, |_, a| {
        let (r, f) = T::unary::<OP>(a, before);
        out.set(f);
        r
    })?;
    cpu.flags = out.get();
    Ok(())
}

/// The shift count: `imm`, or CL when `aux` is 1.
#[inline(always)]
fn count(cpu: &Cpu, u: &Uop) -> u8 {
    if u.aux == 0 { u.imm as u8 } else { cpu.regs.get8(crate::cpu::regs::gpr::RCX) }
}

/// `shift reg, count`.
pub fn shift_r<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (r, f) = T::shift::<OP>(T::get(&cpu.regs, u.dst), count(cpu, u), cpu.flags);
    cpu.flags = f;
    T::set(&mut cpu.regs, u.dst, r);
    Ok(())
}
/// `rol reg, N` and `ror reg, N`.
pub fn rotate_r<T: Int, const OP: u8, const N: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (r, f) = T::rotate::<OP, N>(T::get(&cpu.regs, u.dst), cpu.flags);
    cpu.flags = f;
    T::set(&mut cpu.regs, u.dst, r);
    Ok(())
}
/// `shift mem, count`.
pub fn shift_m<T: Int, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (n, before) = (count(cpu, u), cpu.flags);
    let out = std::cell::Cell::new(before);
    cpu.modify::<T>(u, |_, a| {
        let (r, f) = T::shift::<OP>(a, n, before);
        out.set(f);
        r
    })?;
    cpu.flags = out.get();
    Ok(())
}
