//! Memory order and cache-line write-back.

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic as M};
use vireo_isa::Class;

use crate::cpu::{Cpu, Exec};
use crate::exec::{Handler, Uop};

/// Handler of a fence or of CLFLUSH and its like.
pub fn select(i: &Instruction, class: Class) -> Option<Handler> {
    if class != Class::Fence {
        return None;
    }
    Some(match i.mnemonic() {
        M::Lfence => lfence,
        M::Mfence => mfence,
        M::Sfence => sfence,
        _ => cache_line,
    })
}

// The host's own fences: guest accesses are host accesses, so their order is the guest's.

fn lfence(_: &mut Cpu, _: &Uop) -> Exec {
    // SAFETY: only orders memory accesses; so do the others.
    unsafe { asm!("lfence", options(nostack, preserves_flags)) };
    Ok(())
}
fn mfence(_: &mut Cpu, _: &Uop) -> Exec {
    // SAFETY: as above.
    unsafe { asm!("mfence", options(nostack, preserves_flags)) };
    Ok(())
}
fn sfence(_: &mut Cpu, _: &Uop) -> Exec {
    // SAFETY: as above.
    unsafe { asm!("sfence", options(nostack, preserves_flags)) };
    Ok(())
}

/// CLFLUSH, CLFLUSHOPT, CLWB: fault as a read of one byte; coherent caches make the rest invisible.
fn cache_line(cpu: &mut Cpu, u: &Uop) -> Exec {
    let at = u.linear(cpu, 1, false)?;
    cpu.host_read(u.segment(), at, 1)?;
    Ok(())
}
