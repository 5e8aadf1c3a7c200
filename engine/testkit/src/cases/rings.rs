//! Changes of privilege level.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vireo_core::state::msr;

use super::apic::enable_x2apic;
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

/// Where code in user mode starts.
pub const USER: u64 = CODE + 0x200;
/// Where it may be resumed to end the guest.
pub const USER_END: u64 = USER + 0x80;
const KERNEL: u64 = CODE + 0x400;

/// A guest that goes to user mode by IRET and runs this code there; INT 42h ends it.
pub fn user_guest(
    bench: &Bench<'_>,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Guest, Failure> {
    let g = Guest::new(bench, Mode::Long, |a| {
        a.push(i32::from(sel::USER_DATA))?;
        a.push(USER_STACK as i32)?;
        a.push(0x2)?;
        a.push(i32::from(sel::USER_CODE64))?;
        a.push(USER as i32)?;
        a.iretq()
    })?;
    g.code(64, USER, write)?;
    g.code(64, USER_END, |a| a.int(0x42))?;
    let gate = KERNEL & 0xffff | u64::from(sel::CODE64) << 16 | 0xee << 40 | (KERNEL >> 16) << 48;
    g.machine.ram.write(IDT + 16 * 0x42, &gate.to_le_bytes());
    g.code(64, KERNEL, |a| a.done())?;
    Ok(g)
}

/// INT from level 3 to level 0, by the stack in the TSS, and IRET back.
fn int_from_user(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = user_guest(bench, |a| {
        a.int(0x40)?;
        a.mov(eax, cs)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(qword_ptr(DATA + 8), rsp)?;
        a.mov(qword_ptr(RESUME), USER_END as i32)?;
        // Level 3 may not.
        a.cli()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("vectors", g.vectors(), vec![(0x40, 0), (13, 0)])?;
    let caller = g.traps()[0];
    r.expect("CS of the caller", caller.cs, sel::USER_CODE64.into())?;
    r.expect("address of the caller", caller.ip, USER + 2)?;
    r.expect(
        "CS and stack after the return",
        [g.machine.ram.u64(DATA), g.machine.ram.u64(DATA + 8)],
        [sel::USER_CODE64.into(), USER_STACK],
    )?;
    Ok(r)
}

fn syscall_sysret(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = user_guest(bench, |a| {
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
        let mut g = user_guest(bench, write)?;
        g.resume_at(USER_END);
        g.run()?;
        let traps: Vec<_> = g.traps().iter().map(|t| (t.vector, t.error, t.ip)).collect();
        r.expect(name, traps, vec![(13, 0, USER)])?;
    }
    Ok(r)
}

/// An interrupt that is pending comes after the instruction behind STI, not before.
fn sti_shadow(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        // A self-IPI of vector 50h in x2APIC mode, pending while IF is clear.
        enable_x2apic(a)?;
        a.write_msr(0x83f, 0x50)?;
        a.xor(ebx, ebx)?;
        a.sti()?;
        a.inc(ebx)?;
        a.nop()?;
        a.mov(eax, ebx)?;
        a.report()?;
        a.done()
    })?;
    g.end_interrupts();
    g.run()?;
    let mut r = Record::default();
    r.expect("vectors", g.vectors(), vec![(0x50, 0)])?;
    let code: [u8; 256] = g.machine.ram.read(CODE);
    let after_inc = code.windows(2).position(|w| w == [0xff, 0xc3]).map(|at| CODE + at as u64 + 2);
    r.expect("after one more instruction", Some(g.trap()?.ip), after_inc)?;
    r.expect("reports", g.reports(), vec![1])?;
    Ok(r)
}
