//! Model-specific registers: those without another home, and RDMSR and WRMSR (SDM vol. 4).
//!
//! Which MSRs there are, and what may be written to them, is the CPU model's word. What the model does not know goes to
//! the local APIC or to the board.

use vireo_core::model::{MsrAccess, MsrContract};
use vireo_core::state::{MsrEntry, MsrList, cr0, efer, msr as index};
use vireo_core::{CpuModel, EngineError, MsrFault};

use super::control::only_cpl0;
use super::processor::Spin;
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, seg};
use crate::exec::Uop;

/// The MSRs that only have a value. Those that instructions use have a field, the others are in a list.
#[derive(Clone, Debug)]
pub struct MsrFile {
    /// Selectors (and, outside long mode, EIP) of SYSCALL and SYSRET.
    pub star: u64,
    /// RIP of SYSCALL from 64-bit code.
    pub lstar: u64,
    /// RIP of SYSCALL from compatibility mode (AMD).
    pub cstar: u64,
    /// Flags that SYSCALL clears.
    pub syscall_mask: u64,
    /// What SWAPGS exchanges with the base of GS.
    pub kernel_gs_base: u64,
    /// CS of SYSENTER.
    pub sysenter_cs: u64,
    /// RSP of SYSENTER.
    pub sysenter_esp: u64,
    /// RIP of SYSENTER.
    pub sysenter_eip: u64,
    /// What RDTSCP and RDPID give.
    pub tsc_aux: u64,
    /// PAUSE counting; not guest state.
    pub spin: Spin,
    others: MsrList,
}

/// MSRs with a field.
const FIELDS: [u32; 9] = [
    index::SYSENTER_CS,
    index::SYSENTER_ESP,
    index::SYSENTER_EIP,
    index::STAR,
    index::LSTAR,
    index::CSTAR,
    index::SYSCALL_MASK,
    index::KERNEL_GS_BASE,
    index::TSC_AUX,
];

impl MsrFile {
    /// All MSRs of the model at their values after RESET.
    pub fn new(model: &CpuModel) -> Self {
        let mut file = Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            syscall_mask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
            spin: Spin::default(),
            others: MsrList::default(),
        };
        for c in model.msrs().into_iter().filter(|c| c.plain) {
            file.set(c.index, c.reset);
        }
        file
    }

    /// The field of an MSR that has one.
    fn field(&mut self, i: u32) -> Option<&mut u64> {
        Some(match i {
            index::STAR => &mut self.star,
            index::LSTAR => &mut self.lstar,
            index::CSTAR => &mut self.cstar,
            index::SYSCALL_MASK => &mut self.syscall_mask,
            index::KERNEL_GS_BASE => &mut self.kernel_gs_base,
            index::SYSENTER_CS => &mut self.sysenter_cs,
            index::SYSENTER_ESP => &mut self.sysenter_esp,
            index::SYSENTER_EIP => &mut self.sysenter_eip,
            index::TSC_AUX => &mut self.tsc_aux,
            _ => return None,
        })
    }

    fn get(&mut self, i: u32) -> u64 {
        match self.field(i) {
            Some(v) => *v,
            None => self.others.get(i).unwrap_or(0),
        }
    }

    fn set(&mut self, i: u32, value: u64) {
        match self.field(i) {
            Some(v) => *v = value,
            None => self.others.set(i, value),
        }
    }

    /// Whether it holds this MSR.
    pub fn knows(&self, i: u32) -> bool {
        FIELDS.contains(&i) || self.others.get(i).is_some()
    }

    /// All values.
    pub fn to_list(&self) -> MsrList {
        let mut file = self.clone();
        let mut list = file.others.clone();
        for i in FIELDS {
            list.set(i, file.get(i));
        }
        list
    }

    /// Takes the values of a list that [`MsrFile::check`] passed; MSRs that it holds and the list leaves out stay.
    pub fn load(&mut self, list: &MsrList) {
        for e in &list.0 {
            if self.knows(e.index) {
                self.set(e.index, e.value);
            }
        }
    }

    /// Refuses a list with an MSR that the model does not have, or a value that it cannot hold.
    pub fn check(model: &CpuModel, list: &MsrList) -> Result<(), EngineError> {
        let holds = |e: &&MsrEntry| {
            // Zero is what an MSR that the model lacks has at reset.
            model.msr(e.index).map_or(e.value == 0, |c| match c.access {
                MsrAccess::ReadWrite => c.write(c.reset, e.value) == Ok(e.value),
                _ => e.value == c.reset,
            })
        };
        match list.0.iter().find(|e| !holds(e)) {
            None => Ok(()),
            Some(e) => {
                let why =
                    format!("MSR {:#x} cannot hold {:#x} in CPU model {}", e.index, e.value, model.name());
                Err(EngineError::BadState(why))
            }
        }
    }
}

/// MSRs of the local APIC.
fn is_apic(i: u32) -> bool {
    matches!(i, index::APIC_BASE | index::TSC_DEADLINE | index::X2APIC_FIRST..=index::X2APIC_LAST)
}

/// `rdmsr`.
pub fn rdmsr(cpu: &mut Cpu, _: &Uop) -> Exec {
    only_cpl0(cpu)?;
    let i = cpu.regs.get(gpr::RCX) as u32;
    match read(cpu, i) {
        Ok(v) => {
            super::set_edx_eax(cpu, v);
            Ok(())
        }
        Err(MsrFault) => Err(cpu.gp(0)),
    }
}

/// `wrmsr`.
pub fn wrmsr(cpu: &mut Cpu, _: &Uop) -> Exec {
    only_cpl0(cpu)?;
    let i = cpu.regs.get(gpr::RCX) as u32;
    let v = super::edx_eax(cpu);
    write(cpu, i, v).map_err(|MsrFault| cpu.gp(0))
}

fn read(cpu: &mut Cpu, i: u32) -> Result<u64, MsrFault> {
    if is_apic(i) {
        return cpu.apic_msr_read(i);
    }
    let Some(c) = cpu.model.msr(i) else { return cpu.bus().msr_read(cpu.index, i) };
    let v = if c.plain { cpu.msr.get(i) } else { engine_value(cpu, i) };
    c.read(v)
}

/// The value of an MSR that is more than a value.
fn engine_value(cpu: &Cpu, i: u32) -> u64 {
    match i {
        index::TSC => cpu.tsc(),
        index::TSC_ADJUST => cpu.tsc_adjust,
        index::EFER => cpu.ctl.efer,
        index::FS_BASE => cpu.seg[seg::FS as usize].base,
        index::GS_BASE => cpu.seg[seg::GS as usize].base,
        _ => 0,
    }
}

fn write(cpu: &mut Cpu, i: u32, v: u64) -> Result<(), MsrFault> {
    if is_apic(i) {
        return cpu.apic_msr_write(i, v);
    }
    let Some(c) = cpu.model.msr(i) else { return cpu.bus().msr_write(cpu.index, i, v) };
    if c.plain {
        let new = c.write(cpu.msr.get(i), v)?;
        cpu.msr.set(i, new);
        return Ok(());
    }
    write_engine(cpu, &c, v)
}

fn write_engine(cpu: &mut Cpu, c: &MsrContract, v: u64) -> Result<(), MsrFault> {
    let new = c.write(engine_value(cpu, c.index), v)?;
    match c.index {
        // Both set the same distance to the partition's counter (SDM vol. 3B, 18.17.3).
        index::TSC => move_tsc(cpu, new.wrapping_sub(cpu.tsc())),
        index::TSC_ADJUST => move_tsc(cpu, new.wrapping_sub(cpu.tsc_adjust)),
        index::EFER => return write_efer(cpu, new),
        index::FS_BASE => set_base(cpu, seg::FS, new),
        index::GS_BASE => set_base(cpu, seg::GS, new),
        _ => {}
    }
    Ok(())
}

/// Moves this vCPU's counter; the local APIC's timer, which is kept in its values, goes along.
fn move_tsc(cpu: &mut Cpu, delta: u64) {
    cpu.tsc_adjust = cpu.tsc_adjust.wrapping_add(delta);
    cpu.time_changed();
    cpu.apic.tsc_moved(delta);
    cpu.apic_changed();
}

fn set_base(cpu: &mut Cpu, reg: u8, v: u64) {
    cpu.seg[reg as usize].base = v;
    cpu.mode_changed();
}

fn write_efer(cpu: &mut Cpu, new: u64) -> Result<(), MsrFault> {
    let changed = new ^ cpu.ctl.efer;
    if changed & efer::LME != 0 && cpu.ctl.cr0 & cr0::PG != 0 {
        return Err(MsrFault);
    }
    cpu.ctl.efer = new;
    if changed & efer::NXE != 0 {
        cpu.mmu.flush_all();
    }
    cpu.mode_changed();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_core::model::Vendor;

    fn model() -> std::sync::Arc<CpuModel> {
        CpuModel::for_vendor("vireo-v2", Vendor::Intel).expect("the model exists")
    }

    #[test]
    fn every_value_survives_saving_and_loading() {
        let m = model();
        let mut file = MsrFile::new(&m);
        file.lstar = 0xffff_ffff_8100_0000;
        file.kernel_gs_base = 0xffff_8880_0000_0000;
        file.set(index::PAT, 0x0407_0506_0007_0106);
        let list = file.to_list();
        assert_eq!(list.get(index::EFER), None);
        MsrFile::check(&m, &list).expect("own state is good");
        let mut back = MsrFile::new(&m);
        back.load(&list);
        assert_eq!((back.lstar, back.kernel_gs_base), (file.lstar, file.kernel_gs_base));
        assert_eq!(back.to_list(), list);
    }

    #[test]
    fn fields_and_list_agree() {
        let mut file = MsrFile::new(&model());
        for i in FIELDS {
            assert!(file.field(i).is_some() && file.knows(i), "{i:#x}");
        }
        assert!(file.knows(index::PAT) && !file.knows(index::EFER) && !file.knows(index::TSC));
    }

    #[test]
    fn the_reset_state_is_good() {
        use vireo_core::state::Element;
        MsrFile::check(&model(), &MsrList::at_reset(0)).expect("reset values are allowed");
    }

    #[test]
    fn values_that_no_processor_can_have_are_refused() {
        let m = model();
        for (i, v) in [(index::LSTAR, 1 << 63), (index::PAT, 2), (0x1234_5678, 1), (index::MCG_CAP, 1)] {
            let mut list = MsrList::default();
            list.set(i, v);
            assert!(MsrFile::check(&m, &list).is_err(), "{i:#x}");
        }
    }

    #[test]
    fn the_local_apic_has_its_own() {
        assert!(is_apic(0x1b) && is_apic(0x6e0) && is_apic(0x800) && is_apic(0x8ff));
        assert!(!is_apic(0x900) && !is_apic(index::EFER));
    }
}
