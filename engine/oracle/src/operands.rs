//! Random operands for a form, and registers that make its memory operand hit a chosen address.

use crate::case::CpuImage;
use crate::{Mode, Rng, layout, state};
use iced_x86::{Instruction, OpCodeOperandKind as Op, OpKind, Register};

/// Fills all operands of `instruction`, whose code is set.
///
/// Returns `None` for operand kinds that no generated form has.
pub fn fill(instruction: &mut Instruction, mode: Mode, rng: &mut Rng) -> Option<()> {
    let kinds = instruction.code().op_code().op_kinds();
    let size = address_size(mode, rng);
    for (i, kind) in kinds.iter().enumerate() {
        operand(instruction, i as u32, *kind, mode, size, rng)?;
    }
    Some(())
}

/// Bits of an address: mostly those of the mode. All windows are below 4 GiB, and within 64 KiB of the segment
/// base in 16-bit code; in flat 32-bit code a 16-bit address hits nothing, and the fault shows it.
fn address_size(mode: Mode, rng: &mut Rng) -> u32 {
    let (usual, other, odds) = match mode {
        Mode::Long => (64, 32, 8),
        Mode::Protected => (32, 16, 24),
        Mode::Protected16 => (16, 32, 4),
    };
    if rng.one_in(odds) { other } else { usual }
}

fn register(first: Register, mode: Mode, rng: &mut Rng) -> Register {
    first + rng.below(mode.registers() as u64) as u32
}

/// 8-bit registers: AL to BH, then (64-bit code) SPL to R15B; the encoder refuses AH with REX.
fn byte_register(mode: Mode, rng: &mut Rng) -> Register {
    Register::AL + rng.below(if mode == Mode::Long { 20 } else { 8 }) as u32
}

/// The register file behind `r/m` and plain register operands, and whether memory may stand there.
fn register_operand(kind: Op, mode: Mode, rng: &mut Rng) -> Option<(Register, bool)> {
    let gpr = |first, rng: &mut Rng| register(first, mode, rng);
    Some(match kind {
        Op::r8_or_mem => (byte_register(mode, rng), true),
        Op::r16_or_mem => (gpr(Register::AX, rng), true),
        Op::r32_or_mem => (gpr(Register::EAX, rng), true),
        Op::r64_or_mem => (gpr(Register::RAX, rng), true),
        Op::mm_or_mem => (Register::MM0 + rng.below(8) as u32, true),
        Op::xmm_or_mem => (gpr(Register::XMM0, rng), true),
        Op::ymm_or_mem => (gpr(Register::YMM0, rng), true),
        Op::r8_reg | Op::r8_opcode => (byte_register(mode, rng), false),
        Op::r16_reg | Op::r16_rm | Op::r16_opcode => (gpr(Register::AX, rng), false),
        Op::r32_reg | Op::r32_rm | Op::r32_opcode | Op::r32_vvvv => (gpr(Register::EAX, rng), false),
        Op::r64_reg | Op::r64_rm | Op::r64_opcode | Op::r64_vvvv => (gpr(Register::RAX, rng), false),
        Op::mm_reg | Op::mm_rm => (Register::MM0 + rng.below(8) as u32, false),
        Op::xmm_reg | Op::xmm_rm | Op::xmm_vvvv | Op::xmm_is4 | Op::xmm_is5 => {
            (gpr(Register::XMM0, rng), false)
        }
        Op::ymm_reg | Op::ymm_rm | Op::ymm_vvvv | Op::ymm_is4 | Op::ymm_is5 => {
            (gpr(Register::YMM0, rng), false)
        }
        Op::sti_opcode => (Register::ST0 + rng.below(8) as u32, false),
        Op::cr_reg => (rng.pick(&[Register::CR0, Register::CR2, Register::CR3, Register::CR4]), false),
        Op::dr_reg => (Register::DR0 + rng.below(8) as u32, false),
        Op::al => (Register::AL, false),
        Op::cl => (Register::CL, false),
        Op::ax => (Register::AX, false),
        Op::dx => (Register::DX, false),
        Op::eax => (Register::EAX, false),
        Op::rax => (Register::RAX, false),
        Op::st0 => (Register::ST0, false),
        _ => return None,
    })
}

fn operand(
    instruction: &mut Instruction,
    i: u32,
    kind: Op,
    mode: Mode,
    size: u32,
    rng: &mut Rng,
) -> Option<()> {
    if let Some((register, or_memory)) = register_operand(kind, mode, rng) {
        if or_memory && !rng.one_in(3) {
            return memory(instruction, i, mode, size, rng);
        }
        instruction.set_op_kind(i, OpKind::Register);
        instruction.set_op_register(i, register);
        return Some(());
    }
    let implicit = |kinds: [OpKind; 3]| match size {
        16 => kinds[0],
        32 => kinds[1],
        _ => kinds[2],
    };
    match kind {
        Op::mem => return memory(instruction, i, mode, size, rng),
        Op::mem_vsib32x | Op::mem_vsib64x => {
            return elements(instruction, i, Register::XMM0, mode, size, rng);
        }
        Op::mem_vsib32y | Op::mem_vsib64y => {
            return elements(instruction, i, Register::YMM0, mode, size, rng);
        }
        Op::mem_offs => absolute(instruction, i, mode, size, rng),
        Op::seg_rSI => instruction
            .set_op_kind(i, implicit([OpKind::MemorySegSI, OpKind::MemorySegESI, OpKind::MemorySegRSI])),
        Op::seg_rDI => instruction
            .set_op_kind(i, implicit([OpKind::MemorySegDI, OpKind::MemorySegEDI, OpKind::MemorySegRDI])),
        Op::es_rDI => instruction
            .set_op_kind(i, implicit([OpKind::MemoryESDI, OpKind::MemoryESEDI, OpKind::MemoryESRDI])),
        Op::seg_rBX_al => {
            instruction.set_op_kind(i, OpKind::Memory);
            instruction.set_memory_base(match size {
                16 => Register::BX,
                32 => Register::EBX,
                _ => Register::RBX,
            });
            instruction.set_memory_index(Register::AL);
        }
        Op::br16_1 | Op::br16_2 => {
            instruction.set_op_kind(i, OpKind::NearBranch16);
            instruction.set_near_branch16((layout::LANDING - mode.base()) as u16);
        }
        Op::br32_1 | Op::br32_4 => {
            instruction.set_op_kind(i, OpKind::NearBranch32);
            instruction.set_near_branch32((layout::LANDING - mode.base()) as u32);
        }
        Op::br64_1 | Op::br64_4 => {
            instruction.set_op_kind(i, OpKind::NearBranch64);
            instruction.set_near_branch64(layout::LANDING);
        }
        _ => return immediate(instruction, i, kind, rng),
    }
    Some(())
}

fn immediate(instruction: &mut Instruction, i: u32, kind: Op, rng: &mut Rng) -> Option<()> {
    let value = state::integer(rng);
    // ENTER and a few others have a second 8-bit immediate, of a kind of its own.
    let second = i > 0 && instruction.op_kind(i - 1) == OpKind::Immediate16;
    let op_kind = match kind {
        Op::imm8 if second => OpKind::Immediate8_2nd,
        Op::imm8 | Op::imm8_const_1 => OpKind::Immediate8,
        Op::imm8sex16 => OpKind::Immediate8to16,
        Op::imm8sex32 => OpKind::Immediate8to32,
        Op::imm8sex64 => OpKind::Immediate8to64,
        Op::imm16 => OpKind::Immediate16,
        Op::imm32 => OpKind::Immediate32,
        Op::imm32sex64 => OpKind::Immediate32to64,
        Op::imm64 => OpKind::Immediate64,
        _ => return None,
    };
    instruction.set_op_kind(i, op_kind);
    match op_kind {
        OpKind::Immediate8_2nd => instruction.set_immediate8_2nd(value as u8),
        OpKind::Immediate8 if kind == Op::imm8_const_1 => instruction.set_immediate8(1),
        OpKind::Immediate8 => instruction.set_immediate8(value as u8),
        OpKind::Immediate8to16 => instruction.set_immediate8to16(i16::from(value as i8)),
        OpKind::Immediate8to32 => instruction.set_immediate8to32(i32::from(value as i8)),
        OpKind::Immediate8to64 => instruction.set_immediate8to64(i64::from(value as i8)),
        OpKind::Immediate16 => instruction.set_immediate16(value as u16),
        OpKind::Immediate32 => instruction.set_immediate32(value as u32),
        OpKind::Immediate32to64 => instruction.set_immediate32to64(i64::from(value as i32)),
        _ => instruction.set_immediate64(value),
    }
    Some(())
}

/// An absolute address in the instruction; the target is chosen at once.
fn absolute(instruction: &mut Instruction, i: u32, mode: Mode, size: u32, rng: &mut Rng) {
    let bytes = instruction.code().op_code().memory_size().size() as u64;
    instruction.set_op_kind(i, OpKind::Memory);
    instruction.set_memory_displ_size(size / 8);
    let offset = state::target(rng, bytes, false).wrapping_sub(mode.base());
    instruction.set_memory_displacement64(if size == 16 { offset & 0xffff } else { offset });
}

/// A ModRM memory operand; registers and displacement sizes now, values in [`aim`].
fn memory(instruction: &mut Instruction, i: u32, mode: Mode, size: u32, rng: &mut Rng) -> Option<()> {
    let (base, index) = if size == 16 { registers16(rng) } else { registers(mode, size, rng) };
    instruction.set_op_kind(i, OpKind::Memory);
    instruction.set_memory_base(base);
    instruction.set_memory_index(index);
    let scaled = index != Register::None && size != 16;
    instruction.set_memory_index_scale(if scaled { 1 << rng.below(4) } else { 1 });
    let needs_full = matches!(base, Register::None | Register::RIP | Register::EIP) || base == index;
    instruction.set_memory_displ_size(if needs_full { size / 8 } else { rng.pick(&[0, 1, size / 8]) });
    Some(())
}

/// A memory operand with a vector of indices of the file of `first`: a base, which [`aim`] sets, and an index register that
/// is none of the other operands.
fn elements(
    instruction: &mut Instruction,
    i: u32,
    first: Register,
    mode: Mode,
    size: u32,
    rng: &mut Rng,
) -> Option<()> {
    let file = if size == 32 { Register::EAX } else { Register::RAX };
    instruction.set_op_kind(i, OpKind::Memory);
    instruction.set_memory_base(register(file, mode, rng));
    instruction.set_memory_index(register(first, mode, rng));
    instruction.set_memory_index_scale(1 << rng.below(4));
    instruction.set_memory_displ_size(rng.pick(&[0, 1, size / 8]));
    Some(())
}

/// The nine combinations of SDM vol. 2, table 2-1.
fn registers16(rng: &mut Rng) -> (Register, Register) {
    use Register as R;
    rng.pick(&[
        (R::BX, R::SI),
        (R::BX, R::DI),
        (R::BP, R::SI),
        (R::BP, R::DI),
        (R::SI, R::None),
        (R::DI, R::None),
        (R::BP, R::None),
        (R::BX, R::None),
        (R::None, R::None),
    ])
}

fn registers(mode: Mode, size: u32, rng: &mut Rng) -> (Register, Register) {
    let file = if size == 32 { Register::EAX } else { Register::RAX };
    let (base, index) = match rng.below(8) {
        0 => (Register::None, Register::None),
        1 if mode == Mode::Long => (if size == 32 { Register::EIP } else { Register::RIP }, Register::None),
        2 => (Register::None, register(file, mode, rng)),
        3 | 4 => (register(file, mode, rng), register(file, mode, rng)),
        _ => (register(file, mode, rng), Register::None),
    };
    // The stack pointer cannot be an index: its encoding means "none".
    (base, if index == file + 4 { Register::None } else { index })
}

fn gpr_number(register: Register) -> Option<usize> {
    register.is_gpr().then(|| register.full_register().number())
}

/// Sets displacement and registers so that the ModRM memory operand of `instruction` is at the linear address
/// `target`.
pub fn aim(instruction: &mut Instruction, cpu: &mut CpuImage, target: u64, mode: Mode, rng: &mut Rng) {
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    let size = match (base.is_gpr(), index.is_gpr()) {
        (true, _) => base.size() * 8,
        (_, true) => index.size() * 8,
        _ => instruction.memory_displ_size() as usize * 8,
    };
    let offset = target.wrapping_sub(mode.base()) & if size == 16 { 0xffff } else { u64::MAX };
    if matches!(base, Register::RIP | Register::EIP) || (base == Register::None && index == Register::None) {
        instruction.set_memory_displacement64(offset);
        return;
    }
    let scale = u64::from(instruction.memory_index_scale());
    let displacement = match (instruction.memory_displ_size(), size) {
        (0, _) => 0,
        (1, _) => i64::from(rng.next() as i8) as u64,
        (_, 16) => rng.next() & 0xffff,
        _ => i64::from(rng.next() as i32 >> rng.below(20)) as u64,
    };
    let index_value = gpr_number(index).map_or(0, |n| cpu.gpr[n]).wrapping_mul(scale);
    match (gpr_number(base), gpr_number(index)) {
        (Some(b), i) if Some(b) != i => {
            let value = offset.wrapping_sub(displacement).wrapping_sub(index_value);
            cpu.gpr[b] = spread(value, size, mode, rng);
            instruction.set_memory_displacement64(displacement);
        }
        (b, Some(i)) => {
            // The index alone, or twice the same register: a small value, and the displacement does the rest.
            let value = rng.below(0x1000);
            cpu.gpr[i] = spread(value, size, mode, rng);
            let times = scale + u64::from(b.is_some());
            instruction.set_memory_displacement64(offset.wrapping_sub(value.wrapping_mul(times)));
        }
        _ => {}
    }
}

/// The low `size` bits of a value; the rest of what the mode can see of a register is noise.
pub fn spread(value: u64, size: usize, mode: Mode, rng: &mut Rng) -> u64 {
    let all = if mode == Mode::Long { u64::MAX } else { 0xffff_ffff };
    let used = if size >= 64 { u64::MAX } else { (1 << size) - 1 };
    value & used & all | rng.next() & all & !used
}
