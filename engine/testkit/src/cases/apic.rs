//! The local APIC: timer, interrupts between processors, INIT and start-up.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("apic-registers", registers),
    case("xapic-mmio", xapic),
    case("timer-one-shot", one_shot),
    case("timer-periodic", periodic),
    case("timer-tsc-deadline", deadline),
    case("self-ipi", self_ipi),
    case("init-sipi-and-ipi", start_up),
];

/// Turns x2APIC mode and the APIC itself on.
pub fn enable_x2apic(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, 0x1b)?;
    a.rdmsr()?;
    a.or(eax, 0xc00)?;
    a.wrmsr()?;
    a.write_msr(0x80f, 0x1ff)
}

/// Reports the lower half of an MSR.
fn read_msr(a: &mut CodeAssembler, index: u32) -> Result<(), IcedError> {
    a.mov(ecx, index)?;
    a.rdmsr()?;
    a.report()
}

fn registers(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        enable_x2apic(a)?;
        for index in [0x802, 0x803, 0x80f, 0x80d] {
            read_msr(a, index)?;
        }
        a.mov(eax, 0x7)?;
        a.mov(cr8, rax)?;
        read_msr(a, 0x808)?;
        a.write_msr(0x808, 0x35)?;
        a.mov(rax, cr8)?;
        a.report()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    let seen = g.reports();
    r.expect("id", seen[0], 0)?;
    r.expect("version and number of LVT entries", seen[1] & 0xff_00ff, 0x0005_0014)?;
    r.expect("spurious vector, logical id", &seen[2..4], &[0x1ff, 1][..])?;
    r.expect("CR8 and TPR", &seen[4..], &[0x70, 3][..])?;
    Ok(r)
}

fn xapic(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, 0xfee0_0000u32)?;
        a.mov(dword_ptr(rbx + 0xf0), 0x1ff)?;
        a.mov(dword_ptr(rbx + 0x80), 0x20)?;
        for register in [0x20, 0xf0, 0x80] {
            a.mov(eax, dword_ptr(rbx + register))?;
            a.report()?;
        }
        // An interrupt to itself: fixed, self.
        a.mov(dword_ptr(rbx + 0x300), 0x4_0000 | 0x45)?;
        a.open_interrupt_window()?;
        a.mov(dword_ptr(rbx + 0xb0), 0)?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("id, spurious vector, priority", g.reports(), vec![0, 0x1ff, 0x20])?;
    r.expect("vectors", g.vectors(), vec![(0x45, 0)])?;
    Ok(r)
}

/// Halts until the handlers have logged `count` interrupts.
fn halt_until(a: &mut CodeAssembler, count: u64) -> Result<(), IcedError> {
    let (mut round, mut out) = (a.create_label(), a.create_label());
    a.set_label(&mut round)?;
    a.cli()?;
    a.cmp(dword_ptr(LOG_POINTER), (LOG + 64 * count) as i32)?;
    a.jae(out)?;
    a.sti()?;
    a.hlt()?;
    a.jmp(round)?;
    a.set_label(&mut out)?;
    a.nop()
}

fn one_shot(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        enable_x2apic(a)?;
        a.write_msr(0x83e, 0xb)?;
        a.write_msr(0x832, 0x50)?;
        a.write_msr(0x838, 2_000_000)?;
        halt_until(a, 1)?;
        read_msr(a, 0x839)?;
        a.done()
    })?;
    g.end_interrupts();
    g.run()?;
    let mut r = Record::default();
    r.expect("vectors", g.vectors(), vec![(0x50, 0)])?;
    r.expect("current count", g.reports(), vec![0])?;
    Ok(r)
}

fn periodic(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        enable_x2apic(a)?;
        a.write_msr(0x83e, 0xb)?;
        a.write_msr(0x832, 0x2_0051)?;
        a.write_msr(0x838, 2_000_000)?;
        halt_until(a, 3)?;
        a.write_msr(0x832, 0x1_0051)?;
        a.done()
    })?;
    g.end_interrupts();
    g.run()?;
    let mut r = Record::default();
    let vectors = g.vectors();
    r.check(
        "three or more, all from the timer",
        vectors.len() >= 3 && vectors.iter().all(|v| v.0 == 0x51),
        vectors,
    )?;
    Ok(r)
}

fn deadline(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        enable_x2apic(a)?;
        a.write_msr(0x832, 0x4_0052)?;
        a.read_tsc()?;
        a.add(rax, 2_000_000)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(rdx, rax)?;
        a.shr(rdx, 32)?;
        a.mov(ecx, 0x6e0)?;
        a.wrmsr()?;
        halt_until(a, 1)?;
        a.read_tsc()?;
        a.mov(qword_ptr(DATA + 8), rax)?;
        read_msr(a, 0x6e0)?;
        a.done()
    })?;
    g.end_interrupts();
    g.run()?;
    let mut r = Record::default();
    r.expect("vectors", g.vectors(), vec![(0x52, 0)])?;
    let (want, seen) = (g.machine.ram.u64(DATA), g.machine.ram.u64(DATA + 8));
    r.check("not before its time", seen >= want, (want, seen))?;
    r.expect("disarmed", g.reports(), vec![0])?;
    Ok(r)
}

fn self_ipi(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        enable_x2apic(a)?;
        a.write_msr(0x83f, 0x33)?;
        read_msr(a, 0x821)?;
        a.open_interrupt_window()?;
        a.done()
    })?;
    g.end_interrupts();
    g.run()?;
    let mut r = Record::default();
    r.expect("request register", g.reports(), vec![1 << 19])?;
    r.expect("vectors", g.vectors(), vec![(0x33, 0)])?;
    Ok(r)
}

/// The second processor is started the usual way, says where and how it began, and interrupts the first.
fn start_up(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::with_vcpus(bench, 2, Mode::Long, |a| {
        enable_x2apic(a)?;
        for command in [0xc500, 0x600 | (CODE_AP as u32 >> 12)] {
            a.mov(ecx, 0x830)?;
            a.mov(eax, command)?;
            a.mov(edx, 1)?;
            a.wrmsr()?;
        }
        halt_until(a, 1)?;
        a.done()
    })?;
    g.end_interrupts();
    g.code(16, CODE_AP, |a| {
        a.xor(eax, eax)?;
        a.mov(ax, cs)?;
        a.report()?;
        a.mov(eax, cr0)?;
        a.report()?;
        // Its APIC by MSRs: protected mode is not needed for that. Then vector 48h to processor 0.
        enable_x2apic(a)?;
        read_msr(a, 0x802)?;
        a.write_msr(0x830, 0x48)?;
        a.cli()?;
        a.hlt()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("CS, CR0 and id of the second", g.reports(), vec![CODE_AP as u32 >> 4, 0x6000_0010, 1])?;
    r.expect("vectors", g.vectors(), vec![(0x48, 0)])?;
    Ok(r)
}
