//! Building and keeping stubs.
//!
//! Explicit register operands are passed as pointers to where the guest's register lives, so stubs differ
//! only by form, immediate, and MMX or x87 stack registers. There are so few that all of them fit into the arena, which
//! therefore needs no replacement.
//!
//! Register use inside a stub, callee-saved ones never: RDI = the vCPU, RSI = memory operand, R8, R9, RDX, RCX = pointers
//! to the register operands, which are held in R10, R11, RAX or XMM1 to XMM4 (or the YMM registers of those numbers).
//! Implicit operands are RAX, RCX, RDX, XMM0 themselves. With a VEX encoding vector operands are loaded and stored as
//! wholes, YMM registers, so that the upper halves become what the instruction makes of them.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::{Mutex, PoisonError};

use iced_x86::code_asm::*;
use iced_x86::{
    Code, Encoder, EncodingKind, IcedError, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
    OpCodeOperandKind, OpKind, Register,
};
use vireo_core::EngineError;
use vireo_isa::{Class, Desc, Fp, Privilege, flag};

use super::arena::Arena;
use super::fpu::FpuState;
use super::run;
use super::trap::Ending;
use crate::cpu::Cpu;
use crate::exec::{Handler, Uop};

/// Room for all stubs there can be: see the test that counts them.
pub const ARENA_SIZE: usize = 32 << 20;

/// Longest stub, in bytes.
pub const MAX_STUB: usize = 112;

/// A stub's code: vCPU, memory operand, third, fourth, first and second register operand.
pub type Entry = unsafe extern "sysv64" fn(*mut Cpu, *mut u8, *mut u8, *mut u8, *mut u8, *mut u8) -> Ending;

/// Where an explicit register operand lives: `base + (number << shift)` bytes into [`Cpu`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Start of the register file.
    pub base: u32,
    /// Log2 of the unit that [`Uop::dst`], [`Uop::src`] and [`Uop::aux`] count in.
    pub shift: u8,
}

/// How an instruction uses the x87 unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Not at all.
    None,
    /// Its registers or control, but it does not become the "last instruction" (MMX, and control instructions).
    Control,
    /// FNINIT: as `Control`, and the pointers are cleared.
    Init,
    /// It becomes the unit's last instruction.
    Compute,
}

/// A stub, and what its handler has to know of the instruction.
pub struct Stub {
    /// What to call.
    pub entry: Entry,
    /// The explicit register operands.
    pub places: [Place; 4],
    /// Checks before it.
    pub fp: Fp,
    /// x87 unit.
    pub unit: Unit,
    /// Reports a pending x87 exception.
    pub waiting: bool,
    /// Has a LOCK prefix.
    pub locked: bool,
    /// Size of the memory operand in bytes, 0 to 32 (108 for environments).
    pub size: u32,
    /// Its alignment minus one.
    pub align_mask: u64,
}

/// The host encoding of an instruction, padded with zeroes, and the alignment its operand needs.
type Key = ([u8; 16], u64);

struct Inner {
    arena: Arena,
    #[expect(clippy::vec_box, reason = "handlers hold pointers to them")]
    stubs: Vec<Box<Stub>>,
    by_code: HashMap<Key, *const Stub>,
}

// SAFETY: the pointers are to stubs in `stubs`, which are immutable and `Sync`.
unsafe impl Send for Inner {}

/// The stubs of a partition.
pub struct StubCache(Mutex<Inner>);

impl StubCache {
    /// An empty cache. Installs the process's handlers of host exceptions when it is the first.
    pub fn new() -> Result<Self, EngineError> {
        let arena = Arena::new(ARENA_SIZE)?;
        Ok(Self(Mutex::new(Inner { arena, stubs: Vec::new(), by_code: HashMap::new() })))
    }

    /// Finds or builds the stub of a planned instruction; valid as long as the cache.
    fn get(&self, plan: &Plan, desc: &Desc) -> Option<*const Stub> {
        let key = (plan.encoding()?, desc.alignment());
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stub) = inner.by_code.get(&key) {
            return Some(*stub);
        }
        let code = plan.assemble(desc).ok().filter(|code| code.len() <= MAX_STUB)?;
        let at = inner.arena.add(&code)?;
        // SAFETY: the code at `at` follows the calling convention of `Entry`.
        let entry = unsafe { std::mem::transmute::<*mut u8, Entry>(at.as_ptr()) };
        let stub = Box::new(plan.describe(entry, desc));
        let pointer: *const Stub = &raw const *stub;
        inner.stubs.push(stub);
        inner.by_code.insert(key, pointer);
        Some(pointer)
    }

    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.lock().unwrap().stubs.len()
    }
}

/// Handler of an instruction that a stub executes.
pub fn select(i: &Instruction, desc: &Desc, bits: u32, stubs: &StubCache, u: &mut Uop) -> Option<Handler> {
    let executable = matches!(desc.class, Class::Integer | Class::X87 | Class::Mmx | Class::Sse | Class::Avx);
    if !executable || desc.privilege != Privilege::Any {
        return None;
    }
    let plan = Plan::new(i)?;
    let stub = stubs.get(&plan, desc)?;
    let number = |n: usize| plan.slots[n].map_or(0, |s| s.number);
    (u.dst, u.src, u.aux) = (number(0), number(1), u16::from_le_bytes([number(2), number(3)]));
    u.imm = stub as u64;
    // SAFETY: just found or built.
    if unsafe { (*stub).unit } == Unit::Compute {
        u.aux = last_opcode(i, bits);
    }
    if plan.implicit_di {
        u.base = crate::cpu::regs::gpr::RDI;
    }
    Some(match plan.memory {
        _ if plan.implicit_di => run::masked,
        OpAccess::None => run::register,
        OpAccess::Read | OpAccess::CondRead => run::read,
        OpAccess::Write => run::write,
        _ => run::modify,
    })
}

/// The stub of an instruction whose handler is the caller's.
pub fn stub_for(i: &Instruction, desc: &Desc, stubs: &StubCache) -> Option<*const Stub> {
    stubs.get(&Plan::new(i)?, desc)
}

/// FOP of an x87 instruction (SDM vol. 1, 8.1.9).
fn last_opcode(i: &Instruction, bits: u32) -> u16 {
    let mut encoder = Encoder::new(bits);
    if encoder.encode(i, i.ip()).is_err() {
        return 0;
    }
    let bytes = encoder.take_buffer();
    let opcode = bytes.windows(2).find(|w| w[0] & 0xf8 == 0xd8);
    opcode.map_or(0, |w| u16::from(w[0] & 7) << 8 | u16::from(w[1]))
}

/// An explicit register operand.
#[derive(Clone, Copy, Debug)]
struct Slot {
    place: Place,
    /// Goes into a byte of [`Uop`].
    number: u8,
    host: Register,
    written: bool,
}

/// How to execute an instruction on the host.
struct Plan {
    host: Instruction,
    slots: [Option<Slot>; 4],
    /// Vector operands are wholes.
    vex: bool,
    memory: OpAccess,
    implicit_di: bool,
    /// RAX, RCX, RDX, XMM0: used, and written.
    implicit: Vec<(Register, bool)>,
}

impl Plan {
    fn new(i: &Instruction) -> Option<Self> {
        if !i.op_code().mode64() {
            return None;
        }
        let mut p = Self {
            host: *i,
            slots: [None; 4],
            vex: false,
            memory: OpAccess::None,
            implicit_di: false,
            implicit: vec![],
        };
        p.vex = i.op_code().encoding() == EncodingKind::VEX;
        let mut factory = InstructionInfoFactory::new();
        let access: Vec<OpAccess> = {
            let info = factory.info(i);
            (0..i.op_count()).map(|op| info.op_access(op)).collect()
        };
        p.host.set_segment_prefix(Register::None);
        p.host.set_has_rep_prefix(false);
        p.host.set_has_repne_prefix(false);
        for (op, access) in (0..).zip(access) {
            p.operand(i, op, access)?;
        }
        let info = factory.info(&p.host);
        for used in info.used_registers() {
            p.implicit_register(used.register(), used.access())?;
        }
        Some(p)
    }

    fn operand(&mut self, i: &Instruction, op: u32, access: OpAccess) -> Option<()> {
        match i.op_kind(op) {
            OpKind::Register => {
                let r = i.op_register(op);
                let variable = r.is_vector_register() || r.is_gpr() && !is_fixed(i.op_code().op_kind(op));
                if variable {
                    self.register_operand(op, r, access)?;
                } else if !(r.is_gpr() || r.is_mm() || r.is_st()) {
                    return None;
                }
            }
            OpKind::Memory => {
                self.memory = access;
                self.host.set_memory_base(Register::RSI);
                self.host.set_memory_index(Register::None);
                self.host.set_memory_index_scale(1);
                self.host.set_memory_displacement64(0);
                self.host.set_memory_displ_size(0);
            }
            OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI => {
                (self.memory, self.implicit_di) = (OpAccess::ReadWrite, true);
                self.host.set_op_kind(op, OpKind::MemorySegRDI);
            }
            OpKind::Immediate8 | OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 => {
            }
            _ => return None,
        }
        Some(())
    }

    fn register_operand(&mut self, op: u32, r: Register, access: OpAccess) -> Option<()> {
        use Register as R;
        let slot = self.slots.iter().position(Option::is_none)?;
        let [vectors, ..] = FpuState::OFFSETS;
        let (place, number, host) = if r.is_vector_register() {
            let base = (offset_of!(Cpu, fpu) + vectors) as u32;
            let first = if r.is_ymm() { R::YMM1 } else { R::XMM1 };
            let shift = FpuState::STRIDE.trailing_zeros() as u8;
            (Place { base, shift }, r.number() as u8, first + slot as u32)
        } else {
            let host = match r.size() {
                1 => [R::R10L, R::R11L, R::AL],
                2 => [R::R10W, R::R11W, R::AX],
                4 => [R::R10D, R::R11D, R::EAX],
                _ => [R::R10, R::R11, R::RAX],
            };
            let host = host.get(slot).copied()?;
            let high = u8::from(matches!(r, R::AH | R::CH | R::DH | R::BH));
            let number = r.full_register().number() as u8 * 8 + high;
            (Place { base: offset_of!(Cpu, regs) as u32, shift: 0 }, number, host)
        };
        let written = !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead);
        self.host.set_op_register(op, host);
        self.slots[slot] = Some(Slot { place, number, host, written });
        Some(())
    }

    /// A register that the host's instruction uses and that is not the stub's own.
    fn implicit_register(&mut self, r: Register, access: OpAccess) -> Option<()> {
        use Register as R;
        let full = whole(r);
        let own = self.slots.iter().flatten().any(|s| whole(s.host) == full);
        let memory = full == R::RSI && self.memory != OpAccess::None || full == R::RDI && self.implicit_di;
        if own || memory || r.is_mm() || r.is_st() || r.is_segment_register() {
            return Some(());
        }
        if !matches!(full, R::RAX | R::RCX | R::RDX | R::XMM0) {
            return None;
        }
        let written = !matches!(access, OpAccess::None | OpAccess::Read | OpAccess::CondRead);
        match self.implicit.iter_mut().find(|(known, _)| *known == full) {
            Some((_, w)) => *w |= written,
            None => self.implicit.push((full, written)),
        }
        Some(())
    }

    /// The bytes that identify the stub.
    fn encoding(&self) -> Option<[u8; 16]> {
        let mut encoder = Encoder::new(64);
        encoder.encode(&self.host, 0).ok()?;
        let bytes = encoder.take_buffer();
        let mut key = [0; 16];
        key.get_mut(..bytes.len())?.copy_from_slice(&bytes);
        Some(key)
    }

    /// What the handler has to know.
    fn describe(&self, entry: Entry, desc: &Desc) -> Stub {
        let place = |n: usize| self.slots[n].map_or(Place::default(), |s| s.place);
        // With a memory operand CVTPI2PD leaves the x87 unit alone, and CVTPI2PS looks at it after the operand.
        let from_memory = self.memory != OpAccess::None;
        let alone = from_memory && desc.code == Code::Cvtpi2pd_xmm_mmm64;
        let late = from_memory && desc.code == Code::Cvtpi2ps_xmm_mmm64;
        let waiting = match desc.fp {
            Fp::X87 { waiting } => waiting,
            Fp::Wait | Fp::Mmx => true,
            Fp::MmxSse { .. } => !(alone || late),
            _ => false,
        };
        Stub {
            entry,
            places: [place(0), place(1), place(2), place(3)],
            fp: desc.fp,
            unit: if alone { Unit::None } else { unit(desc) },
            waiting,
            locked: self.host.has_lock_prefix(),
            size: match (self.memory, self.implicit_di) {
                (OpAccess::None, _) => 0,
                (_, true) => {
                    if desc.class == Class::Mmx {
                        8
                    } else {
                        16
                    }
                }
                _ => self.host.memory_size().size() as u32,
            },
            align_mask: desc.alignment() - 1,
        }
    }

    fn assemble(&self, desc: &Desc) -> Result<Vec<u8>, NotEncodable> {
        let mut a = CodeAssembler::new(64)?;
        let uses_flags = (desc.flags_read | desc.flags_written | desc.flags_undefined) & flag::STATUS != 0;
        let uses_mxcsr =
            matches!(desc.fp, Fp::Sse { mxcsr: true } | Fp::MmxSse { mxcsr: true } | Fp::Avx { mxcsr: true });
        let flags = word_ptr(rdi + offset_of!(Cpu, flags));
        let [_, mxcsr, host_mxcsr] = FpuState::OFFSETS.map(|o| dword_ptr(rdi + (offset_of!(Cpu, fpu) + o)));
        if uses_flags {
            a.mov(ax, flags)?;
            a.add(al, 0x7f)?;
            a.sahf()?;
        }
        self.load_operands(&mut a)?;
        if uses_mxcsr {
            a.ldmxcsr(mxcsr)?;
        }
        if self.implicit_di {
            a.xchg(rdi, rsi)?;
        }
        a.add_instruction(self.host)?;
        if self.implicit_di {
            a.xchg(rdi, rsi)?;
        }
        if uses_mxcsr {
            a.stmxcsr(mxcsr)?;
            a.ldmxcsr(host_mxcsr)?;
        }
        self.store_operands(&mut a)?;
        if uses_flags {
            a.lahf()?;
            a.seto(al)?;
            a.mov(flags, ax)?;
        }
        if self.vex && desc.class == Class::Avx {
            // Rust code is SSE code, which is slow where upper halves are in use.
            a.vzeroupper()?;
        }
        a.xor(eax, eax)?;
        a.ret()?;
        Ok(a.assemble(0)?)
    }

    fn load_operands(&self, a: &mut CodeAssembler) -> Result<(), NotEncodable> {
        for (slot, at) in self.slots.iter().zip([r8, r9, rdx, rcx]) {
            let Some(slot) = slot else { continue };
            match (slot.host.is_vector_register(), slot.host.size()) {
                (true, _) if self.vex => a.vmovaps(ymm(slot.host)?, ymmword_ptr(at))?,
                (true, _) => a.movaps(xmm(slot.host)?, xmmword_ptr(at))?,
                (_, 1) => a.mov(gpr8(slot.host)?, byte_ptr(at))?,
                _ => a.mov(gpr64(slot.host)?, qword_ptr(at))?,
            }
        }
        for &(r, _) in &self.implicit {
            match r {
                Register::XMM0 if self.vex => a.vmovaps(ymm0, ymmword_ptr(rdi + implicit_offset(r)))?,
                Register::XMM0 => a.movaps(xmm0, xmmword_ptr(rdi + implicit_offset(r)))?,
                _ => a.mov(gpr64(r)?, qword_ptr(rdi + implicit_offset(r)))?,
            }
        }
        Ok(())
    }

    /// Explicit operands after implicit ones, the first last: where registers coincide, that is what the processor does
    /// (XADD, MULX, CMPXCHG).
    fn store_operands(&self, a: &mut CodeAssembler) -> Result<(), NotEncodable> {
        for &(r, _) in self.implicit.iter().filter(|(_, written)| *written) {
            match r {
                Register::XMM0 if self.vex => a.vmovaps(ymmword_ptr(rdi + implicit_offset(r)), ymm0)?,
                Register::XMM0 => a.movaps(xmmword_ptr(rdi + implicit_offset(r)), xmm0)?,
                _ => a.mov(qword_ptr(rdi + implicit_offset(r)), gpr64(r)?)?,
            }
        }
        let pointers = [r8, r9, rdx, rcx];
        for (n, slot) in self.slots.iter().enumerate().rev() {
            let Some(slot) = slot.filter(|s| s.written) else { continue };
            let at = pointers[n];
            match (slot.host.is_vector_register(), slot.host.size()) {
                (true, _) if self.vex => a.vmovaps(ymmword_ptr(at), ymm(slot.host)?)?,
                (true, _) => a.movaps(xmmword_ptr(at), xmm(slot.host)?)?,
                (_, 1) => a.mov(byte_ptr(at), gpr8(slot.host)?)?,
                _ => a.mov(qword_ptr(at), gpr64(slot.host)?)?,
            }
        }
        Ok(())
    }
}

/// Where an implicit register lives in [`Cpu`].
fn implicit_offset(r: Register) -> usize {
    match r {
        Register::XMM0 => offset_of!(Cpu, fpu) + FpuState::OFFSETS[0],
        _ => offset_of!(Cpu, regs) + r.number() * 8,
    }
}

/// The assembler refused; the decoder accepts nothing that leads here.
struct NotEncodable;

impl From<IcedError> for NotEncodable {
    fn from(_: IcedError) -> Self {
        Self
    }
}

/// The register that a register is a part of; of vector registers, the XMM part.
fn whole(r: Register) -> Register {
    match r {
        r if r.is_gpr() => r.full_register(),
        r if r.is_vector_register() => Register::XMM0 + r.number() as u32,
        r => r,
    }
}

fn ymm(r: Register) -> Result<AsmRegisterYmm, NotEncodable> {
    get_ymm(Register::YMM0 + r.number() as u32).ok_or(NotEncodable)
}
fn xmm(r: Register) -> Result<AsmRegisterXmm, NotEncodable> {
    get_xmm(r).ok_or(NotEncodable)
}
fn gpr8(r: Register) -> Result<AsmRegister8, NotEncodable> {
    get_gpr8(r).ok_or(NotEncodable)
}
fn gpr64(r: Register) -> Result<AsmRegister64, NotEncodable> {
    get_gpr64(r.full_register()).ok_or(NotEncodable)
}

/// Registers that the opcode names, not a field of the instruction.
fn is_fixed(kind: OpCodeOperandKind) -> bool {
    use OpCodeOperandKind as K;
    matches!(kind, K::al | K::cl | K::ax | K::dx | K::eax | K::rax)
}

/// How an instruction uses the x87 unit (control instructions: SDM vol. 1, 8.1.8).
fn unit(desc: &Desc) -> Unit {
    use Mnemonic as M;
    match desc.fp {
        Fp::X87 { .. } => match desc.code.mnemonic() {
            M::Fninit | M::Finit => Unit::Init,
            M::Fnclex | M::Fclex | M::Fldcw | M::Fnstcw | M::Fstcw | M::Fnstsw | M::Fstsw => Unit::Control,
            M::Fnstenv | M::Fldenv | M::Fnsave | M::Frstor => Unit::Control,
            _ => Unit::Compute,
        },
        Fp::Wait | Fp::Mmx | Fp::MmxSse { .. } => Unit::Control,
        _ => Unit::None,
    }
}
