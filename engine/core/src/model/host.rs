//! What this host's own processor is.

use std::sync::OnceLock;

use vireo_isa::FeatureSet;

use super::Vendor;

#[cfg(target_arch = "x86_64")]
fn raw(leaf: u32, subleaf: u32) -> [u32; 4] {
    let r = core::arch::x86_64::__cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Another architecture has no x86 processor: no features, and guests look like Intel's.
#[cfg(not(target_arch = "x86_64"))]
fn raw(_: u32, _: u32) -> [u32; 4] {
    [0; 4]
}

/// CPUID of the host, zero above the highest leaf.
fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    if leaf <= raw(leaf & 0x8000_0000, 0)[0] { raw(leaf, subleaf) } else { [0; 4] }
}

/// The guests' vendor on this host. Hygon's processors are AMD's; whatever else there may be follows Intel.
pub fn vendor() -> Vendor {
    let [_, ebx, ecx, edx] = cpuid(0, 0);
    let id: Vec<u8> = [ebx, edx, ecx].into_iter().flat_map(u32::to_le_bytes).collect();
    if id == Vendor::Amd.id() || id == b"HygonGenuine" { Vendor::Amd } else { Vendor::Intel }
}

/// Features of the host's processor. Read once: CPUID traps under a hypervisor and costs microseconds there.
pub fn features() -> FeatureSet {
    static FEATURES: OnceLock<FeatureSet> = OnceLock::new();
    *FEATURES.get_or_init(|| FeatureSet::from_cpuid(cpuid))
}
