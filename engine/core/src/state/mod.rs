//! The architectural state of a vCPU, in the form in which it moves between engines, to disk and to other hosts.
//!
//! Each element knows its value after RESET and after INIT (Intel SDM vol. 3A, table 10-1). Nothing here
//! depends on how an engine keeps its registers.

mod apic;
mod fpu;
mod msrs;
mod registers;

pub use apic::ApicState;
pub use fpu::{FxImage, XsaveState};
pub use msrs::{MsrEntry, MsrList, index as msr};
pub use registers::{
    Activity, ControlRegisters, DebugRegisters, DescriptorTable, Events, GeneralRegisters, Injection,
    Segment, SegmentRegisters, cr0, cr4, efer, rflags,
};

use serde::{Deserialize, Serialize};

/// A part of the state with a defined value after RESET.
pub trait Element: Sized {
    /// The value after RESET of the vCPU with this index (0 is the bootstrap processor).
    fn at_reset(index: u32) -> Self;
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// General registers, RIP and RFLAGS.
    pub general: GeneralRegisters,
    /// Segment registers, descriptor tables.
    pub segments: SegmentRegisters,
    /// CR0 to CR8, EFER, XCR0.
    pub control: ControlRegisters,
    /// DR0 to DR7.
    pub debug: DebugRegisters,
    /// x87, MMX, SSE and AVX registers.
    pub xsave: XsaveState,
    /// Model-specific registers not covered by another element.
    pub msrs: MsrList,
    /// The local APIC.
    pub apic: ApicState,
    /// Pending events and interrupt shadow.
    pub events: Events,
    /// Running, halted or waiting.
    pub activity: Activity,
}

impl Element for VcpuState {
    fn at_reset(index: u32) -> Self {
        Self {
            general: Element::at_reset(index),
            segments: Element::at_reset(index),
            control: Element::at_reset(index),
            debug: Element::at_reset(index),
            xsave: Element::at_reset(index),
            msrs: Element::at_reset(index),
            apic: Element::at_reset(index),
            events: Element::at_reset(index),
            activity: Element::at_reset(index),
        }
    }
}
