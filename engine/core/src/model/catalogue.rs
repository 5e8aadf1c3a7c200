//! The models there are.

use vireo_isa::Feature::{self, *};
use vireo_isa::FeatureSet;

use super::{CpuModel, Speculation, Vendor};

/// Names of [`MODELS`], best first.
pub const NAMES: &[&str] = &["vireo-v2"];

/// One version of a model, before it has a vendor.
pub struct Definition {
    name: &'static str,
    version: u32,
    description: &'static str,
    brand: &'static str,
    features: &'static [Feature],
    physical_bits: u32,
}

const MODELS: &[Definition] = &[Definition {
    name: "vireo-v2",
    version: 1,
    description: "x86-64-v2 with AES, BMI, XSAVE, PCID, SMEP, SMAP, x2APIC; runs on any host since about 2015",
    brand: "Vireo Virtual Processor (x86-64-v2)",
    features: V2,
    physical_bits: 40,
}];

/// VME is not listed: no engine has to redirect software interrupts of virtual-8086 mode. MONITOR is not: a guest
/// shall halt, so that the host learns of it.
const V2: &[Feature] = &[
    Fpu,
    De,
    Pse,
    Tsc,
    Msr,
    Pae,
    Mce,
    Cx8,
    Apic,
    Sysenter,
    Mtrr,
    Pge,
    Mca,
    Cmov,
    Pat,
    Pse36,
    Clflush,
    Mmx,
    Fxsr,
    Sse,
    Sse2,
    Htt,
    Sse3,
    Pclmul,
    Ssse3,
    Cx16,
    Pcid,
    Sse41,
    Sse42,
    X2apic,
    Movbe,
    Popcnt,
    TscDeadline,
    Aes,
    Xsave,
    Rdrand,
    Hypervisor,
    Arat,
    Fsgsbase,
    TscAdjust,
    Bmi1,
    Smep,
    Bmi2,
    Erms,
    Invpcid,
    Rdseed,
    Smap,
    Clflushopt,
    Umip,
    Rdpid,
    Fsrm,
    Xsaveopt,
    LahfLm,
    Lzcnt,
    Prefetchw,
    Syscall,
    Nx,
    Pdpe1gb,
    Rdtscp,
    Lm,
    InvariantTsc,
];

/// Features that are instructions on registers or user memory: the software engine executes them on the host. All
/// others it implements itself, or every x86-64 host has them.
pub const EXECUTED_BY_HOST: &[Feature] = &[
    Sse3, Pclmul, Ssse3, Fma, Cx16, Sse41, Sse42, Movbe, Popcnt, Aes, Avx, F16c, Rdrand, Bmi1, Avx2, Bmi2,
    Rdseed, Adx, Sha, LahfLm, Lzcnt,
];

/// The newest version of a model.
pub fn find(name: &str) -> Option<&'static Definition> {
    MODELS.iter().find(|m| m.name == name)
}

impl Definition {
    /// The model, as a processor of the given vendor.
    pub fn build(&self, vendor: Vendor) -> CpuModel {
        CpuModel {
            name: self.name,
            version: self.version,
            description: self.description,
            vendor,
            signature: signature(vendor),
            brand: self.brand,
            features: FeatureSet::of(self.features),
            physical_bits: self.physical_bits,
            virtual_bits: 48,
            speculation: Speculation::not_affected(vendor),
        }
    }
}

/// Family, model and stepping decide which errata and vulnerabilities a guest works around. These two are not on
/// Linux's lists of affected processors, or only for issues that a bit in [`Speculation`] denies, and
/// have no errata for which Linux checks under a hypervisor (arch/x86/kernel/cpu/{common,intel,amd}.c).
fn signature(vendor: Vendor) -> u32 {
    match vendor {
        // Family 6, model 8Fh, stepping 8.
        Vendor::Intel => 0x0008_06f8,
        // Family 19h, model 11h, stepping 1.
        Vendor::Amd => 0x00a1_0f11,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_models() {
        assert_eq!(NAMES, MODELS.iter().map(|m| m.name).collect::<Vec<_>>());
    }
}
