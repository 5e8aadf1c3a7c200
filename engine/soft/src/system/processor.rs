//! Instructions about the processor itself: CPUID, time, HLT, PAUSE, random numbers, hypercalls, software interrupts.

use std::arch::x86_64 as host;

use vireo_core::model::CpuidContext;
use vireo_core::state::{Activity, cr4, rflags};
use vireo_core::{HypercallRegs, bus::Bus};
use vireo_isa::Feature;

use super::control::only_cpl0;
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, Fault, Source, Stop, vector};
use crate::exec::Uop;

/// PAUSEs between two instructions counts of at most [`SPIN_DISTANCE`] until the thread gives the processor away.
const SPINS: u32 = 64;
/// Instructions between two PAUSEs of one spin loop.
const SPIN_DISTANCE: u64 = 64;

/// PAUSEs in a row: a guest spinning for a lock that another vCPU holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spin {
    count: u32,
    last: u64,
}

impl Spin {
    /// Counts a PAUSE at this instruction count; true when it is time to yield.
    fn pause(&mut self, instructions: u64) -> bool {
        let near = instructions.wrapping_sub(self.last) <= SPIN_DISTANCE;
        self.last = instructions;
        self.count = if near { self.count + 1 } else { 1 };
        let spun = self.count >= SPINS;
        if spun {
            self.count = 0;
        }
        spun
    }
}

/// `pause`.
pub fn pause(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.msr.spin.pause(cpu.instructions) {
        cpu.rip = cpu.next_rip(u);
        return Err(Stop::Yield);
    }
    Ok(())
}

/// `hlt`.
pub fn hlt(cpu: &mut Cpu, u: &Uop) -> Exec {
    only_cpl0(cpu)?;
    cpu.activity = Activity::Halted;
    cpu.rip = cpu.next_rip(u);
    Err(Stop::Yield)
}

/// `cpuid`.
pub fn cpuid(cpu: &mut Cpu, _: &Uop) -> Exec {
    let context = CpuidContext {
        apic_id: cpu.index,
        vcpus: cpu.shared.vcpus.len() as u32,
        osxsave: cpu.ctl.cr4 & cr4::OSXSAVE != 0,
        xcr0: cpu.ctl.xcr0,
        apic_enabled: cpu.apic.enabled(),
        tsc_hz: crate::clock::host_tsc_hz(),
    };
    let (leaf, subleaf) = (cpu.regs.get(gpr::RAX) as u32, cpu.regs.get(gpr::RCX) as u32);
    let [eax, ebx, ecx, edx] = cpu.model.cpuid(leaf, subleaf, &context);
    cpu.regs.set32(gpr::RAX, eax);
    cpu.regs.set32(gpr::RBX, ebx);
    cpu.regs.set32(gpr::RCX, ecx);
    cpu.regs.set32(gpr::RDX, edx);
    Ok(())
}

/// #GP(0) above privilege level 0 while CR4.TSD is set.
fn check_tsd(cpu: &mut Cpu) -> Exec {
    if cpu.cpl != 0 && cpu.ctl.cr4 & cr4::TSD != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

/// `rdtsc`.
pub fn rdtsc(cpu: &mut Cpu, _: &Uop) -> Exec {
    check_tsd(cpu)?;
    let v = cpu.tsc();
    super::set_edx_eax(cpu, v);
    Ok(())
}

/// `rdtscp`.
pub fn rdtscp(cpu: &mut Cpu, _: &Uop) -> Exec {
    check_tsd(cpu)?;
    let v = cpu.tsc();
    super::set_edx_eax(cpu, v);
    cpu.regs.set32(gpr::RCX, cpu.msr.tsc_aux as u32);
    Ok(())
}

/// `rdpid`.
pub fn rdpid(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.regs.set(u.dst, cpu.msr.tsc_aux);
    Ok(())
}

/// `rdpmc`: no model has counters, so every index raises #GP(0).
pub fn rdpmc(cpu: &mut Cpu, _: &Uop) -> Exec {
    Err(cpu.gp(0))
}

/// `invd`, `wbinvd`, `wbnoinvd`: the guest's memory is coherent, so there is nothing to write back.
pub fn cache_control(cpu: &mut Cpu, _: &Uop) -> Exec {
    only_cpl0(cpu)
}

/// #UD.
pub fn undefined(cpu: &mut Cpu, _: &Uop) -> Exec {
    Err(cpu.ud())
}

/// Random bits from the host's generator, seeds from its entropy source. `None`: it had none, and CF says so.
fn random(seed: bool) -> Option<u64> {
    #[target_feature(enable = "rdrand")]
    fn rdrand() -> Option<u64> {
        let mut v = 0;
        (host::_rdrand64_step(&mut v) == 1).then_some(v)
    }
    #[target_feature(enable = "rdseed")]
    fn rdseed() -> Option<u64> {
        let mut v = 0;
        (host::_rdseed64_step(&mut v) == 1).then_some(v)
    }
    match seed {
        // SAFETY: the feature was just detected.
        true if std::arch::is_x86_feature_detected!("rdseed") => unsafe { rdseed() },
        // SAFETY: the feature was just detected.
        false if std::arch::is_x86_feature_detected!("rdrand") => unsafe { rdrand() },
        _ => None,
    }
}

/// `rdrand` (`imm` = 0), `rdseed` (1): operand size in `aux`. Without a number the destination is zero.
pub fn rdrand(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = random(u.imm == 1);
    super::set_sized(cpu, u.dst, u.aux, v.unwrap_or(0));
    cpu.flags.assign(rflags::ARITH, false);
    cpu.flags.assign(rflags::CF, v.is_some());
    Ok(())
}

/// `vmcall`, `vmmcall`: a hypercall of the board.
pub fn hypercall(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.cpl != 0 || !cpu.model.has(Feature::Hypervisor) {
        return Err(cpu.ud());
    }
    let regs = HypercallRegs {
        gpr: cpu.regs.architectural(),
        xmm: std::array::from_fn(|i| cpu.fpu.xmm(i as u8)),
        cpl: cpu.cpl,
        long_mode: cpu.mode.is64(),
    };
    let bus: &dyn Bus = cpu.bus();
    let Some(out) = bus.hypercall(cpu.index, &regs) else { return Err(cpu.ud()) };
    cpu.regs.set_architectural(&out.gpr);
    for (i, v) in (0u8..).zip(out.xmm) {
        cpu.fpu.set_xmm(i, v);
    }
    cpu.finish_flushes();
    cpu.rip = cpu.next_rip(u);
    Err(Stop::EndBlock)
}

/// `int n`: vector in `imm`. In virtual-8086 mode only with IOPL 3.
pub fn int(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.vm86() && cpu.iopl() < 3 {
        return Err(cpu.gp(0));
    }
    software(cpu, u, u.imm as u8, Source::SoftwareInterrupt)
}
/// `int3`.
pub fn int3(cpu: &mut Cpu, u: &Uop) -> Exec {
    software(cpu, u, vector::BP, Source::SoftwareException)
}
/// `int1`.
pub fn int1(cpu: &mut Cpu, u: &Uop) -> Exec {
    software(cpu, u, vector::DB, Source::PrivilegedSoftwareException)
}
/// `into`.
pub fn into(cpu: &mut Cpu, u: &Uop) -> Exec {
    if cpu.flags.to_rflags() & rflags::OF == 0 {
        return Ok(());
    }
    software(cpu, u, vector::OF, Source::SoftwareException)
}

/// Leaves an event of the program's own for delivery, with the address of the next instruction. If it cannot be
/// delivered, that is this instruction's fault, at its own address.
fn software(cpu: &mut Cpu, u: &Uop, vector: u8, source: Source) -> Exec {
    cpu.trap_rip = cpu.instruction_rip(u);
    cpu.rip = cpu.next_rip(u);
    cpu.fault = Fault { vector, error: None, source };
    Err(Stop::Trap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_close_pauses_count_as_spinning() {
        let mut s = Spin::default();
        assert!((0..1000).all(|i| !s.pause(i * 1000)));
        let mut s = Spin::default();
        let yields = (0..u64::from(SPINS) * 3).filter(|i| s.pause(i * 2)).count();
        assert_eq!(yields, 3);
    }

    #[test]
    fn random_numbers_differ() {
        if !std::arch::is_x86_feature_detected!("rdrand") {
            eprintln!("SKIPPED: this host's processor has no RDRAND");
            return;
        }
        let mut seen: Vec<u64> = (0..32).filter_map(|_| random(false)).collect();
        let n = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert!(n > 0 && seen.len() == n);
    }
}
