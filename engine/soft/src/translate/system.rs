//! System instructions that are frequent, and simple enough to be emitted.

use std::mem::offset_of;

use iced_x86::{Code as C, Instruction, Mnemonic as M, OpKind, Register};
use vireo_core::state::{cr4, rflags};
use vireo_isa::flag;

use super::check::Address;
use super::context::{World, place};
use super::data;
use super::emit::{Alu, Host, Label, Mem, cc};
use super::lower::{Lowering, Unsupported};
use super::thunks::{self, T0, T1};
use crate::cpu::{Cpu, seg};
use crate::mmu::{Mmu, View};

/// Whether an instruction is for this part, in a world.
pub fn is_system(i: &Instruction, world: World) -> bool {
    match i.mnemonic() {
        M::Cli | M::Sti | M::Swapgs | M::Stac | M::Clac => world.cpl == 0,
        M::Rdtsc | M::Rdtscp => world.tsc,
        M::Pushfq | M::Pushfd | M::Cld | M::Std => true,
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => world.mode.is64(),
        _ => {
            matches!(i.code(), C::Mov_rm16_Sreg | C::Mov_r32m16_Sreg | C::Mov_r64m16_Sreg)
                && i.op0_kind() == OpKind::Register
        }
    }
}

/// Whether it looks at all arithmetic flags.
pub fn needs_flags(i: &Instruction) -> bool {
    matches!(i.mnemonic(), M::Pushfq | M::Pushfd)
}

/// Emits one.
pub fn system(l: &mut Lowering, n: usize, i: &Instruction) -> Result<(), Unsupported> {
    match i.mnemonic() {
        M::Cli => flag_bit(l, n, rflags::IF, false),
        M::Cld => flag_bit(l, n, rflags::DF, false),
        M::Std => flag_bit(l, n, rflags::DF, true),
        M::Sti => sti(l, n),
        M::Swapgs => {
            let kernel = Mem::vcpu(offset_of!(Cpu, msr.kernel_gs_base) as i32);
            let current = place::segment_base(seg::GS);
            l.e.load(T0, current);
            l.e.load(T1, kernel);
            l.e.store(current, T1);
            l.e.store(kernel, T0);
        }
        M::Rdfsbase | M::Rdgsbase => read_base(l, n, i),
        M::Wrfsbase | M::Wrgsbase => write_base(l, n, i),
        M::Stac => alignment_flag(l, n, true),
        M::Clac => alignment_flag(l, n, false),
        M::Rdtsc | M::Rdtscp => rdtsc(l, n, i),
        M::Pushfq | M::Pushfd => pushf(l, n),
        _ => read_selector(l, i),
    }
    Ok(())
}

/// Where an interrupt waits, the interpreter has to see to its shadow and its delivery.
fn sti(l: &mut Lowering, n: usize) {
    let resume = l.e.label();
    l.clobber(l.live(n));
    let slow = data::slow_path(l, n, resume);
    l.e.cmp8_imm(Mem::vcpu(offset_of!(Cpu, interrupt_waits) as i32), 0);
    l.e.jcc(cc::NE, slow);
    l.e.alu32_imm(Alu::Or, place::eflags(), rflags::IF as i32);
    l.e.bind(resume);
}

/// Sets or clears a flag that is none of the arithmetic ones.
fn flag_bit(l: &mut Lowering, n: usize, flag: u64, set: bool) {
    l.clobber(l.live(n + 1));
    let (op, mask) = if set { (Alu::Or, flag as i32) } else { (Alu::And, !(flag as i32)) };
    l.e.alu32_imm(op, place::eflags(), mask);
}

fn alignment_flag(l: &mut Lowering, n: usize, set: bool) {
    flag_bit(l, n, rflags::AC, set);
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
    l.e.alu(Alu::Or, T1, place::eflags());
    l.e.alu32_imm(Alu::And, T1, !((rflags::RF | rflags::VM) as i32));
    l.e.alu32_imm(Alu::Or, T1, rflags::ONE as i32);
    l.e.store(place::spare(2), T1);
    let slow = data::slow_path(l, n, resume);
    push_spare(l, n, slow, resume);
    l.e.bind(resume);
}

/// Pushes what is in spare place 2. The flags have been clobbered.
pub fn push_spare(l: &mut Lowering, n: usize, slow: Label, resume: Label) {
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
    let segment = match i.op1_register() {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::DS => seg::DS,
        Register::FS => seg::FS,
        _ => seg::GS,
    };
    let narrow = i.op0_register().size() == 2;
    match thunks::host(number) {
        Some(to) if !narrow => l.e.load_u16(to, place::selector(segment)),
        Some(to) => l.e.load16(to, place::selector(segment)),
        None => {
            l.e.load_u16(T0, place::selector(segment));
            if narrow { l.e.store16(place::gpr(number), T0) } else { l.e.store(place::gpr(number), T0) }
        }
    }
}

/// The base of FS or GS that RDFSBASE and its kin are about. `slow`: where they go while they are not allowed.
fn base_of(l: &mut Lowering, i: &Instruction, slow: Label) -> Mem {
    l.e.test32_imm(place::cr4(), cr4::FSGSBASE as u32);
    l.e.jcc(cc::E, slow);
    place::segment_base(if matches!(i.mnemonic(), M::Rdfsbase | M::Wrfsbase) { seg::FS } else { seg::GS })
}

fn read_base(l: &mut Lowering, n: usize, i: &Instruction) {
    let resume = l.e.label();
    l.clobber(l.live(n));
    let slow = data::slow_path(l, n, resume);
    let base = base_of(l, i, slow);
    let number = i.op0_register().full_register().number() as u8;
    let to = thunks::host(number).unwrap_or(T0);
    if i.op0_register().size() == 8 {
        l.e.load(to, base)
    } else {
        l.e.load32(to, base)
    }
    if thunks::host(number).is_none() {
        l.e.store(place::gpr(number), to);
    }
    l.e.bind(resume);
}

/// An address that is not canonical is left to the interpreter.
fn write_base(l: &mut Lowering, n: usize, i: &Instruction) {
    let resume = l.e.label();
    l.clobber(l.live(n));
    let slow = data::slow_path(l, n, resume);
    let base = base_of(l, i, slow);
    let number = i.op0_register().full_register().number() as u8;
    let from = l.read_gpr(number, T0);
    if i.op0_register().size() == 8 {
        l.e.load(T1, from);
        l.e.shl(T1, 16);
        l.e.sar(T1, 16);
        l.e.alu(Alu::Cmp, T1, from);
        l.e.jcc(cc::NE, slow);
    } else {
        l.e.load32(T1, from);
    }
    l.e.store(base, T1);
    l.e.bind(resume);
}
