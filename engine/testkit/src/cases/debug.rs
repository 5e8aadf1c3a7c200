//! Hardware breakpoints in ring 0: DR0 to DR3, DR6, DR7.
//!
//! Not here, because KVM in the host lab shows other counts than the architecture's plain rule: ports (no #DB at all) and
//! repeated string instructions (one for several iterations, which processors may also do). The software engine has tests
//! of its own for both.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("data-breakpoints", data),
    case("instruction-breakpoint", instruction),
    case("instruction-breakpoint-resumed", resumed),
];

const RF: u64 = 1 << 16;

/// `mov dr0, at` and `mov dr7, control`.
fn watch(a: &mut CodeAssembler, at: u64, control: u32) -> Result<(), IcedError> {
    a.mov(rax, at)?;
    a.mov(dr0, rax)?;
    a.mov(eax, control)?;
    a.mov(dr7, rax)
}

/// Reports DR6, ends.
fn finish(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(eax, eax)?;
    a.mov(dr7, rax)?;
    a.mov(rax, dr6)?;
    a.report()?;
    a.done()
}

/// As [`finish`], with RBX kept in DATA.
fn finish_with_count(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(qword_ptr(DATA), rbx)?;
    finish(a)
}

/// What all cases look at: the instruction pointers that #DB reported, and DR6 at the end.
fn check(g: &mut Guest, ips: Vec<u64>, status: u32) -> Result<Record, Failure> {
    g.run()?;
    let mut r = Record::default();
    let traps = g.traps();
    r.expect("vectors", traps.iter().map(|t| t.vector).collect::<Vec<_>>(), vec![1; ips.len()])?;
    r.expect("instructions", traps.iter().map(|t| t.ip).collect::<Vec<_>>(), ips)?;
    r.expect("DR6", g.reports(), vec![status])?;
    Ok(r)
}

/// Four bytes watched for writes: two of five accesses.
fn data(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(edi, DATA as u32)?;
        // In use before it is watched.
        a.mov(dword_ptr(rdi), eax)?;
        watch(a, DATA, 0x000d_0402)?;
        a.mov(ecx, dword_ptr(rdi))?;
        a.mov(dword_ptr(rdi + 4), ecx)?;
        a.inc(byte_ptr(rdi + 3))?;
        a.mov(dword_ptr(rdi - 4), ecx)?;
        a.mov(qword_ptr(rdi - 4), rcx)?;
        finish(a)
    })?;
    let start = CODE + 5 + 2 + SETUP;
    check(&mut g, vec![start + 2 + 3 + 3, start + 2 + 3 + 3 + 3 + 4], 0xffff_0ff1)
}

/// Bytes of [`watch`].
const SETUP: u64 = 10 + 3 + 5 + 3;

/// A fault: before the instruction, and it reports RF as it was.
fn instruction(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        watch(a, CODE + SETUP + 2, 0x0000_0402)?;
        a.xor(ebx, ebx)?;
        a.inc(ebx)?;
        a.inc(ebx)
    })?;
    g.resume_with(finish_with_count)?;
    let mut r = check(&mut g, vec![CODE + SETUP + 2], 0xffff_0ff1)?;
    r.expect("nothing was executed", g.machine.ram.u64(DATA), 0)?;
    r.expect("RF", g.trap()?.flags & RF, 0)?;
    Ok(r)
}

/// IRET with RF lets the instruction pass once.
fn resumed(bench: &Bench<'_>) -> Result<Record, Failure> {
    const TARGET: u64 = CODE + 0x80;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        watch(a, TARGET, 0x0000_0402)?;
        a.xor(ebx, ebx)?;
        a.mov(rcx, rsp)?;
        a.push(i32::from(sel::DATA))?;
        a.push(rcx)?;
        a.pushfq()?;
        a.or(qword_ptr(rsp), RF as i32)?;
        a.push(i32::from(sel::CODE64))?;
        a.push(TARGET as i32)?;
        a.iretq()
    })?;
    g.code(64, TARGET, |a| {
        a.inc(ebx)?;
        a.jmp(TARGET)
    })?;
    g.resume_with(finish_with_count)?;
    let mut r = check(&mut g, vec![TARGET], 0xffff_0ff1)?;
    r.expect("the first round passed, the second did not", g.machine.ram.u64(DATA), 1)?;
    Ok(r)
}
