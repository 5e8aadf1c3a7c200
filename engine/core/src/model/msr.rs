//! Which MSRs a model has, their values after RESET and what may be written to them (SDM vol. 4; AMD APM vol. 2, A).

use vireo_isa::Feature;

use super::{CpuModel, Vendor, speculation as spec};
use crate::bus::MsrFault;
use crate::state::{efer, msr as index};

/// Which instructions an MSR allows; the other raises #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrAccess {
    /// RDMSR and WRMSR.
    ReadWrite,
    /// RDMSR.
    ReadOnly,
    /// WRMSR: a command.
    WriteOnly,
}

/// Values that a mask cannot tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    /// Any.
    Any,
    /// A canonical address.
    Canonical,
    /// Eight memory types of the PAT (SDM vol. 3A, 12.12.2).
    PatTypes,
    /// Eight memory types of a fixed-range MTRR (SDM vol. 3A, 12.11.2.2).
    MtrrTypes,
    /// A memory type in bits 7:0 (variable-range base, default type).
    MtrrType,
}

/// The contract for one MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrContract {
    /// Index, as in ECX.
    pub index: u32,
    /// Value after RESET.
    pub reset: u64,
    /// Bits that software may change.
    pub writable: u64,
    /// Bits whose written value is ignored. A bit that is neither this nor writable must be written as it
    /// reads; anything else raises #GP(0).
    pub ignored: u64,
    /// Allowed instructions.
    pub access: MsrAccess,
    /// The value is all there is to it: an engine stores it and does nothing else. Not plain are the MSRs behind
    /// which an engine keeps state of its own (TSC, EFER, segment bases, …): it checks a write with
    /// [`MsrContract::write`] and applies it itself.
    pub plain: bool,
    values: Values,
    virtual_bits: u32,
}

impl MsrContract {
    /// What RDMSR gives.
    pub fn read(&self, value: u64) -> Result<u64, MsrFault> {
        if self.access == MsrAccess::WriteOnly { Err(MsrFault) } else { Ok(value) }
    }

    /// The value after a WRMSR of `new` over `old`.
    pub fn write(&self, old: u64, new: u64) -> Result<u64, MsrFault> {
        let fixed = !(self.writable | self.ignored);
        if self.access == MsrAccess::ReadOnly || (new ^ old) & fixed != 0 || !self.allows(new) {
            return Err(MsrFault);
        }
        let value = old & !self.writable | new & self.writable;
        // Commands keep nothing.
        Ok(if self.access == MsrAccess::WriteOnly { 0 } else { value })
    }

    fn allows(&self, value: u64) -> bool {
        let mtrr = |t: u8| matches!(t, 0 | 1 | 4 | 5 | 6);
        match self.values {
            Values::Any => true,
            Values::Canonical => {
                let unused = 64 - self.virtual_bits;
                (value << unused) as i64 >> unused == value as i64
            }
            Values::PatTypes => value.to_le_bytes().into_iter().all(|t| mtrr(t) || t == 7),
            Values::MtrrTypes => value.to_le_bytes().into_iter().all(mtrr),
            Values::MtrrType => mtrr(value as u8),
        }
    }
}

const MTRR_VARIABLE: std::ops::Range<u32> = 0x200..0x210;
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const PLATFORM_ID: u32 = 0x17;
const PLATFORM_INFO: u32 = 0xce;
const DEBUG_CTL: u32 = 0x1d9;
const AMD_SYSCFG: u32 = 0xc001_0010;
const AMD_HWCR: u32 = 0xc001_0015;
const AMD_NB_CFG: u32 = 0xc001_001f;
const AMD_DE_CFG: u32 = 0xc001_1029;
/// EFER.AIBRSE: automatic IBRS (AMD APM vol. 2, 3.1.7).
const EFER_AUTO_IBRS: u64 = 1 << 21;

impl CpuModel {
    /// The contract for one MSR. `None`: the model does not have it, and an access raises #GP(0), unless it belongs
    /// to the local APIC (IA32_APIC_BASE, IA32_TSC_DEADLINE, x2APIC) or to the board.
    pub fn msr(&self, index: u32) -> Option<MsrContract> {
        self.common_msr(index).or_else(|| match self.vendor {
            Vendor::Intel => self.intel_msr(index),
            Vendor::Amd => self.amd_msr(index),
        })
    }

    /// All MSRs of the model, by index.
    pub fn msrs(&self) -> Vec<MsrContract> {
        (0..0x2000)
            .chain(0xc000_0000..0xc000_0200)
            .chain(0xc001_0000..0xc001_2000)
            .filter_map(|i| self.msr(i))
            .collect()
    }

    /// Bits of EFER that a guest may set. LMA is the processor's own; what is written there is ignored.
    fn efer_writable(&self) -> u64 {
        let bits = [
            (efer::SCE, self.has(Feature::Syscall)),
            (efer::LME, self.has(Feature::Lm)),
            (efer::NXE, self.has(Feature::Nx)),
            (EFER_AUTO_IBRS, self.speculation.ext21_eax & spec::AMD_AUTO_IBRS != 0),
        ];
        bits.into_iter().filter(|&(_, has)| has).fold(0, |all, (bit, _)| all | bit)
    }

    /// Bits of IA32_SPEC_CTRL: IBRS, STIBP, SSBD, RRSBA_DIS_S, BHI_DIS_S. Zero: there is no such MSR.
    fn spec_ctrl_writable(&self) -> u64 {
        let s = &self.speculation;
        let bits = [
            (0, s.leaf7_edx & spec::IBRS_IBPB != 0 || s.ext8_ebx & spec::AMD_IBRS != 0),
            (1, s.leaf7_edx & spec::STIBP != 0 || s.ext8_ebx & spec::AMD_STIBP != 0),
            (2, s.leaf7_edx & spec::SSBD != 0 || s.ext8_ebx & spec::AMD_SSBD != 0),
            (6, s.leaf7_2_edx & spec::RRSBA_CTRL != 0),
            (10, s.leaf7_2_edx & spec::BHI_CTRL != 0),
        ];
        bits.into_iter().filter(|&(_, has)| has).fold(0, |all, (bit, _)| all | 1 << bit)
    }

    fn common_msr(&self, i: u32) -> Option<MsrContract> {
        let physical = (1_u64 << self.physical_bits) - 1;
        let stored = |writable| Some(self.plain(i, 0, writable));
        let address = || Some(MsrContract { values: Values::Canonical, ..self.plain(i, 0, u64::MAX) });
        let engine = |c: Option<MsrContract>| c.map(|c| MsrContract { plain: false, ..c });
        match i {
            index::TSC => engine(stored(u64::MAX)),
            index::TSC_ADJUST if self.has(Feature::TscAdjust) => engine(stored(u64::MAX)),
            index::SPEC_CTRL => Some(self.spec_ctrl_writable()).filter(|&m| m != 0).and_then(stored),
            index::PRED_CMD => {
                let s = &self.speculation;
                let ibpb = s.leaf7_edx & spec::IBRS_IBPB != 0 || s.ext8_ebx & spec::AMD_IBPB != 0;
                ibpb.then(|| MsrContract { access: MsrAccess::WriteOnly, ..self.plain(i, 0, 1) })
            }
            index::BIOS_SIGN_ID => {
                // Software writes zero to ask for the revision; newer than any that a fix needs.
                let revision = if self.vendor == Vendor::Intel { 1 << 32 } else { 0x0a10_1fff };
                Some(MsrContract { ignored: u64::MAX, ..self.plain(i, revision, 0) })
            }
            // Only a selector's worth is ever used; the rest is there on no processor.
            index::SYSENTER_CS if self.has(Feature::Sysenter) => {
                Some(MsrContract { ignored: !0xffff_ffff, ..self.plain(i, 0, 0xffff_ffff) })
            }
            index::SYSENTER_ESP | index::SYSENTER_EIP if self.has(Feature::Sysenter) => address(),
            // No machine-check banks, no MCG_CTL.
            index::MCG_CAP if self.has(Feature::Mca) => Some(self.constant(i, 0)),
            index::MCG_STATUS if self.has(Feature::Mca) => stored(0b111),
            index::PAT if self.has(Feature::Pat) => Some(MsrContract {
                values: Values::PatTypes,
                ..self.plain(i, 0x0007_0406_0007_0406, u64::MAX)
            }),
            // Eight variable ranges, fixed ranges, write-combining.
            index::MTRR_CAP if self.has(Feature::Mtrr) => Some(self.constant(i, 0x508)),
            index::MTRR_DEF_TYPE if self.has(Feature::Mtrr) => {
                Some(MsrContract { values: Values::MtrrType, ..self.plain(i, 0, 0xcff) })
            }
            _ if self.has(Feature::Mtrr) && MTRR_VARIABLE.contains(&i) => {
                let base = i.is_multiple_of(2);
                let writable = physical & !0xfff | if base { 0xff } else { 1 << 11 };
                let values = if base { Values::MtrrType } else { Values::Any };
                Some(MsrContract { values, ..self.plain(i, 0, writable) })
            }
            _ if self.has(Feature::Mtrr) && MTRR_FIXED.contains(&i) => {
                Some(MsrContract { values: Values::MtrrTypes, ..self.plain(i, 0, u64::MAX) })
            }
            index::EFER => {
                let c = self.plain(i, 0, self.efer_writable());
                engine(Some(MsrContract { ignored: efer::LMA, ..c }))
            }
            index::STAR if self.has(Feature::Syscall) => stored(u64::MAX),
            index::LSTAR | index::CSTAR if self.has(Feature::Syscall) => address(),
            index::SYSCALL_MASK if self.has(Feature::Syscall) => stored(0xffff_ffff),
            index::FS_BASE | index::GS_BASE if self.has(Feature::Lm) => engine(address()),
            index::KERNEL_GS_BASE if self.has(Feature::Lm) => address(),
            index::TSC_AUX if self.has(Feature::Rdtscp) || self.has(Feature::Rdpid) => stored(0xffff_ffff),
            // Neither last-branch records nor branch trace: LBR and BTF may be written and stay clear.
            DEBUG_CTL => Some(MsrContract { ignored: 0b11, ..self.plain(i, 0, 0) }),
            _ => None,
        }
    }

    fn intel_msr(&self, i: u32) -> Option<MsrContract> {
        match i {
            PLATFORM_ID | PLATFORM_INFO => Some(self.constant(i, 0)),
            index::ARCH_CAPABILITIES if self.speculation.leaf7_edx & spec::ARCH_CAPABILITIES != 0 => {
                Some(self.constant(i, self.speculation.arch_capabilities))
            }
            // Fast strings on; no branch trace, no PEBS (bits 11, 12 are read-only). Limiting CPUID is ignored.
            index::MISC_ENABLE => {
                Some(MsrContract { ignored: 1 << 22, ..self.plain(i, 1 | 1 << 11 | 1 << 12, 1) })
            }
            _ => None,
        }
    }

    fn amd_msr(&self, i: u32) -> Option<MsrContract> {
        match i {
            // Linux reads it before it trusts the MTRRs; all bits may be written, none does anything.
            AMD_SYSCFG => Some(MsrContract { ignored: u64::MAX, ..self.plain(i, 0, 0) }),
            // TscFreqSel: the TSC counts at the P0 rate. CPUID user disable and the like do not exist.
            AMD_HWCR => Some(MsrContract { ignored: u64::MAX, ..self.plain(i, 1 << 24, 0) }),
            // EnableCf8ExtCfg: Linux sets it on every family since 10h; extended configuration space does not exist.
            AMD_NB_CFG => Some(MsrContract { ignored: u64::MAX, ..self.plain(i, 0, 0) }),
            // LFENCE serializes, as leaf 8000_0021h says.
            AMD_DE_CFG => Some(MsrContract { ignored: u64::MAX, ..self.plain(i, 1 << 1, 0) }),
            _ => None,
        }
    }

    fn plain(&self, index: u32, reset: u64, writable: u64) -> MsrContract {
        MsrContract {
            index,
            reset,
            writable,
            ignored: 0,
            access: MsrAccess::ReadWrite,
            plain: true,
            values: Values::Any,
            virtual_bits: self.virtual_bits,
        }
    }

    fn constant(&self, index: u32, value: u64) -> MsrContract {
        MsrContract { access: MsrAccess::ReadOnly, ..self.plain(index, value, 0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(vendor: Vendor) -> std::sync::Arc<CpuModel> {
        CpuModel::for_vendor("vireo-v2", vendor).expect("the model exists")
    }

    fn write(m: &CpuModel, i: u32, value: u64) -> Result<u64, MsrFault> {
        let c = m.msr(i).ok_or(MsrFault)?;
        c.write(c.reset, value)
    }

    #[test]
    fn reserved_bits_fault_and_read_only_registers_do_too() {
        let m = model(Vendor::Intel);
        assert_eq!(write(&m, index::SPEC_CTRL, 1 | 1 << 10), Ok(1 | 1 << 10));
        assert_eq!(write(&m, index::SPEC_CTRL, 1 << 2), Err(MsrFault));
        assert_eq!(write(&m, index::ARCH_CAPABILITIES, 0), Err(MsrFault));
        assert_eq!(write(&m, index::MCG_CAP, 0), Err(MsrFault));
        assert_eq!(write(&m, index::TSC_AUX, 1 << 32), Err(MsrFault));
        assert_eq!(m.msr(0x3a), None);
    }

    #[test]
    fn commands_keep_nothing_and_cannot_be_read() {
        let c = model(Vendor::Intel).msr(index::PRED_CMD).expect("IBPB is there");
        assert_eq!(c.write(0, 1), Ok(0));
        assert_eq!(c.write(0, 2), Err(MsrFault));
        assert_eq!(c.read(0), Err(MsrFault));
    }

    #[test]
    fn values_that_mean_nothing_fault() {
        let m = model(Vendor::Intel);
        // Linux's PAT, and one with the reserved type 2.
        assert_eq!(write(&m, index::PAT, 0x0407_0506_0007_0106), Ok(0x0407_0506_0007_0106));
        assert_eq!(write(&m, index::PAT, 0x0007_0406_0007_0402), Err(MsrFault));
        assert_eq!(write(&m, index::MTRR_DEF_TYPE, 0xc06), Ok(0xc06));
        assert_eq!(write(&m, index::MTRR_DEF_TYPE, 0xc07), Err(MsrFault));
        assert_eq!(write(&m, 0x201, 0xff_8000_0800), Ok(0xff_8000_0800));
        assert_eq!(write(&m, 0x201, 0x1ff_8000_0800), Err(MsrFault));
        assert_eq!(write(&m, index::LSTAR, 0xffff_8000_0000_0000), Ok(0xffff_8000_0000_0000));
        assert_eq!(write(&m, index::LSTAR, 0x8000_0000_0000), Err(MsrFault));
    }

    #[test]
    fn microcode_revision_survives_the_query() {
        for v in [Vendor::Intel, Vendor::Amd] {
            let c = model(v).msr(index::BIOS_SIGN_ID).expect("exists");
            assert_eq!(c.write(c.reset, 0), Ok(c.reset));
            assert_ne!(c.reset, 0);
        }
    }

    #[test]
    fn efer_follows_the_vendor() {
        let value = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        assert_eq!(write(&model(Vendor::Intel), index::EFER, value), Ok(value & !efer::LMA));
        assert_eq!(write(&model(Vendor::Intel), index::EFER, EFER_AUTO_IBRS), Err(MsrFault));
        assert_eq!(write(&model(Vendor::Amd), index::EFER, EFER_AUTO_IBRS), Ok(EFER_AUTO_IBRS));
    }

    #[test]
    fn the_list_agrees_with_the_lookup_and_reset_values_are_allowed() {
        for v in [Vendor::Intel, Vendor::Amd] {
            let m = model(v);
            let list = m.msrs();
            assert!(list.windows(2).all(|w| w[0].index < w[1].index));
            assert!(list.len() > 40);
            for c in list {
                if c.access == MsrAccess::ReadWrite {
                    assert_eq!(c.write(c.reset, c.reset), Ok(c.reset), "{:#x}", c.index);
                }
            }
        }
    }
}
