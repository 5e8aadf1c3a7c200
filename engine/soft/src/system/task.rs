//! Hardware task switches (SDM vol. 3A, chapter 7): 32- and 16-bit TSS, outside long mode.

use vireo_core::state::{Segment, cr0, cr4, rflags};

use super::descriptor::{self, Descriptor, Selector, system_type};
use super::stack::Stack;
use super::{control, segment};
use crate::cpu::{Cpu, Exec, Shadow, Stop, seg, vector};
use crate::debug::dr6;
use crate::mmu::Value;

/// What makes the processor switch tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// JMP to a TSS or task gate.
    Jump,
    /// CALL.
    Call,
    /// IRET with NT set.
    Return,
    /// An interrupt or exception through a task gate in the IDT, with its error code.
    Gate {
        /// To be pushed on the new task's stack.
        error: Option<u32>,
        /// EXT bit of error codes.
        ext: u32,
    },
}

impl Cause {
    fn ext(self) -> u32 {
        if let Self::Gate { ext, .. } = self { ext } else { 0 }
    }
    /// The new task returns to the old one with IRET.
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Gate { .. })
    }
}

/// Bit T of a 32-bit TSS: debug trap on entry.
const TRAP_OFFSET: u64 = 100;

/// The part of a task's state that its TSS holds.
struct State {
    cr3: Option<u32>,
    rip: u64,
    flags: u64,
    gpr: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// Reads the TSS descriptor that a gate or back link names: in the GDT, available, present.
pub fn find_tss(cpu: &mut Cpu, s: Selector, invalid: u8, ext: u32) -> Exec<Descriptor> {
    if s.is_local() || s.is_null() {
        return Err(cpu.raise(invalid, Some(s.error() | ext)));
    }
    let d = descriptor::read(cpu, s, invalid, ext)?;
    if d.is_segment() || !matches!(d.kind(), system_type::TSS16 | system_type::TSS32) {
        return Err(cpu.raise(invalid, Some(s.error() | ext)));
    }
    if !d.present() {
        return Err(cpu.raise(vector::NP, Some(s.error() | ext)));
    }
    Ok(d)
}

/// IRET with NT: back to the task that the current TSS links to.
pub fn switch_back(cpu: &mut Cpu, next: u64) -> Exec {
    let s = Selector(cpu.load_sys::<u16>(cpu.tr.base)?);
    if s.is_local() || s.is_null() {
        return Err(cpu.raise(vector::TS, Some(s.error())));
    }
    let d = descriptor::read(cpu, s, vector::TS, 0)?;
    if d.is_segment() || !matches!(d.kind(), system_type::TSS16_BUSY | system_type::TSS32_BUSY) {
        return Err(cpu.raise(vector::TS, Some(s.error())));
    }
    if !d.present() {
        return Err(cpu.raise(vector::NP, Some(s.error())));
    }
    switch(cpu, s, d, Cause::Return, next)
}

/// Switches to the task of a checked TSS descriptor; the old task will go on at `next`. Gives `EndBlock`; faults before
/// the switch are [`Stop::Fault`], those of the new task [`Stop::Trap`].
pub fn switch(cpu: &mut Cpu, s: Selector, d: Descriptor, cause: Cause, next: u64) -> Exec {
    let wide = d.kind() & 8 != 0;
    if d.limit() < if wide { 0x67 } else { 0x2b } {
        return Err(cpu.raise(vector::TS, Some(s.error() | cause.ext())));
    }
    let base = d.base();
    let state = if wide { read32(cpu, base)? } else { read16(cpu, base)? };
    let paging = cpu.ctl.cr0 & cr0::PG != 0;
    let root = state.cr3.filter(|_| paging).map(u64::from);
    let pdpte = match root {
        Some(cr3) if cpu.ctl.cr4 & cr4::PAE != 0 => Some(control::read_pdptes(cpu, cr3)?),
        _ => None,
    };
    let old = Selector(cpu.tr.selector);
    save(cpu, next, cause)?;
    if matches!(cause, Cause::Jump | Cause::Return) {
        descriptor::mark_busy(cpu, old, false)?;
    }
    if cause.nests() {
        cpu.store_sys::<u16>(base, old.0)?;
    }
    if cause != Cause::Return {
        descriptor::mark_busy(cpu, s, true)?;
    }
    let busy = Descriptor { low: d.low | u64::from(system_type::BUSY) << 40, ..d };
    cpu.tr = busy.segment(s);
    cpu.ctl.cr0 |= cr0::TS;
    if let Some(cr3) = root {
        control::load_root(cpu, cr3, pdpte);
    }
    enter(cpu, state, cause, wide).map_err(|stop| match stop {
        // The switch is done: the fault belongs to the new task, whose RIP is already loaded.
        Stop::Fault => Stop::Trap,
        other => other,
    })?;
    Err(Stop::EndBlock)
}

fn words<T: Value, const N: usize>(cpu: &mut Cpu, base: u64, offset: u64) -> Exec<[u64; N]> {
    let mut out = [0; N];
    for (i, v) in (0..).zip(&mut out) {
        *v = cpu.load_sys::<T>(base.wrapping_add(offset + i * u64::from(T::SIZE)))?.to_u64();
    }
    Ok(out)
}

fn read32(cpu: &mut Cpu, base: u64) -> Exec<State> {
    let [cr3, rip, flags] = words::<u32, 3>(cpu, base, 0x1c)?;
    let gpr = words::<u32, 8>(cpu, base, 0x28)?;
    let selectors = words::<u32, 6>(cpu, base, 0x48)?.map(|v| v as u16);
    let ldt = cpu.load_sys::<u16>(base.wrapping_add(0x60))?;
    let trap = cpu.load_sys::<u16>(base.wrapping_add(TRAP_OFFSET))? & 1 != 0;
    Ok(State { cr3: Some(cr3 as u32), rip, flags, gpr, selectors, ldt, trap })
}

fn read16(cpu: &mut Cpu, base: u64) -> Exec<State> {
    let [rip, flags] = words::<u16, 2>(cpu, base, 0x0e)?;
    let gpr = words::<u16, 8>(cpu, base, 0x12)?;
    let [es, cs, ss, ds] = words::<u16, 4>(cpu, base, 0x22)?.map(|v| v as u16);
    let ldt = cpu.load_sys::<u16>(base.wrapping_add(0x2a))?;
    // The 286 had no FS and GS; they become null.
    Ok(State { cr3: None, rip, flags, gpr, selectors: [es, cs, ss, ds, 0, 0], ldt, trap: false })
}

/// Writes the outgoing task's state to its TSS.
fn save(cpu: &mut Cpu, next: u64, cause: Cause) -> Exec {
    let base = cpu.tr.base;
    let needed = if super::tss::is_wide(cpu) { 0x5f } else { 0x29 };
    if !cpu.tr.usable() || cpu.tr.limit < needed {
        return Err(cpu.raise(vector::TS, Some(Selector(cpu.tr.selector).error() | cause.ext())));
    }
    let mut flags = cpu.rflags();
    if cause == Cause::Return {
        flags &= !rflags::NT;
    }
    if let Cause::Gate { error: Some(_), .. } = cause {
        flags |= rflags::RF;
    }
    let gpr: [u64; 8] = std::array::from_fn(|r| cpu.regs.get(r as u8));
    let selectors: [u64; 6] = std::array::from_fn(|r| u64::from(cpu.seg[r].selector));
    let all = [next, flags].into_iter().chain(gpr);
    if super::tss::is_wide(cpu) {
        let values = (0x20u64..).step_by(4).zip(all.chain(selectors));
        for (offset, v) in values {
            cpu.store_sys::<u32>(base.wrapping_add(offset), v as u32)?;
        }
    } else {
        let values = (0x0eu64..).step_by(2).zip(all.chain(selectors.into_iter().take(4)));
        for (offset, v) in values {
            cpu.store_sys::<u16>(base.wrapping_add(offset), v as u16)?;
        }
    }
    Ok(())
}

/// Loads the incoming task: first everything that needs no check, then the segments.
fn enter(cpu: &mut Cpu, t: State, cause: Cause, wide: bool) -> Exec {
    let ext = cause.ext();
    for (r, v) in (0u8..).zip(t.gpr) {
        cpu.regs.set(r, v);
    }
    cpu.rip = t.rip;
    cpu.shadow = Shadow::None;
    for (r, selector) in (0..).zip(t.selectors) {
        cpu.set_segment(r, segment::null(Selector(selector)));
    }
    cpu.ldtr = segment::null(Selector(t.ldt));
    // Local breakpoints end with the task (SDM vol. 3B, 18.2.4).
    cpu.debug.dr7 &= !0x155;
    cpu.breakpoints_changed();
    // Faults of the new task come at the privilege that its CS names.
    cpu.cpl = (t.selectors[seg::CS as usize] & 3) as u8;
    let nested = if cause.nests() { rflags::NT } else { 0 };
    cpu.set_rflags(t.flags | nested);
    load_ldt(cpu, Selector(t.ldt), ext)?;
    if cpu.vm86() {
        for (r, selector) in (0..).zip(t.selectors) {
            cpu.set_segment(r, segment::vm86(selector));
        }
        cpu.cpl = 3;
    } else {
        load_segments(cpu, &t.selectors, ext)?;
    }
    cpu.mode_changed();
    if let Cause::Gate { error: Some(e), .. } = cause {
        let mut stack = Stack::current(cpu, ext);
        stack.push(cpu, if wide { 4 } else { 2 }, u64::from(e))?;
        stack.commit_pointer(cpu);
    }
    if cpu.rip > u64::from(cpu.seg[seg::CS as usize].limit) {
        return Err(cpu.gp(ext));
    }
    if t.trap {
        cpu.debug_exception(dr6::BT);
        return Err(Stop::Trap);
    }
    Ok(())
}

fn load_ldt(cpu: &mut Cpu, s: Selector, ext: u32) -> Exec {
    if s.is_null() {
        return Ok(());
    }
    let error = Some(s.error() | ext);
    if s.is_local() {
        return Err(cpu.raise(vector::TS, error));
    }
    let d = descriptor::read(cpu, s, vector::TS, ext)?;
    if !d.is_system(system_type::LDT) || !d.present() {
        return Err(cpu.raise(vector::TS, error));
    }
    cpu.ldtr = d.segment(s);
    Ok(())
}

fn load_segments(cpu: &mut Cpu, selectors: &[u16; 6], ext: u32) -> Exec {
    let selector = |r: u8| Selector(selectors[r as usize]);
    let cs = selector(seg::CS);
    let cpl = cs.rpl();
    let stack = segment::stack(cpu, selector(seg::SS), cpl, vector::TS, ext)?;
    cpu.set_segment(seg::SS, stack);
    let code = load_code(cpu, cs, ext)?;
    cpu.set_segment(seg::CS, code);
    for r in [seg::ES, seg::DS, seg::FS, seg::GS] {
        cpu.seg[r as usize] = segment::data(cpu, selector(r), cpl, vector::TS, ext)?;
    }
    Ok(())
}

fn load_code(cpu: &mut Cpu, s: Selector, ext: u32) -> Exec<Segment> {
    let error = Some(s.error() | ext);
    if s.is_null() {
        return Err(cpu.raise(vector::TS, error));
    }
    let d = descriptor::read(cpu, s, vector::TS, ext)?;
    let level = if d.conforming() { d.dpl() <= s.rpl() } else { d.dpl() == s.rpl() };
    if !d.is_code() || !level {
        return Err(cpu.raise(vector::TS, error));
    }
    Ok(segment::code(cpu, s, d, s.rpl(), ext)?.segment)
}
