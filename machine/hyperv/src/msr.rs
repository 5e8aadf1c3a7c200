//! Numbers of the synthetic MSRs (TLFS, appendix C).
#![allow(missing_docs)]

use std::ops::RangeInclusive;

/// All that this interface answers for, whether a register exists there or not.
pub const RANGE: RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;

pub const GUEST_OS_ID: u32 = 0x4000_0000;
pub const HYPERCALL: u32 = 0x4000_0001;
pub const VP_INDEX: u32 = 0x4000_0002;
pub const TIME_REF_COUNT: u32 = 0x4000_0020;
pub const REFERENCE_TSC: u32 = 0x4000_0021;
pub const TSC_FREQUENCY: u32 = 0x4000_0022;
pub const APIC_FREQUENCY: u32 = 0x4000_0023;
pub const VP_ASSIST_PAGE: u32 = 0x4000_0073;
pub const SCONTROL: u32 = 0x4000_0080;
pub const SVERSION: u32 = 0x4000_0081;
pub const SIEFP: u32 = 0x4000_0082;
pub const SIMP: u32 = 0x4000_0083;
pub const EOM: u32 = 0x4000_0084;
pub const SINT0: u32 = 0x4000_0090;
pub const SINT15: u32 = 0x4000_009f;
pub const STIMER0_CONFIG: u32 = 0x4000_00b0;
pub const STIMER3_COUNT: u32 = 0x4000_00b7;
pub const CRASH_P0: u32 = 0x4000_0100;
pub const CRASH_P4: u32 = 0x4000_0104;
pub const CRASH_CTL: u32 = 0x4000_0105;

/// Bit 0 of the MSRs that name a page: it is in use.
pub const PAGE_ENABLED: u64 = 1;

/// The page that such an MSR names, if it is in use.
pub fn page(value: u64) -> Option<u64> {
    (value & PAGE_ENABLED != 0).then_some(value & !0xfff)
}
