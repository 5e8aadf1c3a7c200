//! Far jumps, calls and returns (SDM vol. 3A, 5.8; vol. 2, JMP, CALL, RET).

use super::descriptor::{self, Descriptor, Selector, system_type};
use super::segment::{self, Code};
use super::stack::Stack;
use super::{task, tss};
use crate::cpu::{Cpu, Exec, Stop, seg, vector};
use crate::exec::Uop;

/// JMP or CALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Jump,
    Call,
}

/// A far transfer on its way.
#[derive(Clone, Copy)]
struct Transfer {
    kind: Kind,
    selector: Selector,
    offset: u64,
    /// Operand size in bytes: 2, 4 or 8.
    size: u32,
    /// RIP of the next instruction.
    next: u64,
}

/// `jmp ptr16:16/32`: selector in bits 32 to 47 of `imm`, operand size in `aux`.
pub fn jmp_direct(cpu: &mut Cpu, u: &Uop) -> Exec {
    direct(cpu, u, Kind::Jump)
}
/// `call ptr16:16/32`.
pub fn call_direct(cpu: &mut Cpu, u: &Uop) -> Exec {
    direct(cpu, u, Kind::Call)
}
/// `jmp m16:16/32/64`: operand size in `aux`.
pub fn jmp_memory(cpu: &mut Cpu, u: &Uop) -> Exec {
    indirect(cpu, u, Kind::Jump)
}
/// `call m16:16/32/64`.
pub fn call_memory(cpu: &mut Cpu, u: &Uop) -> Exec {
    indirect(cpu, u, Kind::Call)
}

fn direct(cpu: &mut Cpu, u: &Uop, kind: Kind) -> Exec {
    let selector = Selector((u.imm >> 32) as u16);
    let offset = u.imm & 0xffff_ffff;
    transfer(cpu, Transfer { kind, selector, offset, size: u32::from(u.aux), next: cpu.next_rip(u) })
}

fn indirect(cpu: &mut Cpu, u: &Uop, kind: Kind) -> Exec {
    let (selector, offset) = read_pointer(cpu, u)?;
    transfer(cpu, Transfer { kind, selector, offset, size: u32::from(u.aux), next: cpu.next_rip(u) })
}

/// Reads the far pointer that is the memory operand: an offset of `aux` bytes, then the selector.
pub fn read_pointer(cpu: &mut Cpu, u: &Uop) -> Exec<(Selector, u64)> {
    let size = u32::from(u.aux);
    let at = u.linear(cpu, size + 2, false)?;
    let offset = match size {
        2 => u64::from(cpu.load::<u16>(u.segment(), at)?),
        4 => u64::from(cpu.load::<u32>(u.segment(), at)?),
        _ => cpu.load::<u64>(u.segment(), at)?,
    };
    let selector = cpu.load::<u16>(u.segment(), at.wrapping_add(u64::from(size)))?;
    Ok((Selector(selector), offset))
}

/// Loads CS and RIP; nothing can fail any more.
pub fn commit(cpu: &mut Cpu, code: Code, rip: u64) {
    cpu.cpl = code.cpl;
    cpu.rip = rip;
    cpu.set_segment(seg::CS, code.segment);
}

fn transfer(cpu: &mut Cpu, t: Transfer) -> Exec {
    if !cpu.protected() {
        return transfer_real(cpu, t);
    }
    if t.selector.is_null() {
        return Err(cpu.gp(0));
    }
    let d = descriptor::read(cpu, t.selector, vector::GP, 0)?;
    if d.is_code() {
        return transfer_code(cpu, t, d);
    }
    if d.is_segment() {
        return Err(cpu.gp(t.selector.error()));
    }
    match (d.kind(), cpu.long_mode()) {
        (system_type::CALL32, _) | (system_type::CALL16, false) => call_gate(cpu, t, d),
        (system_type::TASK_GATE, false) => task_gate(cpu, t, d),
        (system_type::TSS16 | system_type::TSS32, false) => {
            check_gate(cpu, t.selector, d)?;
            enter_task(cpu, t, t.selector, d)
        }
        _ => Err(cpu.gp(t.selector.error())),
    }
}

/// Real and virtual-8086 mode.
fn transfer_real(cpu: &mut Cpu, t: Transfer) -> Exec {
    if t.offset > u64::from(cpu.seg[seg::CS as usize].limit) {
        return Err(cpu.gp(0));
    }
    if t.kind == Kind::Call {
        let mut stack = Stack::current(cpu, 0);
        push_return(cpu, &mut stack, t.size, t.next)?;
        stack.commit_pointer(cpu);
    }
    load_real_code(cpu, t.selector.0, t.offset);
    Err(Stop::EndBlock)
}

/// CS:IP in real and virtual-8086 mode.
pub fn load_real_code(cpu: &mut Cpu, selector: u16, ip: u64) {
    let new = if cpu.vm86() { segment::vm86(selector) } else { segment::real(cpu, seg::CS, selector) };
    cpu.rip = ip;
    cpu.set_segment(seg::CS, new);
}

fn push_return(cpu: &mut Cpu, stack: &mut Stack, size: u32, next: u64) -> Exec {
    stack.push(cpu, size, u64::from(cpu.seg[seg::CS as usize].selector))?;
    stack.push(cpu, size, next)
}

/// The privilege checks of a direct transfer to a code segment, which keeps the CPL.
fn direct_code(cpu: &mut Cpu, s: Selector, d: Descriptor) -> Exec<Code> {
    let cpl = cpu.cpl;
    let allowed = if d.conforming() { d.dpl() <= cpl } else { s.rpl() <= cpl && d.dpl() == cpl };
    if !allowed {
        return Err(cpu.gp(s.error()));
    }
    segment::code(cpu, s, d, cpl, 0)
}

fn transfer_code(cpu: &mut Cpu, t: Transfer, d: Descriptor) -> Exec {
    let code = direct_code(cpu, t.selector, d)?;
    let target = code.check_target(cpu, t.offset, 0)?;
    if t.kind == Kind::Call {
        let mut stack = Stack::current(cpu, 0);
        push_return(cpu, &mut stack, t.size, t.next)?;
        stack.commit_pointer(cpu);
    }
    commit(cpu, code, target);
    Err(Stop::EndBlock)
}

/// Privilege and presence of a gate or TSS descriptor.
fn check_gate(cpu: &mut Cpu, s: Selector, d: Descriptor) -> Exec {
    if d.dpl() < cpu.cpl || d.dpl() < s.rpl() {
        return Err(cpu.gp(s.error()));
    }
    if !d.present() {
        return Err(cpu.raise(vector::NP, Some(s.error())));
    }
    Ok(())
}

fn call_gate(cpu: &mut Cpu, t: Transfer, gate: Descriptor) -> Exec {
    let gate = if cpu.long_mode() { descriptor::read_system(cpu, t.selector, vector::GP, 0)? } else { gate };
    check_gate(cpu, t.selector, gate)?;
    let s = gate.gate_selector();
    if s.is_null() {
        return Err(cpu.gp(0));
    }
    let d = descriptor::read(cpu, s, vector::GP, 0)?;
    let cpl = cpu.cpl;
    let jump_out = t.kind == Kind::Jump && !d.conforming() && d.dpl() != cpl;
    if !d.is_code() || d.dpl() > cpl || jump_out || cpu.long_mode() && (!d.long() || d.big()) {
        return Err(cpu.gp(s.error()));
    }
    let inner = !d.conforming() && d.dpl() < cpl;
    let code = segment::code(cpu, s, d, if inner { d.dpl() } else { cpl }, 0)?;
    let size = match (cpu.long_mode(), gate.kind()) {
        (true, _) => 8,
        (_, system_type::CALL32) => 4,
        _ => 2,
    };
    if inner {
        return call_inner(cpu, t, gate, code, size);
    }
    let target = code.check_target(cpu, gate.gate_offset(), 0)?;
    if t.kind == Kind::Call {
        let mut stack = Stack::current(cpu, 0);
        push_return(cpu, &mut stack, size, t.next)?;
        stack.commit_pointer(cpu);
    }
    commit(cpu, code, target);
    Err(Stop::EndBlock)
}

/// A call through a gate to an inner level: the stack of that level, the old SS:SP, parameters, return address.
fn call_inner(cpu: &mut Cpu, t: Transfer, gate: Descriptor, code: Code, size: u32) -> Exec {
    let mut stack = tss::inner_stack(cpu, code.cpl, 0)?;
    let target = code.check_target(cpu, gate.gate_offset(), 0)?;
    let mut old = Stack::current(cpu, 0);
    stack.push(cpu, size, u64::from(cpu.seg[seg::SS as usize].selector))?;
    stack.push(cpu, size, cpu.regs.get(crate::cpu::regs::gpr::RSP))?;
    if size < 8 {
        let mut parameters = [0; 31];
        let n = gate.gate_parameters() as usize;
        for p in parameters.iter_mut().take(n) {
            *p = old.pop(cpu, size)?;
        }
        for &p in parameters.iter().take(n).rev() {
            stack.push(cpu, size, p)?;
        }
    }
    push_return(cpu, &mut stack, size, t.next)?;
    stack.commit(cpu);
    commit(cpu, code, target);
    Err(Stop::EndBlock)
}

fn task_gate(cpu: &mut Cpu, t: Transfer, gate: Descriptor) -> Exec {
    check_gate(cpu, t.selector, gate)?;
    let s = gate.gate_selector();
    let d = task::find_tss(cpu, s, vector::GP, 0)?;
    enter_task(cpu, t, s, d)
}

fn enter_task(cpu: &mut Cpu, t: Transfer, s: Selector, d: Descriptor) -> Exec {
    let cause = match t.kind {
        Kind::Jump => task::Cause::Jump,
        Kind::Call => task::Cause::Call,
    };
    task::switch(cpu, s, d, cause, t.next)
}

/// `retf` and `retf imm16`: operand size in `aux`, bytes to drop in `imm`.
pub fn ret(cpu: &mut Cpu, u: &Uop) -> Exec {
    let size = u32::from(u.aux);
    let mut stack = Stack::current(cpu, 0);
    let offset = stack.pop(cpu, size)?;
    let selector = Selector(stack.pop(cpu, size)? as u16);
    if !cpu.protected() {
        if offset > u64::from(cpu.seg[seg::CS as usize].limit) {
            return Err(cpu.gp(0));
        }
        stack.skip(u.imm);
        stack.commit_pointer(cpu);
        load_real_code(cpu, selector.0, offset);
        return Err(Stop::EndBlock);
    }
    let code = return_code(cpu, selector)?;
    stack.skip(u.imm);
    if code.cpl == cpu.cpl {
        let target = code.check_target(cpu, offset, 0)?;
        stack.commit_pointer(cpu);
        commit(cpu, code, target);
        return Err(Stop::EndBlock);
    }
    let sp = stack.pop(cpu, size)?;
    let ss = Selector(stack.pop(cpu, size)? as u16);
    let mut outer = return_stack(cpu, &code, ss, sp)?;
    let target = code.check_target(cpu, offset, 0)?;
    outer.skip(u.imm);
    outer.commit(cpu);
    cpu.cpl = code.cpl;
    segment::drop_inner_data(cpu);
    commit(cpu, code, target);
    Err(Stop::EndBlock)
}

/// Checks the CS that a far return or IRET popped: to the same or an outer level.
pub fn return_code(cpu: &mut Cpu, s: Selector) -> Exec<Code> {
    if s.is_null() {
        return Err(cpu.gp(0));
    }
    let d = descriptor::read(cpu, s, vector::GP, 0)?;
    let level = if d.conforming() { d.dpl() <= s.rpl() } else { d.dpl() == s.rpl() };
    if !d.is_code() || s.rpl() < cpu.cpl || !level {
        return Err(cpu.gp(s.error()));
    }
    segment::code(cpu, s, d, s.rpl(), 0)
}

/// Checks the SS:SP that a return popped for the level of `code`.
pub fn return_stack(cpu: &mut Cpu, code: &Code, s: Selector, sp: u64) -> Exec<Stack> {
    let is64 = code.is64(cpu);
    let ss = if is64 && s.is_null() && code.cpl < 3 && s.rpl() == code.cpl {
        segment::null_stack(code.cpl)
    } else {
        segment::stack(cpu, s, code.cpl, vector::GP, 0)?
    };
    Ok(match is64 {
        true => Stack::long(ss, sp, code.cpl, 0),
        false => Stack::in_segment(ss, sp, code.cpl, 0),
    })
}
