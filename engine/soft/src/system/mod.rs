//! System instructions, far transfers, delivery of exceptions and interrupts, task switches, MSRs.
//!
//! Handlers follow the rule of all micro-operations: everything that can fail comes before the first change, and the
//! order of the checks is that of the architecture. Transfers compute code segment, target and stack first,
//! write the new stack, then commit.
//!
//! Never here: page walks and limits of ordinary accesses (`mmu`), the local APIC (`apic`), what a port or a foreign MSR
//! means (the board).

mod control;
mod decode;
mod deliver;
mod descriptor;
mod far;
mod flags;
mod io;
mod iret;
mod msr;
mod processor;
mod segment;
mod stack;
mod syscall;
mod tables;
mod task;
#[cfg(test)]
pub(crate) mod tests;
mod tss;

pub use decode::decode;
pub use deliver::deliver;
pub use msr::MsrFile;

use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, Stop};
use crate::exec::Uop;

/// Bit of `aux`: the r/m operand is in memory. The low byte is the operand size in bytes.
const MEMORY: u16 = 0x100;

/// Writes a register at the operand size in the low byte of `aux`.
fn set_sized(cpu: &mut Cpu, r: u8, aux: u16, v: u64) {
    match aux & 0xff {
        2 => cpu.regs.set16(r, v as u16),
        4 => cpu.regs.set32(r, v as u32),
        _ => cpu.regs.set(r, v),
    }
}

/// Reads an r/m16 operand: register `src` or memory.
fn operand16(cpu: &mut Cpu, u: &Uop) -> Exec<u16> {
    if u.aux & MEMORY != 0 { cpu.operand::<u16>(u) } else { Ok(cpu.regs.get(u.src) as u16) }
}

/// Writes a selector: 16 bits to memory, zero-extended to register `dst`.
fn store_selector(cpu: &mut Cpu, u: &Uop, v: u16) -> Exec {
    if u.aux & MEMORY == 0 {
        set_sized(cpu, u.dst, u.aux, u64::from(v));
        return Ok(());
    }
    let at = u.linear(cpu, 2, true)?;
    cpu.store(u.segment(), at, v)
}

/// EDX:EAX.
fn edx_eax(cpu: &Cpu) -> u64 {
    cpu.regs.get(gpr::RDX) << 32 | cpu.regs.get(gpr::RAX) & 0xffff_ffff
}

/// Sets EDX:EAX; the upper halves of RDX and RAX become zero.
fn set_edx_eax(cpu: &mut Cpu, v: u64) {
    cpu.regs.set32(gpr::RAX, v as u32);
    cpu.regs.set32(gpr::RDX, (v >> 32) as u32);
}

/// Ends an instruction after which a single-step trap does not come, although TF was set before it: delivery has cleared
/// TF.
fn end_untraced(traced: bool) -> Exec {
    Err(if traced { Stop::Untraced } else { Stop::EndBlock })
}
