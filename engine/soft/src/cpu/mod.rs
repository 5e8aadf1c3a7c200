//! The state of one software vCPU, owned by its thread.

pub mod flags;
pub mod mode;
pub mod regs;
mod state;

use std::cell::Cell;
use std::sync::Arc;

use vireo_core::model::Vendor;
use vireo_core::state::{Activity, ControlRegisters, DebugRegisters, DescriptorTable, Segment, rflags};
use vireo_core::{Bus, CpuModel};

use crate::code::CodeCache;
use crate::debug::Breakpoints;
use crate::host::FpuState;
use crate::mmu::Mmu;
use flags::Flags;
use mode::Mode;
use regs::Regs;

/// Why a handler did not simply go on to the next micro-operation. One byte, so that results stay in a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stop {
    /// The instruction is complete and has set [`Cpu::rip`]; the block ends.
    EndBlock,
    /// The instruction raised [`Cpu::fault`] and changed nothing else; RIP is that of the instruction.
    Fault,
    /// The instruction is complete, [`Cpu::rip`] is set, and a trap (#DB, INT n, INT3) in [`Cpu::fault`]
    /// is to be delivered with that RIP.
    Trap,
    /// The processor shut down (triple fault).
    Shutdown,
    /// The instruction is complete, [`Cpu::rip`] is set, and the run loop has to look at the events (HLT, a pause,
    /// a partly done string instruction whose RIP is its own, breakpoints switched on).
    Yield,
    /// The instruction is complete, [`Cpu::rip`] is set, and no single-step trap follows although TF was set before it.
    Untraced,
}

/// Result of everything that may stop an instruction.
pub type Exec<T = ()> = Result<T, Stop>;

/// An exception or software interrupt on its way to delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Vector, 0 to 255.
    pub vector: u8,
    /// Error code, if the vector has one.
    pub error: Option<u32>,
    /// Where it comes from: privilege checks and RF handling differ.
    pub source: Source,
}

/// Origin of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An exception raised by the processor.
    Exception,
    /// INT n: gate DPL is checked, the error code's EXT bit is clear.
    SoftwareInterrupt,
    /// INT3, INTO: as INT n.
    SoftwareException,
    /// INT1 (ICEBP): no DPL check.
    PrivilegedSoftwareException,
    /// External interrupt or NMI.
    External,
}

/// Exception vectors (SDM vol. 3A, table 6-1).
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const XM: u8 = 19;
}

/// Segment register indices in encoding order, as in [`Cpu::seg`].
#[allow(missing_docs)]
pub mod seg {
    pub const ES: u8 = 0;
    pub const CS: u8 = 1;
    pub const SS: u8 = 2;
    pub const DS: u8 = 3;
    pub const FS: u8 = 4;
    pub const GS: u8 = 5;
}

/// One vCPU.
pub struct Cpu {
    /// General registers.
    pub regs: Regs,
    /// The six arithmetic flags.
    pub flags: Flags,
    /// All other flags at their RFLAGS positions (IF, DF, TF, IOPL, NT, RF, VM, AC, VIF, VIP, ID); arithmetic bits
    /// and bit 1 are zero here. After changing IF, TF, VM or AC call [`Cpu::mode_changed`].
    pub eflags: u64,
    /// Address of the next instruction. Inside a block it is stale until the block ends: use
    /// [`Cpu::instruction_rip`].
    pub rip: u64,
    /// ES, CS, SS, DS, FS, GS.
    pub seg: [Segment; 6],
    /// Local descriptor table.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table.
    pub idtr: DescriptorTable,
    /// Current privilege level.
    pub cpl: u8,
    /// Control registers, EFER and XCR0.
    pub ctl: ControlRegisters,
    /// Debug registers. After changing DR0 to DR3 or DR7 call [`Cpu::breakpoints_changed`].
    pub debug: DebugRegisters,
    /// The breakpoints in them.
    pub breakpoints: Breakpoints,
    /// MSRs with no other home.
    pub msr: crate::system::MsrFile,
    /// x87, MMX and SSE registers.
    pub fpu: FpuState,
    /// What a block's meaning depends on; derived from the registers above by [`Cpu::mode_changed`].
    pub mode: Mode,
    /// Base of the code segment; 0 in 64-bit mode. Derived by [`Cpu::mode_changed`].
    pub code_base: u64,
    /// Last offset in the code segment; the highest there is in 64-bit mode. Derived by [`Cpu::mode_changed`].
    pub code_limit: u32,
    /// Software TLB and walker.
    pub mmu: Mmu,
    /// Decoded blocks, and what is translated of them.
    pub code: CodeCache,
    /// What translated code uses.
    pub gate: crate::translate::Context,
    /// Interpreter and translator are compared.
    pub lockstep: Option<Box<crate::lockstep::Lockstep>>,
    /// Local APIC.
    pub apic: crate::apic::Apic,
    /// The event to deliver, set with [`Stop::Fault`] and [`Stop::Trap`].
    pub fault: Fault,
    /// Address of the software interrupt instruction that set [`Cpu::fault`]; RIP is already behind it.
    pub trap_rip: u64,
    /// Interrupts wait until after the next instruction (after STI or MOV SS).
    pub shadow: Shadow,
    /// NMIs are blocked until IRET.
    pub nmi_masked: bool,
    /// Running, halted, waiting for SIPI.
    pub activity: Activity,
    /// The local APIC (or the PIC through it) has an interrupt above the task priority; kept up to date by
    /// [`Cpu::apic_changed`].
    pub interrupt_waits: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// Guest TSC at which the local APIC's timer fires, if armed; kept up to date by [`Cpu::apic_changed`].
    pub apic_deadline: Option<u64>,
    /// IA32_TSC_ADJUST.
    pub tsc_adjust: u64,
    /// What the guest sees in CPUID.
    pub model: Arc<CpuModel>,
    /// Instructions completed.
    pub instructions: u64,
    /// Calls of the bus.
    pub exits: Cell<u64>,
    /// This vCPU's index and APIC id.
    pub index: u32,
    /// What all vCPUs of the partition share.
    pub shared: Arc<crate::partition::Shared>,
    /// The board's bus, for the duration of a run.
    pub(crate) bus: Option<std::ptr::NonNull<dyn Bus>>,
}

/// Interrupt shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shadow {
    /// None.
    None,
    /// After STI: external interrupts wait.
    Sti,
    /// After MOV SS or POP SS: external interrupts, NMI and debug traps wait.
    MovSs,
}

impl Cpu {
    /// RFLAGS as the guest sees them.
    pub fn rflags(&self) -> u64 {
        self.eflags | self.flags.to_rflags() | rflags::ONE
    }

    /// Sets all of RFLAGS from a value whose reserved bits are ignored; RF only where it matters. Calls
    /// [`Cpu::mode_changed`].
    pub fn set_rflags(&mut self, value: u64) {
        self.flags = Flags::from_rflags(value);
        let rf = rflags::RF & !self.effective_rf();
        self.eflags = value & rflags::ALL & !rflags::ARITH & !rflags::ONE & !rf;
        self.mode_changed();
    }

    /// Records an exception and gives the [`Stop`] to return: `return Err(cpu.raise(vector::UD, None))`.
    #[cold]
    pub fn raise(&mut self, vector: u8, error: Option<u32>) -> Stop {
        self.fault = Fault { vector, error, source: Source::Exception };
        Stop::Fault
    }
    /// Whether the guest's processor is AMD's, and does as those do where vendors differ.
    pub fn is_amd(&self) -> bool {
        self.model.vendor() == Vendor::Amd
    }
    /// #UD.
    #[cold]
    pub fn ud(&mut self) -> Stop {
        self.raise(vector::UD, None)
    }
    /// #GP with an error code (a selector, or 0).
    #[cold]
    pub fn gp(&mut self, error: u32) -> Stop {
        self.raise(vector::GP, Some(error))
    }

    /// RIP of the instruction of this micro-operation.
    pub fn instruction_rip(&self, u: &crate::exec::Uop) -> u64 {
        self.mode.mask_ip(self.regs.block_rip().wrapping_add(u64::from(u.next) - u64::from(u.len)))
    }
    /// RIP of the instruction after it.
    pub fn next_rip(&self, u: &crate::exec::Uop) -> u64 {
        self.mode.mask_ip(self.regs.block_rip().wrapping_add(u64::from(u.next)))
    }

    /// Long mode is active (64-bit or compatibility).
    pub fn long_mode(&self) -> bool {
        self.ctl.efer & vireo_core::state::efer::LMA != 0
    }
    /// Protected mode, not virtual-8086.
    pub fn protected(&self) -> bool {
        self.ctl.cr0 & vireo_core::state::cr0::PE != 0 && !self.vm86()
    }
    /// Virtual-8086 mode.
    pub fn vm86(&self) -> bool {
        self.eflags & rflags::VM != 0
    }
    /// I/O privilege level.
    pub fn iopl(&self) -> u8 {
        (self.eflags >> 12 & 3) as u8
    }

    /// Recomputes everything derived from CS, SS, segment bases, CPL, CR0, CR4, EFER and EFLAGS. Call it after
    /// any of them changed, before the next instruction.
    pub fn mode_changed(&mut self) {
        self.mode = Mode::of(self);
        let cs = &self.seg[seg::CS as usize];
        let window = if self.mode.is64() { (0, u32::MAX) } else { (cs.base, cs.limit) };
        if window != (self.code_base, self.code_limit) {
            (self.code_base, self.code_limit) = window;
            self.code.forget_recent();
        }
        self.mmu.select_view(self.cpl, self.eflags & rflags::AC != 0, &self.ctl);
    }

    /// The board, for one call: each is counted.
    pub fn bus(&self) -> &dyn Bus {
        self.exits.set(self.exits.get().wrapping_add(1));
        // SAFETY: `Vcpu::run` sets the pointer from a reference that outlives the run and clears it on return; no
        // guest code, so no caller of this, executes outside a run.
        unsafe { self.bus.expect("guest code executes only inside run").as_ref() }
    }
}
