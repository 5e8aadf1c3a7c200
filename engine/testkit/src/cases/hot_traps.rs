//! Exceptions of hot instructions, whose handlers return and go on; single steps and breakpoints in hot code.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("hot-instruction-faults", faults),
    case("hot-code-is-single-stepped", stepped),
    case("hot-code-meets-breakpoints", breakpoints),
    case("hot-sti-then-hlt", sti_then_hlt),
    case("hot-code-is-saved-and-loaded", saved),
];

/// Where functions are.
const F: u64 = CODE_AP;
const ROUNDS: u32 = 60;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Name, instruction with RCX or the memory at RCX as its operand, a good RCX, a bad one, the exception.
type Faulting = (&'static str, Write, u64, u64, (u64, u64));

fn instructions() -> Vec<Faulting> {
    const AT: u64 = DATA + 0x100;
    vec![
        ("DIV by zero", |a| a.div(ecx), 3, 0, (0, 0)),
        ("DIV overflows", |a| a.div(rcx), 9, 1, (0, 0)),
        ("IDIV overflows", |a| a.idiv(ecx), 9, u64::MAX, (0, 0)),
        ("DIV of bytes", |a| a.div(cl), 0xf0, 1, (0, 0)),
        ("DIV by memory", |a| a.div(qword_ptr(rcx)), AT, AT + 0x40, (0, 0)),
        ("MOVAPS from", |a| a.movaps(xmm1, xmmword_ptr(rcx)), AT, AT + 8, (13, 0)),
        ("MOVAPS to", |a| a.movaps(xmmword_ptr(rcx), xmm1), AT + 0x80, AT + 0x81, (13, 0)),
        ("MOVNTDQ", |a| a.movntdq(xmmword_ptr(rcx), xmm1), AT + 0x80, AT + 0x84, (13, 0)),
        ("PADDB", |a| a.paddb(xmm1, xmmword_ptr(rcx)), AT, AT + 1, (13, 0)),
        ("CMPXCHG16B", |a| a.lock().cmpxchg16b(xmmword_ptr(rcx)), AT + 0x80, AT + 0x88, (13, 0)),
        ("DIVSD", |a| a.divsd(xmm1, qword_ptr(rcx)), AT + 0x10, AT + 0x40, (19, 0)),
        ("SQRTSD", |a| a.sqrtsd(xmm1, qword_ptr(rcx)), AT + 0x10, AT + 0x18, (19, 0)),
        ("LDMXCSR", |a| a.ldmxcsr(dword_ptr(rcx)), AT + 0x20, AT + 0x28, (13, 0)),
        ("not canonical", |a| a.mov(r14, qword_ptr(rcx)), AT, 1 << 47, (13, 0)),
        ("not canonical, stack", |a| a.mov(rbp, qword_ptr(rcx + 8)), AT, (1 << 47) - 12, (13, 0)),
        ("UD2", |a| a.ud2(), 0, 0, (6, 0)),
    ]
}

/// The last round faults; the handler returns behind the instruction with everything else as it was.
fn faults(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut r = Record::default();
    for (name, write, good, bad, (vector, error)) in instructions() {
        let mut g = Guest::new(bench, Mode::Long, |a| {
            a.mov(ebx, ROUNDS)?;
            // Invalid operation and division by zero are not masked.
            a.mov(dword_ptr(DATA + 0x120), 0x1d00)?;
            a.ldmxcsr(dword_ptr(DATA + 0x120))?;
            a.jmp(F)
        })?;
        g.code(64, F, |a| {
            a.mov(rcx, good)?;
            a.mov(rsi, bad)?;
            a.mov(edx, 1)?;
            a.mov(eax, 0x111)?;
            a.mov(r11, 0x1234_5678_9abc_def0u64)?;
            a.cmp(ebx, 1)?;
            a.cmove(rcx, rsi)?;
            a.cmp(ebx, 1)?;
            if name == "UD2" {
                a.jne(F + 0x400)?;
            }
            a.jmp(F + 0x200)
        })?;
        g.code(64, F + 0x200, |a| {
            if name == "IDIV overflows" {
                a.mov(eax, 0x8000_0000u32)?;
                a.mov(edx, u32::MAX)?;
            }
            a.jmp(F + 0x220)
        })?;
        g.code(64, F + 0x220, |a| {
            write(a)?;
            a.jmp(F + 0x400)
        })?;
        g.code(64, F + 0x400, |a| {
            a.dec(ebx)?;
            a.jnz(F)?;
            a.mov(qword_ptr(DATA), r11)?;
            a.mov(qword_ptr(DATA + 8), rax)?;
            a.done()
        })?;
        let ram = &g.machine.ram;
        let at = DATA + 0x100;
        ram.write(at, &3u64.to_le_bytes());
        ram.write(at + 0x10, &2.0f64.to_le_bytes());
        ram.write(at + 0x18, &(-2.0f64).to_le_bytes());
        ram.write(at + 0x28, &u32::MAX.to_le_bytes());
        g.resume_at(F + 0x400);
        g.run().map_err(|e| Failure::Stuck(format!("{name}: {e}")))?;
        let trap = g.trap()?;
        r.expect(name, (trap.vector, trap.error, trap.ip), (vector, error, F + 0x220))?;
        r.expect("R11 is kept", g.machine.ram.u64(DATA), 0x1234_5678_9abc_def0)?;
        r.note("RAX", &g.machine.ram.u64(DATA + 8));
    }
    Ok(r)
}

/// TF is set for one round after many: each of its instructions traps, up to where the flags are restored.
fn stepped(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        for flags in [2, 0x102, 2] {
            let mut again = a.create_label();
            a.mov(ebx, if flags == 2 { ROUNDS } else { 1 })?;
            a.set_label(&mut again)?;
            a.push(flags)?;
            a.popfq()?;
            a.call(F)?;
            a.push(2)?;
            a.popfq()?;
            a.dec(ebx)?;
            a.jnz(again)?;
        }
        a.done()
    })?;
    g.code(64, F, |a| {
        a.inc(dword_ptr(DATA))?;
        a.nop()?;
        a.ret()
    })?;
    g.run()?;
    let mut r = Record::default();
    let traps = g.traps();
    // CALL, INC, NOP, RET, PUSH, POPF.
    r.expect("vectors", traps.iter().map(|t| t.vector).collect::<Vec<_>>(), vec![1; 6])?;
    let in_function = traps.iter().filter(|t| t.ip >> 12 == F >> 12).count();
    r.expect("in the function", in_function, 3)?;
    r.expect("calls", g.machine.ram.u32(DATA), 2 * ROUNDS + 1)?;
    Ok(r)
}

/// Breakpoints on an instruction of a hot function, and on what it writes, come and go.
fn breakpoints(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(rax, F)?;
        a.mov(dr0, rax)?;
        a.mov(eax, DATA as u32)?;
        a.mov(dr1, rax)?;
        // Nothing; an instruction; four bytes written; nothing.
        for control in [0x400, 0x401, 0xd0_0404, 0x400] {
            let mut again = a.create_label();
            a.mov(eax, control)?;
            a.mov(dr7, rax)?;
            a.mov(ebx, if control == 0x400 { ROUNDS } else { 3 })?;
            a.set_label(&mut again)?;
            a.call(F)?;
            a.dec(ebx)?;
            a.jnz(again)?;
        }
        a.done()
    })?;
    g.code(64, F, |a| {
        a.inc(dword_ptr(DATA))?;
        a.ret()
    })?;
    // The handler returns behind the instruction with the breakpoint, or it would meet it again.
    g.code(64, F + 7, |a| a.ret())?;
    g.resume_at(F + 7);
    g.run()?;
    let mut r = Record::default();
    let seen: Vec<_> = g.traps().iter().map(|t| (t.vector, t.ip)).collect();
    let expected = [vec![(1, F); 3], vec![(1, F + 7); 3]].concat();
    r.expect("traps", seen, expected)?;
    r.expect("increments", g.machine.ram.u32(DATA), 2 * ROUNDS + 3)?;
    Ok(r)
}

/// The second processor interrupts the first, which waits with STI and HLT as kernels do: no interrupt is slept through.
fn sti_then_hlt(bench: &Bench<'_>) -> Result<Record, Failure> {
    const COUNT: u32 = 2000;
    let mut g = Guest::with_vcpus(bench, 2, Mode::Long, |a| {
        let (mut again, mut asleep) = (a.create_label(), a.create_label());
        super::apic::enable_x2apic(a)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        a.inc(ebx)?;
        a.mov(dword_ptr(DATA), ebx)?;
        a.set_label(&mut asleep)?;
        a.cli()?;
        a.cmp(dword_ptr(DATA + 8), ebx)?;
        let mut awake = a.create_label();
        a.jae(awake)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(asleep)?;
        a.set_label(&mut awake)?;
        a.cmp(ebx, COUNT as i32)?;
        a.jne(again)?;
        a.done()
    })?;
    // The handler: notes that it came, and ends the interrupt.
    let handler = F + 0x800;
    g.code(64, handler, |a| {
        for r in [rax, rcx, rdx] {
            a.push(r)?;
        }
        a.mov(eax, dword_ptr(DATA))?;
        a.mov(dword_ptr(DATA + 8), eax)?;
        a.write_msr(0x80b, 0)?;
        for r in [rdx, rcx, rax] {
            a.pop(r)?;
        }
        a.iretq()
    })?;
    let gate = handler & 0xffff | u64::from(sel::CODE64) << 16 | 0x8e << 40 | (handler >> 16) << 48;
    g.machine.ram.write(IDT + 16 * 0x48, &gate.to_le_bytes());
    g.code(64, F, |a| {
        let (mut again, mut wait) = (a.create_label(), a.create_label());
        super::apic::enable_x2apic(a)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        a.inc(ebx)?;
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(DATA), ebx)?;
        a.jne(wait)?;
        a.write_msr(0x830, 0x48)?;
        a.jmp(again)
    })?;
    super::hot_smp::start(&mut g, &[CODE, F])?;
    g.machine.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    r.expect("rounds", g.machine.ram.u32(DATA), COUNT)?;
    Ok(r)
}

/// A long computation, stopped, saved and loaded wherever it is, comes to the same end.
fn saved(bench: &Bench<'_>) -> Result<Record, Failure> {
    const STEPS: u32 = 8_000_000;
    const SEED: u64 = 0x1234_5678_9abc_def1;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let mut again = a.create_label();
        a.mov(ebx, STEPS)?;
        a.mov(r14, SEED)?;
        a.set_label(&mut again)?;
        a.call(F)?;
        a.movq(xmm2, r14)?;
        a.paddq(xmm1, xmm2)?;
        a.add(r15, r14)?;
        a.lea(r12, qword_ptr(r12))?;
        a.adc(r13, 0)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.movq(rax, xmm1)?;
        for (n, r) in (0..).zip([rax, r13, r14, r15, rsp]) {
            a.mov(qword_ptr(DATA + 8 * n), r)?;
        }
        a.done()
    })?;
    g.code(64, F, |a| {
        for (left, by) in [(true, 13), (false, 7), (true, 17)] {
            a.push(r14)?;
            a.pop(r11)?;
            if left {
                a.shl(r11, by)?
            } else {
                a.shr(r11, by)?
            }
            a.xor(r14, r11)?;
        }
        a.ret()
    })?;
    g.machine.load(&g.start)?;
    for _ in 0..20 {
        g.machine.run_part(|h| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            match h.gate.pause_all(crate::machine::LIMIT) {
                Err(e) if !h.gate.is_ending() => Err(Failure::Stuck(e.to_string())),
                _ => Ok(()),
            }
        })?;
        let state = g.machine.save()?;
        g.machine.load(&state)?;
    }
    // It may have come to its end meanwhile, on a fast host.
    if g.machine.ram.u64(DATA + 32) == 0 {
        g.machine.run()?;
    }
    let (mut x, mut sum, mut carries) = (SEED, 0u64, 0);
    for _ in 0..STEPS {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let carry;
        (sum, carry) = sum.overflowing_add(x);
        carries += u64::from(carry);
    }
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let seen: Vec<u64> = (0..5).map(|n| g.machine.ram.u64(DATA + 8 * n)).collect();
    r.expect("result", seen, vec![sum, carries, x, sum, STACK])?;
    Ok(r)
}
