//! Control registers, debug registers and XCR0 (SDM vol. 3A, 2.5, 2.6, 4.4.1, 4.10.4, 9.8.5, 17.2).

use vireo_core::state::{Segment, cr0, cr4, efer, rflags};
use vireo_isa::Feature;

use super::tss;
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, Stop, seg};
use crate::debug::dr6;
use crate::exec::Uop;
use crate::host::{AVX, SSE, X87};

/// CR0 bits that exist.
const CR0_DEFINED: u64 = cr0::PE
    | cr0::MP
    | cr0::EM
    | cr0::TS
    | cr0::ET
    | cr0::NE
    | cr0::WP
    | cr0::AM
    | cr0::NW
    | cr0::CD
    | cr0::PG;
/// CR3 bit 63 with PCIDs: keep the translations of the new address space.
const KEEP: u64 = 1 << 63;
/// A present page-directory-pointer entry of legacy PAE paging must not have these set, nor any above the physical width.
const PDPTE_RESERVED: u64 = 0x1e6;

/// Writes a register at the width of MOV to and from CR and DR: 64 bits in 64-bit mode, else 32.
fn set_register(cpu: &mut Cpu, r: u8, v: u64) {
    let v = if cpu.mode.is64() { v } else { v & 0xffff_ffff };
    cpu.regs.set(r, v);
}
fn register(cpu: &Cpu, r: u8) -> u64 {
    let v = cpu.regs.get(r);
    if cpu.mode.is64() { v } else { v & 0xffff_ffff }
}

/// #GP(0) above privilege level 0.
pub fn only_cpl0(cpu: &mut Cpu) -> Exec {
    if cpu.cpl != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

/// `mov reg, crN`: N in `src`.
pub fn read_cr(cpu: &mut Cpu, u: &Uop) -> Exec {
    only_cpl0(cpu)?;
    let v = match u.src {
        0 => cpu.ctl.cr0,
        2 => cpu.ctl.cr2,
        3 => cpu.ctl.cr3,
        4 => cpu.ctl.cr4,
        _ => cpu.apic.cr8(),
    };
    set_register(cpu, u.dst, v);
    Ok(())
}

/// `mov crN, reg`: N in `dst`.
pub fn write_cr(cpu: &mut Cpu, u: &Uop) -> Exec {
    only_cpl0(cpu)?;
    let v = register(cpu, u.src);
    match u.dst {
        0 => write_cr0(cpu, v),
        2 => {
            cpu.ctl.cr2 = v;
            Ok(())
        }
        3 => write_cr3(cpu, v),
        4 => write_cr4(cpu, v),
        _ if v > 15 => Err(cpu.gp(0)),
        _ => {
            cpu.apic.set_cr8(v);
            cpu.apic_changed();
            Ok(())
        }
    }
}

/// Legacy PAE paging is on with these values.
fn legacy_pae(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && efer & efer::LMA == 0
}

fn pdptes(cpu: &Cpu, cr3: u64) -> [u64; 4] {
    let table = cr3 & 0xffff_ffe0;
    std::array::from_fn(|i| cpu.read_pte64(table + 8 * i as u64))
}

impl Cpu {
    /// With legacy PAE paging on, takes the page-directory-pointer entries from memory: after state was loaded, which
    /// does not hold them.
    pub fn load_pdptes_from_memory(&mut self) {
        if legacy_pae(self.ctl.cr0, self.ctl.cr4, self.ctl.efer) {
            self.mmu.pdpte = pdptes(self, self.ctl.cr3);
        }
    }
}

/// Reads and checks the four page-directory-pointer entries at `cr3`; #GP(0) for reserved bits.
pub fn read_pdptes(cpu: &mut Cpu, cr3: u64) -> Exec<[u64; 4]> {
    let reserved = PDPTE_RESERVED | !(((1u64 << cpu.shared.physical_bits) - 1) | 0xfff);
    let entries = pdptes(cpu, cr3);
    if entries.iter().any(|e| e & 1 != 0 && e & reserved != 0) {
        return Err(cpu.gp(0));
    }
    Ok(entries)
}

/// Loads CR3, and the PDPTEs if it is legacy PAE paging, as a task switch does.
pub fn load_root(cpu: &mut Cpu, cr3: u64, pdptes: Option<[u64; 4]>) {
    cpu.ctl.cr3 = cr3;
    if let Some(p) = pdptes {
        cpu.mmu.pdpte = p;
    }
    cpu.mmu.flush_non_global();
}

/// MOV to CR0, LMSW.
pub fn write_cr0(cpu: &mut Cpu, v: u64) -> Exec {
    let invalid = v >> 32 != 0
        || v & cr0::PG != 0 && v & cr0::PE == 0
        || v & cr0::NW != 0 && v & cr0::CD == 0
        || v & cr0::PG == 0 && cpu.ctl.cr4 & cr4::PCIDE != 0;
    if invalid {
        return Err(cpu.gp(0));
    }
    let new = v & CR0_DEFINED | cr0::ET;
    let changed = new ^ cpu.ctl.cr0;
    let mut efer = cpu.ctl.efer;
    let long_code = cpu.seg[seg::CS as usize].attributes & Segment::L != 0;
    if changed & cr0::PG != 0 && efer & efer::LME != 0 {
        // Entering or leaving long mode (SDM vol. 3A, 9.8.5).
        let entering = new & cr0::PG != 0;
        if long_code || entering && (cpu.ctl.cr4 & cr4::PAE == 0 || !tss::is_wide(cpu)) {
            return Err(cpu.gp(0));
        }
        efer ^= efer::LMA;
    }
    let reload = changed & (cr0::PG | cr0::CD | cr0::NW) != 0 && legacy_pae(new, cpu.ctl.cr4, efer);
    if reload {
        cpu.mmu.pdpte = read_pdptes(cpu, cpu.ctl.cr3)?;
    }
    cpu.ctl.cr0 = new;
    cpu.ctl.efer = efer;
    if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 || reload {
        cpu.mmu.flush_all();
    }
    cpu.mode_changed();
    Ok(())
}

/// The process-context identifier in CR3.
const PCID: u16 = 0xfff;

impl Cpu {
    /// The process-context identifier of the address space in use.
    pub fn pcid(&self) -> u16 {
        if self.ctl.cr4 & cr4::PCIDE != 0 { self.ctl.cr3 as u16 & PCID } else { 0 }
    }
}

fn write_cr3(cpu: &mut Cpu, v: u64) -> Exec {
    let pcid = cpu.ctl.cr4 & cr4::PCIDE != 0;
    let keep = pcid && v & KEEP != 0;
    let v = if pcid { v & !KEEP } else { v };
    if cpu.long_mode() && v >> cpu.shared.physical_bits != 0 {
        return Err(cpu.gp(0));
    }
    if legacy_pae(cpu.ctl.cr0, cpu.ctl.cr4, cpu.ctl.efer) {
        cpu.mmu.pdpte = read_pdptes(cpu, v)?;
    }
    let (from, to) = (cpu.pcid(), if pcid { v as u16 & PCID } else { 0 });
    if !keep {
        cpu.mmu.forget_space(to);
    }
    if from != to {
        cpu.mmu.switch_space(from, to);
    } else if !keep {
        cpu.mmu.flush_non_global();
    }
    cpu.ctl.cr3 = v;
    Ok(())
}

/// CR4 bits that the CPU model has; all others raise #GP(0) when set.
pub fn cr4_allowed(has: impl Fn(Feature) -> bool) -> u64 {
    let bits = [
        (Feature::Tsc, cr4::TSD),
        (Feature::De, cr4::DE),
        (Feature::Pse, cr4::PSE),
        (Feature::Pae, cr4::PAE),
        (Feature::Mce, cr4::MCE),
        (Feature::Pge, cr4::PGE),
        (Feature::Fxsr, cr4::OSFXSR),
        (Feature::Sse, cr4::OSXMMEXCPT),
        (Feature::Umip, cr4::UMIP),
        (Feature::Fsgsbase, cr4::FSGSBASE),
        (Feature::Pcid, cr4::PCIDE),
        (Feature::Xsave, cr4::OSXSAVE),
        (Feature::Smep, cr4::SMEP),
        (Feature::Smap, cr4::SMAP),
    ];
    // CR4.PCE belongs to RDPMC, which every model has (without counters).
    bits.iter().filter(|(f, _)| has(*f)).fold(cr4::PCE, |all, (_, bit)| all | bit)
}

fn write_cr4(cpu: &mut Cpu, v: u64) -> Exec {
    let old = cpu.ctl.cr4;
    let changed = v ^ old;
    let pcid_on = changed & v & cr4::PCIDE != 0;
    let invalid = v & !cr4_allowed(|f| cpu.model.has(f)) != 0
        || cpu.long_mode() && v & cr4::PAE == 0
        || pcid_on && (!cpu.long_mode() || cpu.ctl.cr3 & 0xfff != 0);
    if invalid {
        return Err(cpu.gp(0));
    }
    let reload = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
    if changed & reload != 0 && legacy_pae(cpu.ctl.cr0, v, cpu.ctl.efer) {
        cpu.mmu.pdpte = read_pdptes(cpu, cpu.ctl.cr3)?;
    }
    cpu.ctl.cr4 = v;
    if changed & (reload | cr4::SMAP | cr4::PCIDE) != 0 {
        cpu.mmu.flush_all();
    }
    cpu.mode_changed();
    Ok(())
}

/// `clts`.
pub fn clts(cpu: &mut Cpu, _: &Uop) -> Exec {
    only_cpl0(cpu)?;
    cpu.ctl.cr0 &= !cr0::TS;
    Ok(())
}

/// `lmsw r/m16`: MP, EM, TS and, never clearing it, PE. `aux` = 1: memory operand.
pub fn lmsw(cpu: &mut Cpu, u: &Uop) -> Exec {
    only_cpl0(cpu)?;
    let v = u64::from(super::operand16(cpu, u)?);
    let low = cr0::PE | cr0::MP | cr0::EM | cr0::TS;
    let old = cpu.ctl.cr0;
    write_cr0(cpu, old & !low | v & low | old & cr0::PE)
}

/// Status bits of DR6 that can be written; all others read as one, but bit 12 and the upper half, which read as zero.
const DR6_WRITABLE: u64 = 0xe00f;
const DR6_ONES: u64 = 0xffff_0ff0;
/// Control bits of DR7; bit 10 reads as one.
const DR7_WRITABLE: u64 = 0xffff_23ff;
const DR7_ONE: u64 = 1 << 10;
/// Debug registers raise #DB when accessed.
pub const DR7_GD: u64 = 1 << 13;

/// Checks common to both directions; gives the register number with the aliases of DR6 and DR7 resolved.
fn debug_register(cpu: &mut Cpu, n: u8) -> Exec<u8> {
    if matches!(n, 4 | 5) && cpu.ctl.cr4 & cr4::DE != 0 {
        return Err(cpu.ud());
    }
    only_cpl0(cpu)?;
    if cpu.debug.dr7 & DR7_GD != 0 {
        cpu.debug_exception(dr6::BD);
        // A fault like others, but that #DB does not imply it: RF is set in the flags that are pushed.
        cpu.eflags |= rflags::RF;
        return Err(Stop::Fault);
    }
    Ok(if matches!(n, 4 | 5) { n + 2 } else { n })
}

/// `mov reg, drN`: N in `src`.
pub fn read_dr(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = match debug_register(cpu, u.src)? {
        6 => cpu.debug.dr6,
        7 => cpu.debug.dr7,
        n => cpu.debug.address[usize::from(n & 3)],
    };
    set_register(cpu, u.dst, v);
    Ok(())
}

/// `mov drN, reg`: N in `dst`.
pub fn write_dr(cpu: &mut Cpu, u: &Uop) -> Exec {
    let n = debug_register(cpu, u.dst)?;
    let v = register(cpu, u.src);
    if n >= 6 && v >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    match n {
        6 => cpu.debug.dr6 = v & DR6_WRITABLE | DR6_ONES,
        7 => cpu.debug.dr7 = v & DR7_WRITABLE | DR7_ONE,
        n => cpu.debug.address[usize::from(n & 3)] = v,
    }
    if n != 6 && cpu.breakpoints_changed() {
        cpu.rip = cpu.next_rip(u);
        return Err(Stop::Yield);
    }
    Ok(())
}

/// `xgetbv`.
pub fn xgetbv(cpu: &mut Cpu, _: &Uop) -> Exec {
    if cpu.ctl.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    // XCR1 is the part of XCR0 that is in use; a processor may always say all of it.
    let v = match cpu.regs.get(gpr::RCX) as u32 {
        0 => cpu.ctl.xcr0,
        1 if cpu.model.has(Feature::Xgetbv1) => cpu.ctl.xcr0,
        _ => return Err(cpu.gp(0)),
    };
    super::set_edx_eax(cpu, v);
    Ok(())
}

/// `xsetbv`.
pub fn xsetbv(cpu: &mut Cpu, _: &Uop) -> Exec {
    if cpu.ctl.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    only_cpl0(cpu)?;
    let v = super::edx_eax(cpu);
    let invalid = cpu.regs.get(gpr::RCX) as u32 != 0
        || v & X87 == 0
        || v & !cpu.model.xcr0_mask() != 0
        || v & AVX != 0 && v & SSE == 0;
    if invalid {
        return Err(cpu.gp(0));
    }
    cpu.ctl.xcr0 = v;
    cpu.mode_changed();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cr4_has_the_bits_of_the_model_only() {
        let bare = cr4_allowed(|_| false);
        assert_eq!(bare, cr4::PCE);
        let smep = cr4_allowed(|f| f == Feature::Smep);
        assert_eq!(smep, cr4::PCE | cr4::SMEP);
        assert_eq!(cr4_allowed(|_| true) & cr4::VME, 0);
    }

    #[test]
    fn legacy_pae_is_paging_and_pae_without_long_mode() {
        assert!(legacy_pae(cr0::PG, cr4::PAE, 0));
        assert!(legacy_pae(cr0::PG, cr4::PAE, efer::LME));
        assert!(!legacy_pae(cr0::PG, cr4::PAE, efer::LMA));
        assert!(!legacy_pae(0, cr4::PAE, 0));
        assert!(!legacy_pae(cr0::PG, 0, 0));
    }
}
