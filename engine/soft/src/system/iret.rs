//! IRET in all its forms (SDM vol. 2, IRET).

use vireo_core::state::rflags;

use super::descriptor::Selector;
use super::segment::{self, Code};
use super::stack::Stack;
use super::{far, task};
use crate::cpu::{Cpu, Exec, Stop, seg};
use crate::exec::Uop;

/// Flags that every IRET and POPF loads.
pub const ALWAYS: u64 = rflags::ARITH | rflags::TF | rflags::DF | rflags::NT;
/// Flags in the upper half that a 32- or 64-bit IRET loads at any privilege.
const WIDE: u64 = rflags::RF | rflags::AC | rflags::ID;

/// `iret`: operand size (2, 4, 8) in `aux`.
pub fn iret(cpu: &mut Cpu, u: &Uop) -> Exec {
    // The first IRET after an NMI lets the next one in, even if this one faults (SDM vol. 3A, 6.7.1).
    cpu.nmi_masked = false;
    let size = u32::from(u.aux);
    if cpu.vm86() {
        return iret_vm86(cpu, size);
    }
    if !cpu.protected() {
        return iret_real(cpu, size);
    }
    if cpu.eflags & rflags::NT != 0 {
        if cpu.long_mode() {
            return Err(cpu.gp(0));
        }
        return task::switch_back(cpu, cpu.next_rip(u));
    }
    iret_protected(cpu, size)
}

/// What IRET pops first.
struct Frame {
    rip: u64,
    cs: u16,
    flags: u64,
}

fn pop_frame(cpu: &mut Cpu, stack: &mut Stack, size: u32) -> Exec<Frame> {
    let rip = stack.pop(cpu, size)?;
    let cs = stack.pop(cpu, size)? as u16;
    let flags = stack.pop(cpu, size)?;
    Ok(Frame { rip, cs, flags })
}

/// Loads the flags in `mask` from `new`; with 16 bits, only those of the lower half.
fn load_flags(cpu: &mut Cpu, new: u64, mask: u64, size: u32) {
    let mask = if size == 2 { mask & 0xffff } else { mask };
    let v = cpu.rflags() & !mask | new & mask;
    cpu.set_rflags(v);
}

fn iret_real(cpu: &mut Cpu, size: u32) -> Exec {
    let mut stack = Stack::current(cpu, 0);
    let f = pop_frame(cpu, &mut stack, size)?;
    if f.rip > u64::from(cpu.seg[seg::CS as usize].limit) {
        return Err(cpu.gp(0));
    }
    stack.commit_pointer(cpu);
    load_flags(cpu, f.flags, ALWAYS | WIDE | rflags::IF | rflags::IOPL, size);
    far::load_real_code(cpu, f.cs, f.rip);
    Err(Stop::EndBlock)
}

fn iret_vm86(cpu: &mut Cpu, size: u32) -> Exec {
    if cpu.iopl() < 3 {
        return Err(cpu.gp(0));
    }
    let mut stack = Stack::current(cpu, 0);
    let f = pop_frame(cpu, &mut stack, size)?;
    if f.rip > u64::from(cpu.seg[seg::CS as usize].limit) {
        return Err(cpu.gp(0));
    }
    stack.commit_pointer(cpu);
    load_flags(cpu, f.flags, ALWAYS | WIDE | rflags::IF, size);
    far::load_real_code(cpu, f.cs, f.rip);
    Err(Stop::EndBlock)
}

fn iret_protected(cpu: &mut Cpu, size: u32) -> Exec {
    let mut stack = Stack::current(cpu, 0);
    let f = pop_frame(cpu, &mut stack, size)?;
    if f.flags & rflags::VM != 0 && size == 4 && cpu.cpl == 0 && !cpu.long_mode() {
        return return_to_vm86(cpu, stack, f);
    }
    let from64 = cpu.mode.is64();
    let code = far::return_code(cpu, Selector(f.cs))?;
    let outer = code.cpl > cpu.cpl;
    // In 64-bit mode SS:RSP are popped always.
    let new = if outer || from64 {
        let sp = stack.pop(cpu, size)?;
        let ss = Selector(stack.pop(cpu, size)? as u16);
        far::return_stack(cpu, &code, ss, sp)?
    } else {
        stack
    };
    let target = code.check_target(cpu, f.rip, 0)?;
    if outer || from64 {
        new.commit(cpu)
    } else {
        new.commit_pointer(cpu)
    }
    finish(cpu, code, target, f.flags, size);
    if outer {
        segment::drop_inner_data(cpu);
        cpu.mode_changed();
    }
    Err(Stop::EndBlock)
}

/// Flags by the privilege that executed IRET, then CS:RIP.
fn finish(cpu: &mut Cpu, code: Code, target: u64, flags: u64, size: u32) {
    let mut mask = ALWAYS | WIDE;
    if cpu.cpl <= cpu.iopl() {
        mask |= rflags::IF;
    }
    if cpu.cpl == 0 {
        mask |= rflags::IOPL | rflags::VIF | rflags::VIP;
    }
    load_flags(cpu, flags, mask, size);
    far::commit(cpu, code, target);
}

fn return_to_vm86(cpu: &mut Cpu, mut stack: Stack, f: Frame) -> Exec {
    let sp = stack.pop(cpu, 4)?;
    let mut selectors = [0; 5];
    for s in &mut selectors {
        *s = stack.pop(cpu, 4)? as u16;
    }
    if f.rip & 0xffff_ffff > 0xffff {
        return Err(cpu.gp(0));
    }
    for (reg, selector) in [seg::SS, seg::ES, seg::DS, seg::FS, seg::GS].into_iter().zip(selectors) {
        cpu.seg[reg as usize] = segment::vm86(selector);
    }
    cpu.set_segment(seg::CS, segment::vm86(f.cs));
    cpu.regs.set(crate::cpu::regs::gpr::RSP, sp);
    cpu.cpl = 3;
    cpu.rip = f.rip;
    cpu.set_rflags(f.flags);
    Err(Stop::EndBlock)
}
