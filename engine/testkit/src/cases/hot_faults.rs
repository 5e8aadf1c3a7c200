//! Memory operands of hot instructions at page ends: the next page is there, absent, read-only, a device's, or elsewhere.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Case, case};
use crate::asm::Phrases;
use crate::bus::Event;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("hot-access-into-absent-page", |bench| into(bench, Second::Absent)),
    case("hot-access-into-read-only-page", |bench| into(bench, Second::ReadOnly)),
    case("hot-access-into-device-page", |bench| into(bench, Second::Device)),
    case("hot-access-into-page-elsewhere", |bench| into(bench, Second::Elsewhere)),
    case("hot-access-loses-its-page", |bench| loses(bench, 0)),
    case("hot-access-loses-the-right-to-write", |bench| loses(bench, WINDOW_RAM | 1)),
];

const ROUNDS: u32 = 60;
/// Where the instruction under test is.
const F: u64 = CODE_AP;
/// Where operands are while all is well.
const GOOD: u64 = WINDOW + 0x100;
/// An operand of which four bytes are in the window's second page.
const BAD: u64 = WINDOW + 0xffc;
/// Where the registers are kept afterwards.
const KEPT: u64 = DATA + 0x200;
/// What all 64-bit operands hold.
const OLD: u64 = 0x8070_6050_4030_2010;
const NEW: u64 = 0x0102_0304_0506_0708;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// What an access does to its operand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    Reads,
    Writes,
    /// Reads and writes.
    Changes,
}

/// An instruction with 8 bytes at RDI. RAX, R11, R14, R15 and XMM2 are [`NEW`] or, after a preparation, part of an address.
struct Access {
    name: &'static str,
    /// Puts addresses into registers.
    before: Write,
    instruction: Write,
    does: Does,
}

fn nothing(_: &mut CodeAssembler) -> Result<(), IcedError> {
    Ok(())
}

fn accesses() -> Vec<Access> {
    use Does::*;
    let plain: [(_, Write, Does); 17] = [
        ("mov [rdi], rax", |a| a.mov(qword_ptr(rdi), rax), Writes),
        ("mov [rdi], r11", |a| a.mov(qword_ptr(rdi), r11), Writes),
        ("mov [rdi], imm", |a| a.mov(qword_ptr(rdi), 7), Writes),
        ("mov r14, [rdi]", |a| a.mov(r14, qword_ptr(rdi)), Reads),
        ("mov rdi, [rdi]", |a| a.mov(rdi, qword_ptr(rdi)), Reads),
        ("add [rdi], r15", |a| a.add(qword_ptr(rdi), r15), Changes),
        ("add r15, [rdi]", |a| a.add(r15, qword_ptr(rdi)), Reads),
        ("lock add [rdi], rax", |a| a.lock().add(qword_ptr(rdi), rax), Changes),
        ("lock xadd [rdi], r14", |a| a.lock().xadd(qword_ptr(rdi), r14), Changes),
        ("xchg [rdi], r11", |a| a.xchg(qword_ptr(rdi), r11), Changes),
        ("cmpxchg [rdi], r15", |a| a.cmpxchg(qword_ptr(rdi), r15), Changes),
        ("inc [rdi]", |a| a.inc(qword_ptr(rdi)), Changes),
        ("adc [rdi], imm", |a| a.adc(qword_ptr(rdi), 1), Changes),
        ("movq [rdi], xmm2", |a| a.movq(qword_ptr(rdi), xmm2), Writes),
        ("movups [rdi], xmm2", |a| a.movups(xmmword_ptr(rdi), xmm2), Writes),
        ("movups xmm2, [rdi]", |a| a.movups(xmm2, xmmword_ptr(rdi)), Reads),
        ("push [rdi]", |a| a.push(qword_ptr(rdi)), Reads),
    ];
    let plain = plain.map(|(name, instruction, does)| Access { name, before: nothing, instruction, does });
    let access = |name, before, instruction, does| Access { name, before, instruction, does };
    let stack: Write = |a| a.mov(rsp, rdi);
    let above: Write = |a| a.lea(rsp, qword_ptr(rdi + 8));
    let parts: Write = |a| {
        a.lea(r15, qword_ptr(rdi - 0x100))?;
        a.mov(r14d, 0x20)
    };
    let others = [
        access("push r11", above, |a| a.push(r11), Writes),
        access("push imm", above, |a| a.push(-3), Writes),
        access("pushfq", above, |a| a.pushfq(), Writes),
        access("call", above, |a| a.call(F + 0x800), Writes),
        access("call rbp", above, |a| a.call(rbp), Writes),
        access("pop rax", stack, |a| a.pop(rax), Reads),
        access("pop r14", stack, |a| a.pop(r14), Reads),
        access("mov rax, [rsp]", stack, |a| a.mov(rax, qword_ptr(rsp)), Reads),
        access("or [rsp - 8], r11", above, |a| a.or(qword_ptr(rsp - 8), r11), Changes),
        access("leave", |a| a.mov(rbp, rdi), |a| a.leave(), Reads),
        access("mov [r15 + r14 * 8], rax", parts, |a| a.mov(qword_ptr(r15 + r14 * 8), rax), Writes),
        access("sub r15, [r15 + r14 * 8]", parts, |a| a.sub(r15, qword_ptr(r15 + r14 * 8)), Reads),
        access("xor [r15 + r14 * 8], r14", parts, |a| a.xor(qword_ptr(r15 + r14 * 8), r14), Changes),
        access(
            "bts [rdi - 0x100], r14",
            |a| a.mov(r14d, 0x800 + 3),
            |a| a.bts(qword_ptr(rdi - 0x100), r14),
            Changes,
        ),
    ];
    plain.into_iter().chain(others).collect()
}

/// The registers that an instruction may change, as they are after a round's preparation and its traps.
fn keep_registers(a: &mut CodeAssembler) -> Result<(), IcedError> {
    for (n, r) in (0..).zip([rax, rsp, rbp, rdi, r11, r14, r15]) {
        a.mov(qword_ptr(KEPT + 8 * n), r)?;
    }
    a.movups(xmmword_ptr(KEPT + 56), xmm2)
}

/// A guest that executes an access in each round, in the last one with the operand at [`BAD`], before which `last` is done.
/// It keeps its registers before each, and after a trap goes on at [`AFTER`].
fn guest(
    bench: &Bench<'_>,
    access: &Access,
    last_operand: u64,
    last: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Guest, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, ROUNDS)?;
        a.jmp(F)
    })?;
    g.code(64, F, |a| {
        let (mut again, mut usual) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        for r in [rax, r11, r14, r15] {
            a.mov(r, NEW)?;
        }
        a.movq(xmm2, rax)?;
        a.mov(rdx, OLD)?;
        a.mov(rsp, STACK)?;
        a.mov(ebp, (F + 0x800) as u32)?;
        a.mov(edi, GOOD as u32)?;
        a.mov(qword_ptr(rdi), rdx)?;
        a.cmp(ebx, 1)?;
        a.jne(usual)?;
        a.mov(edi, last_operand as u32)?;
        last(a)?;
        a.set_label(&mut usual)?;
        (access.before)(a)?;
        keep_registers(a)?;
        a.stc()?;
        // The instruction is at a place that the trap can be compared with.
        a.jmp(F + 0x400)
    })?;
    g.code(64, F + 0x400, |a| {
        (access.instruction)(a)?;
        a.jmp(F + 0x800)
    })?;
    g.code(64, F + 0x800, |a| {
        a.dec(ebx)?;
        a.jnz(F)?;
        a.mov(rsp, STACK)?;
        a.mov(qword_ptr(DATA), r14)?;
        a.mov(qword_ptr(DATA + 8), rax)?;
        a.done()
    })?;
    g.code(64, AFTER, |a| {
        // The same registers again, compared by the host.
        for (n, r) in (0..).zip([rax, rsp, rbp, rdi, r11, r14, r15]) {
            a.mov(qword_ptr(KEPT + 0x80 + 8 * n), r)?;
        }
        a.movups(xmmword_ptr(KEPT + 0x80 + 56), xmm2)?;
        a.done()
    })?;
    g.resume_at(AFTER);
    // Page faults have a stack of their own: the guest's may be what is missing.
    g.machine.ram.write(IDT + 16 * 14 + 4, &[1]);
    g.machine.ram.write(TSS + 36, &STACK0.to_le_bytes());
    for at in [WINDOW_RAM + 0xffc, WINDOW_RAM + 0x2000 - 4] {
        g.machine.ram.write(at, &OLD.to_le_bytes());
    }
    g.start.general.rflags = 2;
    Ok(g)
}

/// Sees to it that a page fault of the access was exact.
fn check_fault(
    r: &mut Record,
    g: &Guest,
    access: &Access,
    address: u64,
    present: u64,
) -> Result<(), Failure> {
    let trap = g.trap()?;
    let write = u64::from(access.does != Does::Reads) << 1;
    let seen = (trap.vector, trap.error, trap.ip, trap.cr2);
    r.expect(access.name, seen, (14, present | write, F + 0x400, address))?;
    // Flags that the instruction overwrites need not be those from before it.
    if ["mov", "push", "pop", "call", "leave", "xchg"].iter().any(|m| access.name.starts_with(m)) {
        r.expect("carry is kept", trap.flags & 1, 1)?;
    }
    let ram = &g.machine.ram;
    let (before, after) = (ram.read::<72>(KEPT), ram.read::<72>(KEPT + 0x80));
    r.expect("registers", before, after)
}

/// What follows the operand's first four bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Second {
    Absent,
    ReadOnly,
    Device,
    Elsewhere,
}

fn into(bench: &Bench<'_>, second: Second) -> Result<Record, Failure> {
    let mut r = Record::default();
    for access in accesses() {
        let mut g = guest(bench, &access, BAD, nothing)?;
        let entry = match second {
            Second::Absent => 0,
            Second::ReadOnly => (WINDOW_RAM + 0x1000) | 5,
            Second::Device => MMIO | 7,
            Second::Elsewhere => (WINDOW_RAM + 0x5000) | 7,
        };
        let ram = &g.machine.ram;
        ram.write(PT + 8, &entry.to_le_bytes());
        ram.write(WINDOW_RAM + 0x5000, &OLD.to_le_bytes()[4..]);
        ram.write(WINDOW_RAM + 0x1000, &OLD.to_le_bytes()[4..]);
        let rights_fault = second == Second::ReadOnly && access.does != Does::Reads;
        g.run().map_err(|e| Failure::Stuck(format!("{}: {e}", access.name)))?;
        if second == Second::Absent || rights_fault {
            check_fault(&mut r, &g, &access, WINDOW + 0x1000, u64::from(rights_fault))?;
            let at = g.machine.ram.u32(WINDOW_RAM + 0xffc);
            r.expect("nothing was written", at, OLD as u32)?;
            continue;
        }
        r.expect(access.name, g.vectors(), vec![])?;
        let ram = &g.machine.ram;
        // Flags, and what they become, are not what this is about.
        if !access.name.contains("pushfq") {
            r.note("registers", &(ram.u64(DATA), ram.u64(DATA + 8)));
        }
        let first = ram.u32(WINDOW_RAM + 0xffc);
        r.expect(
            "written",
            first != OLD as u32,
            access.does != Does::Reads && access.name != "cmpxchg [rdi], r15",
        )?;
        let untouched = ram.u32(WINDOW_RAM + 0x1000);
        if second != Second::ReadOnly {
            r.expect("the page that is not there", untouched, (OLD >> 32) as u32)?;
        }
        if second == Second::Device {
            let writes = |e: &Event| matches!(e, Event::MmioWrite(..));
            r.expect("device", g.events().iter().any(writes), access.does != Does::Reads)?;
        }
    }
    Ok(r)
}

/// The operand stays where it is, but its page is no longer what it was.
fn loses(bench: &Bench<'_>, entry: u64) -> Result<Record, Failure> {
    let mut r = Record::default();
    for access in accesses() {
        let mut g = guest(bench, &access, GOOD, |a| {
            a.mov(qword_ptr(PT), entry as i32)?;
            a.invlpg(byte_ptr(WINDOW))
        })?;
        g.run().map_err(|e| Failure::Stuck(format!("{}: {e}", access.name)))?;
        if entry != 0 && access.does == Does::Reads {
            r.expect(access.name, g.vectors(), vec![])?;
            continue;
        }
        check_fault(&mut r, &g, &access, GOOD, u64::from(entry != 0))?;
        r.expect("nothing was written", g.machine.ram.u64(WINDOW_RAM + 0x100), OLD)?;
    }
    Ok(r)
}
