//! The CPU model as KVM wants it: every leaf written out, and the check that this host can keep its promises.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use vireo_core::model::CpuidContext;
use vireo_core::{CpuModel, EngineError};
use vireo_isa::{CpuidReg, Feature};

use crate::sys;

/// Most leaves of a range and sub-leaves of a leaf that are written out; models have far fewer.
const MAX_LEAVES: u32 = 0x40;
const MAX_SUBLEAVES: u32 = 64;

/// All leaves of the model for one vCPU. KVM itself keeps the bits that follow the vCPU's state (OSXSAVE,
/// the APIC's presence, the size of the enabled XSAVE area).
pub fn entries(model: &CpuModel, context: &CpuidContext) -> Result<CpuId, EngineError> {
    let mut list = Vec::new();
    let mut bases = vec![0];
    if model.has(Feature::Hypervisor) {
        bases.push(0x4000_0000);
    }
    bases.push(0x8000_0000);
    for base in bases {
        let last = model.cpuid(base, 0, context)[0].clamp(base, base + MAX_LEAVES);
        (base..=last).for_each(|leaf| push_leaf(&mut list, model, context, leaf));
    }
    // An absent leaf reads as zero. An entry of zeros does not always: KVM adds the state of the vCPU to some.
    list.retain(|e| e.function == base_of(e.function) || [e.eax, e.ebx, e.ecx, e.edx] != [0; 4]);
    CpuId::from_entries(&list).map_err(|e| {
        EngineError::Internal(format!("a CPU model of {} CPUID entries does not fit KVM: {e:?}", list.len()))
    })
}

/// The first leaf of the range that a leaf belongs to.
fn base_of(leaf: u32) -> u32 {
    leaf & 0xf000_0000
}

fn push_leaf(list: &mut Vec<kvm_cpuid_entry2>, model: &CpuModel, context: &CpuidContext, leaf: u32) {
    let at = |sub: u32, flags: u32| {
        let [eax, ebx, ecx, edx] = model.cpuid(leaf, sub, context);
        kvm_cpuid_entry2 { function: leaf, index: sub, flags, eax, ebx, ecx, edx, ..Default::default() }
    };
    let indexed = |sub| at(sub, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
    match leaf {
        // Cache levels: up to and with the first of type "none".
        4 | 0x8000_001d => {
            for sub in 0..MAX_SUBLEAVES {
                list.push(indexed(sub));
                if list.last().is_some_and(|e| e.eax & 0x1f == 0) {
                    break;
                }
            }
        }
        7 => (0..=at(0, 0).eax.min(MAX_SUBLEAVES)).for_each(|sub| list.push(indexed(sub))),
        // Topology levels: up to and with the first of type "invalid".
        0xb | 0x1f => {
            for sub in 0..MAX_SUBLEAVES {
                list.push(indexed(sub));
                if list.last().is_some_and(|e| e.ecx >> 8 & 0xff == 0) {
                    break;
                }
            }
        }
        0xd => {
            (0..MAX_SUBLEAVES).map(indexed).filter(|e| e.index < 2 || e.eax != 0).for_each(|e| list.push(e))
        }
        _ => list.push(at(0, 0)),
    }
}

/// Features of the model that this host's KVM cannot give a guest.
pub fn missing(kvm: &Kvm, model: &CpuModel) -> Result<Vec<Feature>, EngineError> {
    let host = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(sys::os("asking KVM for the CPU features it supports"))?;
    Ok(Feature::ALL.iter().copied().filter(|&f| model.has(f) && !provided(kvm, host.as_slice(), f)).collect())
}

fn provided(kvm: &Kvm, host: &[kvm_cpuid_entry2], feature: Feature) -> bool {
    let Some(bit) = feature.cpuid() else { return true };
    match feature {
        // Statements about the machine, which we make, hints about speed that promise no behaviour, and abilities of
        // the in-kernel APIC, which do not hang on the host's processor (api.rst, KVM_GET_SUPPORTED_CPUID).
        Feature::Hypervisor
        | Feature::Htt
        | Feature::Arat
        | Feature::InvariantTsc
        | Feature::Erms
        | Feature::Fsrm => true,
        Feature::TscDeadline => kvm.check_extension(kvm_ioctls::Cap::TscDeadlineTimer),
        _ => host.iter().any(|e| {
            let word = match bit.reg {
                CpuidReg::Eax => e.eax,
                CpuidReg::Ebx => e.ebx,
                CpuidReg::Ecx => e.ecx,
                CpuidReg::Edx => e.edx,
            };
            e.function == bit.leaf && e.index == bit.subleaf && word >> bit.bit & 1 != 0
        }),
    }
}
