//! System instructions that are frequent, and simple enough to be emitted.

use std::mem::offset_of;

use iced_x86::{Code as C, Instruction, Mnemonic as M, OpKind, Register};
use vireo_core::state::rflags;
use vireo_isa::flag;

use super::check::Address;
use super::context::{World, place};
use super::data;
use super::emit::{Alu, Host, Mem};
use super::lower::{Lowering, Unsupported};
use super::thunks::{self, T0, T1};
use crate::cpu::{Cpu, seg};
use crate::mmu::{Mmu, View};

/// Whether an instruction is for this part, in a world.
pub fn is_system(i: &Instruction, world: World) -> bool {
    match i.mnemonic() {
        M::Cli | M::Sti | M::Swapgs | M::Stac | M::Clac => world.cpl == 0,
        M::Rdtsc | M::Rdtscp => world.tsc,
        M::Pushfq | M::Pushfd => true,
        _ => matches!(i.code(), C::Mov_r32m16_Sreg | C::Mov_r64m16_Sreg) && i.op0_kind() == OpKind::Register,
    }
}

/// Whether it looks at all arithmetic flags.
pub fn needs_flags(i: &Instruction) -> bool {
    matches!(i.mnemonic(), M::Pushfq | M::Pushfd)
}

/// Emits one.
pub fn system(l: &mut Lowering, n: usize, i: &Instruction) -> Result<(), Unsupported> {
    match i.mnemonic() {
        M::Cli => {
            l.clobber(l.live(n + 1));
            l.e.alu32_imm(Alu::And, eflags(), !(rflags::IF as i32));
        }
        M::Sti => sti(l, n),
        M::Swapgs => {
            let kernel = Mem::vcpu(offset_of!(Cpu, msr.kernel_gs_base) as i32);
            let current = place::segment_base(seg::GS);
            l.e.load(T0, current);
            l.e.load(T1, kernel);
            l.e.store(current, T1);
            l.e.store(kernel, T0);
        }
        M::Stac => alignment_flag(l, n, true),
        M::Clac => alignment_flag(l, n, false),
        M::Rdtsc | M::Rdtscp => rdtsc(l, n, i),
        M::Pushfq | M::Pushfd => pushf(l, n),
        _ => read_selector(l, i),
    }
    Ok(())
}

fn eflags() -> Mem {
    Mem::vcpu(offset_of!(Cpu, eflags) as i32)
}

/// Where an interrupt waits, the interpreter has to see to its shadow and its delivery.
fn sti(l: &mut Lowering, n: usize) {
    let resume = l.e.label();
    l.clobber(l.live(n));
    let slow = data::slow_path(l, n, resume);
    l.e.cmp8_imm(Mem::vcpu(offset_of!(Cpu, interrupt_waits) as i32), 0);
    l.e.jcc(super::emit::cc::NE, slow);
    l.e.alu32_imm(Alu::Or, eflags(), rflags::IF as i32);
    l.e.bind(resume);
}

fn alignment_flag(l: &mut Lowering, n: usize, set: bool) {
    l.clobber(l.live(n + 1));
    let (op, mask) = if set { (Alu::Or, rflags::AC as i32) } else { (Alu::And, !(rflags::AC as i32)) };
    l.e.alu32_imm(op, eflags(), mask);
    if l.source.key.world.smap {
        l.view = if set { View::KernelAc } else { View::Kernel };
        let view = Mem::vcpu((offset_of!(Cpu, mmu) + Mmu::VIEW_OFFSET) as i32);
        l.e.store8_imm(view, l.view as u8);
    }
}

fn rdtsc(l: &mut Lowering, n: usize, i: &Instruction) {
    l.clobber(l.live(n + 1));
    l.e.bytes(&[0x0f, 0x31]);
    l.e.shl(Host::RDX, 32);
    l.e.alu(Alu::Or, Host::RAX, Host::RDX);
    l.e.alu(Alu::Add, Host::RAX, place::tsc_offset());
    l.e.load(Host::RDX, Host::RAX);
    l.e.shr(Host::RDX, 32);
    l.e.load32(Host::RAX, Host::RAX);
    if i.mnemonic() == M::Rdtscp {
        l.e.load32(Host::RCX, Mem::vcpu(offset_of!(Cpu, msr.tsc_aux) as i32));
    }
}

/// `pushfq`, `pushfd`: RF and VM read as zero.
fn pushf(l: &mut Lowering, n: usize) {
    let resume = l.e.label();
    l.need_flags();
    l.e.bytes(&[0x9c]); // pushfq
    l.e.pop(T1);
    l.clobber(flag::STATUS);
    l.e.alu32_imm(Alu::And, T1, flag::STATUS as i32);
    l.e.alu(Alu::Or, T1, eflags());
    l.e.alu32_imm(Alu::And, T1, !((rflags::RF | rflags::VM) as i32));
    l.e.alu32_imm(Alu::Or, T1, rflags::ONE as i32);
    l.e.store(place::spare(2), T1);
    let slow = data::slow_path(l, n, resume);
    push_spare(l, n, slow, resume);
    l.e.bind(resume);
}

/// Pushes what is in spare place 2. The flags have been clobbered.
pub fn push_spare(l: &mut Lowering, n: usize, slow: super::emit::Label, resume: super::emit::Label) {
    let word = l.word();
    let checked = l.check(Address::Stack(-(word as i32)), word, true, slow);
    l.e.load(T1, place::spare(2));
    l.store(Mem::at(T0, 0), T1);
    l.move_stack(-(word as i32));
    l.look_after_store(n, checked, word, resume);
}

/// `mov r, Sreg`.
fn read_selector(l: &mut Lowering, i: &Instruction) {
    let number = i.op0_register().full_register().number() as u8;
    let to = thunks::host(number).unwrap_or(T0);
    let segment = match i.op1_register() {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::DS => seg::DS,
        Register::FS => seg::FS,
        _ => seg::GS,
    };
    l.e.load_u16(to, place::selector(segment));
    if thunks::host(number).is_none() {
        l.e.store(place::gpr(number), to);
    }
}
