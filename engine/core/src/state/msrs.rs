//! Model-specific registers, as a list of (index, value).

use serde::{Deserialize, Serialize};

use super::Element;

/// Indices of MSRs that more than one room names (SDM vol. 4, chapter 2; AMD APM vol. 2, appendix A).
#[allow(missing_docs)]
pub mod index {
    pub const TSC: u32 = 0x10;
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRR_CAP: u32 = 0xfe;
    pub const ARCH_CAPABILITIES: u32 = 0x10a;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x8ff;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SYSCALL_MASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// One MSR and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsrEntry {
    /// Index, as in ECX of RDMSR.
    pub index: u32,
    /// Value.
    pub value: u64,
}

/// The MSRs of a vCPU, sorted by index. TSC, EFER and the segment bases are with their own elements, not here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MsrList(pub Vec<MsrEntry>);

impl MsrList {
    /// The value of an MSR, if the list has it.
    pub fn get(&self, index: u32) -> Option<u64> {
        self.0.binary_search_by_key(&index, |e| e.index).ok().map(|i| self.0[i].value)
    }
    /// Sets or adds an MSR.
    pub fn set(&mut self, index: u32, value: u64) {
        match self.0.binary_search_by_key(&index, |e| e.index) {
            Ok(i) => self.0[i].value = value,
            Err(i) => self.0.insert(i, MsrEntry { index, value }),
        }
    }
}

impl Element for MsrList {
    fn at_reset(_: u32) -> Self {
        let mut list = Self::default();
        // PAT after RESET (SDM vol. 3A, 12.12.4); everything else starts at zero.
        list.set(index::PAT, 0x0007_0406_0007_0406);
        for i in [
            index::TSC_ADJUST,
            index::SYSENTER_CS,
            index::SYSENTER_ESP,
            index::SYSENTER_EIP,
            index::STAR,
            index::LSTAR,
            index::CSTAR,
            index::SYSCALL_MASK,
            index::KERNEL_GS_BASE,
            index::TSC_AUX,
        ] {
            list.set(i, 0);
        }
        list
    }
}
