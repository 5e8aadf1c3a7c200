//! General, segment, control and debug registers; pending events; activity.

use serde::{Deserialize, Serialize};

use super::Element;

/// Bits of RFLAGS (SDM vol. 1, 3.4.3).
#[allow(missing_docs)]
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    /// Always one.
    pub const ONE: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six arithmetic flags.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
    /// Every defined bit.
    pub const ALL: u64 = 0x3f_7fd5 | ONE;
}

/// Bits of CR0 (SDM vol. 3A, 2.5).
#[allow(missing_docs)]
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}

/// Bits of CR4 (SDM vol. 3A, 2.5).
#[allow(missing_docs)]
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
}

/// Bits of IA32_EFER (SDM vol. 3A, 2.2.1).
#[allow(missing_docs)]
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
}

/// General registers in encoding order, RIP and RFLAGS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeneralRegisters {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
}

impl Element for GeneralRegisters {
    fn at_reset(_: u32) -> Self {
        // RDX holds the processor signature; family 6 is what a model without its own word says (SDM table 10-1).
        let mut gpr = [0; 16];
        gpr[2] = 0x600;
        Self { gpr, rip: 0xfff0, rflags: rflags::ONE }
    }
}

/// A segment register with its hidden part. Attributes are those of a descriptor's bytes 5 and 6 without the
/// limit (SDM vol. 3A, 3.4.5): type 0-3, S 4, DPL 5-6, P 7, AVL 12, L 13, D/B 14, G 15; bit 16: unusable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Linear base address.
    pub base: u64,
    /// Last valid offset in bytes, the granularity already applied.
    pub limit: u32,
    /// Access rights as above.
    pub attributes: u32,
}

impl Segment {
    /// Attribute bit: the register holds a null selector and must not be used.
    pub const UNUSABLE: u32 = 1 << 16;
    /// Attribute bit: present.
    pub const PRESENT: u32 = 1 << 7;
    /// Attribute bit: 64-bit code.
    pub const L: u32 = 1 << 13;
    /// Attribute bit: default operand size 32 bits, or 32-bit stack.
    pub const DB: u32 = 1 << 14;
    /// Attribute bit: limit counts pages.
    pub const G: u32 = 1 << 15;

    /// A real-mode style segment: base = selector * 16, limit 64 KiB.
    pub fn real(selector: u16, kind: u32) -> Self {
        Self { selector, base: u64::from(selector) << 4, limit: 0xffff, attributes: kind }
    }
    /// Descriptor privilege level, 0 to 3.
    pub fn dpl(&self) -> u8 {
        (self.attributes >> 5 & 3) as u8
    }
    /// Whether the register may be used for access.
    pub fn usable(&self) -> bool {
        self.attributes & Self::UNUSABLE == 0
    }
    /// Type field, 0 to 15.
    pub fn kind(&self) -> u8 {
        (self.attributes & 15) as u8
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Last valid offset in bytes.
    pub limit: u16,
}

/// All segment registers and tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentRegisters {
    /// ES, CS, SS, DS, FS, GS in encoding order.
    pub data: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// Current privilege level, 0 to 3 (the DPL of SS, stated so that it needs no rule).
    pub cpl: u8,
}

impl SegmentRegisters {
    /// Index of ES.
    pub const ES: usize = 0;
    /// Index of CS.
    pub const CS: usize = 1;
    /// Index of SS.
    pub const SS: usize = 2;
    /// Index of DS.
    pub const DS: usize = 3;
    /// Index of FS.
    pub const FS: usize = 4;
    /// Index of GS.
    pub const GS: usize = 5;
}

impl Element for SegmentRegisters {
    fn at_reset(_: u32) -> Self {
        let mut data = [Segment::real(0, 0x93); 6];
        data[Self::CS] = Segment { selector: 0xf000, base: 0xffff_0000, limit: 0xffff, attributes: 0x9b };
        let table = DescriptorTable { base: 0, limit: 0xffff };
        Self {
            data,
            ldtr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x82 },
            tr: Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x8b },
            gdtr: table,
            idtr: table,
            cpl: 0,
        }
    }
}

/// Control registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ControlRegisters {
    /// CR0.
    pub cr0: u64,
    /// CR2: address of the last page fault.
    pub cr2: u64,
    /// CR3: page-table root, and PCID.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// CR8: task priority, 0 to 15.
    pub cr8: u64,
    /// IA32_EFER.
    pub efer: u64,
    /// XCR0: enabled XSAVE components.
    pub xcr0: u64,
}

impl Element for ControlRegisters {
    fn at_reset(_: u32) -> Self {
        Self { cr0: cr0::CD | cr0::NW | cr0::ET, cr2: 0, cr3: 0, cr4: 0, cr8: 0, efer: 0, xcr0: 1 }
    }
}

/// Debug registers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DebugRegisters {
    /// DR0 to DR3: breakpoint addresses.
    pub address: [u64; 4],
    /// DR6: status.
    pub dr6: u64,
    /// DR7: control.
    pub dr7: u64,
}

impl Element for DebugRegisters {
    fn at_reset(_: u32) -> Self {
        Self { address: [0; 4], dr6: 0xffff_0ff0, dr7: 0x400 }
    }
}

/// An exception or interrupt on its way into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Injection {
    /// Vector, 0 to 255.
    pub vector: u8,
    /// Error code, if one is pushed.
    pub error: Option<u32>,
    /// An exception (true) or an external interrupt (false).
    pub exception: bool,
}

/// Pending events.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// Chosen for delivery but not yet delivered.
    pub pending: Option<Injection>,
    /// The instruction before was STI: interrupts wait for one more.
    pub shadow_sti: bool,
    /// The instruction before was MOV SS or POP SS: interrupts and debug traps wait for one more.
    pub shadow_mov_ss: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
}

impl Element for Events {
    fn at_reset(_: u32) -> Self {
        Self::default()
    }
}

/// What the processor does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Executes instructions.
    Running,
    /// Halted until an interrupt.
    Halted,
    /// An application processor that waits for a start-up IPI.
    WaitForSipi,
    /// Triple fault.
    Shutdown,
}

impl Element for Activity {
    fn at_reset(index: u32) -> Self {
        if index == 0 { Self::Running } else { Self::WaitForSipi }
    }
}
