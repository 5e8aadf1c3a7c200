//! What single instructions need to be interesting: counts, pointers, divisors, stack content.

use crate::case::{CpuImage, MemImage};
use crate::generate::patch;
use crate::{Mode, Rng, has_avx, layout, operands, state};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use vireo_isa::{Class, Desc, Fp};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// Bits that a loaded RFLAGS must not have: TF would trap in the exit code, AC makes misaligned accesses
/// fault, which the engines leave to the host's kernel setting CR0.AM.
const UNWANTED_FLAGS: u64 = 1 << 8 | 1 << 18;

/// Sets implicit register operands, and memory they point to.
pub fn registers(
    instruction: &mut Instruction,
    desc: &Desc,
    mode: Mode,
    cpu: &mut CpuImage,
    memory: &mut MemImage,
    rng: &mut Rng,
) {
    use Mnemonic as M;
    match desc.class {
        Class::String | Class::Io => string(instruction, desc, mode, cpu, memory, rng),
        Class::Stack => stack(instruction, mode, cpu, memory, rng),
        Class::Branch => branch(instruction, mode, cpu, memory, rng),
        _ => {}
    }
    match instruction.mnemonic() {
        M::Div | M::Idiv if !rng.one_in(3) => divide(instruction, cpu, rng),
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => {
            cpu.gpr[RDI] = state::target(rng, 16, false).wrapping_sub(mode.base())
        }
        M::Xlatb => {
            let target = state::target(rng, 1, false).wrapping_sub(mode.base());
            cpu.gpr[RBX] = target.wrapping_sub(cpu.gpr[RAX] & 0xff);
        }
        _ if instruction.is_vsib() => indices(instruction, cpu, rng),
        M::Vpcmpestri | M::Vpcmpestrm | M::Vpcmpestri64 | M::Vpcmpestrm64 if !rng.one_in(3) => {
            cpu.gpr[RAX] = rng.below(40).wrapping_sub(20);
            cpu.gpr[RDX] = rng.below(40).wrapping_sub(20);
        }
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpestri64 | M::Pcmpestrm64 if !rng.one_in(3) => {
            cpu.gpr[RAX] = rng.below(40).wrapping_sub(20);
            cpu.gpr[RDX] = rng.below(40).wrapping_sub(20);
        }
        M::Bt | M::Bts | M::Btr | M::Btc if instruction.op1_kind() == OpKind::Register => {
            // A bit offset addresses memory 2^63 bits away: keep most of them near.
            let n = instruction.op1_register().full_register().number();
            if instruction.op0_kind() == OpKind::Memory && !rng.one_in(16) {
                cpu.gpr[n] = rng.below(1 << 15).wrapping_sub(1 << 14);
            }
        }
        _ => {}
    }
    if reads_cl(instruction) && rng.one_in(2) {
        cpu.gpr[RCX] = cpu.gpr[RCX] & !0xff | rng.below(70);
    }
}

/// Indices that stay near the base, most of them.
fn indices(instruction: &Instruction, cpu: &mut CpuImage, rng: &mut Rng) {
    let n = instruction.memory_index().number();
    let wide = instruction.is_vsib64();
    let half = |rng: &mut Rng| {
        let index = |rng: &mut Rng| {
            if rng.one_in(24) { state::integer(rng) } else { rng.below(64).wrapping_sub(32) }
        };
        if wide { index(rng) } else { index(rng) & 0xffff_ffff | index(rng) << 32 }
    };
    let vector = |rng: &mut Rng| u128::from(half(rng)) | u128::from(half(rng)) << 64;
    cpu.fx.set_xmm(n, vector(rng));
    cpu.high[n] = if has_avx() { vector(rng) } else { 0 };
}

fn reads_cl(instruction: &Instruction) -> bool {
    (0..instruction.op_count())
        .any(|i| instruction.op_kind(i) == OpKind::Register && instruction.op_register(i) == Register::CL)
}

/// Makes the quotient fit more often than chance would.
fn divide(instruction: &Instruction, cpu: &mut CpuImage, rng: &mut Rng) {
    let narrow = matches!(instruction.code(), Code::Div_rm8 | Code::Idiv_rm8);
    if narrow {
        cpu.gpr[RAX] &= !0xff00;
        cpu.gpr[RAX] |= rng.below(4) << 8;
    } else {
        let negative = instruction.mnemonic() == Mnemonic::Idiv && rng.one_in(2);
        cpu.gpr[RDX] = if negative { u64::MAX } else { rng.below(3) };
        cpu.gpr[RAX] = if negative { cpu.gpr[RAX] | 0x8000_8000_8000_8080 } else { cpu.gpr[RAX] };
    }
}

fn string(
    instruction: &mut Instruction,
    desc: &Desc,
    mode: Mode,
    cpu: &mut CpuImage,
    memory: &mut MemImage,
    rng: &mut Rng,
) {
    if matches!(desc.code.mnemonic(), Mnemonic::In | Mnemonic::Out) {
        return;
    }
    let size = desc.code.op_code().memory_size().size().max(1) as u64;
    let bits = implicit_bits(instruction);
    for register in [RSI, RDI] {
        let offset = state::target(rng, size, false).wrapping_sub(mode.base());
        cpu.gpr[register] = operands::spread(offset, bits, mode, rng);
    }
    match rng.below(3) {
        0 => instruction.set_has_rep_prefix(true),
        1 => instruction.set_has_repne_prefix(true),
        _ => return,
    }
    cpu.gpr[RCX] = operands::spread(rng.below(24), bits, mode, rng);
    // Compares and scans end at once on noise: give them something alike.
    if rng.one_in(2) {
        let unit = cpu.gpr[RAX].to_le_bytes();
        let run: Vec<u8> = unit[..size.min(8) as usize].iter().copied().cycle().take(32).collect();
        let used = if bits == 16 { 0xffff } else { 0xffff_ffff };
        for register in [RSI, RDI] {
            patch(memory, mode.base() + (cpu.gpr[register] & used), &run);
        }
    }
}

/// Address bits of the implicit operands of a string instruction.
fn implicit_bits(instruction: &Instruction) -> usize {
    for i in 0..instruction.op_count() {
        match instruction.op_kind(i) {
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => return 16,
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => return 32,
            _ => {}
        }
    }
    64
}

/// A branch target that is no landing: in 16-bit code the filler of the code page, else absent or not
/// canonical.
fn wild(rng: &mut Rng) -> u64 {
    rng.next() & !0xffff | (layout::CODE - layout::BASE16 + 0x800 + rng.below(0x400))
}

fn stack(instruction: &Instruction, mode: Mode, cpu: &mut CpuImage, memory: &mut MemImage, rng: &mut Rng) {
    use Mnemonic as M;
    cpu.gpr[RSP] = state::stack_pointer(rng) - mode.base();
    match instruction.mnemonic() {
        M::Leave | M::Enter => cpu.gpr[RBP] = state::stack_pointer(rng) - mode.base(),
        M::Popf | M::Popfd | M::Popfq => {
            let flags = rng.next() & !UNWANTED_FLAGS;
            patch(memory, mode.base() + cpu.gpr[RSP], &flags.to_le_bytes());
        }
        _ => {}
    }
}

fn branch(instruction: &Instruction, mode: Mode, cpu: &mut CpuImage, memory: &mut MemImage, rng: &mut Rng) {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Ret => {
            cpu.gpr[RSP] = state::stack_pointer(rng) - mode.base();
            let target = target_offset(mode, rng);
            patch(memory, mode.base() + cpu.gpr[RSP], &target.to_le_bytes());
        }
        M::Call | M::Jmp => {
            cpu.gpr[RSP] = state::stack_pointer(rng) - mode.base();
            if instruction.op0_kind() == OpKind::Register {
                cpu.gpr[instruction.op0_register().full_register().number()] = target_offset(mode, rng);
            }
        }
        M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz | M::Jrcxz => {
            cpu.gpr[RCX] = rng.pick(&[0, 1, 2, 1 << 32, (1 << 32) | 1, 1 << 16, u64::MAX]);
        }
        _ => {}
    }
}

/// Where a generated indirect branch goes.
fn target_offset(mode: Mode, rng: &mut Rng) -> u64 {
    if rng.one_in(8) { wild(rng) } else { layout::LANDING - mode.base() }
}

/// Fills the memory operand at `target`.
pub fn operand_memory(
    instruction: &Instruction,
    desc: &Desc,
    mode: Mode,
    cpu: &CpuImage,
    memory: &mut MemImage,
    target: u64,
    rng: &mut Rng,
) {
    use Mnemonic as M;
    match instruction.mnemonic() {
        M::Call | M::Jmp => patch(memory, target, &target_offset(mode, rng).to_le_bytes()),
        M::Ldmxcsr | M::Vldmxcsr => patch(memory, target, &state::fx(rng).mxcsr().to_le_bytes()),
        M::Fxrstor | M::Fxrstor64 => patch(memory, target, &state::fx(rng).0),
        M::Fldcw => patch(memory, target, &state::fx(rng).u16(0).to_le_bytes()),
        M::Cmpxchg if rng.one_in(2) => patch(memory, target, &cpu.gpr[RAX].to_le_bytes()),
        M::Cmpxchg8b if rng.one_in(2) => {
            let value = cpu.gpr[RDX] << 32 | cpu.gpr[RAX] & 0xffff_ffff;
            patch(memory, target, &value.to_le_bytes());
        }
        M::Cmpxchg16b if rng.one_in(2) => {
            let value = u128::from(cpu.gpr[RDX]) << 64 | u128::from(cpu.gpr[RAX]);
            patch(memory, target, &value.to_le_bytes());
        }
        M::Bound => {
            let low = state::integer(rng) as u32;
            patch(memory, target, &[low.to_le_bytes(), low.wrapping_add(1 << 30).to_le_bytes()].concat());
        }
        _ if matches!(desc.fp, Fp::X87 { .. }) && desc.code.op_code().memory_size().size() == 10 => {
            patch(memory, target, &state::extended(rng));
        }
        _ if rng.one_in(4) => {}
        _ => {
            let size = desc.code.op_code().memory_size().size().clamp(1, 32);
            let data = [state::vector(rng), state::vector(rng)].map(u128::to_le_bytes);
            patch(memory, target, &data.as_flattened()[..size]);
        }
    }
}
