//! Which handler executes an instruction: integer data instructions, near branches, stack and strings.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};

use super::bits::{scan, test};
use super::multiply::wide;
use super::native::{binary, shift, unary};
use super::{Handler, Uop, alu, bits, branch, data, multiply, stack, string};
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
    let run = binary_handler(i, u)
        .or_else(|| unary_handler(i, u))
        .or_else(|| shift_handler(i, u))
        .or_else(|| multiply_handler(i, u))
        .or_else(|| bit_handler(i, u))
        .or_else(|| data_handler(i, u))
        .or_else(|| conditional_handler(i, u))
        .or_else(|| branch_handler(i, u))
        .or_else(|| stack_handler(i, u))
        .or_else(|| string_handler(i, u))?;
    u.run.set(run);
    Some(())
}

fn binary_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    use binary::*;
    let op = match i.mnemonic() {
        M::Add => ADD,
        M::Or => OR,
        M::Adc => ADC,
        M::Sbb => SBB,
        M::And => AND,
        M::Sub => SUB,
        M::Xor => XOR,
        M::Cmp => CMP,
        M::Test => TEST,
        _ => return None,
    };
    let f = operands(i, u);
    let size = operand_size(i, 0);
    macro_rules! pick {
        ($f:path) => {
            match op {
                ADD => sized!(size, $f, ADD),
                OR => sized!(size, $f, OR),
                ADC => sized!(size, $f, ADC),
                SBB => sized!(size, $f, SBB),
                AND => sized!(size, $f, AND),
                SUB => sized!(size, $f, SUB),
                XOR => sized!(size, $f, XOR),
                CMP => sized!(size, $f, CMP),
                _ => sized!(size, $f, TEST),
            }
        };
    }
    Some(match f {
        Form::Mr | Form::Mi if i.has_lock_prefix() => {
            u.aux = u16::from(f == Form::Mi);
            pick!(alu::locked)
        }
        Form::Rr => pick!(alu::rr),
        Form::Rm => pick!(alu::rm),
        Form::Mr => pick!(alu::mr),
        Form::Ri => pick!(alu::ri),
        Form::Mi => pick!(alu::mi),
        Form::Other => return None,
    })
}

fn unary_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    use unary::*;
    let op = match i.mnemonic() {
        M::Inc => INC,
        M::Dec => DEC,
        M::Neg => NEG,
        M::Not => NOT,
        _ => return None,
    };
    let size = operand_size(i, 0);
    macro_rules! pick {
        ($f:path) => {
            match op {
                INC => sized!(size, $f, INC),
                DEC => sized!(size, $f, DEC),
                NEG => sized!(size, $f, NEG),
                _ => sized!(size, $f, NOT),
            }
        };
    }
    Some(match i.op0_kind() {
        OpKind::Register => {
            u.dst = register(i.op0_register());
            pick!(alu::unary_r)
        }
        _ if i.has_lock_prefix() => pick!(alu::unary_locked),
        _ => pick!(alu::unary_m),
    })
}

/// `rol` and `ror` of a register by an immediate, 8 to 64 bits; the host masks the count as the guest's processor does.
fn rotate_handler(op: u8, size: u32, count: u8) -> Handler {
    macro_rules! pick {
        ($op:expr, $($n:literal)*) => {
            match count & 63 { $($n => sized!(size, alu::rotate_r, $op, $n),)* _ => data::undefined }
        };
    }
    macro_rules! all {
        ($op:expr) => {
            pick!($op, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
                       32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63)
        };
    }
    if op == shift::ROL { all!(shift::ROL) } else { all!(shift::ROR) }
}

fn shift_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    use shift::*;
    let op = match i.mnemonic() {
        M::Rol => ROL,
        M::Ror => ROR,
        M::Rcl => RCL,
        M::Rcr => RCR,
        M::Shl | M::Sal => SHL,
        M::Shr => SHR,
        M::Sar => SAR,
        _ => return None,
    };
    let size = operand_size(i, 0);
    match i.op1_kind() {
        OpKind::Register => u.aux = 1,
        _ => (u.aux, u.imm) = (0, i.immediate(1)),
    }
    macro_rules! pick {
        ($f:path) => {
            match op {
                ROL => sized!(size, $f, ROL),
                ROR => sized!(size, $f, ROR),
                RCL => sized!(size, $f, RCL),
                RCR => sized!(size, $f, RCR),
                SHL => sized!(size, $f, SHL),
                SHR => sized!(size, $f, SHR),
                _ => sized!(size, $f, SAR),
            }
        };
    }
    let register_operand = i.op0_kind() == OpKind::Register;
    if matches!(op, ROL | ROR) && u.aux == 0 {
        if !register_operand {
            return None;
        }
        u.dst = register(i.op0_register());
        return Some(rotate_handler(op, size, u.imm as u8));
    }
    Some(if register_operand {
        u.dst = register(i.op0_register());
        pick!(alu::shift_r)
    } else {
        pick!(alu::shift_m)
    })
}

fn multiply_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    let op = match i.mnemonic() {
        M::Mul => wide::MUL,
        M::Imul => wide::IMUL,
        M::Div => wide::DIV,
        M::Idiv => wide::IDIV,
        _ => return None,
    };
    let size = operand_size(i, 0);
    if i.op_count() > 1 {
        let register_source = i.op1_kind() == OpKind::Register;
        u.dst = register(i.op0_register());
        if register_source {
            u.src = register(i.op1_register());
        }
        if i.op_count() == 3 {
            (u.aux, u.imm) = (1, i.immediate(2));
        }
        return Some(if register_source {
            sized_wide!(size, multiply::imul_rr)
        } else {
            sized_wide!(size, multiply::imul_rm)
        });
    }
    let memory = i.op0_kind() == OpKind::Memory;
    if !memory {
        u.src = register(i.op0_register());
    }
    macro_rules! pick {
        ($op:expr) => {
            match (size, memory) {
                (1, _) => {
                    u.aux = u16::from(memory);
                    multiply::narrow::<{ $op }>
                }
                (_, true) => sized_wide!(size, multiply::wide_m, $op),
                _ => sized_wide!(size, multiply::wide_r, $op),
            }
        };
    }
    Some(match op {
        wide::MUL => pick!(wide::MUL),
        wide::IMUL => pick!(wide::IMUL),
        wide::DIV => pick!(wide::DIV),
        _ => pick!(wide::IDIV),
    })
}

fn bit_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    let size = if i.op_count() > 0 { operand_size(i, 0) } else { 0 };
    match i.mnemonic() {
        M::Bt | M::Bts | M::Btr | M::Btc => return Some(bit_test_handler(i, u, size)),
        M::Shld | M::Shrd => return Some(double_shift_handler(i, u, size)),
        M::Cmpxchg8b => return Some(bits::cmpxchg8b),
        M::Cmpxchg16b => return Some(bits::cmpxchg16b),
        _ => {}
    }
    let op = match i.mnemonic() {
        M::Bsf => scan::BSF,
        M::Bsr => scan::BSR,
        M::Tzcnt => scan::TZCNT,
        M::Lzcnt => scan::LZCNT,
        M::Popcnt => scan::POPCNT,
        _ => return None,
    };
    let memory = operands(i, u) == Form::Rm;
    macro_rules! pick {
        ($op:expr) => {
            if memory { sized_wide!(size, bits::scan_rm, $op) } else { sized_wide!(size, bits::scan_rr, $op) }
        };
    }
    Some(match op {
        scan::BSF => pick!(scan::BSF),
        scan::BSR => pick!(scan::BSR),
        scan::TZCNT => pick!(scan::TZCNT),
        scan::LZCNT => pick!(scan::LZCNT),
        _ => pick!(scan::POPCNT),
    })
}

fn bit_test_handler(i: &Instruction, u: &mut Uop, size: u32) -> Handler {
    let memory = matches!(operands(i, u), Form::Mr | Form::Mi);
    let by_register = i.op1_kind() == OpKind::Register;
    u.aux = u16::from(by_register) | u16::from(i.has_lock_prefix()) << 1;
    macro_rules! pick {
        ($op:expr) => {
            if memory { sized_wide!(size, bits::test_m, $op) } else { sized_wide!(size, bits::test_r, $op) }
        };
    }
    match i.mnemonic() {
        M::Bt => pick!(test::BT),
        M::Bts => pick!(test::BTS),
        M::Btr => pick!(test::BTR),
        _ => pick!(test::BTC),
    }
}

fn double_shift_handler(i: &Instruction, u: &mut Uop, size: u32) -> Handler {
    operands(i, u);
    match i.op2_kind() {
        OpKind::Register => u.aux = 1,
        _ => (u.aux, u.imm) = (0, i.immediate(2)),
    }
    match (i.mnemonic() == M::Shld, i.op0_kind() == OpKind::Memory) {
        (true, true) => sized_wide!(size, bits::double_shift_m, true),
        (true, false) => sized_wide!(size, bits::double_shift_r, true),
        (false, true) => sized_wide!(size, bits::double_shift_m, false),
        (false, false) => sized_wide!(size, bits::double_shift_r, false),
    }
}

fn data_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    use iced_x86::Code as C;
    let size = if i.op_count() > 0 { operand_size(i, 0) } else { 0 };
    Some(match i.mnemonic() {
        M::Mov => return mov_handler(i, u),
        M::Lea => {
            u.dst = register(i.op0_register());
            sized!(size, data::lea)
        }
        M::Movzx | M::Movsx | M::Movsxd => return extend_handler(i, u),
        M::Xchg | M::Xadd | M::Cmpxchg => {
            u.aux = u16::from(i.has_lock_prefix());
            match (i.mnemonic(), operands(i, u)) {
                (M::Xchg, Form::Rr) => sized!(size, data::xchg_rr),
                (M::Xchg, Form::Mr) => sized!(size, data::xchg_mr),
                (M::Xchg, Form::Rm) => {
                    u.src = u.dst;
                    sized!(size, data::xchg_mr)
                }
                (M::Xadd, Form::Mr) => sized!(size, data::xadd_mr),
                (M::Cmpxchg, Form::Mr) => sized!(size, data::cmpxchg_mr),
                _ => return None,
            }
        }
        M::Cbw => data::widen_acc::<u16, u8>,
        M::Cwde => data::widen_acc::<u32, u16>,
        M::Cdqe => data::widen_acc::<u64, u32>,
        M::Cwd => data::sign_to_dx::<u16>,
        M::Cdq => data::sign_to_dx::<u32>,
        M::Cqo => data::sign_to_dx::<u64>,
        M::Bswap if i.code() != C::Bswap_r16 => {
            u.dst = register(i.op0_register());
            sized!(size, data::bswap)
        }
        M::Xlatb => data::xlat,
        M::Clc | M::Stc | M::Cmc => {
            u.imm = [M::Clc, M::Stc, M::Cmc].iter().position(|m| *m == i.mnemonic())? as u64;
            data::carry
        }
        M::Cld | M::Std => {
            u.imm = u64::from(i.mnemonic() == M::Std);
            data::direction
        }
        M::Lahf => data::lahf,
        M::Sahf => data::sahf,
        M::Salc => data::salc,
        M::Bound => {
            u.dst = register(i.op0_register());
            sized!(size, data::bound)
        }
        _ if vireo_isa::describe(i.code()).class == vireo_isa::Class::Nop && i.mnemonic() != M::Pause => {
            data::nop
        }
        _ => return None,
    })
}

fn mov_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    use iced_x86::Code as C;
    let size = operand_size(i, 0);
    match i.code() {
        C::Mov_AL_moffs8 | C::Mov_AX_moffs16 | C::Mov_EAX_moffs32 | C::Mov_RAX_moffs64 => {
            u.imm = i.memory_displacement64();
            return Some(sized!(size, data::mov_acc_moffs));
        }
        C::Mov_moffs8_AL | C::Mov_moffs16_AX | C::Mov_moffs32_EAX | C::Mov_moffs64_RAX => {
            u.imm = i.memory_displacement64();
            return Some(sized!(size, data::mov_moffs_acc));
        }
        _ => {}
    }
    Some(match operands(i, u) {
        Form::Rr => sized!(size, data::mov_rr),
        Form::Rm => sized!(size, data::mov_rm),
        Form::Mr => sized!(size, data::mov_mr),
        Form::Ri => sized!(size, data::mov_ri),
        Form::Mi => sized!(size, data::mov_mi),
        Form::Other => return None,
    })
}

fn extend_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    let (to, from) = (operand_size(i, 0), operand_size(i, 1));
    let signed = i.mnemonic() != M::Movzx;
    macro_rules! pick {
        ($f:ident, $($d:literal $dt:ty, $s:literal $st:ty;)*) => {
            match (to, from, signed) {
                $(($d, $s, true) => data::$f::<$dt, $st, true>,
                  ($d, $s, false) => data::$f::<$dt, $st, false>,)*
                _ => return None,
            }
        };
    }
    macro_rules! all {
        ($f:ident) => {
            pick!($f, 2 u16, 1 u8; 4 u32, 1 u8; 8 u64, 1 u8; 2 u16, 2 u16; 4 u32, 2 u16; 8 u64, 2 u16; 4 u32, 4 u32; 8 u64, 4 u32;)
        };
    }
    Some(match operands(i, u) {
        Form::Rr => all!(extend_rr),
        Form::Rm => all!(extend_rm),
        _ => return None,
    })
}

/// The condition of Jcc, SETcc or CMOVcc as in the low four bits of its opcode.
fn condition(i: &Instruction) -> u8 {
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

fn conditional_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    let cc = condition(i);
    let setcc = i.op_count() == 1 && !i.is_jcc_short_or_near();
    if cc > 15 || i.is_loop() || i.is_loopcc() || i.is_jcc_short_or_near() {
        return None;
    }
    if setcc {
        return Some(match i.op0_kind() {
            OpKind::Register => {
                u.dst = register(i.op0_register());
                by_condition_only!(cc, data::set_r)
            }
            _ => by_condition_only!(cc, data::set_m),
        });
    }
    let size = operand_size(i, 0);
    Some(match operands(i, u) {
        Form::Rr => by_condition!(cc, size, data::cmov_rr),
        Form::Rm => by_condition!(cc, size, data::cmov_rm),
        _ => return None,
    })
}

/// Operand size of a relative branch.
fn branch_size(i: &Instruction) -> u32 {
    match i.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        _ => 8,
    }
}

fn branch_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    let relative = matches!(i.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    if i.op_count() == 1 && relative {
        u.imm = i.near_branch_target();
        let size = branch_size(i);
        return Some(match i.mnemonic() {
            M::Jmp => sized!(size, branch::jmp),
            M::Call => sized!(size, branch::call),
            M::Jcxz | M::Jecxz | M::Jrcxz => {
                u.seg = address_size_of_counter(i) << 4;
                sized!(size, branch::jcxz)
            }
            M::Loop | M::Loope | M::Loopne => {
                u.aux = match i.mnemonic() {
                    M::Loopne => 0,
                    M::Loope => 1,
                    _ => 2,
                };
                u.seg = address_size_of_counter(i) << 4;
                sized!(size, branch::loop_cc)
            }
            _ if condition(i) < 16 => by_condition!(condition(i), size, branch::jcc),
            _ => return None,
        });
    }
    if i.is_jmp_near_indirect() || i.is_call_near_indirect() {
        let size = operand_size(i, 0);
        let call = i.is_call_near_indirect();
        return Some(if i.op0_kind() == OpKind::Register {
            u.src = register(i.op0_register());
            if call { sized!(size, branch::call_r) } else { sized!(size, branch::jmp_r) }
        } else if call {
            sized!(size, branch::call_m)
        } else {
            sized!(size, branch::jmp_m)
        });
    }
    if i.mnemonic() == M::Ret {
        u.imm = if i.op_count() == 1 { i.immediate(0) } else { 0 };
        return Some(sized!(i.stack_pointer_increment().unsigned_abs() as u64 - u.imm, branch::ret));
    }
    None
}

/// Address size (0 = 16, 1 = 32, 2 = 64 bits) of LOOP and JCXZ, which decides CX, ECX or RCX.
fn address_size_of_counter(i: &Instruction) -> u8 {
    use iced_x86::Code as C;
    match i.code() {
        C::Jcxz_rel8_16 | C::Jcxz_rel8_32 => 0,
        C::Jecxz_rel8_16 | C::Jecxz_rel8_32 | C::Jecxz_rel8_64 => 1,
        C::Loop_rel8_16_CX | C::Loop_rel8_32_CX | C::Loope_rel8_16_CX | C::Loope_rel8_32_CX => 0,
        C::Loopne_rel8_16_CX | C::Loopne_rel8_32_CX => 0,
        C::Loop_rel8_16_ECX | C::Loop_rel8_32_ECX | C::Loop_rel8_64_ECX => 1,
        C::Loope_rel8_16_ECX | C::Loope_rel8_32_ECX | C::Loope_rel8_64_ECX => 1,
        C::Loopne_rel8_16_ECX | C::Loopne_rel8_32_ECX | C::Loopne_rel8_64_ECX => 1,
        _ => 2,
    }
}

fn stack_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    use iced_x86::Code as C;
    let size = i.stack_pointer_increment().unsigned_abs();
    Some(match i.mnemonic() {
        M::Push => match i.op0_kind() {
            OpKind::Register if i.op0_register().is_gpr() => {
                u.src = register(i.op0_register());
                sized!(size, stack::push_r)
            }
            OpKind::Register => return None,
            OpKind::Memory => sized!(size, stack::push_m),
            _ => {
                u.imm = i.immediate(0);
                sized!(size, stack::push_i)
            }
        },
        M::Pop => match i.op0_kind() {
            OpKind::Register if i.op0_register().is_gpr() => {
                u.dst = register(i.op0_register());
                sized!(size, stack::pop_r)
            }
            OpKind::Memory => sized!(size, stack::pop_m),
            _ => return None,
        },
        M::Pusha => stack::pusha::<u16>,
        M::Pushad => stack::pusha::<u32>,
        M::Popa => stack::popa::<u16>,
        M::Popad => stack::popa::<u32>,
        M::Leave => match i.code() {
            C::Leavew => stack::leave::<u16>,
            C::Leaved => stack::leave::<u32>,
            _ => stack::leave::<u64>,
        },
        M::Enter => {
            (u.imm, u.aux) = (u64::from(i.immediate16()), u16::from(i.immediate8_2nd()));
            match i.code() {
                C::Enterw_imm16_imm8 => stack::enter::<u16>,
                C::Enterd_imm16_imm8 => stack::enter::<u32>,
                _ => stack::enter::<u64>,
            }
        }
        _ => return None,
    })
}

fn string_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    if vireo_isa::describe(i.code()).class != vireo_isa::Class::String {
        return None;
    }
    u.aux = match (i.has_rep_prefix() || i.has_repe_prefix(), i.has_repne_prefix()) {
        (_, true) => string::repeat::WHILE_NOT_EQUAL,
        (true, _) => string::repeat::WHILE_EQUAL,
        _ => string::repeat::NO,
    };
    let size = i.memory_size().size() as u32;
    Some(match i.mnemonic() {
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => sized!(size, string::movs),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => sized!(size, string::stos),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => sized!(size, string::lods),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => sized!(size, string::scas),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => sized!(size, string::cmps),
        _ => return None,
    })
}
