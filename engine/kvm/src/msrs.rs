//! The MSRs of the CPU model in KVM: which the guest may touch, which values they start with, which move with a vCPU.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd, VmFd};
use vireo_core::model::{MsrAccess, MsrContract, Speculation};
use vireo_core::state::{MsrEntry, MsrList, msr};
use vireo_core::{CpuModel, EngineError, MsrFault};

use crate::clock;
use crate::sys::os;

/// The ranges that have MSRs of processors: architectural, AMD64, AMD. (first, count)
const RANGES: [(u32, u32); 3] = [(0, 0x2000), (0xc000_0000, 0x2000), (0xc001_0000, 0x2000)];

/// Whether a contract is all there is to an MSR: it never changes, so KVM, which has its own idea of some of them (as of
/// MCG_CAP), need not be asked.
fn is_constant(c: &MsrContract) -> bool {
    c.plain && c.writable == 0
}

/// Lets the guest reach the MSRs of its model and of the local APIC in KVM, and sends all others to user space:
/// the model's constants, those that only KVM or the host's processor have, and those of paravirtual interfaces, which
/// are the board's.
pub fn set_filter(vm: &VmFd, model: &CpuModel) -> Result<(), EngineError> {
    let mut allowed: Vec<u32> = model.msrs().iter().filter(|c| !is_constant(c)).map(|c| c.index).collect();
    allowed.extend([msr::APIC_BASE, msr::TSC_DEADLINE]);
    let bitmaps = RANGES.map(|(base, count)| {
        let mut bits = vec![0u8; count as usize / 8];
        for bit in allowed.iter().filter_map(|i| i.checked_sub(base)).filter(|&bit| bit < count) {
            bits[bit as usize / 8] |= 1 << (bit % 8);
        }
        bits
    });
    let ranges: Vec<_> = RANGES
        .iter()
        .zip(&bitmaps)
        .map(|(&(base, msr_count), bitmap)| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count,
            bitmap,
        })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(os("setting the MSR filter"))
}

/// The MSRs of the model that KVM keeps, each with its contract.
#[derive(Debug)]
pub struct KnownMsrs(Vec<MsrContract>);

impl KnownMsrs {
    /// Asks KVM about each MSR of the model that can change.
    pub fn find(vcpu: &VcpuFd, model: &CpuModel) -> Self {
        let stateful =
            |c: &MsrContract| c.plain && c.access != MsrAccess::WriteOnly || c.index == msr::TSC_ADJUST;
        let known = |c: &MsrContract| clock::read_msr(vcpu, c.index).is_ok();
        Self(model.msrs().into_iter().filter(stateful).filter(known).collect())
    }

    fn movable(&self) -> impl Iterator<Item = &MsrContract> {
        self.0.iter().filter(|c| !is_constant(c))
    }

    /// Reads those that move with a vCPU.
    pub fn save(&self, vcpu: &VcpuFd) -> Result<MsrList, EngineError> {
        let wanted: Vec<_> =
            self.movable().map(|c| kvm_msr_entry { index: c.index, ..Default::default() }).collect();
        let mut msrs = list(&wanted)?;
        let got = vcpu.get_msrs(&mut msrs).map_err(os("reading MSRs"))?;
        if let Some(refused) = wanted.get(got) {
            return Err(EngineError::Internal(format!("KVM does not read MSR {:#x}", refused.index)));
        }
        Ok(MsrList(msrs.as_slice().iter().map(|e| MsrEntry { index: e.index, value: e.data }).collect()))
    }

    /// Sets them; those that the list does not have get their value after RESET.
    pub fn load(&self, vcpu: &VcpuFd, values: &MsrList) -> Result<(), EngineError> {
        let stranger = |e: &&MsrEntry| e.value != 0 && !self.0.iter().any(|c| c.index == e.index);
        if let Some(e) = values.0.iter().find(stranger) {
            return Err(EngineError::BadState(format!(
                "MSR {:#x} with the value {:#x} is not one that this CPU model keeps on KVM",
                e.index, e.value
            )));
        }
        let entries: Vec<_> = self
            .movable()
            .map(|c| {
                let data = values.get(c.index).unwrap_or(c.reset);
                kvm_msr_entry { index: c.index, data, ..Default::default() }
            })
            .collect();
        let set = vcpu.set_msrs(&list(&entries)?).map_err(os("setting MSRs"))?;
        match entries.get(set) {
            None => Ok(()),
            Some(e) => Err(EngineError::BadState(format!(
                "MSR {:#x} does not take the value {:#x}",
                e.index, e.data
            ))),
        }
    }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, EngineError> {
    Msrs::from_entries(entries).map_err(|e| EngineError::Internal(format!("building a list of MSRs: {e:?}")))
}

/// A constant of the model, or an MSR that KVM does not have: the contract alone answers, and nothing written is kept.
pub fn read_from_contract(model: &CpuModel, index: u32) -> Option<Result<u64, MsrFault>> {
    model.msr(index).map(|c| c.read(c.reset))
}

/// As [`read_from_contract`].
pub fn write_by_contract(model: &CpuModel, index: u32, value: u64) -> Option<Result<(), MsrFault>> {
    model.msr(index).map(|c| c.write(c.reset, value).map(drop))
}

/// What this host says about speculative execution.
pub fn host_speculation(kvm: &Kvm) -> Result<Speculation, EngineError> {
    let cpuid = kvm
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(os("asking KVM for the CPU features it supports"))?;
    let leaf = |function, index| {
        let found = cpuid.as_slice().iter().find(|e| e.function == function && e.index == index);
        found.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    };
    let mut feature = list(&[kvm_msr_entry { index: msr::ARCH_CAPABILITIES, ..Default::default() }])?;
    // Processors of AMD have none.
    let read = kvm.get_msrs(&mut feature).unwrap_or(0);
    Ok(Speculation {
        leaf7_edx: leaf(7, 0)[3],
        leaf7_2_edx: leaf(7, 2)[3],
        arch_capabilities: if read == 1 { feature.as_slice()[0].data } else { 0 },
        ext8_ebx: leaf(0x8000_0008, 0)[1],
        ext21_eax: leaf(0x8000_0021, 0)[0],
        ext21_ecx: leaf(0x8000_0021, 0)[2],
    })
}
