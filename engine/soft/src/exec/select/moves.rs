//! Handlers of moves, exchanges, extensions, conditional moves and flag instructions.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::{Form, condition, operand_size, operands, register};
use crate::exec::{Handler, Uop, data};

/// Everything that moves data, and flag instructions.
pub fn data_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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

/// SETcc and CMOVcc.
pub fn conditional_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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
