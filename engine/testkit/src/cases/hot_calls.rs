//! Calls and returns in hot code that do not come in pairs, or whose stack is not a plain one.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("hot-call-by-the-place-it-pushes-to", overlapping),
    case("hot-call-that-overwrites-itself", |bench| overwriting(bench, false)),
    case("hot-indirect-call-that-overwrites-itself", |bench| overwriting(bench, true)),
    case("hot-deep-recursion", recursion),
    case("hot-stack-switches", switches),
    case("hot-return-pops-more", pops_more),
    case("hot-return-to-nowhere", nowhere),
    case("hot-call-at-the-end-of-the-lower-half", last_call),
];

/// Where functions are.
const F: u64 = CODE_AP;
const ROUNDS: u32 = 200;

/// Two callees in turn, which an engine may take for each other: the address is where the return address goes.
fn overlapping(bench: &Bench<'_>) -> Result<Record, Failure> {
    // The same in bits 0 to 11 xor bits 12 to 23.
    let (one, other) = (F + 0x100, F + 0x1101);
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let mut again = a.create_label();
        a.mov(ebx, ROUNDS)?;
        a.mov(r11, one)?;
        a.set_label(&mut again)?;
        a.mov(qword_ptr(rsp - 8), r11)?;
        a.call(qword_ptr(rsp - 8))?;
        a.xor(r11, (one ^ other) as i32)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.done()
    })?;
    for (n, at) in (0..).zip([one, other]) {
        g.code(64, at, |a| {
            a.inc(dword_ptr(DATA + 8 * n))?;
            a.ret()
        })?;
    }
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let ram = &g.machine.ram;
    r.expect("calls", [ram.u32(DATA), ram.u32(DATA + 8)], [ROUNDS / 2; 2])?;
    Ok(r)
}

/// In the last round the return address is pushed over the call.
fn overwriting(bench: &Bench<'_>, indirect: bool) -> Result<Record, Failure> {
    let end = F + 0x800;
    let f = F + 0x400;
    let call = F + 0x40;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        // So that the page is known to be one for data.
        a.inc(dword_ptr(F + 0xc00))?;
        a.mov(ebx, STACK as u32)?;
        a.mov(edx, f as u32)?;
        a.jmp(call - 3)
    })?;
    // Whoever goes on behind the call traps.
    g.machine.ram.write(F, &[0xcc; 0x400]);
    g.code(64, call - 3, |a| {
        a.mov(rsp, rbx)?;
        if indirect {
            a.call(rdx)?
        } else {
            a.call(f)?
        }
        a.jmp(call - 3)
    })?;
    g.code(64, f, |a| {
        let mut last = a.create_label();
        a.inc(dword_ptr(DATA))?;
        a.cmp(dword_ptr(DATA), ROUNDS as i32)?;
        a.je(last)?;
        a.ja(end)?;
        a.ret()?;
        a.set_label(&mut last)?;
        a.mov(ebx, (call + 8) as u32)?;
        a.ret()
    })?;
    g.code(64, end, |a| a.done())?;
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    r.expect("calls", g.machine.ram.u32(DATA), ROUNDS + 1)?;
    let back = call + if indirect { 2 } else { 5 };
    r.expect("return address", g.machine.ram.u64(call), back)?;
    Ok(r)
}

/// As many calls as fit in the stack, then their returns.
fn recursion(bench: &Bench<'_>) -> Result<Record, Failure> {
    const DEPTH: u32 = 100_000;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(esp, RAM as u32)?;
        a.mov(ebx, DEPTH)?;
        a.call(F)?;
        a.mov(qword_ptr(DATA), rsp)?;
        a.mov(qword_ptr(DATA + 8), rsi)?;
        a.done()
    })?;
    g.code(64, F, |a| {
        let mut end = a.create_label();
        a.dec(ebx)?;
        a.jz(end)?;
        a.call(F)?;
        a.set_label(&mut end)?;
        a.inc(esi)?;
        a.ret()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let ram = &g.machine.ram;
    r.expect("stack and returns", [ram.u64(DATA), ram.u64(DATA + 8)], [RAM, DEPTH.into()])?;
    Ok(r)
}

/// Two threads of the guest's own that change stacks within a function, and so return to each other's callers.
fn switches(bench: &Bench<'_>) -> Result<Record, Failure> {
    let other = F + 0x200;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let mut again = a.create_label();
        // The other one's stack: its start is what the first switch returns to.
        a.mov(r15d, (DATA + 0x800) as u32)?;
        a.mov(qword_ptr(r15), other as i32)?;
        a.mov(ebx, ROUNDS)?;
        a.set_label(&mut again)?;
        a.call(F)?;
        a.add(dword_ptr(DATA), 1)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.done()
    })?;
    g.code(64, F, |a| {
        a.xchg(rsp, r15)?;
        a.ret()
    })?;
    g.code(64, other, |a| {
        a.add(dword_ptr(DATA + 8), 3)?;
        a.call(F)?;
        a.add(dword_ptr(DATA + 8), 5)?;
        a.call(F)?;
        a.jmp(other)
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let ram = &g.machine.ram;
    r.expect("rounds", [ram.u32(DATA), ram.u32(DATA + 8)], [ROUNDS, ROUNDS / 2 * 8])?;
    Ok(r)
}

/// RET with an operand, after arguments were pushed.
fn pops_more(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let mut again = a.create_label();
        a.mov(r14d, ROUNDS)?;
        a.set_label(&mut again)?;
        a.push(r14)?;
        a.push(7)?;
        a.call(F)?;
        a.dec(r14d)?;
        a.jnz(again)?;
        a.mov(qword_ptr(DATA), rsp)?;
        a.mov(qword_ptr(DATA + 8), rsi)?;
        a.done()
    })?;
    g.code(64, F, |a| {
        a.add(rsi, qword_ptr(rsp + 8))?;
        a.add(rsi, qword_ptr(rsp + 16))?;
        a.ret_1(16)
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let sum = u64::from(ROUNDS * (ROUNDS + 1) / 2 + 7 * ROUNDS);
    let ram = &g.machine.ram;
    r.expect("stack and sum", [ram.u64(DATA), ram.u64(DATA + 8)], [STACK, sum])?;
    Ok(r)
}

/// The last round of a hot loop of `push; ret` has this address.
fn return_once(bench: &Bench<'_>, address: u64) -> Result<Guest, Failure> {
    let write = |a: &mut CodeAssembler| -> Result<(), IcedError> {
        a.mov(ebx, ROUNDS)?;
        a.mov(rdx, address)?;
        a.mov(eax, F as u32)?;
        a.jmp(F)
    };
    let g = Guest::new(bench, Mode::Long, write)?;
    g.code(64, F, |a| {
        a.dec(ebx)?;
        a.cmovz(rax, rdx)?;
        a.push(rax)?;
        a.ret_1(0)
    })?;
    Ok(g)
}

fn nowhere(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut r = Record::default();
    for address in [1 << 47, 1 << 63, (u64::MAX << 47) - 1] {
        let mut g = return_once(bench, address)?;
        g.resume_with(|a| {
            a.mov(qword_ptr(DATA), rsp)?;
            a.done()
        })?;
        g.run()?;
        let code: [u8; 64] = g.machine.ram.read(F);
        let ret = code.iter().rposition(|b| *b == 0xc2).map(|at| F + at as u64);
        let trap = g.trap()?;
        r.expect("vector and error", (trap.vector, trap.error), (13, 0))?;
        r.expect("at the return", Some(trap.ip), ret)?;
        r.expect("nothing was popped", g.machine.ram.u64(DATA), STACK - 8)?;
    }
    Ok(r)
}

/// A call whose return address is the first that is not canonical; the function returns to it in the last round.
fn last_call(bench: &Bench<'_>) -> Result<Record, Failure> {
    const LAST: u64 = (1 << 47) - 5;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(r12, LAST)?;
        a.mov(r13, LAST - 0x800)?;
        a.mov(ebx, ROUNDS)?;
        a.jmp(r12)
    })?;
    let ram = &g.machine.ram;
    let (pdpt, pd, pt) = (PML4 + 0x8000, PML4 + 0x9000, PML4 + 0xa000);
    for (at, entry) in
        [(PML4 + 8 * 255, pdpt), (pdpt + 8 * 511, pd), (pd + 8 * 511, pt), (pt + 8 * 511, WINDOW_RAM)]
    {
        ram.write(at, &(entry | 7).to_le_bytes());
    }
    let f = WINDOW_RAM + 0x1000 - 5 - 0x800;
    g.code(64, WINDOW_RAM + 0xffb, |a| a.call(f))?;
    g.code(64, f, |a| {
        let mut back = a.create_label();
        a.dec(ebx)?;
        a.jz(back)?;
        a.add(rsp, 8)?;
        a.jmp(r12)?;
        a.set_label(&mut back)?;
        a.ret()
    })?;
    g.resume_with(|a| {
        a.mov(qword_ptr(DATA), rsp)?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    let trap = g.trap()?;
    r.expect("vector and error", (trap.vector, trap.error), (13, 0))?;
    r.expect("in the function", trap.ip >> 12, LAST >> 12)?;
    r.expect("nothing was popped", g.machine.ram.u64(DATA), STACK - 8)?;
    Ok(r)
}
