//! The models there are.

use vireo_isa::Feature::{self, *};
use vireo_isa::FeatureSet;

use super::{CpuModel, Speculation, Vendor};

/// Names of [`MODELS`], the default first.
pub const NAMES: &[&str] = &["vireo-v2", "vireo-v2-pcid", "vireo-v3", "vireo-v3-pcid"];

/// One version of a model, before it has a vendor.
pub struct Definition {
    name: &'static str,
    version: u32,
    description: &'static str,
    brand: &'static str,
    features: &'static [&'static [Feature]],
    /// Family, model and stepping as CPUID.1:EAX of an Intel processor with these features.
    ///
    /// User code chooses code paths by these numbers alone (GCC's `target_clones` takes a model with AVX for proof of AVX),
    /// so they must not promise more than the features say.
    intel: u32,
    physical_bits: u32,
}

/// 06_2CH, Westmere: the last one without AVX. Kernels find its weaknesses cured by ARCH_CAPABILITIES.
const WESTMERE: u32 = 0x0002_06c2;
/// 06_4FH, Broadwell's server: the last one with AVX2 and without AVX-512.
const BROADWELL: u32 = 0x0004_06f1;
/// AMD family 1Fh, which no processor has: software goes by the features, and no list of weaknesses names it.
const AMD: u32 = 0x0100_0f11;

const MODELS: &[Definition] = &[
    Definition {
        name: "vireo-v2",
        version: 1,
        description: "x86-64-v2 with AES, BMI, XSAVE, SMEP, SMAP, x2APIC; runs on any host since about 2015",
        brand: "Vireo Virtual Processor (x86-64-v2)",
        features: &[V2],
        intel: WESTMERE,
        physical_bits: 40,
    },
    Definition {
        name: "vireo-v2-pcid",
        version: 1,
        description: "vireo-v2 with PCID and INVPCID; Intel hosts since 2013, AMD hosts since Zen 3",
        brand: "Vireo Virtual Processor (x86-64-v2)",
        features: &[V2, PCID],
        intel: WESTMERE,
        physical_bits: 40,
    },
    Definition {
        name: "vireo-v3",
        version: 1,
        description: "vireo-v2 with AVX, AVX2, FMA and F16C (x86-64-v3); Intel hosts since 2013, AMD hosts since 2017",
        brand: "Vireo Virtual Processor (x86-64-v3)",
        features: &[V2, AVX],
        intel: BROADWELL,
        physical_bits: 40,
    },
    Definition {
        name: "vireo-v3-pcid",
        version: 1,
        description: "vireo-v3 with PCID and INVPCID; Intel hosts since 2013, AMD hosts since Zen 3",
        brand: "Vireo Virtual Processor (x86-64-v3)",
        features: &[V2, AVX, PCID],
        intel: BROADWELL,
        physical_bits: 40,
    },
];

const PCID: &[Feature] = &[Pcid, Invpcid];
const AVX: &[Feature] = &[Avx, Avx2, Fma, F16c];

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
            signature: if vendor == Vendor::Intel { self.intel } else { AMD },
            brand: self.brand,
            features: FeatureSet::of(&self.features.concat()),
            physical_bits: self.physical_bits,
            virtual_bits: 48,
            speculation: Speculation::not_affected(vendor),
            hypervisor: None,
        }
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
