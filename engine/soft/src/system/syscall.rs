//! Fast system calls and the bases of FS and GS (SDM vol. 3A, 5.8.7 and 5.8.8; AMD APM vol. 2, 6.1).

use vireo_core::state::{Segment, cr4, efer, rflags};

use super::control::only_cpl0;
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, Stop, seg};
use crate::exec::Uop;

/// Rights of the flat segments that these instructions load without reading a descriptor: DPL 0; G set.
const CODE64: u32 = 0xa09b;
const CODE32: u32 = 0xc09b;
const DATA: u32 = 0xc093;
const DPL3: u32 = 0x60;

/// Where SYSCALL keeps RFLAGS.
const R11: u8 = 11;

fn flat(selector: u16, attributes: u32) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

/// Loads flat CS and SS for ring 0; `cs` as the MSR has it, SS is the descriptor after it.
fn enter_kernel(cpu: &mut Cpu, cs: u16, code: u32) {
    let cs = cs & !3;
    cpu.cpl = 0;
    cpu.seg[seg::SS as usize] = flat(cs.wrapping_add(8), DATA);
    cpu.set_segment(seg::CS, flat(cs, code));
}

/// Loads flat CS and SS for ring 3.
fn enter_user(cpu: &mut Cpu, cs: u16, ss: u16, code: u32) {
    cpu.cpl = 3;
    cpu.seg[seg::SS as usize] = flat(ss | 3, DATA | DPL3);
    cpu.set_segment(seg::CS, flat(cs | 3, code | DPL3));
}

fn intel(cpu: &Cpu) -> bool {
    !cpu.is_amd()
}

/// `syscall`. Intel has it in 64-bit mode only; AMD in all of protected mode.
pub fn syscall(cpu: &mut Cpu, u: &Uop) -> Exec {
    let long = cpu.long_mode();
    let available = if intel(cpu) { cpu.mode.is64() } else { cpu.protected() };
    if cpu.ctl.efer & efer::SCE == 0 || !available {
        return Err(cpu.ud());
    }
    let traced = cpu.eflags & rflags::TF != 0;
    let next = cpu.next_rip(u);
    let star = cpu.msr.star;
    cpu.regs.set(gpr::RCX, next);
    if long {
        let flags = cpu.rflags() & !rflags::RF;
        cpu.regs.set(R11, flags);
        cpu.rip = if cpu.mode.is64() { cpu.msr.lstar } else { cpu.msr.cstar };
        enter_kernel(cpu, (star >> 32) as u16, CODE64);
        let mask = cpu.msr.syscall_mask;
        cpu.set_rflags(flags & !mask);
    } else {
        cpu.rip = star & 0xffff_ffff;
        enter_kernel(cpu, (star >> 32) as u16, CODE32);
        cpu.set_rflags(cpu.rflags() & !(rflags::VM | rflags::IF | rflags::RF));
    }
    single_step_by_new_flags(cpu, traced)
}

/// Unlike other instructions, SYSCALL is followed by a single-step trap if TF is set after it, not before: so a kernel
/// that masks TF never takes one on its user's stack.
fn single_step_by_new_flags(cpu: &mut Cpu, traced: bool) -> Exec {
    if cpu.eflags & rflags::TF != 0 {
        return Err(cpu.debug_trap(true));
    }
    super::end_untraced(traced)
}

/// `sysret`: operand size in `aux`; 8 returns to 64-bit code.
pub fn sysret(cpu: &mut Cpu, u: &Uop) -> Exec {
    let available = if intel(cpu) { cpu.mode.is64() } else { cpu.protected() };
    if cpu.ctl.efer & efer::SCE == 0 || !available {
        return Err(cpu.ud());
    }
    only_cpl0(cpu)?;
    let target = cpu.regs.get(gpr::RCX);
    let to64 = u.aux == 8;
    // An AMD processor finds a bad address only in ring 3.
    if to64 && intel(cpu) && !Cpu::canonical(target) {
        return Err(cpu.gp(0));
    }
    let selector = (cpu.msr.star >> 48) as u16;
    let flags = if cpu.long_mode() {
        cpu.regs.get(R11) & !(rflags::RF | rflags::VM)
    } else {
        cpu.rflags() | rflags::IF
    };
    let ss = selector.wrapping_add(8);
    if to64 {
        enter_user(cpu, selector.wrapping_add(16), ss, CODE64);
        cpu.rip = target;
    } else {
        enter_user(cpu, selector, ss, CODE32);
        cpu.rip = target & 0xffff_ffff;
    }
    cpu.set_rflags(flags);
    Err(Stop::EndBlock)
}

/// SYSENTER and SYSEXIT are not in long mode on AMD processors, nor in real mode anywhere, nor without a target.
fn check_sysenter(cpu: &mut Cpu) -> Exec {
    if cpu.long_mode() && !intel(cpu) {
        return Err(cpu.ud());
    }
    let real = cpu.ctl.cr0 & vireo_core::state::cr0::PE == 0;
    if real || cpu.msr.sysenter_cs & 0xfffc == 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

/// `sysenter`.
pub fn sysenter(cpu: &mut Cpu, _: &Uop) -> Exec {
    check_sysenter(cpu)?;
    let long = cpu.long_mode();
    let width = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs.set(gpr::RSP, cpu.msr.sysenter_esp & width);
    cpu.rip = cpu.msr.sysenter_eip & width;
    enter_kernel(cpu, cpu.msr.sysenter_cs as u16, if long { CODE64 } else { CODE32 });
    cpu.set_rflags(cpu.rflags() & !(rflags::VM | rflags::IF | rflags::RF));
    Err(Stop::EndBlock)
}

/// `sysexit`: operand size in `aux`; 8 returns to 64-bit code.
pub fn sysexit(cpu: &mut Cpu, u: &Uop) -> Exec {
    check_sysenter(cpu)?;
    only_cpl0(cpu)?;
    let (rip, rsp) = (cpu.regs.get(gpr::RDX), cpu.regs.get(gpr::RCX));
    let selector = cpu.msr.sysenter_cs as u16;
    if u.aux == 8 {
        if !Cpu::canonical(rip) || !Cpu::canonical(rsp) {
            return Err(cpu.gp(0));
        }
        enter_user(cpu, selector.wrapping_add(32), selector.wrapping_add(40), CODE64);
        cpu.regs.set(gpr::RSP, rsp);
        cpu.rip = rip;
    } else {
        enter_user(cpu, selector.wrapping_add(16), selector.wrapping_add(24), CODE32);
        cpu.regs.set(gpr::RSP, rsp & 0xffff_ffff);
        cpu.rip = rip & 0xffff_ffff;
    }
    Err(Stop::EndBlock)
}

/// `swapgs`.
pub fn swapgs(cpu: &mut Cpu, _: &Uop) -> Exec {
    only_cpl0(cpu)?;
    std::mem::swap(&mut cpu.seg[seg::GS as usize].base, &mut cpu.msr.kernel_gs_base);
    cpu.mode_changed();
    Ok(())
}

/// `rdfsbase`, `rdgsbase`: segment in `src`, operand size in `aux`.
pub fn read_base(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.ctl.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let v = cpu.seg[usize::from(u.src % 6)].base;
    cpu.regs.set(u.dst, if u.aux == 8 { v } else { v & 0xffff_ffff });
    Ok(())
}

/// `wrfsbase`, `wrgsbase`: segment in `dst`.
pub fn write_base(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.ctl.cr4 & cr4::FSGSBASE == 0 {
        return Err(cpu.ud());
    }
    let v = cpu.regs.get(u.src);
    let v = if u.aux == 8 { v } else { v & 0xffff_ffff };
    if !Cpu::canonical(v) {
        return Err(cpu.gp(0));
    }
    cpu.seg[usize::from(u.dst % 6)].base = v;
    cpu.mode_changed();
    Ok(())
}
