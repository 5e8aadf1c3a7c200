//! String instructions and their repeat prefixes.
//!
//! Repeated MOVS and STOS go page by page, with the host's own `rep` instruction between two checked host addresses;
//! the others go element by element. Registers always show exactly the elements done, so a fault or an interrupt in
//! the middle resumes where it was.

use super::Uop;
use super::native::{Int, binary};
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, Stop, seg};
use crate::mmu::Value;
use vireo_core::state::rflags;

/// Prefix in [`Uop::aux`].
pub mod repeat {
    /// None.
    pub const NO: u16 = 0;
    /// F3: REP, REPE.
    pub const WHILE_EQUAL: u16 = 1;
    /// F2: REPNE.
    pub const WHILE_NOT_EQUAL: u16 = 2;
}

/// Pieces of pages done before the run loop looks at the time.
const PAGES: u32 = 64;

/// Elements done one by one before the run loop may look at events.
const BATCH: u32 = 1024;

impl Cpu {
    /// Adds to a register at the address size.
    pub fn advance(&mut self, u: &Uop, r: u8, by: u64) {
        let v = self.regs.get(r).wrapping_add(by);
        match u.seg >> 4 {
            0 => self.regs.set16(r, v as u16),
            1 => self.regs.set(r, v & 0xffff_ffff),
            _ => self.regs.set(r, v),
        }
    }
    /// Moves an index register by one element, forward or back.
    pub fn step<T: Value>(&mut self, u: &Uop, r: u8) {
        let size = u64::from(T::SIZE);
        let by = if self.eflags & rflags::DF == 0 { size } else { size.wrapping_neg() };
        self.advance(u, r, by);
    }
    /// Linear address of the string operand in `segment` at register `r`.
    #[inline(always)]
    fn string_linear(&mut self, u: &Uop, segment: u8, r: u8, size: u32, write: bool) -> Exec<u64> {
        let offset = self.regs.get(r) & u.address_mask();
        if self.mode.flat() && segment < seg::FS {
            return Ok(offset);
        }
        self.segment_linear(segment, offset, size, write)
    }
    fn source<T: Int>(&mut self, u: &Uop) -> Exec<T> {
        let at = self.string_linear(u, u.segment(), gpr::RSI, T::SIZE, false)?;
        self.load(u.segment(), at)
    }
    fn destination<T: Int>(&mut self, u: &Uop) -> Exec<T> {
        let at = self.string_linear(u, seg::ES, gpr::RDI, T::SIZE, false)?;
        self.load(seg::ES, at)
    }
    fn string_store<T: Int>(&mut self, u: &Uop, v: T) -> Exec {
        let at = self.string_linear(u, seg::ES, gpr::RDI, T::SIZE, true)?;
        self.store(seg::ES, at, v)
    }
    fn repeat_count(&self, u: &Uop) -> u64 {
        self.regs.get(gpr::RCX) & u.address_mask()
    }

    /// Ends a repeated instruction that is not done yet: it starts again at its own address after events were looked at.
    fn repeat_later(&mut self, u: &Uop) -> Exec {
        self.pass_breakpoint();
        self.rip = self.instruction_rip(u);
        Err(Stop::Yield)
    }

    /// Runs `one` once, or with a repeat prefix while the count lasts and `one` says so. The registers show what is
    /// done, so a fault or a look at events in the middle goes on from there.
    #[inline(always)]
    pub fn repeated(&mut self, u: &Uop, prefix: bool, one: impl Fn(&mut Self, &Uop) -> Exec<bool>) -> Exec {
        if !prefix {
            return one(self, u).map(|_| ());
        }
        let batch = if self.stepwise() { 1 } else { BATCH };
        for _ in 0..batch {
            if self.repeat_count(u) == 0 {
                return Ok(());
            }
            let on = one(self, u)?;
            self.advance(u, gpr::RCX, u64::MAX);
            if !on {
                return Ok(());
            }
        }
        if self.repeat_count(u) == 0 { Ok(()) } else { self.repeat_later(u) }
    }

    /// Whole elements from register `r` to the end of its page, at most `count`.
    fn elements_in_page<T: Int>(&self, linear: u64, count: u64) -> u64 {
        count.min((4096 - (linear & 0xfff)) / u64::from(T::SIZE))
    }
}

/// `movs`.
pub fn movs<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    if by_pages(cpu, u) {
        let mut pages = 0;
        while cpu.repeat_count(u) > 1 && movs_in_page::<T>(cpu, u)? {
            pages += 1;
            if pages == PAGES || cpu.events_wanted() {
                return if cpu.repeat_count(u) == 0 { Ok(()) } else { cpu.repeat_later(u) };
            }
        }
    }
    cpu.repeated(u, u.aux != repeat::NO, |cpu, u| {
        let v = cpu.source::<T>(u)?;
        cpu.string_store(u, v)?;
        cpu.step::<T>(u, gpr::RSI);
        cpu.step::<T>(u, gpr::RDI);
        Ok(true)
    })
}

/// Whether the elements need not be visited one by one.
fn by_pages(cpu: &Cpu, u: &Uop) -> bool {
    u.aux != repeat::NO && cpu.eflags & rflags::DF == 0 && !cpu.stepwise()
}

/// Moves what lies in the current pages of source and destination; false: not possible here, go by elements.
fn movs_in_page<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec<bool> {
    let from = cpu.string_linear(u, u.segment(), gpr::RSI, T::SIZE, false)?;
    let to = cpu.string_linear(u, seg::ES, gpr::RDI, T::SIZE, true)?;
    let n = cpu.elements_in_page::<T>(to, cpu.elements_in_page::<T>(from, cpu.repeat_count(u)));
    let bytes = (n * u64::from(T::SIZE)) as u32;
    if n == 0 || !fits(cpu, u, bytes, true) {
        return Ok(false);
    }
    let Some(p) = cpu.host_read(u.segment(), from, bytes)? else { return Ok(false) };
    let Some((q, page)) = cpu.host_write(seg::ES, to, bytes)? else { return Ok(false) };
    // SAFETY: `bytes` at `p` are readable and at `q` writable guest memory; the host's own instruction copies in the
    // guest's order, so overlap behaves as the guest expects. The host's direction flag is clear.
    unsafe {
        match T::SIZE {
            1 => {
                std::arch::asm!("rep movsb", inout("rcx") n => _, inout("rsi") p => _, inout("rdi") q => _, options(nostack, preserves_flags))
            }
            2 => {
                std::arch::asm!("rep movsw", inout("rcx") n => _, inout("rsi") p => _, inout("rdi") q => _, options(nostack, preserves_flags))
            }
            4 => {
                std::arch::asm!("rep movsd", inout("rcx") n => _, inout("rsi") p => _, inout("rdi") q => _, options(nostack, preserves_flags))
            }
            _ => {
                std::arch::asm!("rep movsq", inout("rcx") n => _, inout("rsi") p => _, inout("rdi") q => _, options(nostack, preserves_flags))
            }
        }
    }
    cpu.advance(u, gpr::RSI, u64::from(bytes));
    cpu.advance(u, gpr::RDI, u64::from(bytes));
    cpu.advance(u, gpr::RCX, n.wrapping_neg());
    cpu.look_after_write(page, (to & 0xfff) as u32, bytes);
    Ok(true)
}

/// Whether offsets do not wrap at the address size, and segments allow `bytes` from here on.
fn fits(cpu: &mut Cpu, u: &Uop, bytes: u32, source: bool) -> bool {
    let mask = u.address_mask();
    let room = |r| (cpu.regs.get(r) & mask).checked_add(u64::from(bytes)).is_some_and(|end| end <= mask);
    if !room(gpr::RDI) || source && !room(gpr::RSI) {
        return false;
    }
    // Without flat segments the limit is checked; a failed check is not the guest's fault yet.
    let saved = cpu.fault;
    let ok = cpu.string_linear(u, seg::ES, gpr::RDI, bytes, true).is_ok()
        && (!source || cpu.string_linear(u, u.segment(), gpr::RSI, bytes, false).is_ok());
    cpu.fault = saved;
    ok
}

/// `stos`.
pub fn stos<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    if by_pages(cpu, u) {
        let mut pages = 0;
        while cpu.repeat_count(u) > 1 && stos_in_page::<T>(cpu, u)? {
            pages += 1;
            if pages == PAGES || cpu.events_wanted() {
                return if cpu.repeat_count(u) == 0 { Ok(()) } else { cpu.repeat_later(u) };
            }
        }
    }
    cpu.repeated(u, u.aux != repeat::NO, |cpu, u| {
        let v = T::get(&cpu.regs, gpr::RAX);
        cpu.string_store(u, v)?;
        cpu.step::<T>(u, gpr::RDI);
        Ok(true)
    })
}

fn stos_in_page<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec<bool> {
    let to = cpu.string_linear(u, seg::ES, gpr::RDI, T::SIZE, true)?;
    let n = cpu.elements_in_page::<T>(to, cpu.repeat_count(u));
    let bytes = (n * u64::from(T::SIZE)) as u32;
    if n == 0 || !fits(cpu, u, bytes, false) {
        return Ok(false);
    }
    let Some((q, page)) = cpu.host_write(seg::ES, to, bytes)? else { return Ok(false) };
    let v = cpu.regs.get(gpr::RAX);
    // SAFETY: `bytes` at `q` are writable guest memory; the host's direction flag is clear.
    unsafe {
        match T::SIZE {
            1 => {
                std::arch::asm!("rep stosb", inout("rcx") n => _, inout("rdi") q => _, in("rax") v, options(nostack, preserves_flags))
            }
            2 => {
                std::arch::asm!("rep stosw", inout("rcx") n => _, inout("rdi") q => _, in("rax") v, options(nostack, preserves_flags))
            }
            4 => {
                std::arch::asm!("rep stosd", inout("rcx") n => _, inout("rdi") q => _, in("rax") v, options(nostack, preserves_flags))
            }
            _ => {
                std::arch::asm!("rep stosq", inout("rcx") n => _, inout("rdi") q => _, in("rax") v, options(nostack, preserves_flags))
            }
        }
    }
    cpu.advance(u, gpr::RDI, u64::from(bytes));
    cpu.advance(u, gpr::RCX, n.wrapping_neg());
    cpu.look_after_write(page, (to & 0xfff) as u32, bytes);
    Ok(true)
}

/// `lods`.
pub fn lods<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.repeated(u, u.aux != repeat::NO, |cpu, u| {
        let v = cpu.source::<T>(u)?;
        T::set(&mut cpu.regs, gpr::RAX, v);
        cpu.step::<T>(u, gpr::RSI);
        Ok(true)
    })
}

/// Whether a comparing string instruction goes on after this result.
fn goes_on(cpu: &Cpu, u: &Uop) -> bool {
    cpu.flags.zf() == (u.aux == repeat::WHILE_EQUAL)
}

/// A repeated comparison that faults shows the flags from before the instruction (SDM vol. 2, REP); on AMD's processors those
/// of the last element that was compared.
fn comparing(cpu: &mut Cpu, u: &Uop, one: impl Fn(&mut Cpu, &Uop) -> Exec<bool>) -> Exec {
    let before = cpu.flags;
    let done = cpu.repeated(u, u.aux != repeat::NO, one);
    if done == Err(Stop::Fault) && !cpu.is_amd() {
        cpu.flags = before;
    }
    done
}

/// `scas`.
pub fn scas<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    comparing(cpu, u, |cpu, u| {
        let b = cpu.destination::<T>(u)?;
        cpu.flags = T::binary::<{ binary::CMP }>(T::get(&cpu.regs, gpr::RAX), b, cpu.flags).1;
        cpu.step::<T>(u, gpr::RDI);
        Ok(goes_on(cpu, u))
    })
}

/// `cmps`.
pub fn cmps<T: Int>(cpu: &mut Cpu, u: &Uop) -> Exec {
    comparing(cpu, u, |cpu, u| {
        let a = cpu.source::<T>(u)?;
        let b = cpu.destination::<T>(u)?;
        cpu.flags = T::binary::<{ binary::CMP }>(a, b, cpu.flags).1;
        cpu.step::<T>(u, gpr::RSI);
        cpu.step::<T>(u, gpr::RDI);
        Ok(goes_on(cpu, u))
    })
}
