//! CPU features: what a CPU model can list, and where CPUID reports it.

use std::fmt;

/// An output register of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CpuidReg {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// The place of a feature in CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CpuidBit {
    /// Input EAX.
    pub leaf: u32,
    /// Input ECX.
    pub subleaf: u32,
    /// Output register.
    pub reg: CpuidReg,
    /// Bit in it, 0-31.
    pub bit: u8,
}

macro_rules! features {
    ($($name:ident = ($leaf:expr, $sub:expr, $reg:ident, $bit:expr) $doc:literal;)*) => {
        /// A feature of a CPU model. The discriminant is an index below 128, not stable between versions:
        /// store CPUID bits or names, never these numbers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Feature {
            /// In every model: the 486 instruction set, CPUID, multi-byte NOPs. It has no CPUID bit.
            Base,
            $(#[doc = $doc] $name,)*
        }

        impl Feature {
            /// All features, in order.
            pub const ALL: &'static [Feature] = &[Feature::Base, $(Feature::$name,)*];

            /// Where CPUID reports it (SDM vol. 2A "CPUID"; AMD APM vol. 3 appendix E for 8000_xxxxh).
            /// `None` for [`Feature::Base`]. AMD processors mirror part of leaf 1 EDX in leaf
            /// 8000_0001h EDX: that copy is the CPU model's affair.
            #[must_use]
            pub const fn cpuid(self) -> Option<CpuidBit> {
                match self {
                    Feature::Base => None,
                    $(Feature::$name => Some(CpuidBit {
                        leaf: $leaf, subleaf: $sub, reg: CpuidReg::$reg, bit: $bit,
                    }),)*
                }
            }
        }
    };
}

features! {
    Fpu = (1, 0, Edx, 0) "x87 unit.";
    De = (1, 0, Edx, 2) "Debugging extensions (CR4.DE).";
    Pse = (1, 0, Edx, 3) "4 MiB pages.";
    Tsc = (1, 0, Edx, 4) "RDTSC.";
    Msr = (1, 0, Edx, 5) "RDMSR, WRMSR.";
    Pae = (1, 0, Edx, 6) "Physical address extension.";
    Mce = (1, 0, Edx, 7) "Machine-check exception.";
    Cx8 = (1, 0, Edx, 8) "CMPXCHG8B.";
    Apic = (1, 0, Edx, 9) "Local APIC.";
    Sysenter = (1, 0, Edx, 11) "SYSENTER, SYSEXIT (SEP).";
    Mtrr = (1, 0, Edx, 12) "Memory type range registers.";
    Pge = (1, 0, Edx, 13) "Global pages.";
    Mca = (1, 0, Edx, 14) "Machine-check architecture.";
    Cmov = (1, 0, Edx, 15) "CMOVcc, FCMOVcc, FCOMI.";
    Pat = (1, 0, Edx, 16) "Page attribute table.";
    Pse36 = (1, 0, Edx, 17) "4 MiB pages above 4 GiB.";
    Clflush = (1, 0, Edx, 19) "CLFLUSH.";
    Mmx = (1, 0, Edx, 23) "MMX.";
    Fxsr = (1, 0, Edx, 24) "FXSAVE, FXRSTOR.";
    Sse = (1, 0, Edx, 25) "SSE.";
    Sse2 = (1, 0, Edx, 26) "SSE2.";
    Htt = (1, 0, Edx, 28) "More than one logical processor in the package.";
    Sse3 = (1, 0, Ecx, 0) "SSE3.";
    Pclmul = (1, 0, Ecx, 1) "PCLMULQDQ.";
    Monitor = (1, 0, Ecx, 3) "MONITOR, MWAIT.";
    Ssse3 = (1, 0, Ecx, 9) "SSSE3.";
    Fma = (1, 0, Ecx, 12) "FMA.";
    Cx16 = (1, 0, Ecx, 13) "CMPXCHG16B.";
    Pcid = (1, 0, Ecx, 17) "Process-context identifiers.";
    Sse41 = (1, 0, Ecx, 19) "SSE4.1.";
    Sse42 = (1, 0, Ecx, 20) "SSE4.2.";
    X2apic = (1, 0, Ecx, 21) "x2APIC mode.";
    Movbe = (1, 0, Ecx, 22) "MOVBE.";
    Popcnt = (1, 0, Ecx, 23) "POPCNT.";
    TscDeadline = (1, 0, Ecx, 24) "APIC timer in TSC-deadline mode.";
    Aes = (1, 0, Ecx, 25) "AES-NI.";
    Xsave = (1, 0, Ecx, 26) "XSAVE, XRSTOR, XGETBV, XSETBV.";
    Avx = (1, 0, Ecx, 28) "AVX.";
    F16c = (1, 0, Ecx, 29) "Half-precision conversions.";
    Rdrand = (1, 0, Ecx, 30) "RDRAND.";
    Hypervisor = (1, 0, Ecx, 31) "A hypervisor is present: VMCALL and VMMCALL are hypercalls.";
    Arat = (6, 0, Eax, 2) "The APIC timer always runs.";
    Fsgsbase = (7, 0, Ebx, 0) "RDFSBASE, WRFSBASE, RDGSBASE, WRGSBASE.";
    TscAdjust = (7, 0, Ebx, 1) "IA32_TSC_ADJUST.";
    Bmi1 = (7, 0, Ebx, 3) "BMI1; without it TZCNT executes as BSF.";
    Avx2 = (7, 0, Ebx, 5) "AVX2.";
    Smep = (7, 0, Ebx, 7) "Supervisor-mode execution prevention.";
    Bmi2 = (7, 0, Ebx, 8) "BMI2.";
    Erms = (7, 0, Ebx, 9) "Fast REP MOVSB and STOSB.";
    Invpcid = (7, 0, Ebx, 10) "INVPCID.";
    Rdseed = (7, 0, Ebx, 18) "RDSEED.";
    Adx = (7, 0, Ebx, 19) "ADCX, ADOX.";
    Smap = (7, 0, Ebx, 20) "Supervisor-mode access prevention: STAC, CLAC.";
    Clflushopt = (7, 0, Ebx, 23) "CLFLUSHOPT.";
    Clwb = (7, 0, Ebx, 24) "CLWB.";
    Sha = (7, 0, Ebx, 29) "SHA-1 and SHA-256.";
    Umip = (7, 0, Ecx, 2) "User-mode instruction prevention.";
    Rdpid = (7, 0, Ecx, 22) "RDPID.";
    Fsrm = (7, 0, Edx, 4) "Fast short REP MOVSB.";
    Xsaveopt = (0xd, 1, Eax, 0) "XSAVEOPT.";
    Xsavec = (0xd, 1, Eax, 1) "XSAVEC.";
    Xgetbv1 = (0xd, 1, Eax, 2) "XGETBV with ECX = 1.";
    Xsaves = (0xd, 1, Eax, 3) "XSAVES, XRSTORS.";
    LahfLm = (0x8000_0001, 0, Ecx, 0) "LAHF, SAHF in 64-bit mode.";
    Lzcnt = (0x8000_0001, 0, Ecx, 5) "LZCNT (ABM); without it LZCNT executes as BSR.";
    Prefetchw = (0x8000_0001, 0, Ecx, 8) "PREFETCH, PREFETCHW; without it 0F 0D of memory is a NOP all the same.";
    Syscall = (0x8000_0001, 0, Edx, 11) "SYSCALL, SYSRET.";
    Nx = (0x8000_0001, 0, Edx, 20) "No-execute pages.";
    Pdpe1gb = (0x8000_0001, 0, Edx, 26) "1 GiB pages.";
    Rdtscp = (0x8000_0001, 0, Edx, 27) "RDTSCP, IA32_TSC_AUX.";
    Lm = (0x8000_0001, 0, Edx, 29) "Long mode.";
    InvariantTsc = (0x8000_0007, 0, Edx, 8) "The TSC runs at a constant rate in all states.";
    Wbnoinvd = (0x8000_0008, 0, Ebx, 9) "WBNOINVD; without it executes as WBINVD.";
}

/// A set of features: the part of a CPU model that decides what executes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct FeatureSet(u128);

impl FeatureSet {
    /// [`Feature::Base`] alone.
    pub const BASE: FeatureSet = FeatureSet(1);

    /// Base and the given features.
    #[must_use]
    pub const fn of(features: &[Feature]) -> FeatureSet {
        let mut set = FeatureSet::BASE;
        let mut i = 0;
        while i < features.len() {
            set = set.with(features[i]);
            i += 1;
        }
        set
    }

    /// The features that a CPUID function reports; it is called as `cpuid(leaf, subleaf)` and returns
    /// `[eax, ebx, ecx, edx]`. A leaf above the maximum must read as zeroes.
    #[must_use]
    pub fn from_cpuid(mut cpuid: impl FnMut(u32, u32) -> [u32; 4]) -> FeatureSet {
        let mut set = FeatureSet::BASE;
        for &feature in Feature::ALL {
            if let Some(at) = feature.cpuid()
                && cpuid(at.leaf, at.subleaf)[at.reg as usize] >> at.bit & 1 != 0
            {
                set = set.with(feature);
            }
        }
        set
    }

    /// The bits this set contributes to `[eax, ebx, ecx, edx]` of one CPUID leaf.
    #[must_use]
    pub fn cpuid_bits(self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let mut out = [0; 4];
        for at in self.iter().filter_map(Feature::cpuid) {
            if (at.leaf, at.subleaf) == (leaf, subleaf) {
                out[at.reg as usize] |= 1 << at.bit;
            }
        }
        out
    }

    /// Is the feature in the set?
    #[must_use]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 >> feature as u32 & 1 != 0
    }

    /// The set with one feature more.
    #[must_use]
    pub const fn with(self, feature: Feature) -> FeatureSet {
        FeatureSet(self.0 | 1 << feature as u32)
    }

    /// The set with one feature less; [`Feature::Base`] stays.
    #[must_use]
    pub const fn without(self, feature: Feature) -> FeatureSet {
        FeatureSet(self.0 & !(1 << feature as u32) | 1)
    }

    /// The features in the set, in order.
    pub fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL.iter().copied().filter(move |&f| self.has(f))
    }
}

impl fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
