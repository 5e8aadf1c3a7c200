//! System instructions that translated code does by itself: what they leave, and what they raise, when hot.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vireo_core::state::{cr4, rflags};
use vireo_isa::Feature;

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("hot-bases-of-fs-and-gs", bases),
    case("hot-base-that-is-not-canonical", |b| base_refused(b, true)),
    case("hot-bases-are-turned-off", |b| base_refused(b, false)),
    case("hot-selectors-and-direction", selectors),
    case("hot-stacks-at-page-ends", stacks),
];

const F: u64 = CODE_AP;
const ROUNDS: u32 = 60;

/// A guest with a loop of [`ROUNDS`] at [`F`], RBX counting down.
fn looping(
    bench: &Bench<'_>,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Guest, Failure> {
    let g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, ROUNDS)?;
        a.jmp(F)
    })?;
    g.code(64, F, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        body(a)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.done()
    })?;
    Ok(g)
}

fn with_bases(bench: &Bench<'_>, g: &mut Guest) -> Result<(), Failure> {
    if !bench.model.has(Feature::Fsgsbase) {
        return Err(Failure::Skipped("the CPU model has no RDFSBASE".into()));
    }
    g.start.control.cr4 |= cr4::FSGSBASE;
    Ok(())
}

/// Written, read, and used: 64 and 32 bits, registers that translated code keeps in registers and in memory.
fn bases(bench: &Bench<'_>) -> Result<Record, Failure> {
    const HIGH: u64 = 0xffff_8000_1234_5678;
    let mut g = looping(bench, |a| {
        a.mov(rax, HIGH)?;
        a.mov(r14, HIGH)?;
        a.stc()?;
        a.wrfsbase(rax)?;
        a.rdfsbase(r11)?;
        a.adc(r11, 0)?;
        a.wrgsbase(r14d)?;
        a.rdgsbase(rcx)?;
        a.wrgsbase(r14)?;
        a.rdgsbase(edx)?;
        a.swapgs()?;
        a.wrgsbase(rbx)?;
        a.swapgs()?;
        a.rdgsbase(r15)?;
        (0..).zip([r11, rcx, rdx, r15]).try_for_each(|(n, r)| a.mov(qword_ptr(DATA + 8 * n), r))?;
        // And both are used.
        a.mov(eax, (DATA + 0x100) as u32)?;
        a.wrfsbase(rax)?;
        a.mov(dword_ptr(8).fs(), ebx)?;
        a.wrgsbase(rax)?;
        a.mov(esi, dword_ptr(8).gs())
    })?;
    with_bases(bench, &mut g)?;
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let low = HIGH & 0xffff_ffff;
    r.expect("read", [0, 8, 16, 24].map(|at| g.machine.ram.u64(DATA + at)), [HIGH + 1, low, low, HIGH])?;
    let seen = g.machine.ram.u32(DATA + 0x108);
    r.expect("by FS", seen, 1)?;
    Ok(r)
}

/// In the last round the base is not canonical, or CR4 says no.
fn base_refused(bench: &Bench<'_>, canonical: bool) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, ROUNDS)?;
        a.mov(rsi, 1u64 << 47)?;
        a.jmp(F)
    })?;
    g.code(64, F, |a| {
        let mut usual = a.create_label();
        a.mov(eax, 0x1000)?;
        a.cmp(ebx, 1)?;
        a.jne(usual)?;
        if canonical {
            a.mov(rax, rsi)?;
        } else {
            a.mov(rcx, cr4_register())?;
            a.and(rcx, !(cr4::FSGSBASE as i32))?;
            a.mov(cr4_register(), rcx)?;
        }
        a.set_label(&mut usual)?;
        a.jmp(F + 0x100)
    })?;
    g.code(64, F + 0x100, |a| {
        a.wrfsbase(rax)?;
        a.dec(ebx)?;
        a.jnz(F)?;
        a.done()
    })?;
    with_bases(bench, &mut g)?;
    g.resume_with(|a| a.done())?;
    g.run()?;
    let mut r = Record::default();
    let trap = g.trap()?;
    let (vector, error) = if canonical { (13, 0) } else { (6, 0) };
    r.expect("trap", (trap.vector, trap.error, trap.ip), (vector, error, F + 0x100))?;
    Ok(r)
}

fn cr4_register() -> AsmRegisterCr {
    iced_x86::code_asm::registers::cr4
}

/// Selectors to registers of each size: 16 bits leave the others alone. CLD and STD, as PUSHF shows them.
fn selectors(bench: &Bench<'_>) -> Result<Record, Failure> {
    let g = looping(bench, |a| {
        for (n, r) in [rax, r11, rsi].into_iter().enumerate() {
            a.mov(r, u64::MAX)?;
            a.mov(qword_ptr(DATA + 0x40 + 8 * n as u64), r)?;
        }
        a.mov(ax, ss)?;
        a.mov(r11w, cs)?;
        a.mov(esi, ds)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(qword_ptr(DATA + 8), r11)?;
        a.mov(qword_ptr(DATA + 16), rsi)?;
        a.stc()?;
        a.std()?;
        a.pushfq()?;
        a.cld()?;
        a.pushfq()?;
        a.pop(qword_ptr(DATA + 24))?;
        a.pop(qword_ptr(DATA + 32))
    })?;
    let mut g = g;
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let seen = [0, 8, 16].map(|at| g.machine.ram.u64(DATA + at));
    let narrow = |s: u16| !0xffff | u64::from(s);
    r.expect("selectors", seen, [narrow(sel::DATA), narrow(sel::CODE64), sel::DATA.into()])?;
    let flags = [24, 32].map(|at| g.machine.ram.u64(DATA + at) & (rflags::DF | rflags::CF));
    r.expect("DF and CF", flags, [rflags::CF, rflags::DF | rflags::CF])?;
    Ok(r)
}

/// Stacks that begin at the end of a page, and others that end there, by turns: with accesses of each size, and over the end.
fn stacks(bench: &Bench<'_>) -> Result<Record, Failure> {
    const TOPS: [u64; 4] = [WINDOW + 0x1000, WINDOW + 0x3000, WINDOW + 0x4ff8, WINDOW + 0x6ffc];
    let mut g = looping(bench, |a| {
        for top in TOPS {
            a.mov(esp, top as u32)?;
            a.push(rbx)?;
            a.push(1)?;
            a.mov(dword_ptr(rsp + 12), ebx)?;
            a.mov(byte_ptr(rsp + 15), 7)?;
            a.pop(rax)?;
            a.pop(rcx)?;
            a.add(qword_ptr(DATA), rax)?;
            a.add(qword_ptr(DATA + 8), rcx)?;
            // Now above the end.
            a.movq(xmm0, rcx)?;
            a.movups(xmmword_ptr(rsp - 12), xmm0)?;
            a.add(eax, dword_ptr(rsp - 2))?;
            a.add(qword_ptr(DATA + 16), rax)?;
        }
        a.mov(esp, STACK as u32)
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let sum =
        |f: &dyn Fn(u64) -> u64| (1..=u64::from(ROUNDS)).map(|b| 4 * f(b)).fold(0u64, u64::wrapping_add);
    let popped = |b: u64| b | (b & 0xff_ffff | 7 << 24) << 32;
    r.expect("pushed", g.machine.ram.u64(DATA), sum(&|_| 1))?;
    r.expect("written over", g.machine.ram.u64(DATA + 8), sum(&popped))?;
    // The upper half of the vector is zero, and so is what lies above it.
    r.expect("above", g.machine.ram.u64(DATA + 16), sum(&|_| 1))?;
    Ok(r)
}
