//! Which handler executes an instruction: integer data instructions, near branches, stack and strings.

use iced_x86::{Instruction, OpKind, Register};

use super::Uop;
use crate::cpu::regs;

/// Picks `f::<width>` by operand size in bytes.
macro_rules! sized {
    ($size:expr, $f:path $(, $c:expr)*) => {
        match $size {
            1 => { use $f as f; f::<u8 $(, { $c })*> as Handler }
            2 => { use $f as f; f::<u16 $(, { $c })*> as Handler }
            4 => { use $f as f; f::<u32 $(, { $c })*> as Handler }
            _ => { use $f as f; f::<u64 $(, { $c })*> as Handler }
        }
    };
}

/// As [`sized`] for operations that have no 8-bit form.
macro_rules! sized_wide {
    ($size:expr, $f:path $(, $c:expr)*) => {
        match $size {
            2 => { use $f as f; f::<u16 $(, { $c })*> as Handler }
            4 => { use $f as f; f::<u32 $(, { $c })*> as Handler }
            _ => { use $f as f; f::<u64 $(, { $c })*> as Handler }
        }
    };
}

/// Picks `f::<width, cc>` by width 2, 4 or 8 and condition.
macro_rules! by_condition {
    ($cc:expr, $size:expr, $f:path) => {
        by_condition!(@ $cc, $size, $f, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $cc:expr, $size:expr, $f:path, $($n:literal)*) => {
        match $cc { $($n => sized!($size, $f, $n),)* _ => data::undefined }
    };
}

/// Picks `f::<cc>` by condition.
macro_rules! by_condition_only {
    ($cc:expr, $f:path) => { by_condition_only!(@ $cc, $f, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15) };
    (@ $cc:expr, $f:path, $($n:literal)*) => {
        match $cc { $($n => { use $f as f; f::<$n> as Handler })* _ => data::undefined }
    };
}

mod arithmetic;
mod flow;
mod moves;

/// Number of a general register as handlers name it.
pub fn register(r: Register) -> u8 {
    match r {
        Register::AH => regs::HIGH,
        Register::CH => regs::HIGH + 1,
        Register::DH => regs::HIGH + 2,
        Register::BH => regs::HIGH + 3,
        r => r.full_register().number() as u8,
    }
}

/// Size of operand `i` in bytes.
pub fn operand_size(i: &Instruction, op: u32) -> u32 {
    match i.op_kind(op) {
        OpKind::Register => i.op_register(op).size() as u32,
        _ => i.memory_size().size() as u32,
    }
}

/// Operand forms.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Rr,
    Rm,
    Mr,
    Ri,
    Mi,
    Other,
}

fn form(i: &Instruction) -> Form {
    let kind = |op| match i.op_kind(op) {
        OpKind::Register if i.op_register(op).is_gpr() => 'r',
        OpKind::Memory => 'm',
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => 'i',
        _ => '?',
    };
    if i.op_count() < 2 {
        return Form::Other;
    }
    match (kind(0), kind(1)) {
        ('r', 'r') => Form::Rr,
        ('r', 'm') => Form::Rm,
        ('m', 'r') => Form::Mr,
        ('r', 'i') => Form::Ri,
        ('m', 'i') => Form::Mi,
        _ => Form::Other,
    }
}

/// Fills register numbers and immediate according to the form.
fn operands(i: &Instruction, u: &mut Uop) -> Form {
    let f = form(i);
    match f {
        Form::Rr => (u.dst, u.src) = (register(i.op0_register()), register(i.op1_register())),
        Form::Rm => u.dst = register(i.op0_register()),
        Form::Mr => u.src = register(i.op1_register()),
        Form::Ri => (u.dst, u.imm) = (register(i.op0_register()), i.immediate(1)),
        Form::Mi => u.imm = i.immediate(1),
        Form::Other => {}
    }
    f
}

/// Sets handler and operands of an instruction that this floor of the engine executes itself. `None`: it is for
/// `system` or `host`.
pub fn select(i: &Instruction, u: &mut Uop) -> Option<()> {
    let run = arithmetic::binary_handler(i, u)
        .or_else(|| arithmetic::unary_handler(i, u))
        .or_else(|| arithmetic::shift_handler(i, u))
        .or_else(|| arithmetic::multiply_handler(i, u))
        .or_else(|| arithmetic::bit_handler(i, u))
        .or_else(|| moves::data_handler(i, u))
        .or_else(|| moves::conditional_handler(i, u))
        .or_else(|| flow::branch_handler(i, u))
        .or_else(|| flow::stack_handler(i, u))
        .or_else(|| flow::string_handler(i, u))?;
    u.run.set(run);
    Some(())
}

/// The condition of Jcc, SETcc or CMOVcc as in the low four bits of its opcode.
pub fn condition(i: &Instruction) -> u8 {
    use iced_x86::ConditionCode as C;
    match i.condition_code() {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
        C::None => 16,
    }
}
