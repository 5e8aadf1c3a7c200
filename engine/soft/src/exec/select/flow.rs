//! Handlers of near branches, stack and string instructions.

use iced_x86::{Instruction, Mnemonic as M, OpKind};

use super::{condition, operand_size, register};
use crate::exec::{Handler, Uop, branch, data, stack, string};

/// Operand size of a relative branch.
fn branch_size(i: &Instruction) -> u32 {
    match i.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        _ => 8,
    }
}

/// Near branches.
pub fn branch_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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

/// PUSH to ENTER.
pub fn stack_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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

/// String instructions.
pub fn string_handler(i: &Instruction, u: &mut Uop) -> Option<Handler> {
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
