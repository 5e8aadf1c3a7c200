//! Instructions that only compute and move: re-emitted as they are, with registers and memory operand replaced.

use iced_x86::{
    Code as C, Instruction, InstructionInfoFactory, MemorySize, Mnemonic as M, OpAccess, OpKind, Register,
};
use vireo_isa::{Class, Desc, Fp, Privilege, flag};

use super::check::{Address, Checked, Known, Reach};
use super::context::{World, place};
use super::emit::{Host, Label, Mem};
use super::group::Group;
use super::lower::{Lowering, Unsupported};
use super::thunks::{self, T0, T1};
use crate::cpu::seg;

/// Most instructions that compute can be re-emitted: whether this one is tried.
pub fn is_data(i: &Instruction, world: World) -> bool {
    let d = vireo_isa::describe(i.code());
    // The direction flag among others: the host keeps its own.
    let other_flags = (d.flags_read | d.flags_written | d.flags_undefined) & !flag::STATUS != 0;
    if !d.known
        || d.privilege != Privilege::Any
        || other_flags
        || implicit_memory(i)
        || has_odd_address(i, world)
    {
        return false;
    }
    match d.class {
        Class::Integer => d.fp == Fp::None,
        Class::Nop => i.mnemonic() != M::Pause,
        Class::Sse => world.sse && matches!(d.fp, Fp::Sse { .. }),
        // Outside 64-bit mode the host would clear more registers than the guest.
        Class::Avx => {
            world.avx && (world.mode.is64() || !matches!(i.mnemonic(), M::Vzeroupper | M::Vzeroall))
        }
        Class::Fence => i.op_count() == 0,
        _ => false,
    }
}

/// Reaches memory other than by its explicit operand as a whole.
fn implicit_memory(i: &Instruction) -> bool {
    match i.mnemonic() {
        M::Xlatb | M::Maskmovdqu | M::Vmaskmovdqu => true,
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => true,
        _ if i.is_vsib() => true,
        _ => is_bit_string(i) && i.op1_register().size() == 2,
    }
}

/// Outside 64-bit mode: 16-bit addresses, and segments that do not just add a base.
pub fn has_odd_address(i: &Instruction, world: World) -> bool {
    if world.mode.is64() || (0..i.op_count()).all(|op| i.op_kind(op) != OpKind::Memory) {
        return false;
    }
    let narrow =
        [i.memory_base(), i.memory_index()].iter().any(|r| r.size() == 2) || i.memory_displ_size() == 2;
    narrow
        || match i.memory_segment() {
            Register::FS => world.segments & 1 == 0,
            Register::GS => world.segments & 2 == 0,
            // Never writable.
            Register::CS => true,
            _ => false,
        }
}

/// Whether the operand's address is within the instruction.
pub fn is_moffs(i: &Instruction) -> bool {
    modern(i).code() != i.code()
}

/// The same instruction in a form that 64-bit code has too.
fn modern(i: &Instruction) -> Instruction {
    let code = match i.code() {
        C::Inc_r16 => C::Inc_rm16,
        C::Inc_r32 => C::Inc_rm32,
        C::Dec_r16 => C::Dec_rm16,
        C::Dec_r32 => C::Dec_rm32,
        C::Mov_AL_moffs8 => C::Mov_r8_rm8,
        C::Mov_AX_moffs16 => C::Mov_r16_rm16,
        C::Mov_EAX_moffs32 => C::Mov_r32_rm32,
        C::Mov_RAX_moffs64 => C::Mov_r64_rm64,
        C::Mov_moffs8_AL => C::Mov_rm8_r8,
        C::Mov_moffs16_AX => C::Mov_rm16_r16,
        C::Mov_moffs32_EAX => C::Mov_rm32_r32,
        C::Mov_moffs64_RAX => C::Mov_rm64_r64,
        other => other,
    };
    let mut i = *i;
    i.set_code(code);
    i
}

/// A bit of memory whose offset, in a register, reaches far beyond the operand.
pub fn is_bit_string(i: &Instruction) -> bool {
    matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && i.op0_kind() == OpKind::Memory
        && i.op1_kind() == OpKind::Register
}

/// What the operands need.
pub struct Operands {
    /// Guest registers that live in memory, each with the scratch register that stands in for it.
    pub spilled: Vec<(u8, Host)>,
    /// Size of the memory operand, 0 if there is none.
    pub size: u32,
    /// The memory operand is written.
    pub writes: bool,
    /// Access to each operand.
    access: [OpAccess; 5],
}

fn writes(a: OpAccess) -> bool {
    matches!(a, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

/// What the operands of an instruction need.
pub fn operands(factory: &mut InstructionInfoFactory, i: &Instruction) -> Result<Operands, Unsupported> {
    let info = factory.info(i);
    let access = std::array::from_fn(|n| info.op_access(n as u32));
    let mut o = Operands { spilled: Vec::new(), size: 0, writes: false, access };
    for op in 0..i.op_count() {
        if i.op_kind(op) == OpKind::Memory {
            let a = o.access[op as usize];
            // The operand of a NOP is not accessed, whatever the decoder says of reserved ones.
            let none = a == OpAccess::NoMemAccess || vireo_isa::describe(i.code()).class == Class::Nop;
            o.size = if none { 0 } else { memory_size(i.memory_size())? };
            o.writes = writes(a);
        }
    }
    let scratch: &[Host] = if o.size != 0 { &[T1] } else { &[T1, T0] };
    for op in 0..i.op_count() {
        let Some(n) = gpr_operand(i, op) else { continue };
        if thunks::host(n).is_none() && !o.spilled.iter().any(|s| s.0 == n) {
            o.spilled.push((n, *scratch.get(o.spilled.len()).ok_or(Unsupported)?));
        }
    }
    Ok(o)
}

fn memory_size(size: MemorySize) -> Result<u32, Unsupported> {
    match size.size() {
        n @ 1..=32 => Ok(n as u32),
        _ => Err(Unsupported),
    }
}

/// Number of the general register that operand `op` is (or is part of).
fn gpr_operand(i: &Instruction, op: u32) -> Option<u8> {
    let r = (i.op_kind(op) == OpKind::Register).then(|| i.op_register(op)).filter(|r| r.is_gpr())?;
    Some(r.full_register().number() as u8)
}

/// Longest instruction.
const MAX_LENGTH: usize = 15;

fn copy_of<'a>(bytes: &[u8], to: &'a mut [u8; MAX_LENGTH]) -> &'a [u8] {
    let to = &mut to[..bytes.len()];
    to.copy_from_slice(bytes);
    to
}

/// Emits one.
pub fn data(l: &mut Lowering, n: usize, i: &Instruction) -> Result<(), Unsupported> {
    let i = &modern(i);
    let d = vireo_isa::describe(i.code());
    if d.class == Class::Nop {
        return Ok(());
    }
    if i.mnemonic() == M::Lea {
        return lea(l, i);
    }
    let o = operands(&mut l.tools.info, i)?;
    let (host, reach) = host_form(l, i, &o);
    // Tried now: an instruction that cannot be encoded must leave nothing behind.
    let mut code = [0; MAX_LENGTH];
    let code = copy_of(l.tools.encode(&host).ok_or(Unsupported)?, &mut code);
    let of_group = l.group.as_ref().map(|g| g.after(n));
    let resume = of_group.unwrap_or_else(|| l.e.label());
    let checked = if o.size != 0 { check_operand(l, n, i, &o, reach, resume) } else { Checked::Dynamic };
    load_spilled(l, i, &o);
    flags_before(l, n, i, d);
    // Flags that a check overwrote, since none of them matters, are not taken for the guest's.
    let flags_lost = o.size != 0 && l.live(n) == 0;
    let thunk =
        if flags_lost { l.thunks.instruction[thunks::IN_MEMORY] } else { l.by_flags(l.thunks.instruction) };
    emit(l, n, d, code, resume, thunk);
    if d.flags_written | d.flags_undefined != 0 {
        l.flags = super::lower::Place::Host;
    }
    store_spilled(l, i, &o);
    if o.writes {
        l.clobber(l.live(n + 1));
        l.look_after_store_at(n, checked, host.memory_displacement64() as i32, o.size, resume);
    }
    if of_group.is_none() {
        l.e.bind(resume);
    }
    Ok(())
}

/// The instruction as it is emitted, and how its memory operand is reached.
fn host_form(l: &Lowering, i: &Instruction, o: &Operands) -> (Instruction, Reach) {
    let group = l.group.as_ref().filter(|_| o.size != 0);
    let reach = group.map_or_else(|| reach(l, i, o), Group::reach);
    let mut host = rewrite(i, o, reach);
    if let Some(group) = group.filter(|_| reach == Reach::Host) {
        displace(&mut host, group.displacement(i));
    }
    if is_bit_string(i) {
        // Its offset within the operand, see `load_spilled`.
        host.set_op1_register(sized(T1, i.op1_register()));
    }
    (host, reach)
}

/// Looks for the memory operand in the TLB, unless its group has.
fn check_operand(
    l: &mut Lowering,
    n: usize,
    i: &Instruction,
    o: &Operands,
    reach: Reach,
    resume: Label,
) -> Checked {
    if l.group.is_some() {
        return Checked::Attention;
    }
    l.clobber(l.live(n));
    let slow = slow_path(l, n, resume);
    let mut address = address(l, i);
    if is_bit_string(i) {
        address = bit_address(l, i, address);
    }
    let checked = l.check(address, o.size, o.writes, slow);
    l.reach(checked, reach);
    if o.writes && checked == Checked::Dynamic && (is_bit_string(i) || !o.spilled.is_empty()) {
        // T1 is needed for a register.
        l.attention(checked);
        l.e.store(place::spare(1), T1);
        return Checked::Saved;
    }
    checked
}

/// Loads the registers that live in memory, and the bit offset of a bit string instruction.
fn load_spilled(l: &mut Lowering, i: &Instruction, o: &Operands) {
    if is_bit_string(i) {
        let number = i.op1_register().full_register().number() as u8;
        let from = l.read_gpr(number, T1);
        l.e.load(T1, from);
        return l.e.and32_imm(T1, 8 * o.size - 1);
    }
    o.spilled.iter().filter(|s| is_read(i, o, s.0)).for_each(|(gpr, r)| l.e.load(*r, place::gpr(*gpr)));
}

/// Stores those that were written.
fn store_spilled(l: &mut Lowering, i: &Instruction, o: &Operands) {
    for op in (0..i.op_count()).filter(|op| writes(o.access[*op as usize])) {
        let spilled = gpr_operand(i, op).and_then(|g| o.spilled.iter().find(|s| s.0 == g));
        if let Some((gpr, r)) = spilled {
            l.e.store(place::gpr(*gpr), *r);
        }
    }
}

/// Gives a host instruction's operand at T0 a displacement.
fn displace(host: &mut Instruction, by: i64) {
    host.set_memory_displacement64(by as u64);
    host.set_memory_displ_size(if by == 0 { 0 } else { 1 });
}

/// Whether the instruction can be encoded with its operand at any place near T0.
pub fn encodes(l: &mut Lowering, i: &Instruction, o: &Operands) -> bool {
    if i.mnemonic() == M::Lea {
        return i.op0_register().size() >= 4;
    }
    let mut host = rewrite(i, o, Reach::Host);
    if o.size != 0 {
        displace(&mut host, 1);
    }
    l.tools.encode(&host).is_some()
}

/// Adds to an address the whole operands that the bit offset of a bit string instruction is away.
fn bit_address(l: &mut Lowering, i: &Instruction, address: Address) -> Address {
    match address {
        Address::Known(at) => l.known_address(T0, at),
        Address::In(r) => l.e.load(T0, r),
        Address::Stack(disp) => l.lea(T0, Mem::at(Host::R15, disp)),
        Address::Dynamic => {}
    }
    let r = i.op1_register();
    let from = l.read_gpr(r.full_register().number() as u8, T1);
    let (bits, log_size) = if r.size() == 8 { (6, 3) } else { (5, 2) };
    if r.size() == 8 {
        l.e.load(T1, from)
    } else {
        l.e.movsxd(T1, from)
    }
    l.e.sar(T1, bits);
    l.lea(T0, Mem::at(T0, 0).indexed(T1, log_size));
    Address::Dynamic
}

/// Where an access of instruction `n` goes that misses the TLB: the interpreter makes it, and fills the TLB.
pub fn slow_path(l: &mut Lowering, n: usize, resume: Label) -> Label {
    let site = l.site(n, 0, Some(resume), None);
    l.cold_call(site, l.thunks.instruction[thunks::IN_MEMORY])
}

/// Brings back the flags that the instruction reads, or leaves as they are while it changes others.
fn flags_before(l: &mut Lowering, n: usize, i: &Instruction, d: &Desc) {
    let changes = (d.flags_written | d.flags_undefined) & flag::STATUS != 0;
    let kept = l.live(n + 1) & !super::flags::killed(i, d);
    if d.flags_read & flag::STATUS != 0 || changes && kept != 0 {
        l.need_flags();
    }
}

/// Emits the instruction itself, and what happens if the host raises an exception in it.
fn emit(l: &mut Lowering, n: usize, d: &Desc, code: &[u8], resume: Label, thunk: usize) {
    let divides = matches!(d.code.mnemonic(), M::Div | M::Idiv);
    if d.fp == Fp::None && !d.aligned && !divides {
        return l.e.bytes(code);
    }
    let from = l.e.here();
    l.e.bytes(code);
    let to = l.e.here();
    l.may_fault(n, from, to, resume, thunk);
}

/// How the operand of an instruction that is in no group is reached: a read by two registers, where it can be.
fn reach(l: &Lowering, i: &Instruction, o: &Operands) -> Reach {
    let by_two = o.size != 0 && !o.writes && o.spilled.is_empty() && !is_bit_string(i) && is_general(l, i);
    match by_two {
        false => Reach::Host,
        true if has_base_only(l, i) => Reach::Base,
        true => Reach::Pair,
    }
}

/// Whether the address is a register, which is in the host's of that name, and a displacement: what they give in the guest
/// is what they give in the host.
pub fn has_base_only(l: &Lowering, i: &Instruction) -> bool {
    let base = i.memory_base();
    l.word() == 8
        && i.memory_index() == Register::None
        && !is_segmented(i)
        && host_register(base).is_some_and(|h| usize::from(h.0) == base.number())
}

/// The same instruction with the host's registers, its memory operand reached as said.
fn rewrite(i: &Instruction, o: &Operands, reach: Reach) -> Instruction {
    let mut host = *i;
    host.set_segment_prefix(Register::None);
    for op in 0..i.op_count() {
        match i.op_kind(op) {
            OpKind::Memory if reach == Reach::Base => {
                host.set_memory_index(Register::R11);
                host.set_memory_index_scale(1);
            }
            OpKind::Memory => {
                host.set_memory_base(Register::R14);
                host.set_memory_index(if reach == Reach::Pair { Register::R11 } else { Register::None });
                host.set_memory_index_scale(1);
                host.set_memory_displacement64(0);
                host.set_memory_displ_size(0);
            }
            OpKind::Register if i.op_register(op).is_gpr() => {
                let r = i.op_register(op);
                let number = r.full_register().number() as u8;
                let spilled = o.spilled.iter().find(|s| s.0 == number).map(|s| s.1);
                if let Some(to) = spilled.or(thunks::host(number)).filter(|to| to.0 != number) {
                    host.set_op_register(op, sized(to, r));
                }
            }
            _ => {}
        }
    }
    host
}

/// A host register of the size of a guest register, which is none of AH to BH.
fn sized(to: Host, like: Register) -> Register {
    let n = u32::from(to.0);
    match like.size() {
        8 => Register::RAX + n,
        4 => Register::EAX + n,
        2 => Register::AX + n,
        _ if n < 4 => Register::AL + n,
        _ => Register::SPL + (n - 4),
    }
}

/// Whether an instruction reads (or keeps a part of) a general register that is among its operands.
fn is_read(i: &Instruction, o: &Operands, gpr: u8) -> bool {
    (0..i.op_count())
        .filter(|op| gpr_operand(i, *op) == Some(gpr))
        .any(|op| o.access[op as usize] != OpAccess::Write || i.op_register(op).size() < 4)
}

/// Whether the memory operand's address is neither known nor near the stack pointer.
pub fn is_general(l: &Lowering, i: &Instruction) -> bool {
    is_segmented(i) || known_offset(l, i).is_none() && !is_stack_operand(l, i)
}

/// Whether the memory operand has a segment whose base is added.
pub fn is_segmented(i: &Instruction) -> bool {
    matches!(i.memory_segment(), Register::FS | Register::GS)
}

fn is_stack_operand(l: &Lowering, i: &Instruction) -> bool {
    let sp = if l.word() == 8 { Register::RSP } else { Register::ESP };
    i.memory_base() == sp && i.memory_index() == Register::None && !is_segmented(i)
}

/// Puts the linear address of the explicit memory operand into T0, if it is not known. May overwrite T1 and the flags.
pub fn address(l: &mut Lowering, i: &Instruction) -> Address {
    let base = match i.memory_segment() {
        Register::FS => Some(seg::FS),
        Register::GS => Some(seg::GS),
        _ => None,
    };
    if let Some(at) = known_offset(l, i) {
        let Some(base) = base else { return Address::Known(at) };
        l.known_address(T0, at);
        add_base(l, base);
        return Address::Dynamic;
    }
    if is_stack_operand(l, i) {
        return Address::Stack(i.memory_displacement64() as i32);
    }
    let plain = i.memory_index() == Register::None && i.memory_displacement64() == 0 && base.is_none();
    if let Some(r) = host_register(i.memory_base()).filter(|_| plain) {
        return Address::In(r);
    }
    let (mem, narrow) = offset(l, i);
    if narrow {
        l.e.lea32(T0, mem);
    } else {
        l.e.lea(T0, mem);
    }
    if let Some(base) = base {
        add_base(l, base);
    }
    Address::Dynamic
}

/// Adds the base of a segment to T0.
fn add_base(l: &mut Lowering, segment: u8) {
    let base = place::segment_base(segment);
    if l.word() == 8 {
        l.e.alu(super::emit::Alu::Add, T0, base);
    } else {
        l.e.alu32(super::emit::Alu::Add, T0, base);
    }
}

/// The offset in the segment, if no register is in it.
fn known_offset(l: &Lowering, i: &Instruction) -> Option<Known> {
    let displacement = i.memory_displacement64();
    match (i.memory_base(), i.memory_index()) {
        (Register::None, Register::None) if l.word() == 4 => Some(Known::Fixed(displacement & 0xffff_ffff)),
        (Register::None, Register::None) => Some(Known::Fixed(displacement)),
        // The decoder counted from the block's start.
        (Register::RIP, _) => Some(Known::Relative(l.source.key.rip.wrapping_add(displacement))),
        (Register::EIP, _) => Some(Known::Narrow(l.source.key.rip.wrapping_add(displacement) & 0xffff_ffff)),
        _ => None,
    }
}

/// Base, index and displacement in host registers, by way of T0 and T1 where they are not in any; whether addresses have
/// 32 bits.
pub fn offset(l: &mut Lowering, i: &Instruction) -> (Mem, bool) {
    let number = |r: Register| (r != Register::None).then(|| r.full_register().number() as u8);
    let (base, index) = (i.memory_base(), i.memory_index());
    let narrow = [base, index].iter().any(|r| r.size() == 4);
    let mut mem = match number(base) {
        Some(n) => Mem::at(l.read_gpr(n, T0), 0),
        None => Mem::absolute(0),
    };
    if let Some(n) = number(index) {
        let scale = i.memory_index_scale().trailing_zeros() as u8;
        mem = mem.indexed(l.read_gpr(n, T1), scale);
    }
    (mem.displaced(i.memory_displacement64() as i32), narrow)
}

/// The host register that a 64-bit register of the guest is in.
fn host_register(r: Register) -> Option<Host> {
    (r.size() == 8 && r.is_gpr()).then(|| thunks::host(r.number() as u8)).flatten()
}

fn lea(l: &mut Lowering, i: &Instruction) -> Result<(), Unsupported> {
    let to = i.op0_register();
    if to.size() < 4 || has_odd_address(i, l.source.key.world) && !is_segmented(i) {
        return Err(Unsupported);
    }
    let number = to.full_register().number() as u8;
    let r = thunks::host(number).unwrap_or(T0);
    if let Some(at) = known_offset(l, i) {
        l.known_address(r, if to.size() == 4 { at.narrow() } else { at });
    } else {
        let (mem, narrow) = offset(l, i);
        if narrow || to.size() == 4 { l.e.lea32(r, mem) } else { l.e.lea(r, mem) }
    }
    if thunks::host(number).is_none() {
        l.e.store(place::gpr(number), r);
    }
    Ok(())
}

/// Pushes, pops and LEAVE of a word that touch nothing else.
pub fn is_stack(i: &Instruction, world: World) -> bool {
    let word = match i.code() {
        C::Push_r64 | C::Push_rm64 | C::Pushq_imm8 | C::Pushq_imm32 | C::Leaveq | C::Pop_r64 => 8,
        C::Push_r32 | C::Push_rm32 | C::Pushd_imm8 | C::Pushd_imm32 | C::Leaved | C::Pop_r32 => 4,
        _ => return false,
    };
    word == world.word() && !has_odd_address(i, world)
}

/// Emits one of them.
pub fn stack(l: &mut Lowering, n: usize, i: &Instruction) -> Result<(), Unsupported> {
    let resume = l.e.label();
    l.clobber(l.live(n));
    let slow = slow_path(l, n, resume);
    let word = l.word();
    match i.mnemonic() {
        M::Push if i.op0_kind() == OpKind::Memory => {
            let address = address(l, i);
            let checked = l.check(address, word, false, slow);
            l.add_host(checked);
            l.load(T0, Mem::at(T0, 0));
            l.e.store(place::spare(2), T0);
            super::system::push_spare(l, n, slow, resume);
        }
        M::Push => {
            let checked = l.check(Address::Stack(-(word as i32)), word, true, slow);
            push_value(l, i);
            l.move_stack(-(word as i32));
            l.look_after_store(n, checked, word, resume);
        }
        M::Pop => {
            l.check(Address::Stack(0), word, false, slow);
            let number = i.op0_register().full_register().number() as u8;
            let to = thunks::host(number).unwrap_or(T0);
            l.load(to, Mem::at(T0, 0));
            if thunks::host(number).is_none() {
                l.e.store(place::gpr(number), to);
            }
            // POP RSP: what it loads is the stack pointer.
            if to != Host::R15 {
                l.move_stack(word as i32);
            }
        }
        _ => {
            // A 32-bit frame pointer may have anything above its 32 bits.
            l.load(T0, Host::RBP);
            let checked = l.check(Address::Dynamic, word, false, slow);
            l.add_host(checked);
            l.lea(Host::R15, Mem::at(Host::RBP, word as i32));
            l.load(Host::RBP, Mem::at(T0, 0));
        }
    }
    l.e.bind(resume);
    Ok(())
}

/// Stores what a push pushes at T0. Overwrites T1.
fn push_value(l: &mut Lowering, i: &Instruction) {
    let at = Mem::at(T0, 0);
    if i.op0_kind() != OpKind::Register {
        // Immediates are sign-extended to the word.
        let v = i.immediate(0) as i32;
        return if l.word() == 8 { l.e.store_imm(at, v) } else { l.e.store32_imm(at, v as u32) };
    }
    let number = i.op0_register().full_register().number() as u8;
    let from = l.read_gpr(number, T1);
    l.store(at, from);
}
