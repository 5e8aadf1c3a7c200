//! Handlers of arithmetic, logic, shifts, multiplication and bit operations.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::{Form, operand_size, operands, register};
use crate::exec::bits::{self, scan, test};
use crate::exec::multiply::{self, wide};
use crate::exec::native::{binary, shift, unary};
use crate::exec::{Handler, Uop, alu, data};

/// ADD to CMP and TEST.
pub fn binary_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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

/// INC, DEC, NEG, NOT.
pub fn unary_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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

/// Shifts and rotates.
pub fn shift_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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

/// MUL, IMUL, DIV, IDIV.
pub fn multiply_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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

/// Bit tests and scans, double shifts, wide compare-and-exchange.
pub fn bit_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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
