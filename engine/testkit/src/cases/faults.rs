//! Exceptions: vectors, error codes, CR2, where they report to have happened.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::rings::{USER, USER_END, user_guest};
use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("divide-error", divide_error),
    case("breakpoint", breakpoint),
    case("single-step", single_step),
    case("invalid-opcode", invalid_opcode),
    case("general-protection", general_protection),
    case("segment-not-present", segment_not_present),
    case("segment-limit", segment_limit),
    case("page-fault-read", page_fault_read),
    case("page-fault-write-protected", page_fault_write),
    case("page-fault-user", page_fault_user),
    case("page-fault-no-execute", page_fault_fetch),
    case("page-fault-reserved-bit", page_fault_reserved),
    case("page-fault-pae", page_fault_pae),
    case("page-fault-32", page_fault_32),
    case("fault-is-restarted", restarted),
    case("double-fault-becomes-shutdown", shutdown),
];

/// Runs code that faults, and gives its trap.
fn fault(
    bench: &Bench<'_>,
    mode: Mode,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Trap, Failure> {
    fault_in(Guest::new(bench, mode, write)?)
}

/// As [`fault`], of a guest that needed more preparation.
fn fault_in(mut g: Guest) -> Result<Trap, Failure> {
    g.resume_with(|a| a.done())?;
    g.run()?;
    g.trap()
}

fn check(trap: Trap, vector: u64, error: u64, ip: u64) -> Result<Record, Failure> {
    let mut r = Record::default();
    r.expect("vector", trap.vector, vector)?;
    r.expect("error code", trap.error, error)?;
    r.expect("instruction", trap.ip, ip)?;
    Ok(r)
}

fn check_page(trap: Trap, error: u64, ip: u64, address: u64) -> Result<Record, Failure> {
    let mut r = check(trap, 14, error, ip)?;
    r.expect("CR2", trap.cr2, address)?;
    Ok(r)
}

fn divide_error(bench: &Bench<'_>) -> Result<Record, Failure> {
    let trap = fault(bench, Mode::Long, |a| {
        a.xor(ecx, ecx)?;
        a.div(ecx)
    })?;
    check(trap, 0, 0, CODE + 2)
}

fn breakpoint(bench: &Bench<'_>) -> Result<Record, Failure> {
    // A trap: it reports the instruction after.
    check(fault(bench, Mode::Long, |a| a.int3())?, 3, 0, CODE + 1)
}

fn single_step(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.pushfq()?;
        a.or(qword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.nop()?;
        a.nop()?;
        a.pushfq()?;
        a.and(qword_ptr(rsp), !0x100)?;
        a.popfq()?;
        a.nop()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    let traps = g.traps();
    r.expect("vectors", traps.iter().map(|t| t.vector).collect::<Vec<_>>(), vec![1; 5])?;
    let first = traps.first().map_or(0, |t| t.ip);
    let ips: Vec<_> = traps.iter().map(|t| t.ip - first).collect();
    r.expect("one trap an instruction, from the one after POPF on", ips, vec![0, 1, 2, 10, 11])?;
    Ok(r)
}

fn invalid_opcode(bench: &Bench<'_>) -> Result<Record, Failure> {
    check(fault(bench, Mode::Long, |a| a.ud2())?, 6, 0, CODE)
}

fn general_protection(bench: &Bench<'_>) -> Result<Record, Failure> {
    let selector = fault(bench, Mode::Long, |a| {
        a.mov(eax, 0x1000)?;
        a.mov(ds, eax)
    })?;
    let mut r = check(selector, 13, 0x1000, CODE + 5)?;
    let address = fault(bench, Mode::Long, |a| {
        a.mov(rax, 0x8000_0000_0000_0000u64)?;
        a.mov(ecx, dword_ptr(rax))
    })?;
    r.0.extend(check(address, 13, 0, CODE + 10)?.0);
    let reserved = fault(bench, Mode::Long, |a| {
        a.mov(eax, 1 << 30)?;
        a.mov(cr4, rax)
    })?;
    r.0.extend(check(reserved, 13, 0, CODE + 5)?.0);
    Ok(r)
}

fn segment_not_present(bench: &Bench<'_>) -> Result<Record, Failure> {
    let trap = fault(bench, Mode::Protected32, |a| {
        a.mov(eax, i32::from(sel::NOT_PRESENT))?;
        a.mov(es, eax)
    })?;
    check(trap, 11, sel::NOT_PRESENT.into(), CODE + 5)
}

fn segment_limit(bench: &Bench<'_>) -> Result<Record, Failure> {
    let trap = fault(bench, Mode::Protected32, |a| {
        a.mov(eax, i32::from(sel::SMALL))?;
        a.mov(es, eax)?;
        a.mov(dword_ptr(0xffc).es(), eax)?;
        a.mov(dword_ptr(0xffd).es(), eax)?;
        a.done()
    })?;
    let before = 5 + 2 + 6;
    check(trap, 13, 0, CODE + before)
}

/// Sets the entry of a page of the window; 0: not present.
fn entry(g: &Guest, page: u64, value: u64) {
    g.machine.ram.write(PT + 8 * page, &value.to_le_bytes());
}

fn page_fault_read(bench: &Bench<'_>) -> Result<Record, Failure> {
    let at = WINDOW + 0x3abc;
    let g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, at as u32)?;
        a.mov(eax, dword_ptr(rbx))
    })?;
    entry(&g, 3, 0);
    check_page(fault_in(g)?, 0, CODE + 5, at)
}

fn page_fault_write(bench: &Bench<'_>) -> Result<Record, Failure> {
    let at = WINDOW + 0x3ffe;
    // Crosses from a writable page into a read-only one: neither may change.
    let g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, at as u32)?;
        a.mov(dword_ptr(rbx), -1)
    })?;
    // Present, not writable.
    entry(&g, 4, WINDOW_RAM | 1);
    check_page(fault_in(g)?, 3, CODE + 5, WINDOW + 0x4000)
}

fn page_fault_user(bench: &Bench<'_>) -> Result<Record, Failure> {
    let at = WINDOW + 0x2010;
    let mut g = user_guest(bench, |a| {
        a.mov(ebx, at as u32)?;
        a.mov(eax, dword_ptr(rbx))
    })?;
    // The page is the kernel's.
    entry(&g, 2, WINDOW_RAM | 3);
    g.resume_at(USER_END);
    g.run()?;
    check_page(g.trap()?, 5, USER + 5, at)
}

fn page_fault_fetch(bench: &Bench<'_>) -> Result<Record, Failure> {
    let at = WINDOW + 0x6000;
    let g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, at as u32)?;
        a.jmp(rbx)
    })?;
    // Bit 63: no execute.
    entry(&g, 6, WINDOW_RAM | 1 << 63 | 3);
    check_page(fault_in(g)?, 0x11, at, at)
}

fn page_fault_reserved(bench: &Bench<'_>) -> Result<Record, Failure> {
    let at = WINDOW + 0x7000;
    let g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, at as u32)?;
        a.mov(eax, dword_ptr(rbx))
    })?;
    // Bit 51: above the physical address width.
    entry(&g, 7, WINDOW_RAM | 1 << 51 | 3);
    check_page(fault_in(g)?, 9, CODE + 5, at)
}

fn page_fault_pae(bench: &Bench<'_>) -> Result<Record, Failure> {
    let at = WINDOW + 0x3ab0;
    let g = Guest::new(bench, Mode::Pae, |a| {
        a.mov(ebx, at as u32)?;
        a.mov(dword_ptr(ebx), eax)
    })?;
    entry(&g, 3, 0);
    check_page(fault_in(g)?, 2, CODE + 5, at)
}

fn page_fault_32(bench: &Bench<'_>) -> Result<Record, Failure> {
    let at = WINDOW32 + 0x3ab0;
    let g = Guest::new(bench, Mode::Paging32, |a| {
        a.mov(ebx, at as u32)?;
        a.mov(dword_ptr(ebx), eax)
    })?;
    g.machine.ram.write(PT32 + 4 * 3, &[0; 4]);
    check_page(fault_in(g)?, 2, CODE + 5, at)
}

/// A string instruction faults in its middle, the handler does nothing, the guest's own code maps the page: registers
/// have to stand where the instruction goes on.
fn restarted(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(edi, (WINDOW + 0xff8) as u32)?;
        a.mov(ecx, 16)?;
        a.mov(eax, 0x77)?;
        a.rep().stosb()
    })?;
    g.resume_with(|a| {
        a.mov(eax, ecx)?;
        a.report()?;
        a.mov(eax, edi)?;
        a.report()?;
        a.mov(qword_ptr(PT + 8), ((WINDOW_RAM + 0x8000) | 7) as i32)?;
        a.mov(eax, 0x77)?;
        a.rep().stosb()?;
        a.mov(eax, ecx)?;
        a.report()?;
        a.done()
    })?;
    entry(&g, 1, 0);
    g.run()?;
    let mut r = Record::default();
    r.expect("vectors", g.vectors(), vec![(14, 2)])?;
    r.expect("CR2", g.trap()?.cr2, WINDOW + 0x1000)?;
    r.expect("registers at the fault, and after", g.reports(), vec![8, (WINDOW + 0x1000) as u32, 0])?;
    r.expect("first half", g.machine.ram.u64(WINDOW_RAM + 0xff8), 0x7777_7777_7777_7777)?;
    r.expect("second half", g.machine.ram.u64(WINDOW_RAM + 0x8000), 0x7777_7777_7777_7777)?;
    Ok(r)
}

/// No usable IDT: the fault, the double fault and the end.
fn shutdown(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.report_value(1)?;
        a.lidt(fword_ptr(DATA))?;
        a.ud2()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("reports", g.reports(), vec![1])?;
    r.expect("shutdown", g.machine.bus.was_shut_down(), true)?;
    let saved = g.machine.save()?;
    r.expect("activity", saved.activity, vireo_core::state::Activity::Shutdown)?;
    // A reset is a fresh state; it runs again.
    g.code(64, CODE, |a| {
        a.report_value(2)?;
        a.done()
    })?;
    g.run()?;
    r.expect("reports after a reset", g.reports(), vec![1, 2])?;
    Ok(r)
}
