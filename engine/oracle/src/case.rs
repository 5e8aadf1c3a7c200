//! A case: one instruction, the state it starts from, and the state it ends in.

use crate::layout;
use iced_x86::{Decoder, Formatter, NasmFormatter};
use std::fmt;

/// The code segment a case runs in. Always CPL 3, IOPL 0, no I/O bitmap, paging on, CR0.AM and RFLAGS.AC never
/// both set, SSE and x87 enabled; flat segments but for 16-bit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Mode {
    /// 64-bit code.
    Long = 64,
    /// 32-bit code (compatibility mode on the native side; no difference to 32-bit protected mode for what
    /// is generated).
    Protected = 32,
    /// 16-bit code in protected mode: CS, DS, ES and SS have base [`layout::BASE16`], limit 0xffff and
    /// the D/B bit clear. RIP and all register values are offsets in these segments; addresses in patches
    /// and outcomes are linear.
    Protected16 = 16,
}

impl Mode {
    /// Bits of the code segment, as a decoder wants them.
    #[must_use]
    pub fn bitness(self) -> u32 {
        self as u32
    }

    /// The base of all segments.
    #[must_use]
    pub fn base(self) -> u64 {
        match self {
            Mode::Long | Mode::Protected => 0,
            Mode::Protected16 => layout::BASE16,
        }
    }

    /// General and XMM registers the mode can name.
    #[must_use]
    pub fn registers(self) -> usize {
        match self {
            Mode::Long => 16,
            Mode::Protected | Mode::Protected16 => 8,
        }
    }
}

/// x87, MMX and SSE state in the 64-bit FXSAVE format (SDM vol. 1, 10.5.1).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct FxImage(pub [u8; 512]);

impl FxImage {
    /// The state after FNINIT, with XMM cleared and all SSE exceptions masked.
    #[must_use]
    pub fn initial() -> FxImage {
        let mut image = FxImage([0; 512]);
        image.set_u16(0, 0x37f);
        image.set_mxcsr(0x1f80);
        image
    }

    /// The 16-bit field at `at` (below 511).
    #[must_use]
    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    /// Sets the 16-bit field at `at`.
    pub fn set_u16(&mut self, at: usize, value: u16) {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    /// MXCSR.
    #[must_use]
    pub fn mxcsr(&self) -> u32 {
        u32::from_le_bytes([self.0[24], self.0[25], self.0[26], self.0[27]])
    }

    /// Sets MXCSR.
    pub fn set_mxcsr(&mut self, value: u32) {
        self.0[24..28].copy_from_slice(&value.to_le_bytes());
    }

    /// XMM register `i` (below 16).
    #[must_use]
    pub fn xmm(&self, i: usize) -> u128 {
        u128::from_le_bytes(self.0[160 + 16 * i..176 + 16 * i].try_into().expect("16 bytes"))
    }

    /// Sets XMM register `i`.
    pub fn set_xmm(&mut self, i: usize, value: u128) {
        self.0[160 + 16 * i..176 + 16 * i].copy_from_slice(&value.to_le_bytes());
    }

    /// The 80 bits of ST(i) (MMX register `top + i`), `i` below 8.
    #[must_use]
    pub fn st(&self, i: usize) -> [u8; 10] {
        self.0[32 + 16 * i..42 + 16 * i].try_into().expect("10 bytes")
    }

    /// Sets the 80 bits of ST(i).
    pub fn set_st(&mut self, i: usize, value: [u8; 10]) {
        self.0[32 + 16 * i..42 + 16 * i].copy_from_slice(&value);
    }
}

/// Registers before or after an instruction.
#[derive(Clone, PartialEq, Eq)]
#[repr(C)]
pub struct CpuImage {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8-R15: the order of their encoding.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; IF and bit 1 are always set, TF, AC and IOPL always clear at the start.
    pub rflags: u64,
    /// Floating point and vectors.
    pub fx: FxImage,
    /// Upper halves of the YMM registers, whose lower halves are the XMM registers. Zero where the host has none.
    pub high: [u128; 16],
}

impl CpuImage {
    /// All registers zero, stack pointer in the stack window, RIP at [`layout::ENTRY`].
    #[must_use]
    pub fn initial(mode: Mode) -> CpuImage {
        let mut gpr = [0; 16];
        gpr[4] = layout::STACK + layout::PAGE / 2 - mode.base();
        CpuImage {
            gpr,
            rip: layout::ENTRY - mode.base(),
            rflags: 0x202,
            fx: FxImage::initial(),
            high: [0; 16],
        }
    }
}

/// Bytes put over the background before the instruction runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// First address; the whole patch lies in one window.
    pub address: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Memory before the instruction: [`layout::background`] with patches. Later patches win.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemImage {
    /// The patches, in order.
    pub patches: Vec<Patch>,
}

impl MemImage {
    /// The bytes of all windows, in their order, with the code of the case in place.
    #[must_use]
    pub fn materialize(&self, case: &Case) -> Vec<u8> {
        let mut all = layout::background().to_vec();
        let code = Patch { address: case.code_address(), bytes: case.bytes.clone() };
        for patch in std::iter::once(&code).chain(&self.patches) {
            for (i, byte) in patch.bytes.iter().enumerate() {
                if let Some(at) = layout::offset(patch.address.wrapping_add(i as u64)) {
                    all[at] = *byte;
                }
            }
        }
        all
    }
}

/// One instruction to run, with everything it can see.
#[derive(Clone, PartialEq, Eq)]
pub struct Case {
    /// The encoding, 1 to 15 bytes, placed at `cpu.rip`.
    pub bytes: Vec<u8>,
    /// Code segment.
    pub mode: Mode,
    /// Registers at the start.
    pub cpu: CpuImage,
    /// Memory at the start.
    pub memory: MemImage,
}

impl Case {
    /// The linear address of the instruction.
    #[must_use]
    pub fn code_address(&self) -> u64 {
        self.mode.base().wrapping_add(self.cpu.rip)
    }

    /// The instruction in text.
    #[must_use]
    pub fn disassembly(&self) -> String {
        let mut decoder = Decoder::with_ip(self.mode.bitness(), &self.bytes, self.cpu.rip, 0);
        let mut text = String::new();
        NasmFormatter::new().format(&decoder.decode(), &mut text);
        text
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} [{:02x?}] {}", self.mode, self.bytes, self.disassembly())
    }
}

/// An aligned 8-byte word of memory that differs from what the case started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Address, a multiple of 8.
    pub address: u64,
    /// The new content, little-endian.
    pub value: u64,
}

/// The words in which two concatenations of all windows differ, in ascending order of offset.
#[must_use]
pub fn changes(before: &[u8], after: &[u8]) -> Vec<Change> {
    let words = before.chunks_exact(8).zip(after.chunks_exact(8)).enumerate();
    words
        .filter(|(_, (b, a))| b != a)
        .filter_map(|(i, (_, a))| {
            let value = u64::from_le_bytes(a.try_into().ok()?);
            Some(Change { address: layout::address(i * 8)?, value })
        })
        .collect()
}

/// How the instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It completed.
    Done,
    /// It raised an exception; RIP is the one the exception frame would hold.
    Fault {
        /// Exception vector, 0-31.
        vector: u8,
        /// Error code, for vectors that have one.
        error: Option<u32>,
        /// CR2, for page faults.
        address: Option<u64>,
    },
    /// The run brought no answer (endless, or the sandbox died). Never equal to anything.
    Lost,
}

/// State after the instruction.
#[derive(Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Registers.
    pub cpu: CpuImage,
    /// Memory words that changed, ascending.
    pub memory: Vec<Change>,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { end, cpu, memory } = self;
        write!(f, "{end:x?} rip={:x} rflags={:x} gpr={:x?} memory={memory:x?}", cpu.rip, cpu.rflags, cpu.gpr)
    }
}
