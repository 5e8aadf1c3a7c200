//! Changes of privilege level.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vireo_core::state::msr;

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("interrupt-from-user-mode", int_from_user),
    case("syscall-sysret", syscall_sysret),
    case("privileged-in-user-mode", privileged),
    case("sti-shadow", sti_shadow),
];

pub const USER: u64 = CODE + 0x200;
const KERNEL: u64 = CODE + 0x400;

/// IRET to user mode at an address.
pub fn enter_user(a: &mut CodeAssembler, at: u64) -> Result<(), IcedError> {
    a.push(i32::from(sel::USER_DATA))?;
    a.push(USER_STACK as i32)?;
    a.push(0x2)?;
    a.push(i32::from(sel::USER_CODE64))?;
    a.push(at as i32)?;
    a.iretq()
}

/// INT from level 3 to level 0, by the stack in the TSS, and IRET back.
fn int_from_user(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| enter_user(a, USER))?;
    g.code(64, USER, |a| {
        a.int(0x40)?;
        a.mov(eax, cs)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(qword_ptr(DATA + 8), rsp)?;
        a.mov(qword_ptr(RESUME), (USER + 0x80) as i32)?;
        // Level 3 may not.
        a.cli()
    })?;
    finish_in_kernel(&mut g)?;
    g.run()?;
    let mut r = Record::default();
    let traps = g.traps();
    r.expect(
        "vectors",
        traps.iter().map(|t| (t.vector, t.error)).collect::<Vec<_>>(),
        vec![(0x40, 0), (13, 0)],
    )?;
    r.expect("CS of the caller", traps[0].cs, sel::USER_CODE64.into())?;
    r.expect("address of the caller", traps[0].ip, USER + 2)?;
    r.expect(
        "CS and stack after the return",
        [g.machine.ram.u64(DATA), g.machine.ram.u64(DATA + 8)],
        [sel::USER_CODE64.into(), USER_STACK],
    )?;
    Ok(r)
}

/// Lets user code end the guest by vector 42h, and puts an INT 42h at USER + 80h to resume at.
pub fn finish_in_kernel(g: &mut Guest) -> Result<(), Failure> {
    let gate = KERNEL & 0xffff | u64::from(sel::CODE64) << 16 | 0xee << 40 | (KERNEL >> 16) << 48;
    g.machine.ram.write(IDT + 16 * 0x42, &gate.to_le_bytes());
    g.code(64, KERNEL, |a| a.done())?;
    g.code(64, USER + 0x80, |a| a.int(0x42))
}

fn syscall_sysret(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| enter_user(a, USER))?;
    g.code(64, USER, |a| {
        a.mov(eax, 0x4711)?;
        a.stc()?;
        a.syscall()?;
        a.mov(qword_ptr(DATA + 32), rsp)?;
        a.mov(eax, cs)?;
        a.mov(qword_ptr(DATA + 40), rax)?;
        a.mov(eax, ss)?;
        a.mov(qword_ptr(DATA + 48), rax)?;
        a.int(0x42)
    })?;
    finish_in_kernel(&mut g)?;
    let entry = CODE + 0x800;
    g.code(64, entry, |a| {
        a.mov(qword_ptr(DATA), rcx)?;
        a.mov(qword_ptr(DATA + 8), r11)?;
        a.mov(ebx, cs)?;
        a.mov(qword_ptr(DATA + 16), rbx)?;
        a.pushfq()?;
        a.pop(qword_ptr(DATA + 24))?;
        a.sysretq()
    })?;
    let start = &mut g.start.msrs;
    start.set(msr::STAR, u64::from(sel::CODE64) << 32 | 0x20 << 48);
    start.set(msr::LSTAR, entry);
    start.set(msr::SYSCALL_MASK, 1);
    g.run()?;
    let mut r = Record::default();
    let ram = &g.machine.ram;
    r.expect("RCX", ram.u64(DATA), USER + 5 + 1 + 2)?;
    r.expect("R11", ram.u64(DATA + 8), 3)?;
    r.expect("CS in the kernel", ram.u64(DATA + 16), sel::CODE64.into())?;
    r.expect("carry is masked", ram.u64(DATA + 24) & 1, 0)?;
    r.expect("stack is the user's", ram.u64(DATA + 32), USER_STACK)?;
    let after = [ram.u64(DATA + 40), ram.u64(DATA + 48)];
    r.expect("CS and SS after SYSRET", after, [sel::USER_CODE64.into(), sel::USER_DATA.into()])?;
    Ok(r)
}

/// Each of these raises #GP at level 3.
fn privileged(bench: &Bench<'_>) -> Result<Record, Failure> {
    type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let forbidden: [(&str, Write); 6] = [
        ("HLT", |a| a.hlt()),
        ("CLI", |a| a.cli()),
        ("OUT", |a| a.out(0x80, al)),
        ("MOV CR3", |a| a.mov(rax, cr3)),
        ("WRMSR", |a| a.wrmsr()),
        ("LGDT", |a| a.lgdt(fword_ptr(DATA))),
    ];
    let mut r = Record::default();
    for (name, write) in forbidden {
        let mut g = Guest::new(bench, Mode::Long, |a| enter_user(a, USER))?;
        g.code(64, USER, write)?;
        finish_in_kernel(&mut g)?;
        g.resume_at(USER + 0x80);
        g.run()?;
        r.expect(
            name,
            g.traps().iter().map(|t| (t.vector, t.error, t.ip)).collect::<Vec<_>>(),
            vec![(13, 0, USER)],
        )?;
    }
    Ok(r)
}

/// An interrupt that is pending comes after the instruction behind STI, not before.
fn sti_shadow(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        // A self-IPI of vector 50h in x2APIC mode, pending while IF is clear.
        a.mov(ecx, 0x1b)?;
        a.rdmsr()?;
        a.or(eax, 0xc00)?;
        a.wrmsr()?;
        a.mov(ecx, 0x80f)?;
        a.mov(eax, 0x1ff)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.mov(ecx, 0x83f)?;
        a.mov(eax, 0x50)?;
        a.wrmsr()?;
        a.xor(ebx, ebx)?;
        a.sti()?;
        a.inc(ebx)?;
        a.nop()?;
        a.mov(eax, ebx)?;
        a.report()?;
        a.done()
    })?;
    g.machine.ram.write(END_INTERRUPTS, &[1]);
    g.run()?;
    let mut r = Record::default();
    r.expect("vectors", g.vectors(), vec![(0x50, 0)])?;
    let code: [u8; 256] = g.machine.ram.read(CODE);
    let after_inc = code.windows(2).position(|w| w == [0xff, 0xc3]).map(|at| CODE + at as u64 + 2);
    r.expect("after one more instruction", Some(g.trap()?.ip), after_inc)?;
    r.expect("reports", g.reports(), vec![1])?;
    Ok(r)
}
