//! Several processors in hot loops: the order of their accesses, locked instructions, and code that one changes for another.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vireo_core::state::{Activity, Element};

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("hot-store-buffering-fenced", |bench| store_buffering(bench, true)),
    case("hot-store-buffering", |bench| store_buffering(bench, false)),
    case("hot-message-passing", message_passing),
    case("hot-locked-increments", locked_increments),
    case("hot-cmpxchg16b", cmpxchg16b),
    case("hot-code-overwritten-by-another-processor", cross_modified),
    case("hot-user-code-at-changing-addresses", moving),
    case("hot-stores-are-in-the-dirty-log", dirty),
];

/// Code of processor `n`.
const fn code_of(n: u64) -> u64 {
    CODE_AP + 0x400 * n
}
/// How many are done.
const DONE: u64 = DATA + 0x700;

/// Has each processor start at an address, with a stack of its own.
pub fn start(g: &mut Guest, at: &[u64]) -> Result<(), Failure> {
    for ((n, vcpu), at) in (0..).zip(&mut g.machine.vcpus).zip(at) {
        let mut s = g.start.clone();
        s.apic = Element::at_reset(n);
        s.msrs = Element::at_reset(n);
        s.activity = Activity::Running;
        s.general.rip = *at;
        s.general.gpr[4] = STACK - 0x200 * u64::from(n);
        vcpu.load(&s)?;
    }
    Ok(())
}

/// What a processor executes.
type Piece<'a> = &'a dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// As [`ready`], and they have run.
fn run(bench: &Bench<'_>, pieces: &[Piece<'_>]) -> Result<Guest, Failure> {
    let mut g = ready(bench, pieces)?;
    g.machine.run()?;
    Ok(g)
}

/// Processors that are about to execute these pieces of code, from their own places, and say when they are done.
fn ready(bench: &Bench<'_>, pieces: &[Piece<'_>]) -> Result<Guest, Failure> {
    let mut g = Guest::with_vcpus(bench, pieces.len() as u32, Mode::Long, |a| a.done())?;
    for (n, piece) in (0..).zip(pieces) {
        g.code(64, code_of(n), |a| {
            piece(a)?;
            a.lock().inc(dword_ptr(DONE))?;
            let mut wait = a.create_label();
            a.set_label(&mut wait)?;
            a.pause()?;
            a.cmp(dword_ptr(DONE), pieces.len() as i32)?;
            a.jne(wait)?;
            a.done()
        })?;
    }
    let places: Vec<u64> = (0..pieces.len() as u64).map(code_of).collect();
    start(&mut g, &places)?;
    Ok(g)
}

/// Waits until all of `count` processors are in this round, which is in EBX, at a counter.
fn meet(a: &mut CodeAssembler, counter: u64, count: i32) -> Result<(), IcedError> {
    let mut wait = a.create_label();
    a.lock().inc(dword_ptr(counter))?;
    a.imul_3(edx, ebx, count)?;
    a.set_label(&mut wait)?;
    a.cmp(dword_ptr(counter), edx)?;
    a.jl(wait)
}

/// Each stores to its own place, then loads the other's: with a fence one of them sees the other's store.
fn store_buffering(bench: &Bench<'_>, fenced: bool) -> Result<Record, Failure> {
    const ROUNDS: i32 = 3000;
    let piece = |own: u64, other: u64, result: u64| {
        move |a: &mut CodeAssembler| {
            let mut again = a.create_label();
            a.mov(ebx, 1)?;
            a.set_label(&mut again)?;
            a.mov(dword_ptr(own), 0)?;
            meet(a, DATA + 0x400, 2)?;
            a.mov(dword_ptr(own), 1)?;
            if fenced {
                a.mfence()?;
            }
            a.mov(eax, dword_ptr(other))?;
            a.mov(dword_ptr(result), eax)?;
            meet(a, DATA + 0x440, 2)?;
            a.mov(eax, dword_ptr(DATA + 0x200))?;
            a.or(eax, dword_ptr(DATA + 0x240))?;
            a.xor(eax, 1)?;
            a.add(dword_ptr(result + 0x20), eax)?;
            meet(a, DATA + 0x480, 2)?;
            a.inc(ebx)?;
            a.cmp(ebx, ROUNDS + 1)?;
            a.jne(again)
        }
    };
    let (x, y, first, second) = (DATA, DATA + 0x100, DATA + 0x200, DATA + 0x240);
    let g = run(bench, &[&piece(x, y, first), &piece(y, x, second)])?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let ram = &g.machine.ram;
    let (a, b) = (ram.u32(first + 0x20), ram.u32(second + 0x20));
    r.expect("both counted the same", a, b)?;
    if fenced {
        r.expect("both saw nothing", a, 0)?;
    }
    Ok(r)
}

/// One writes data, then a flag; the other reads them the other way round.
fn message_passing(bench: &Bench<'_>) -> Result<Record, Failure> {
    const COUNT: i32 = 200_000;
    let writer = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        a.inc(ebx)?;
        a.mov(dword_ptr(DATA), ebx)?;
        a.mov(dword_ptr(DATA + 0x100), ebx)?;
        a.cmp(ebx, COUNT)?;
        a.jne(again)
    };
    let reader = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.xor(r11d, r11d)?;
        a.set_label(&mut again)?;
        a.mov(eax, dword_ptr(DATA + 0x100))?;
        a.mov(ecx, dword_ptr(DATA))?;
        a.cmp(ecx, eax)?;
        a.adc(r11d, 0)?;
        a.cmp(eax, COUNT)?;
        a.jne(again)?;
        a.mov(qword_ptr(DATA + 0x200), r11)
    };
    let g = run(bench, &[&writer, &reader])?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    r.expect("data older than its flag", g.machine.ram.u64(DATA + 0x200), 0)?;
    Ok(r)
}

/// Four processors count in the same places: aligned, not aligned, over a cache line's end and over a page's.
fn locked_increments(bench: &Bench<'_>) -> Result<Record, Failure> {
    const ROUNDS: u32 = 5000;
    const PLACES: [u64; 4] = [WINDOW + 0x40, WINDOW + 0x83, WINDOW + 0x13d, WINDOW + 0xffd];
    let piece = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.mov(ebx, ROUNDS)?;
        a.mov(r14d, WINDOW as u32)?;
        a.set_label(&mut again)?;
        a.lock().inc(qword_ptr(PLACES[0]))?;
        a.mov(r15d, 1)?;
        a.lock().xadd(qword_ptr(r14 + 0x83), r15)?;
        a.lock().add(qword_ptr(PLACES[2]), 1)?;
        a.lock().sub(qword_ptr(r14 + 0xffd), -1)?;
        a.dec(ebx)?;
        a.jnz(again)
    };
    let g = run(bench, &[&piece, &piece, &piece, &piece])?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    for at in PLACES {
        r.expect("count", g.machine.ram.u64(at - WINDOW + WINDOW_RAM), u64::from(4 * ROUNDS))?;
    }
    Ok(r)
}

/// Both halves of 16 bytes are counted up together by two processors.
fn cmpxchg16b(bench: &Bench<'_>) -> Result<Record, Failure> {
    const ROUNDS: u32 = 20_000;
    let piece = |a: &mut CodeAssembler| {
        let (mut again, mut retry) = (a.create_label(), a.create_label());
        a.mov(r15d, ROUNDS)?;
        a.mov(edi, DATA as u32)?;
        a.set_label(&mut again)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.mov(rdx, qword_ptr(rdi + 8))?;
        a.set_label(&mut retry)?;
        a.lea(rbx, qword_ptr(rax + 1))?;
        a.lea(rcx, qword_ptr(rdx + 3))?;
        a.lock().cmpxchg16b(xmmword_ptr(rdi))?;
        a.jne(retry)?;
        a.dec(r15d)?;
        a.jnz(again)
    };
    let g = run(bench, &[&piece, &piece])?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let ram = &g.machine.ram;
    let count = u64::from(2 * ROUNDS);
    r.expect("halves", [ram.u64(DATA), ram.u64(DATA + 8)], [count, 3 * count])?;
    Ok(r)
}

/// One changes a function and says so; the other, which calls it all the time, has a serializing instruction in between.
fn cross_modified(bench: &Bench<'_>) -> Result<Record, Failure> {
    const ROUNDS: i32 = 2000;
    const F: u64 = CODE_AP + 0x1000;
    /// `mov eax, 0; ret`; the number is at the second byte.
    const RETURN_ZERO: u64 = 0xc300_0000_00b8;
    let writer = |a: &mut CodeAssembler| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        a.mov(rax, RETURN_ZERO)?;
        a.mov(qword_ptr(F), rax)?;
        a.mov(ebx, 1)?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(F + 1), ebx)?;
        a.mov(dword_ptr(DATA), ebx)?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(DATA + 0x100), ebx)?;
        a.jne(wait)?;
        a.inc(ebx)?;
        a.cmp(ebx, ROUNDS + 1)?;
        a.jne(again)
    };
    let caller = |a: &mut CodeAssembler| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        let mut first = a.create_label();
        a.set_label(&mut first)?;
        a.cmp(dword_ptr(DATA), 0)?;
        a.je(first)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.xor(r14d, r14d)?;
        a.mov(r12d, 1)?;
        a.set_label(&mut again)?;
        a.nop()?;
        a.set_label(&mut wait)?;
        a.call(F)?;
        a.cmp(dword_ptr(DATA), r12d)?;
        a.jne(wait)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.call(F)?;
        a.sub(eax, r12d)?;
        a.neg(eax)?;
        a.adc(r14d, 0)?;
        a.mov(dword_ptr(DATA + 0x100), r12d)?;
        a.inc(r12d)?;
        a.cmp(r12d, ROUNDS + 1)?;
        a.jne(again)?;
        a.mov(qword_ptr(DATA + 0x200), r14)
    };
    let g = run(bench, &[&writer, &caller])?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    r.expect("old answers", g.machine.ram.u64(DATA + 0x200), 0)?;
    Ok(r)
}

/// Page tables that map two pages of user code at many addresses, and these pages.
const USER_TABLES: u64 = 0x2_0000;
const USER_CODE: u64 = 0x3_0000;
/// The first of the addresses. Others are multiples of it.
const USER_AT: u64 = 1 << 39;

/// Maps the user's code, and writes it: rounds, as many as ECX says, that go from one page to the other and back, and add
/// up in R8 where they are, less RBX.
fn write_user_code(g: &Guest) -> Result<(), Failure> {
    let set = |at: u64, to: u64| g.machine.ram.write(at, &(to | 7).to_le_bytes());
    (1..=8).for_each(|n| set(PML4 + 8 * n, USER_TABLES));
    set(USER_TABLES, USER_TABLES + 0x1000);
    set(USER_TABLES + 0x1000, USER_TABLES + 0x2000);
    (0..2).for_each(|n| set(USER_TABLES + 0x2000 + 8 * n, USER_CODE + 0x1000 * n));
    let (callee, way) = (USER_CODE + 0x1000, USER_CODE + 0x1100);
    let back = USER_CODE + 0x80;
    g.code(64, USER_CODE, |a| {
        let mut here = a.create_label();
        a.nop()?;
        a.set_label(&mut here)?;
        a.lea(rax, qword_ptr(here))?;
        a.sub(rax, rbx)?;
        a.add(r8, rax)?;
        a.call(callee)?;
        a.jmp(way)
    })?;
    g.code(64, back, |a| {
        let mut out = a.create_label();
        a.dec(ecx)?;
        a.jz(out)?;
        a.jmp(USER_CODE)?;
        a.set_label(&mut out)?;
        a.syscall()
    })?;
    g.code(64, callee, |a| {
        a.mov(rax, qword_ptr(rsp))?;
        a.sub(rax, rbx)?;
        a.add(r8, rax)?;
        a.ret()
    })?;
    g.code(64, way, |a| {
        a.inc(r8)?;
        a.jmp(back)
    })
}

/// Has SYSCALL go to a label, in 64-bit code of level 0.
fn syscalls_go_to(a: &mut CodeAssembler, label: CodeLabel) -> Result<(), IcedError> {
    a.mov(ecx, 0xc000_0081_u32)?;
    a.xor(eax, eax)?;
    a.mov(edx, i32::from(sel::CODE64))?;
    a.wrmsr()?;
    a.mov(ecx, 0xc000_0082_u32)?;
    a.lea(rax, qword_ptr(label))?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

/// Four processors run the same two pages of user code, each time at another of eight addresses, after a CR3 write. One
/// overwrites it now and then with what it is.
fn moving(bench: &Bench<'_>) -> Result<Record, Failure> {
    const ROUNDS: i32 = 4000;
    let piece = |n: u64| {
        move |a: &mut CodeAssembler| {
            let (mut again, mut cont, mut known) = (a.create_label(), a.create_label(), a.create_label());
            let mut quiet = a.create_label();
            syscalls_go_to(a, cont)?;
            a.xor(r13d, r13d)?;
            a.xor(r15d, r15d)?;
            a.mov(ebp, ROUNDS)?;
            a.mov(r12d, 7 + n as i32)?;
            // At first where it is in physical memory, to know what is right.
            a.mov(ebx, USER_CODE as i32)?;
            a.set_label(&mut again)?;
            a.mov(rax, cr3)?;
            a.mov(cr3, rax)?;
            a.xor(r8d, r8d)?;
            a.mov(ecx, 40)?;
            a.mov(rdx, rsp)?;
            a.push(i32::from(sel::USER_DATA))?;
            a.push(rdx)?;
            a.push(2)?;
            a.push(i32::from(sel::USER_CODE64))?;
            a.push(rbx)?;
            a.iretq()?;
            a.set_label(&mut cont)?;
            a.test(r15, r15)?;
            a.jnz(known)?;
            a.mov(r15, r8)?;
            a.set_label(&mut known)?;
            a.cmp(r8, r15)?;
            a.setne(al)?;
            a.movzx(eax, al)?;
            a.add(r13d, eax)?;
            a.test(ebp, 0x7f)?;
            a.jnz(quiet)?;
            if n == 0 {
                a.mov(al, byte_ptr(USER_CODE + 0x1000))?;
                a.mov(byte_ptr(USER_CODE + 0x1000), al)?;
            }
            a.set_label(&mut quiet)?;
            a.imul_3(r12d, r12d, 0x2545_f491)?;
            a.add(r12d, 0x3619)?;
            a.mov(ebx, r12d)?;
            a.shr(ebx, 29)?;
            a.inc(ebx)?;
            a.shl(rbx, USER_AT.trailing_zeros())?;
            a.dec(ebp)?;
            a.jnz(again)?;
            a.mov(qword_ptr(DATA + 0x100 * n), r13)?;
            a.mov(qword_ptr(DATA + 0x100 * n + 8), r15)
        }
    };
    let (p0, p1, p2, p3) = (piece(0), piece(1), piece(2), piece(3));
    let mut g = ready(bench, &[&p0, &p1, &p2, &p3])?;
    write_user_code(&g)?;
    g.machine.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let ram = &g.machine.ram;
    for n in 0..4 {
        r.expect("rounds that were elsewhere", ram.u64(DATA + 0x100 * n), 0)?;
        r.expect("sum", ram.u64(DATA + 0x100 * n + 8), ram.u64(DATA + 8))?;
    }
    // 40 times the places of two instructions, the second of which is some 20 bytes further, and one.
    r.expect("that makes sense", (40 * 16..40 * 32).contains(&ram.u64(DATA + 8)), true)?;
    Ok(r)
}

/// Hot stores to many pages while the log is harvested: a page that changed after its harvest is in the next one.
fn dirty(bench: &Bench<'_>) -> Result<Record, Failure> {
    const PAGES: u64 = 64;
    let mut g = Guest::with_vcpus(bench, 2, Mode::Long, |a| a.done())?;
    for n in [0, 1] {
        g.code(64, code_of(n), |a| {
            let (mut again, mut page) = (a.create_label(), a.create_label());
            a.mov(r15, WINDOW)?;
            a.set_label(&mut again)?;
            a.mov(edi, WINDOW as u32)?;
            a.inc(eax)?;
            a.set_label(&mut page)?;
            a.mov(qword_ptr(rdi + 0x100 * n as i32), rax)?;
            a.lea(rsp, qword_ptr(rdi + 0x800 + 0x100 * n as i32))?;
            a.push(rax)?;
            a.add(rdi, 0x1000)?;
            a.cmp(rdi, (WINDOW + PAGES * 0x1000) as i32)?;
            a.jne(page)?;
            a.cmp(dword_ptr(DATA), 0)?;
            a.je(again)?;
            a.lock().inc(dword_ptr(DONE))?;
            a.cli()?;
            a.hlt()
        })?;
    }
    start(&mut g, &[code_of(0), code_of(1)])?;
    let mut r = Record::default();
    let mut copy = vec![[0u8; 4096]; PAGES as usize];
    g.machine.run_part(|h| {
        h.partition.dirty_start()?;
        let take = |copy: &mut Vec<[u8; 4096]>| -> Result<(), Failure> {
            let bits = h.partition.dirty_harvest()?;
            for gpa in vireo_core::dirty::pages(&bits).filter(|p| *p >= WINDOW_RAM) {
                if let Some(page) = copy.get_mut(((gpa - WINDOW_RAM) >> 12) as usize) {
                    *page = h.ram.read(gpa);
                }
            }
            Ok(())
        };
        std::thread::sleep(std::time::Duration::from_millis(5));
        for _ in 0..300 {
            take(&mut copy)?;
        }
        h.write(DATA, &[1]);
        let until = std::time::Instant::now() + crate::machine::LIMIT;
        while h.ram.u32(DONE) != 2 && std::time::Instant::now() < until {
            std::thread::yield_now();
        }
        take(&mut copy)?;
        Ok(h.partition.dirty_stop()?)
    })?;
    let different = (0..PAGES)
        .filter(|n| g.machine.ram.read::<4096>(WINDOW_RAM + 0x1000 * n) != copy[*n as usize])
        .count();
    r.expect("stopped", g.machine.ram.u32(DONE), 2)?;
    r.expect("pages whose last change is not known", different, 0)?;
    Ok(r)
}
