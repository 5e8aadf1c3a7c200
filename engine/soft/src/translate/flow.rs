//! Near branches.
//!
//! A call is a call on the host too: what it pushes leads to the *return site* behind it, which looks whether the guest
//! returned to where it was called from. So the host's processor foresees returns. What the guest does to its stack
//! can only make a return site miss.

use iced_x86::{Code as C, Instruction, OpKind};
use vireo_isa::flag;

use super::check::{Address, Known};
use super::context::place;
use super::data;
use super::emit::{Label, Mem, Part, cc};
use super::lower::{Lowering, Place, Unsupported};
use super::relocation::Kind;
use super::site::Callee;
use super::thunks::{self, IN_MEMORY, T0, T1};
use crate::cpu::mode::Mode;
use crate::exec::condition;
use crate::mmu::View;

/// Whether an instruction is for this part.
pub fn is_branch(i: &Instruction) -> bool {
    i.is_jcc_short_or_near()
        || matches!(
            i.code(),
            C::Jmp_rel8_64
                | C::Jmp_rel8_32
                | C::Jmp_rel32_64
                | C::Jmp_rel32_32
                | C::Call_rel32_64
                | C::Call_rel32_32
                | C::Jmp_rm64
                | C::Jmp_rm32
                | C::Call_rm64
                | C::Call_rm32
                | C::Retnq
                | C::Retnq_imm16
                | C::Retnd
                | C::Retnd_imm16
        )
}

/// What it calls, if it is a call.
pub fn callee(i: &Instruction) -> Option<Callee> {
    match i.code() {
        // Counted from the block's start.
        C::Call_rel32_64 | C::Call_rel32_32 => Some(Callee::Away(i.near_branch_target())),
        C::Call_rm64 | C::Call_rm32 => Some(Callee::Spare),
        _ => None,
    }
}

/// The target of a direct branch in a block at `rip`.
fn branch_target(i: &Instruction, rip: u64, mode: Mode) -> u64 {
    mode.mask_ip(rip.wrapping_add(i.near_branch_target()))
}

/// Emits one.
pub fn branch(l: &mut Lowering, n: usize, i: &Instruction) -> Result<(), Unsupported> {
    let mode = l.source.key.world.mode;
    let target = branch_target(i, l.source.key.rip, mode);
    let direct = matches!(i.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32);
    // A return to an address that is not canonical faults before it returns.
    let calls =
        !matches!(l.view, View::KernelAc | View::UserAligned) && crate::cpu::Cpu::canonical(l.next_rip(n));
    if direct && !crate::cpu::Cpu::canonical(target) {
        return Err(Unsupported);
    }
    let odd = data::has_odd_address(i, l.source.key.world);
    match i.code() {
        C::Jmp_rel8_64 | C::Jmp_rel32_64 | C::Jmp_rel8_32 | C::Jmp_rel32_32 => jump(l, target),
        C::Call_rel32_64 | C::Call_rel32_32 if calls => call(l, n, target),
        C::Retnq | C::Retnq_imm16 | C::Retnd | C::Retnd_imm16 if calls => ret(l, n, i),
        C::Jmp_rm64 | C::Jmp_rm32 if !odd => indirect_jump(l, n, i)?,
        C::Call_rm64 | C::Call_rm32 if calls && !odd => indirect_call(l, n, i)?,
        _ if i.is_jcc_short_or_near() && direct => conditional(l, i, target),
        _ => return Err(Unsupported),
    }
    Ok(())
}

/// Goes to `target`, and counts the budget on the way back.
fn jump(l: &mut Lowering, target: u64) {
    let start = l.source.key.rip;
    if target == start {
        return l.loop_back(target);
    }
    let slot = l.prepare_exit(target, target <= start);
    l.jump_through(slot);
}

fn conditional(l: &mut Lowering, i: &Instruction, target: u64) {
    l.need_flags();
    let condition = condition(i);
    let flags = l.flags;
    if target <= l.source.key.rip {
        // A loop: the way back is the usual one.
        let on = l.e.label();
        l.e.jcc(condition ^ 1, on);
        jump(l, target);
        l.e.bind(on);
    } else {
        let hot = l.e.switch(Part::Aside);
        let taken = l.e.here();
        jump(l, target);
        l.e.switch(hot);
        l.e.jcc(condition, taken);
    }
    l.flags = flags;
}

/// Stores the return address below the stack pointer, which stays as it is; flags go to memory. `slow`: where a miss
/// goes.
fn push_return(l: &mut Lowering, n: usize, slow: Label) {
    l.clobber(flag::STATUS);
    let word = l.word();
    let checked = l.check(Address::Stack(-(word as i32)), word, true, slow);
    let (back, at) = (l.next_rip(n), Mem::at(T0, 0));
    match i32::try_from(back as i64) {
        _ if word == 4 => l.e.store32_imm(at, back as u32),
        Ok(v) => l.e.store_imm(at, v),
        Err(_) => {
            l.known_address(T1, Known::Relative(back));
            l.e.store(at, T1);
        }
    }
    let resume = l.e.label();
    l.look_after_store(n, checked, word, resume);
    l.e.bind(resume);
}

fn call(l: &mut Lowering, n: usize, target: u64) {
    let again = l.e.here();
    let site = l.site(n, l.word() as u16, None, Some(again));
    let slow = l.cold_call(site, l.thunks.fill);
    push_return(l, n, slow);
    l.move_stack(-(l.word() as i32));
    let slot = l.prepare_exit(target, true);
    l.call_through(slot);
    return_site(l, n);
}

/// What a call returns to: R14 is where the guest returned.
fn return_site(l: &mut Lowering, n: usize) {
    let back = l.next_rip(n);
    let view = l.view;
    match i32::try_from(back as i64) {
        Ok(v) => l.e.cmp_imm32(T0, v),
        Err(_) => {
            let hot = l.e.switch(Part::Cold);
            let constant = l.e.data(back);
            l.moves(Kind::Address, 0);
            l.e.switch(hot);
            l.e.relative(&[0x4c, 0x3b, 0x35], constant); // cmp r14, [rip + …]
        }
    }
    let returned = l.thunks.returned[usize::from(view == View::User)];
    l.e.jcc_address(cc::NE, returned);
    // The page may have moved while the guest was elsewhere.
    l.flags = Place::Memory;
    l.exit_checked(back);
}

fn ret(l: &mut Lowering, n: usize, i: &Instruction) {
    let word = l.word();
    let more = if i.op_count() == 0 { 0 } else { i.immediate16() };
    l.clobber(flag::STATUS);
    let again = l.e.here();
    let site = l.site(n, more, None, Some(again));
    let slow = l.cold_call(site, l.thunks.fill);
    let number = l.return_site(site);
    l.check(Address::Stack(0), word, false, slow);
    l.load(T0, Mem::at(T0, 0));
    l.move_stack(word as i32 + i32::from(more));
    l.e.constant(T1, u64::from(number));
    l.e.ret();
}

/// Puts the target of an indirect branch into T0; flags go to memory. `slow`: where a miss goes.
fn indirect_target(l: &mut Lowering, i: &Instruction, slow: Label) {
    l.clobber(flag::STATUS);
    if i.op0_kind() == OpKind::Register {
        let number = i.op0_register().full_register().number() as u8;
        match thunks::host(number) {
            Some(r) => l.load(T0, r),
            None => l.e.load(T0, place::gpr(number)),
        }
        return;
    }
    let address = data::address(l, i);
    let checked = l.check(address, l.word(), false, slow);
    l.add_host(checked);
    l.load(T0, Mem::at(T0, 0));
}

fn indirect_jump(l: &mut Lowering, n: usize, i: &Instruction) -> Result<(), Unsupported> {
    let site = l.site(n, 0, None, None);
    let slow = l.cold_call(site, l.thunks.instruction[IN_MEMORY]);
    indirect_target(l, i, slow);
    l.poll(slow);
    thunks::look_up_jump(&mut l.e, l.view, slow);
    Ok(())
}

fn indirect_call(l: &mut Lowering, n: usize, i: &Instruction) -> Result<(), Unsupported> {
    let site = l.site(n, 0, None, None);
    let slow = l.cold_call(site, l.thunks.instruction[IN_MEMORY]);
    indirect_target(l, i, slow);
    l.e.store(place::spare(3), T0);
    // All this before the push, which may overwrite the operand: then the interpreter could not start anew.
    l.poll(slow);
    let entry = thunks::find_jump(&mut l.e, l.view, slow);
    l.e.load(T0, entry);
    l.e.store(place::spare(2), T0);
    push_return(l, n, slow);
    l.move_stack(-(l.word() as i32));
    l.e.call_to(place::spare(2));
    return_site(l, n);
    Ok(())
}
