//! What is said about one instruction form.

use crate::Feature;
use iced_x86::Code;

/// RFLAGS bits at their architectural positions (SDM vol. 1, 3.4.3).
pub mod flag {
    /// Carry.
    pub const CF: u32 = 1 << 0;
    /// Parity of the low result byte.
    pub const PF: u32 = 1 << 2;
    /// Carry out of bit 3.
    pub const AF: u32 = 1 << 4;
    /// Zero.
    pub const ZF: u32 = 1 << 6;
    /// Sign.
    pub const SF: u32 = 1 << 7;
    /// Single-step trap.
    pub const TF: u32 = 1 << 8;
    /// Interrupts enabled.
    pub const IF: u32 = 1 << 9;
    /// String direction.
    pub const DF: u32 = 1 << 10;
    /// Overflow.
    pub const OF: u32 = 1 << 11;
    /// I/O privilege level, two bits.
    pub const IOPL: u32 = 3 << 12;
    /// Nested task.
    pub const NT: u32 = 1 << 14;
    /// Resume (debug faults off for one instruction).
    pub const RF: u32 = 1 << 16;
    /// Alignment check, and SMAP override.
    pub const AC: u32 = 1 << 18;
    /// CPUID can be used when this can be toggled.
    pub const ID: u32 = 1 << 21;
    /// The six result flags.
    pub const STATUS: u32 = CF | PF | AF | ZF | SF | OF;
}

/// The kind of work an instruction does; it chooses the part of an engine that executes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// GPRs, status flags and memory data only.
    Integer,
    /// Does nothing: NOPs, PAUSE, prefetches, ENDBR and other hints. A memory operand is not accessed.
    Nop,
    /// Near jumps, calls and returns, loops.
    Branch,
    /// Changes CS: far jumps, calls and returns, INT, IRET, SYSCALL and the like.
    FarBranch,
    /// MOVS, CMPS, STOS, LODS, SCAS, with or without REP.
    String,
    /// PUSH, POP, ENTER, LEAVE, PUSHF, POPF, PUSHA, POPA of anything but segment registers.
    Stack,
    /// Loads a segment register from a general operand or the stack, or stores one.
    Segment,
    /// IN, OUT, INS, OUTS.
    Io,
    /// Control registers, descriptor tables, MSRs, TLB and cache control, RFLAGS.IF and AC, CPUID, time.
    System,
    /// Memory order and cache-line write-back: LFENCE, MFENCE, SFENCE, CLFLUSH, CLFLUSHOPT, CLWB.
    Fence,
    /// Saves or loads FPU, SSE or extended state as a whole: FXSAVE, XSAVE…, LDMXCSR, STMXCSR.
    FpState,
    /// x87 floating point, WAIT included.
    X87,
    /// Works on MMX registers (alone, or together with XMM registers).
    Mmx,
    /// Works on XMM registers; AES, PCLMULQDQ, SHA included.
    Sse,
    /// Works on vector registers by a VEX encoding: AVX, AVX2, FMA, F16C, and the VEX forms of AES and PCLMULQDQ.
    Avx,
}

/// Who may execute it. Where a check fails the instruction raises #GP(0), unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Privilege {
    /// Everybody. (POPF and IRET filter the bits they change by privilege, but do not fault.)
    Any,
    /// CPL 0 only. In real mode CPL is 0.
    Cpl0,
    /// CPL 0 only, else #UD: STAC, CLAC.
    Cpl0Ud,
    /// CPL <= IOPL: CLI, STI. (PVI and VME extensions are not part of any model.)
    Iopl,
    /// CPL <= IOPL, or the ports are allowed by the TSS I/O bitmap; in virtual-8086 mode the bitmap alone.
    IoBitmap,
    /// Everybody, but in virtual-8086 mode only with IOPL 3: PUSHF, POPF, INT n, IRET.
    Vm86Iopl,
    /// CPL 0 only while CR4.UMIP is set: SGDT, SIDT, SLDT, STR, SMSW.
    Umip,
    /// CPL 0 only while CR4.TSD is set: RDTSC, RDTSCP.
    Tsd,
    /// CPL 0 only while CR4.PCE is clear: RDPMC.
    Pce,
    /// Needs CR4.FSGSBASE, else #UD: RDFSBASE and its three sisters.
    Fsgsbase,
}

/// The floating-point unit an instruction needs; decides which of #UD, #NM, #MF and #XM are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fp {
    /// None of them.
    None,
    /// WAIT: #NM when CR0.MP and CR0.TS are both set; then a pending x87 exception raises #MF.
    Wait,
    /// x87: #NM when CR0.EM or CR0.TS is set.
    X87 {
        /// A pending unmasked exception is reported (#MF) before it; false for the FN… forms.
        waiting: bool,
    },
    /// MMX registers: #UD when CR0.EM, #NM when CR0.TS, then pending #MF; tags become valid.
    Mmx,
    /// XMM registers: #UD when CR0.EM or not CR4.OSFXSR, #NM when CR0.TS.
    Sse {
        /// The result depends on MXCSR, and its exception flags may be set: #XM when unmasked
        /// (or #UD when CR4.OSXMMEXCPT is clear).
        mxcsr: bool,
    },
    /// Vector registers by a VEX encoding: #UD when not CR4.OSXSAVE or XCR0 lacks SSE or AVX state, #NM when CR0.TS.
    Avx {
        /// As in [`Fp::Sse`].
        mxcsr: bool,
    },
    /// Both files: the checks of `Sse`, then those of `Mmx`. With a memory operand in place of the MMX
    /// register, CVTPI2PD leaves the x87 unit alone.
    MmxSse {
        /// As in [`Fp::Sse`].
        mxcsr: bool,
    },
    /// FXSAVE, FXRSTOR: #NM when CR0.EM or CR0.TS.
    Fxsave,
    /// The XSAVE family: #UD when not CR4.OSXSAVE, #NM when CR0.TS.
    Xsave,
}

bitflags::bitflags! {
    /// Code-segment sizes in which the form can be encoded.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Modes: u8 {
        /// 16-bit code: real mode, virtual-8086 mode, 16-bit segments.
        const M16 = 1;
        /// 32-bit code.
        const M32 = 2;
        /// 64-bit code.
        const M64 = 4;
    }
}

/// The description of one instruction form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    /// The form.
    pub code: Code,
    /// The engines know it. If not, it raises #UD on every CPU model.
    pub known: bool,
    /// What the CPU model must list, else #UD. [`Feature::Base`] is in every model.
    pub feature: Feature,
    /// The kind of work.
    pub class: Class,
    /// Who may execute it.
    pub privilege: Privilege,
    /// #UD in real-address and virtual-8086 mode.
    pub protected_only: bool,
    /// The next instruction may run under another RIP, mode, mapping or interrupt state, so a block of
    /// decoded instructions stops here.
    pub ends_block: bool,
    /// The memory operand must be aligned (see [`Desc::alignment`]), else #GP(0).
    pub aligned: bool,
    /// The floating-point checks.
    pub fp: Fp,
    /// LOCK is allowed with a memory destination; elsewhere LOCK raises #UD.
    pub lockable: bool,
    /// RFLAGS bits ([`flag`]) it may read.
    pub flags_read: u32,
    /// RFLAGS bits it may change to a documented value.
    pub flags_written: u32,
    /// RFLAGS bits it may leave undefined. For shifts and rotates some operands still define them.
    pub flags_undefined: u32,
    /// Code sizes in which it exists.
    pub modes: Modes,
}

impl Desc {
    /// Bytes to which the memory operand must be aligned; 1 when anything goes.
    ///
    /// 64 for the XSAVE area, 16 for FXSAVE, CMPXCHG16B and 128-bit operands, 32 for 256-bit ones (SDM vol. 1, 4.1.1,
    /// 13.4 and 14.9).
    #[must_use]
    pub fn alignment(&self) -> u64 {
        match (self.aligned, self.fp) {
            (false, _) => 1,
            (true, Fp::Xsave) => 64,
            (true, Fp::Avx { .. }) => self.code.op_code().memory_size().size() as u64,
            (true, _) => 16,
        }
    }
}
