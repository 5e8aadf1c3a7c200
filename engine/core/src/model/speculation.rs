//! Side channels of speculative execution: what the processor says it is immune to, and what it offers against them.

use super::Vendor;

/// The bits by which a processor tells about speculation. The bits mean what SDM vol. 3, "IA32_ARCH_CAPABILITIES"
/// and CPUID leaf 7 say, or AMD APM vol. 3 for leaves 8000_0008h and 8000_0021h.
///
/// In the software engine no guest instruction runs speculatively under a guest's privilege: the processor
/// knows nothing of guest privilege levels, so the guest's own countermeasures (page-table isolation, buffer
/// clearing, retpolines, return thunks, branch-history loops) would cost time and protect nothing.
/// [`Speculation::not_affected`] makes Linux choose none of them. With KVM, narrow it to what the host says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speculation {
    /// Leaf 7 subleaf 0 EDX.
    pub leaf7_edx: u32,
    /// Leaf 7 subleaf 2 EDX.
    pub leaf7_2_edx: u32,
    /// IA32_ARCH_CAPABILITIES, present if leaf 7 EDX bit 29 is.
    pub arch_capabilities: u64,
    /// Leaf 8000_0008h EBX.
    pub ext8_ebx: u32,
    /// Leaf 8000_0021h EAX.
    pub ext21_eax: u32,
    /// Leaf 8000_0021h ECX.
    pub ext21_ecx: u32,
}

/// Leaf 7 EDX: IBRS and IBPB (SPEC_CTRL, PRED_CMD).
pub(super) const IBRS_IBPB: u32 = 1 << 26;
/// Leaf 7 EDX: STIBP.
pub(super) const STIBP: u32 = 1 << 27;
/// Leaf 7 EDX: IA32_ARCH_CAPABILITIES.
pub(super) const ARCH_CAPABILITIES: u32 = 1 << 29;
/// Leaf 7 EDX: SSBD.
pub(super) const SSBD: u32 = 1 << 31;
/// Leaf 7.2 EDX: SPEC_CTRL.RRSBA_DIS_S.
pub(super) const RRSBA_CTRL: u32 = 1 << 2;
/// Leaf 7.2 EDX: SPEC_CTRL.BHI_DIS_S.
pub(super) const BHI_CTRL: u32 = 1 << 4;
/// Leaf 7.2 EDX: not affected by MXCSR configuration dependent timing.
const MCDT_NO: u32 = 1 << 5;
/// Leaf 8000_0008h EBX: IBPB.
pub(super) const AMD_IBPB: u32 = 1 << 12;
/// Leaf 8000_0008h EBX: IBRS.
pub(super) const AMD_IBRS: u32 = 1 << 14;
/// Leaf 8000_0008h EBX: STIBP.
pub(super) const AMD_STIBP: u32 = 1 << 15;
/// Leaf 8000_0008h EBX: SSBD.
pub(super) const AMD_SSBD: u32 = 1 << 24;
/// Leaf 8000_0008h EBX: not affected by speculative store bypass, by branch type confusion; IBPB clears returns.
const AMD_SSB_NO: u32 = 1 << 26;
const AMD_BTC_NO: u32 = 1 << 29;
const AMD_IBPB_RET: u32 = 1 << 30;
/// Leaf 8000_0021h EAX: LFENCE serializes; a null selector clears base and limit; automatic IBRS; IBPB flushes branch
/// types; not affected by speculative return stack overflow.
const AMD_LFENCE_SERIALIZES: u32 = 1 << 2;
const AMD_NULL_SELECTOR_CLEARS_BASE: u32 = 1 << 6;
pub(super) const AMD_AUTO_IBRS: u32 = 1 << 8;
const AMD_IBPB_BRTYPE: u32 = 1 << 28;
const AMD_SRSO_NO: u32 = 1 << 29;
/// Leaf 8000_0021h ECX: not affected by transient scheduler attacks.
const AMD_TSA_SQ_NO: u32 = 1 << 1;
const AMD_TSA_L1_NO: u32 = 1 << 2;

/// IA32_ARCH_CAPABILITIES: RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO,
/// SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
const ARCH_CAP_GOOD: u64 = {
    let bits = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62];
    let mut value = 0;
    let mut i = 0;
    while i < bits.len() {
        value |= 1 << bits[i];
        i += 1;
    }
    value
};
/// IA32_ARCH_CAPABILITIES bits that warn: RSBA, RRSBA, RFDS_CLEAR.
const ARCH_CAP_WARNINGS: u64 = 1 << 2 | 1 << 19 | 1 << 28;

impl Speculation {
    /// Immune to everything known, with hardware answers to what remains. Linux then reports "Enhanced / Automatic
    /// IBRS" and "BHI_DIS_S", each one MSR write at boot.
    ///
    /// BHI_CTRL is there because newer kernels distrust BHI_NO and run a clearing loop at each system call
    /// without it. AMD has no IA32_ARCH_CAPABILITIES, and Windows refuses to boot on an AMD processor that claims it;
    /// kernels that do not know automatic IBRS therefore choose retpolines there.
    pub fn not_affected(vendor: Vendor) -> Self {
        match vendor {
            Vendor::Intel => Self {
                leaf7_edx: IBRS_IBPB | ARCH_CAPABILITIES,
                leaf7_2_edx: BHI_CTRL | RRSBA_CTRL | MCDT_NO,
                arch_capabilities: ARCH_CAP_GOOD,
                ..Self::default()
            },
            Vendor::Amd => Self {
                ext8_ebx: AMD_IBPB | AMD_IBRS | AMD_STIBP | AMD_SSB_NO | AMD_BTC_NO | AMD_IBPB_RET,
                ext21_eax: AMD_LFENCE_SERIALIZES
                    | AMD_NULL_SELECTOR_CLEARS_BASE
                    | AMD_AUTO_IBRS
                    | AMD_IBPB_BRTYPE
                    | AMD_SRSO_NO,
                ext21_ecx: AMD_TSA_SQ_NO | AMD_TSA_L1_NO,
                ..Self::default()
            },
        }
    }

    /// Only what `host` says too, and its warnings.
    #[must_use]
    pub fn narrowed_to(&self, host: &Self) -> Self {
        let warnings = if self.leaf7_edx & ARCH_CAPABILITIES != 0 { ARCH_CAP_WARNINGS } else { 0 };
        Self {
            leaf7_edx: self.leaf7_edx & host.leaf7_edx,
            leaf7_2_edx: self.leaf7_2_edx & host.leaf7_2_edx,
            arch_capabilities: self.arch_capabilities & host.arch_capabilities
                | host.arch_capabilities & warnings,
            ext8_ebx: self.ext8_ebx & host.ext8_ebx,
            ext21_eax: self.ext21_eax & host.ext21_eax,
            ext21_ecx: self.ext21_ecx & host.ext21_ecx,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux `cpu_set_bug_bits` (6.12), for a processor whose model is on no list: each bug it would set.
    fn linux_bugs(s: &Speculation) -> Vec<&'static str> {
        let cap = |bit: u32| s.leaf7_edx & ARCH_CAPABILITIES != 0 && s.arch_capabilities >> bit & 1 != 0;
        let mut bugs = Vec::new();
        let mut unless = |fine: bool, name| {
            if !fine {
                bugs.push(name);
            }
        };
        unless(cap(6), "itlb_multihit");
        unless(cap(4), "spec_store_bypass");
        unless(cap(1), "no enhanced IBRS");
        unless(cap(24), "eibrs_pbrsb");
        unless(cap(5), "mds");
        unless(cap(13) && cap(14) && cap(15), "mmio_unknown");
        unless(!cap(2), "retbleed");
        unless(cap(27), "rfds");
        unless(s.leaf7_2_edx & BHI_CTRL != 0, "bhi, by a software loop");
        unless(cap(62), "its");
        unless(cap(0), "meltdown");
        bugs
    }

    #[test]
    fn linux_finds_no_bug_that_costs() {
        assert_eq!(linux_bugs(&Speculation::not_affected(Vendor::Intel)), [""; 0]);
        assert!(!linux_bugs(&Speculation::default()).is_empty());
    }

    #[test]
    fn an_affected_host_is_not_denied() {
        let host = Speculation {
            leaf7_edx: u32::MAX,
            arch_capabilities: 1 << 1 | 1 << 19,
            ..Speculation::default()
        };
        let narrow = Speculation::not_affected(Vendor::Intel).narrowed_to(&host);
        assert_eq!(narrow.arch_capabilities, 1 << 1 | 1 << 19);
        assert_eq!(narrow.leaf7_2_edx, 0);
        assert!(linux_bugs(&narrow).contains(&"meltdown"));
    }
}
