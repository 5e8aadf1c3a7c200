//! Which handler executes a system instruction.

use iced_x86::{Code as C, Instruction, Mnemonic as M, OpKind, Register};

use super::{MEMORY, control, far, flags, io, iret, msr, processor, syscall, tables};
use crate::cpu::seg;
use crate::exec::{Handler, Uop, register};

/// Sets handler and operands; whether the block ends with the instruction. `None`: it is not of this part.
pub fn decode(i: &Instruction, u: &mut Uop) -> Option<bool> {
    let run = transfer(i, u)
        .or_else(|| registers(i, u))
        .or_else(|| descriptors(i, u))
        .or_else(|| segments(i, u))
        .or_else(|| ports(i, u))
        .or_else(|| plain(i, u))?;
    u.run.set(run);
    Some(!goes_on(i))
}

/// Instructions after which the block goes on: they change nothing that decoding or events depend on.
fn goes_on(i: &Instruction) -> bool {
    match i.mnemonic() {
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw | M::Arpl => {
            true
        }
        // None of them lets an interrupt in; data accesses look at the view each time.
        M::Cli | M::Swapgs | M::Stac | M::Clac => true,
        M::Pushf | M::Pushfd | M::Pushfq | M::Push | M::Rdfsbase | M::Rdgsbase => true,
        M::Rdtsc | M::Rdtscp | M::Rdpid | M::Rdmsr | M::Xgetbv | M::Rdrand | M::Rdseed | M::Pause => true,
        M::Mov => !matches!(
            i.code(),
            C::Mov_cr_r32
                | C::Mov_cr_r64
                | C::Mov_dr_r32
                | C::Mov_dr_r64
                | C::Mov_Sreg_rm16
                | C::Mov_Sreg_r32m16
                | C::Mov_Sreg_r64m16
        ),
        _ => false,
    }
}

/// Index of a segment register.
fn segment_index(r: Register) -> u8 {
    match r {
        Register::ES => seg::ES,
        Register::CS => seg::CS,
        Register::SS => seg::SS,
        Register::FS => seg::FS,
        Register::GS => seg::GS,
        _ => seg::DS,
    }
}

/// Operand size and place of an r/m operand, in the form of `aux`.
fn place(i: &Instruction, op: u32) -> u16 {
    match i.op_kind(op) {
        OpKind::Register => i.op_register(op).size() as u16,
        _ => 2 | MEMORY,
    }
}

/// Number of operand `op` if it is a general register; else zero, which nothing reads.
fn number(i: &Instruction, op: u32) -> u8 {
    if i.op_kind(op) == OpKind::Register { register(i.op_register(op)) } else { 0 }
}

fn transfer(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    let (size, run): (u16, Handler) = match i.code() {
        C::Jmp_ptr1616 => (2, far::jmp_direct),
        C::Jmp_ptr1632 => (4, far::jmp_direct),
        C::Call_ptr1616 => (2, far::call_direct),
        C::Call_ptr1632 => (4, far::call_direct),
        C::Jmp_m1616 => (2, far::jmp_memory),
        C::Jmp_m1632 => (4, far::jmp_memory),
        C::Jmp_m1664 => (8, far::jmp_memory),
        C::Call_m1616 => (2, far::call_memory),
        C::Call_m1632 => (4, far::call_memory),
        C::Call_m1664 => (8, far::call_memory),
        C::Retfw | C::Retfw_imm16 => (2, far::ret),
        C::Retfd | C::Retfd_imm16 => (4, far::ret),
        C::Retfq | C::Retfq_imm16 => (8, far::ret),
        C::Iretw => (2, iret::iret),
        C::Iretd => (4, iret::iret),
        C::Iretq => (8, iret::iret),
        C::Sysretd => (4, syscall::sysret),
        C::Sysretq => (8, syscall::sysret),
        C::Sysexitd => (4, syscall::sysexit),
        C::Sysexitq => (8, syscall::sysexit),
        C::Syscall => (0, syscall::syscall),
        C::Sysenter => (0, syscall::sysenter),
        C::Int_imm8 => (0, processor::int),
        C::Int3 => (0, processor::int3),
        C::Int1 => (0, processor::int1),
        C::Into => (0, processor::into),
        _ => return None,
    };
    u.aux = size;
    u.imm = match i.code() {
        C::Jmp_ptr1616 | C::Call_ptr1616 => {
            u64::from(i.far_branch_selector()) << 32 | u64::from(i.far_branch16())
        }
        C::Jmp_ptr1632 | C::Call_ptr1632 => {
            u64::from(i.far_branch_selector()) << 32 | u64::from(i.far_branch32())
        }
        C::Retfw_imm16 | C::Retfd_imm16 | C::Retfq_imm16 => u64::from(i.immediate16()),
        C::Int_imm8 => u64::from(i.immediate8()),
        _ => 0,
    };
    Some(run)
}

/// MOV to and from control and debug registers; CRs that do not exist and DR8 to DR15 are #UD.
fn registers(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    let special = |op: u32| i.op_register(op).number() as u8;
    let has_cr = |n: u8| matches!(n, 0 | 2 | 3 | 4 | 8);
    Some(match i.code() {
        C::Mov_r32_cr | C::Mov_r64_cr => {
            (u.dst, u.src) = (number(i, 0), special(1));
            if has_cr(u.src) { control::read_cr } else { processor::undefined }
        }
        C::Mov_cr_r32 | C::Mov_cr_r64 => {
            (u.dst, u.src) = (special(0), number(i, 1));
            if has_cr(u.dst) { control::write_cr } else { processor::undefined }
        }
        C::Mov_r32_dr | C::Mov_r64_dr => {
            (u.dst, u.src) = (number(i, 0), special(1));
            if u.src < 8 { control::read_dr } else { processor::undefined }
        }
        C::Mov_dr_r32 | C::Mov_dr_r64 => {
            (u.dst, u.src) = (special(0), number(i, 1));
            if u.dst < 8 { control::write_dr } else { processor::undefined }
        }
        _ => return None,
    })
}

/// Descriptor tables, LDT, TR, and looking at descriptors.
fn descriptors(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Sgdt | M::Sidt | M::Lgdt | M::Lidt => {
            u.aux = match i.code() {
                C::Sgdt_m1664 | C::Sidt_m1664 | C::Lgdt_m1664 | C::Lidt_m1664 => 8,
                C::Sgdt_m1632 | C::Sidt_m1632 | C::Lgdt_m1632 | C::Lidt_m1632 => 4,
                _ => 2,
            };
            u.imm = if matches!(i.mnemonic(), M::Sgdt | M::Lgdt) { tables::GDT } else { tables::IDT };
            if matches!(i.mnemonic(), M::Sgdt | M::Sidt) { tables::store_table } else { tables::load_table }
        }
        M::Sldt | M::Str | M::Smsw => {
            (u.dst, u.aux) = (number(i, 0), place(i, 0));
            match i.mnemonic() {
                M::Sldt => tables::sldt,
                M::Str => tables::str,
                _ => tables::smsw,
            }
        }
        M::Lldt | M::Ltr | M::Verr | M::Verw | M::Lmsw => {
            (u.src, u.aux) = (number(i, 0), place(i, 0));
            match i.mnemonic() {
                M::Lldt => tables::lldt,
                M::Ltr => tables::ltr,
                M::Verr => tables::verr,
                M::Verw => tables::verw,
                _ => control::lmsw,
            }
        }
        M::Lar | M::Lsl => {
            (u.dst, u.src) = (number(i, 0), number(i, 1));
            u.aux = place(i, 0) | place(i, 1) & MEMORY;
            if i.mnemonic() == M::Lar { tables::lar } else { tables::lsl }
        }
        M::Arpl => {
            (u.src, u.aux, u.imm) = (number(i, 0), place(i, 0), u64::from(number(i, 1)));
            tables::arpl
        }
        M::Invlpg => tables::invlpg,
        M::Invpcid => {
            u.src = number(i, 0);
            tables::invpcid
        }
        _ => return None,
    })
}

/// Segment registers and the bases of FS and GS.
fn segments(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    let is_segment = |op: u32| i.op_kind(op) == OpKind::Register && i.op_register(op).is_segment_register();
    Some(match i.mnemonic() {
        M::Mov if is_segment(0) => {
            (u.dst, u.src, u.aux) = (segment_index(i.op0_register()), number(i, 1), place(i, 1));
            if u.dst == seg::CS { processor::undefined } else { tables::load_segment }
        }
        M::Mov if is_segment(1) => {
            (u.dst, u.src, u.aux) = (number(i, 0), segment_index(i.op1_register()), place(i, 0));
            tables::read_segment
        }
        M::Push if is_segment(0) => {
            (u.src, u.aux) =
                (segment_index(i.op0_register()), i.stack_pointer_increment().unsigned_abs() as u16);
            tables::push_segment
        }
        M::Pop if is_segment(0) => {
            (u.dst, u.aux) =
                (segment_index(i.op0_register()), i.stack_pointer_increment().unsigned_abs() as u16);
            if u.dst == seg::CS { processor::undefined } else { tables::pop_segment }
        }
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => {
            u.src = match i.mnemonic() {
                M::Lds => seg::DS,
                M::Les => seg::ES,
                M::Lfs => seg::FS,
                M::Lgs => seg::GS,
                _ => seg::SS,
            };
            (u.dst, u.aux) = (number(i, 0), place(i, 0));
            tables::load_pointer
        }
        M::Rdfsbase | M::Rdgsbase => {
            (u.dst, u.aux) = (number(i, 0), place(i, 0));
            u.src = if i.mnemonic() == M::Rdfsbase { seg::FS } else { seg::GS };
            syscall::read_base
        }
        M::Wrfsbase | M::Wrgsbase => {
            (u.src, u.aux) = (number(i, 0), place(i, 0));
            u.dst = if i.mnemonic() == M::Wrfsbase { seg::FS } else { seg::GS };
            syscall::write_base
        }
        _ => return None,
    })
}

fn ports(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    let run: Handler = match i.mnemonic() {
        M::In => io::input,
        M::Out => io::output,
        M::Insb => io::ins::<u8>,
        M::Insw => io::ins::<u16>,
        // The SSE2 instruction of the same name has another code.
        M::Insd => io::ins::<u32>,
        M::Outsb => io::outs::<u8>,
        M::Outsw => io::outs::<u16>,
        M::Outsd => io::outs::<u32>,
        _ => return None,
    };
    match i.mnemonic() {
        M::In | M::Out => {
            let (data, port) = if i.mnemonic() == M::In { (0, 1) } else { (1, 0) };
            u.aux = i.op_register(data).size() as u16;
            if i.op_kind(port) == OpKind::Immediate8 {
                u.aux |= io::IMMEDIATE;
                u.imm = i.immediate(port);
            }
        }
        _ if i.has_rep_prefix() || i.has_repne_prefix() => u.aux = io::REPEAT,
        _ => u.aux = 0,
    }
    Some(run)
}

/// Instructions without operands that need decoding, or nearly so.
fn plain(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    Some(match i.mnemonic() {
        M::Cli => flags::cli,
        M::Sti => flags::sti,
        M::Pushf | M::Pushfd | M::Pushfq | M::Popf | M::Popfd | M::Popfq => {
            u.aux = i.stack_pointer_increment().unsigned_abs() as u16;
            if matches!(i.mnemonic(), M::Pushf | M::Pushfd | M::Pushfq) { flags::pushf } else { flags::popf }
        }
        M::Clac | M::Stac => {
            u.imm = u64::from(i.mnemonic() == M::Stac);
            flags::alignment_flag
        }
        M::Clts => control::clts,
        M::Xgetbv => control::xgetbv,
        M::Xsetbv => control::xsetbv,
        M::Swapgs => syscall::swapgs,
        M::Rdmsr => msr::rdmsr,
        M::Wrmsr => msr::wrmsr,
        M::Hlt => processor::hlt,
        M::Pause => processor::pause,
        M::Cpuid => processor::cpuid,
        M::Rdtsc => processor::rdtsc,
        M::Rdtscp => processor::rdtscp,
        M::Rdpmc => processor::rdpmc,
        M::Rdpid => {
            u.dst = number(i, 0);
            processor::rdpid
        }
        M::Rdrand | M::Rdseed => {
            (u.dst, u.aux, u.imm) = (number(i, 0), place(i, 0), u64::from(i.mnemonic() == M::Rdseed));
            processor::rdrand
        }
        M::Invd | M::Wbinvd | M::Wbnoinvd => processor::cache_control,
        M::Vmcall | M::Vmmcall => processor::hypercall,
        M::Monitor | M::Mwait | M::Rsm | M::Getsec | M::Ud0 | M::Ud1 | M::Ud2 => processor::undefined,
        _ => return None,
    })
}
