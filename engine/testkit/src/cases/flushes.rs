//! TLBs that one processor flushes for others by a hypercall, on engines that can.

use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vireo_core::state::Activity;

use super::hot_smp::start;
use super::{Case, case};
use crate::asm::Phrases;
use crate::bus::HYPERCALL_FLUSH;
use crate::guest::Guest;
use crate::machine::{Bench, LIMIT};
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("flush-of-everything", |bench| moved_page(bench, 0)),
    case("flush-of-what-is-not-global", |bench| moved_page(bench, 1)),
    case("flush-of-a-page", |bench| moved_page(bench, WINDOW)),
    case("flush-of-those-that-do-not-run", at_rest),
    case("flush-of-each-other-while-paused-and-saved", each_other),
];

/// Code of processor `n`.
const fn code_of(n: u64) -> u64 {
    CODE_AP + 0x400 * n
}
/// Makes a hypercall.
const HYPERCALL: u64 = CODE_AP + 0x1800;
/// Ends loops.
const STOP: u64 = DATA + 0x700;
/// In a page: not zero while the page is mapped.
const GOOD: u64 = 0x800;
const GLOBAL: u64 = 1 << 8;

/// One of the pages that are mapped in turn.
const fn page(n: u64) -> u64 {
    WINDOW_RAM + 0x1000 * (1 + (n & 3))
}

/// A guest whose processors start at [`code_of`] them.
fn guest(bench: &Bench<'_>, vcpus: u64, running: u64) -> Result<Guest, Failure> {
    const RET: u8 = 0xc3;
    let mut g = Guest::with_vcpus(bench, vcpus as u32, Mode::Long, |a| a.done())?;
    if g.machine.partition.tlb_flusher().is_none() {
        return Err(Failure::Skipped("the engine flushes no TLBs of other processors".into()));
    }
    let instruction = g.machine.partition.hypercall_instruction(bench.model.vendor());
    g.machine.ram.write(HYPERCALL, &[instruction.code(), vec![RET]].concat());
    start(&mut g, &(0..running).map(code_of).collect::<Vec<_>>())?;
    Ok(g)
}

/// Flushes what `scope` says on the processors of a mask.
fn flush(a: &mut CodeAssembler, mask: u32, scope: u64) -> Result<(), IcedError> {
    a.mov(edx, mask)?;
    a.mov(ecx, scope as u32)?;
    a.mov(eax, HYPERCALL_FLUSH as u32)?;
    a.call(HYPERCALL)
}

/// Global pages are kept over CR3 writes.
fn enable_global_pages(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, cr4)?;
    a.or(rax, 0x80)?;
    a.mov(cr4, rax)
}

/// Counts, at `at`, how often it read the page and executed it; at `at + 8`, how often it met the mark.
fn reader(a: &mut CodeAssembler, at: u64) -> Result<(), IcedError> {
    let mut again = a.create_label();
    enable_global_pages(a)?;
    a.xor(r15d, r15d)?;
    a.xor(r13d, r13d)?;
    a.set_label(&mut again)?;
    a.mov(ebx, dword_ptr(WINDOW + GOOD))?;
    a.call(WINDOW)?;
    // Borrows where one of them is zero.
    a.sub(ebx, 1)?;
    a.adc(r13d, 0)?;
    a.sub(eax, 1)?;
    a.adc(r13d, 0)?;
    a.inc(r15)?;
    a.mov(qword_ptr(at), r15)?;
    a.cmp(dword_ptr(STOP), 0)?;
    a.je(again)?;
    a.mov(qword_ptr(at + 8), r13)?;
    a.lock().inc(dword_ptr(STOP))?;
    halt(a)
}

fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    a.hlt()
}

/// One maps a page in place of another, and once it has had the TLBs of two others flushed, marks the old one. They read
/// the page, and execute it, all the time, and may not meet the mark.
fn moved_page(bench: &Bench<'_>, scope: u64) -> Result<Record, Failure> {
    const ROUNDS: i32 = 200;
    const READERS: [u64; 2] = [DATA + 0x100, DATA + 0x200];
    let flags = if scope == 1 { 7 } else { 7 | GLOBAL };
    let mut g = guest(bench, 3, 3)?;
    for n in 0..4 {
        // A page that is executed by an old translation tells of itself.
        g.code(64, page(n), |a| {
            a.mov(eax, dword_ptr(page(n) + GOOD))?;
            a.ret()
        })?;
    }
    g.machine.ram.write(page(0) + GOOD, &[1]);
    g.machine.ram.write(PT, &(page(0) | flags).to_le_bytes());
    g.code(64, code_of(0), |a| {
        let (mut again, mut end) = (a.create_label(), a.create_label());
        a.mov(r12d, 1)?;
        a.mov(edi, page(0) as u32)?;
        a.set_label(&mut again)?;
        for at in READERS {
            // So that it is at it just now.
            let mut wait = a.create_label();
            a.mov(rbx, qword_ptr(at))?;
            a.add(rbx, 1000)?;
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(qword_ptr(at), rbx)?;
            a.jb(wait)?;
        }
        a.mov(esi, r12d)?;
        a.and(esi, 3)?;
        a.shl(esi, 12)?;
        a.add(esi, page(0) as i32)?;
        a.mov(dword_ptr(rsi + GOOD as i32), 1)?;
        a.lea(rax, qword_ptr(rsi + flags as i32))?;
        a.mov(qword_ptr(PT), rax)?;
        flush(a, 0b110, scope)?;
        a.mov(dword_ptr(rdi + GOOD as i32), 0)?;
        a.mov(edi, esi)?;
        a.inc(r12d)?;
        a.cmp(r12d, ROUNDS + 1)?;
        a.jne(again)?;
        a.mov(dword_ptr(STOP), 1)?;
        a.set_label(&mut end)?;
        a.pause()?;
        a.cmp(dword_ptr(STOP), 3)?;
        a.jne(end)?;
        a.done()
    })?;
    for (n, at) in (1..).zip(READERS) {
        g.code(64, code_of(n), |a| reader(a, at))?;
    }
    g.machine.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    for at in READERS {
        r.expect("accesses by an old translation", g.machine.ram.u64(at + 8), 0)?;
    }
    Ok(r)
}

/// A processor that is halted, and one that waits for a start-up IPI, keep nobody waiting; neither wakes, and the halted one
/// uses no old translation when it does.
fn at_rest(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = guest(bench, 3, 2)?;
    let value = |n: u64| 0x11 * (1 + n) as u32;
    (0..2).for_each(|n| g.machine.ram.write(page(n), &value(n).to_le_bytes()));
    g.machine.ram.write(PT, &(page(0) | 7).to_le_bytes());
    g.code(64, code_of(0), |a| {
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(DATA), 0)?;
        a.je(wait)?;
        a.mov(qword_ptr(PT), (page(1) | 7) as i32)?;
        for _ in 0..3 {
            flush(a, 0b111, WINDOW)?;
        }
        // What the other one read after it was woken, if it was.
        a.mov(eax, dword_ptr(DATA + 0x40))?;
        a.report()?;
        halt(a)
    })?;
    g.code(64, code_of(1), |a| {
        a.mov(eax, dword_ptr(WINDOW))?;
        a.mov(dword_ptr(DATA), eax)?;
        a.cli()?;
        a.hlt()?;
        a.mov(eax, dword_ptr(WINDOW))?;
        a.mov(dword_ptr(DATA + 0x40), eax)?;
        a.done()
    })?;
    g.machine.run_with(|h| {
        h.wait_for_reports(1)?;
        h.partition.inject_nmi(1);
        Ok(())
    })?;
    let mut r = Record::default();
    r.expect("the halted one did not wake", g.reports(), vec![0])?;
    r.expect("before", g.machine.ram.u32(DATA), value(0))?;
    r.expect("after", g.machine.ram.u32(DATA + 0x40), value(1))?;
    r.expect("traps", g.vectors(), vec![(2, 0)])?;
    r.expect("the third", g.machine.vcpus[2].save()?.activity, Activity::WaitForSipi)?;
    Ok(r)
}

/// Three flush each other, and themselves, without end, while they are paused again and again, and their states leave
/// and come back.
fn each_other(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = guest(bench, 3, 3)?;
    for n in 0..3 {
        g.code(64, code_of(n), |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            flush(a, 0b111, if n == 2 { WINDOW } else { n })?;
            a.inc(qword_ptr(DATA + 0x40 * n))?;
            a.mov(rax, qword_ptr(WINDOW))?;
            a.jmp(again)
        })?;
    }
    let mut r = Record::default();
    let counts = |g: &Guest| [0, 1, 2].map(|n| g.machine.ram.u64(DATA + 0x40 * n));
    let mut stuck = Vec::new();
    for round in 0..20 {
        let before = counts(&g);
        g.machine.run_part(|h| {
            for _ in 0..10 {
                std::thread::sleep(Duration::from_millis(1));
                h.gate.pause_all(LIMIT).map_err(|e| Failure::Stuck(e.to_string()))?;
                h.gate.resume();
            }
            let until = std::time::Instant::now() + LIMIT;
            let goes_on = |n: u64| h.ram.u64(DATA + 0x40 * n) > before[n as usize];
            while !(0..3).all(goes_on) && std::time::Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        })?;
        for vcpu in &mut g.machine.vcpus {
            let state = vcpu.save()?;
            vcpu.load(&state)?;
        }
        if counts(&g).iter().zip(before).any(|(now, before)| *now <= before) {
            stuck.push(round);
        }
    }
    r.expect("rounds in which one did not go on", stuck, vec![])?;
    r.expect("traps", g.vectors(), vec![])?;
    Ok(r)
}
