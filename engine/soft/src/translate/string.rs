//! `rep stos` and `rep movs` within a page: the host's own instruction, between host addresses. Kernels have them for small
//! things everywhere.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use vireo_core::state::rflags;

use super::check::{Address, Checked};
use super::context::World;
use super::context::place::{self, Tlb};
use super::data;
use super::emit::{Alu, Host, Label, Mem, cc};
use super::lower::{Lowering, Unsupported};
use super::thunks::{T0, T1};

/// Whether an instruction is for this part, in a world.
pub fn is_string(i: &Instruction, world: World) -> bool {
    let source = match i.mnemonic() {
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => true,
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => {
            // Scalar MOVSD is another instruction.
            i.op1_kind() == OpKind::MemorySegRSI && !matches!(i.memory_segment(), Register::FS | Register::GS)
        }
        _ => false,
    };
    source && i.op0_kind() == OpKind::MemoryESRDI && i.has_rep_prefix() && world.mode.is64()
}

/// Emits one. What goes backwards, or does not end within the page, or misses the TLB, is the interpreter's.
pub fn string(l: &mut Lowering, n: usize, i: &Instruction) -> Result<(), Unsupported> {
    let size = i.memory_size().size() as u32;
    let moves = i.op1_kind() == OpKind::MemorySegRSI;
    let resume = l.e.label();
    l.clobber(l.live(n));
    let slow = data::slow_path(l, n, resume);
    l.e.test32_imm(place::eflags(), rflags::DF as u32);
    l.e.jcc(cc::NE, slow);
    l.e.alu_imm(Alu::Cmp, Host::RCX, 4096);
    l.e.jcc(cc::A, slow);
    let from = place::spare(2);
    if moves {
        in_page(l, Host::RSI, Tlb::Read, size, slow);
        l.e.load(T0, place::tlb(l.view, T1, Tlb::Addend));
        l.e.store(from, T0);
    }
    in_page(l, Host::RDI, Tlb::Write, size, slow);
    let to = place::tlb(l.view, T1, Tlb::Addend);
    l.e.load(T0, Host::RDI);
    if moves {
        l.e.alu(Alu::Add, Host::RSI, from);
    }
    l.e.alu(Alu::Add, Host::RDI, to);
    l.e.bytes(encoding(size, moves));
    if moves {
        l.e.alu(Alu::Sub, Host::RSI, from);
    }
    l.e.alu(Alu::Sub, Host::RDI, to);
    l.look_after(n, Checked::Dynamic, 0, resume, |l| {
        l.e.load(T1, Host::RDI);
        l.e.alu(Alu::Sub, T1, T0);
        l.e.store(place::spare(2), T1);
    });
    l.e.bind(resume);
    Ok(())
}

/// Looks whether RCX elements from a register on, at most 4096, lie in one page of the TLB. Leaves its entry's offset in T1.
fn in_page(l: &mut Lowering, at: Host, tag: Tlb, size: u32, slow: Label) {
    l.offset_in_page(Address::In(at), tag);
    // A miss leaves an offset that is nearer to none than RCX elements lead.
    l.e.lea(T0, Mem::at(T0, 0).indexed(Host::RCX, size.trailing_zeros() as u8));
    l.e.cmp_imm32(T0, 4096);
    l.e.jcc(cc::A, slow);
}

/// The instruction.
fn encoding(size: u32, moves: bool) -> &'static [u8] {
    match (size, moves) {
        (1, false) => &[0xf3, 0xaa],
        (2, false) => &[0xf3, 0x66, 0xab],
        (4, false) => &[0xf3, 0xab],
        (_, false) => &[0xf3, 0x48, 0xab],
        (1, true) => &[0xf3, 0xa4],
        (2, true) => &[0xf3, 0x66, 0xa5],
        (4, true) => &[0xf3, 0xa5],
        (_, true) => &[0xf3, 0x48, 0xa5],
    }
}
