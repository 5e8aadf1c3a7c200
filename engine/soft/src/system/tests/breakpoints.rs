//! Hardware breakpoints, through the run loop: what is reported, where, and what the flags on the stack say.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vireo_core::model::Vendor;
use vireo_core::state::{Activity, Segment, cr4, rflags};

use super::guest::*;
use crate::cpu::{Fault, Source, seg, vector};
use crate::vcpu::Leave;

/// Watched bytes, in the middle of a page that nothing else uses.
const DATA: u64 = 0x4_0800;
/// The handler's list of (DR6, RIP, RFLAGS), with a pointer to its end before it.
const LOG: u64 = 0x5_0000;
const DR6: u64 = 0xffff_0ff0;
const BS: u64 = 1 << 14;

/// R/W fields.
const EXECUTE: u64 = 0;
const WRITE: u64 = 1;
const PORT: u64 = 2;
const ACCESS: u64 = 3;

/// Global enable, kind and length of breakpoint `n`.
fn enable(n: u64, kind: u64, len: u64) -> u64 {
    let len = [0, 0, 1, 0, 3, 0, 0, 0, 2][len as usize];
    0x400 | 2 << (2 * n) | (kind | len << 2) << (16 + 4 * n)
}

/// What the handler of #DB saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    dr6: u64,
    rip: u64,
    rf: bool,
}

fn seen(b: u64, rip: u64) -> Seen {
    Seen { dr6: DR6 | b, rip, rf: false }
}

/// A 64-bit guest that logs each #DB, clears DR6 and returns with RF set.
fn guest(body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    let mut g = Guest::long(Vendor::Intel);
    g.code(CODE, 64, body);
    g.code(HANDLER, 64, |a| {
        a.push(rax)?;
        a.push(rbx)?;
        a.mov(rbx, qword_ptr(LOG))?;
        a.mov(rax, dr6)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(rax, qword_ptr(rsp + 16))?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.mov(rax, qword_ptr(rsp + 32))?;
        a.mov(qword_ptr(rbx + 16), rax)?;
        a.add(qword_ptr(LOG), 24)?;
        a.mov(eax, DR6 as u32)?;
        a.mov(dr6, rax)?;
        a.or(dword_ptr(rsp + 32), rflags::RF as i32)?;
        a.pop(rbx)?;
        a.pop(rax)?;
        a.iretq()
    });
    g.idt(vector::DB, gate(sel::CODE64, HANDLER, 0x8e));
    g.write(LOG, LOG + 8);
    g
}

/// Sets breakpoints as `mov drN` does.
fn set(g: &mut Guest, address: [u64; 4], enabled: u64) {
    (g.cpu.debug.address, g.cpu.debug.dr7) = (address, enabled);
    g.cpu.breakpoints_changed();
}

/// The run loop, until HLT.
fn run(g: &mut Guest) {
    for _ in 0..10_000 {
        assert!(matches!(g.cpu.look_and_run(), Leave::Again), "shutdown at {:#x}", g.cpu.rip);
        if g.cpu.activity == Activity::Halted {
            return;
        }
    }
    panic!("no HLT, at {:#x}", g.cpu.rip);
}

fn log(g: &Guest) -> Vec<Seen> {
    let end = g.read::<u64>(LOG);
    (LOG + 8..end)
        .step_by(24)
        .map(|at| Seen { dr6: g.read(at), rip: g.read(at + 8), rf: g.read::<u64>(at + 16) & rflags::RF != 0 })
        .collect()
}

/// Runs `body` (HLT is added) with breakpoint 0; gives what was seen.
fn with(
    kind: u64,
    len: u64,
    at: u64,
    body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<Seen> {
    let mut g = guest(|a| {
        body(a)?;
        a.hlt()
    });
    set(&mut g, [at, 0, 0, 0], enable(0, kind, len));
    run(&mut g);
    log(&g)
}

#[test]
fn an_instruction_breakpoint_comes_before_its_instruction_each_time() {
    let mut g = guest(|a| {
        let mut round = a.create_label();
        a.mov(ecx, 3)?;
        a.set_label(&mut round)?;
        a.inc(rdx)?;
        a.dec(ecx)?;
        a.jnz(round)?;
        a.hlt()
    });
    let at = CODE + 5;
    g.cpu.regs.set(2, 0);
    // Breakpoint 2 is on the same instruction.
    set(&mut g, [at, 0, at, 0], enable(0, EXECUTE, 1) | enable(2, EXECUTE, 1));
    run(&mut g);
    assert_eq!(log(&g), [seen(5, at); 3]);
    assert_eq!(g.cpu.regs.get(2), 3);
    assert_eq!(g.cpu.eflags & rflags::RF, 0);
}

#[test]
fn without_rf_the_breakpoint_is_met_again() {
    let mut g = guest(|a| a.hlt());
    set(&mut g, [CODE, 0, 0, 0], enable(0, EXECUTE, 1));
    for _ in 0..2 {
        assert_eq!(g.cpu.before_instruction(crate::cpu::Shadow::None), Err(crate::cpu::Stop::Fault));
    }
    g.cpu.set_rflags(rflags::RF);
    run(&mut g);
    assert_eq!((log(&g), g.cpu.eflags & rflags::RF), (vec![], 0));
}

#[test]
fn a_fault_of_the_instruction_passes_its_breakpoint() {
    const ABSENT: u64 = 0x40_0000;
    let mut g = guest(|a| {
        a.mov(rax, qword_ptr(rsi))?;
        a.hlt()
    });
    g.idt(vector::PF, gate(sel::CODE64, HANDLER + 0x100, 0x8e));
    g.code(HANDLER + 0x100, 64, |a| {
        a.mov(rsi, DATA)?;
        a.add(rsp, 8)?;
        a.iretq()
    });
    g.cpu.regs.set(6, ABSENT);
    set(&mut g, [CODE, 0, 0, 0], enable(0, EXECUTE, 1));
    run(&mut g);
    assert_eq!(log(&g), [seen(1, CODE)]);
}

#[test]
fn mov_ss_holds_back_the_breakpoint_on_the_next_instruction_and_its_own_trap() {
    let mut g = guest(|a| {
        a.mov(ss, word_ptr(rsi))?;
        a.nop()?;
        a.nop()?;
        a.hlt()
    });
    g.write(DATA, sel::DATA);
    g.cpu.regs.set(6, DATA);
    set(&mut g, [CODE + 2, DATA, 0, 0], enable(0, EXECUTE, 1) | enable(1, ACCESS, 2));
    run(&mut g);
    assert_eq!(log(&g), [seen(2, CODE + 3)]);
}

#[test]
fn data_is_matched_by_overlap() {
    // (offset and size of the access, address and length of the breakpoint, met)
    let rows = [
        (0, 1, 0, 1, true),
        (1, 1, 0, 1, false),
        (0, 8, 7, 1, true),
        (0, 4, 4, 1, false),
        (3, 2, 4, 4, true),
        (3, 1, 4, 4, false),
        (2, 4, 4, 4, true),
        (7, 4, 4, 4, true),
        (8, 4, 4, 4, false),
        (15, 1, 8, 8, true),
        (16, 8, 8, 8, false),
        // The address's low bits do not count.
        (4, 1, 6, 4, true),
        (8, 1, 6, 4, false),
        (9, 1, 8, 2, true),
    ];
    for (offset, size, at, len, met) in rows {
        let seen = with(WRITE, len, DATA + at, |a| {
            a.mov(rdi, DATA + offset)?;
            match size {
                1 => a.mov(byte_ptr(rdi), al),
                2 => a.mov(word_ptr(rdi), ax),
                4 => a.mov(dword_ptr(rdi), eax),
                _ => a.mov(qword_ptr(rdi), rax),
            }
        });
        assert_eq!(!seen.is_empty(), met, "{size} bytes at +{offset}, breakpoint of {len} at +{at}");
    }
}

#[test]
fn writes_and_reads_are_told_apart() {
    type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    // Each has a memory operand at RDI; (breakpoint on writes, on reads and writes) met.
    let rows: &[(&str, Body, bool, bool)] = &[
        ("mov to", |a| a.mov(dword_ptr(rdi), eax), true, true),
        ("mov from", |a| a.mov(eax, dword_ptr(rdi)), false, true),
        ("add to", |a| a.add(dword_ptr(rdi), eax), true, true),
        ("cmp", |a| a.cmp(dword_ptr(rdi), eax), false, true),
        ("lock xadd", |a| a.lock().xadd(dword_ptr(rdi), eax), true, true),
        ("xchg", |a| a.xchg(dword_ptr(rdi), eax), true, true),
        ("push", |a| a.push(qword_ptr(rdi)), false, true),
        ("pop", |a| a.pop(qword_ptr(rdi)), true, true),
        ("movups from", |a| a.movups(xmm0, xmmword_ptr(rdi - 12)), false, true),
        ("movups to", |a| a.movups(xmmword_ptr(rdi - 12), xmm0), true, true),
        ("paddd", |a| a.paddd(xmm0, xmmword_ptr(rdi - 16 + 16)), false, true),
        ("fld", |a| a.fld(tbyte_ptr(rdi - 6)), false, true),
        ("fstp", |a| a.fstp(tbyte_ptr(rdi - 6)), true, true),
        ("fxsave", |a| a.fxsave(ptr(rdi - 256)), true, true),
        ("lea", |a| a.lea(rax, qword_ptr(rdi)), false, false),
        ("prefetch", |a| a.prefetcht0(byte_ptr(rdi)), false, false),
    ];
    for (name, body, on_write, on_access) in rows {
        for (kind, met) in [(WRITE, *on_write), (ACCESS, *on_access)] {
            let mut g = guest(|a| {
                a.mov(rdi, DATA)?;
                body(a)?;
                a.hlt()
            });
            g.cpu.ctl.cr4 |= cr4::OSFXSR;
            set(&mut g, [0, 0, 0, DATA], enable(3, kind, 1));
            run(&mut g);
            // The trap comes after the instruction, at the HLT.
            let hlt = g.cpu.rip - 1;
            assert_eq!(log(&g), vec![seen(8, hlt); usize::from(met)], "{name}, kind {kind}");
        }
    }
}

#[test]
fn both_pages_of_an_access_are_watched() {
    const BORDER: u64 = 0x4_1000;
    for at in [BORDER - 1, BORDER] {
        let seen = with(WRITE, 1, at, |a| a.mov(qword_ptr(BORDER - 4), rax));
        assert_eq!(seen.len(), 1);
    }
}

#[test]
fn a_page_already_in_the_tlb_is_watched_from_the_next_instruction_on() {
    let mut g = guest(|a| {
        a.mov(edi, DATA as u32)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.mov(ecx, enable(0, WRITE, 4) as u32)?;
        a.mov(dr0, rdi)?;
        a.mov(dr7, rcx)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.xor(ecx, ecx)?;
        a.mov(dr7, rcx)?;
        a.mov(dword_ptr(rdi), eax)?;
        a.hlt()
    });
    run(&mut g);
    let log = log(&g);
    assert_eq!(log.len(), 1);
    assert_eq!(log[0].dr6, DR6 | 1);
    assert!(!g.cpu.stepwise());
}

#[test]
fn a_repeated_string_instruction_traps_after_the_iteration() {
    let body = |a: &mut CodeAssembler| {
        a.mov(edi, (DATA - 2) as u32)?;
        a.mov(ecx, 4)?;
        a.rep().stosb()
    };
    let rep = CODE + 10;
    let more = |b, rip| Seen { rf: true, ..seen(b, rip) };
    // Bytes -2 to +1: the breakpoint of 2 bytes is met by the last two iterations.
    let mut g = guest(|a| {
        body(a)?;
        a.hlt()
    });
    // The breakpoint on the instruction itself is met once; RF, now pushed as 1, keeps it from coming again.
    set(&mut g, [DATA, rep, 0, 0], enable(0, WRITE, 2) | enable(1, EXECUTE, 1));
    run(&mut g);
    assert_eq!(log(&g), [seen(2, rep), more(1, rep), seen(1, rep + 2)]);
    assert_eq!((g.cpu.regs.get(1), g.cpu.regs.get(7)), (0, DATA + 2));

    let copy = with(ACCESS, 1, DATA + 1, |a| {
        a.mov(esi, DATA as u32)?;
        a.mov(edi, (DATA + 0x100) as u32)?;
        a.mov(ecx, 0x10)?;
        a.rep().movsb()
    });
    assert_eq!(copy, [seen(1, CODE + 15)]);
}

#[test]
fn single_steps_and_breakpoints_come_together() {
    let mut g = guest(|a| {
        a.mov(byte_ptr(rdi), al)?;
        a.nop()?;
        a.hlt()
    });
    g.cpu.regs.set(7, DATA);
    g.cpu.set_rflags(rflags::TF);
    set(&mut g, [DATA, CODE + 2, 0, 0], enable(0, WRITE, 1) | enable(1, EXECUTE, 1));
    run_stepped(&mut g, CODE + 3);
    // The trap after the first instruction goes before the breakpoint on the second.
    let nop = CODE + 2;
    assert_eq!(log(&g), [seen(BS | 1, nop), seen(BS, nop + 1), seen(BS, nop + 2)]);
}

/// Runs until the trap after the HLT at `hlt`, which ends the halt.
fn run_stepped(g: &mut Guest, hlt: u64) {
    g.code(hlt + 1, 64, |a| a.jmp(hlt + 1));
    for _ in 0..1000 {
        assert!(matches!(g.cpu.look_and_run(), Leave::Again));
        assert_eq!(g.cpu.activity, Activity::Running);
        if log(g).iter().any(|s| s.rip == hlt + 1) {
            return;
        }
    }
    panic!("no trap after HLT");
}

#[test]
fn each_iteration_is_single_stepped() {
    let mut g = guest(|a| {
        a.rep().stosb()?;
        a.hlt()
    });
    g.cpu.regs.set(7, DATA);
    g.cpu.regs.set(1, 3);
    g.cpu.set_rflags(rflags::TF);
    run_stepped(&mut g, CODE + 2);
    assert_eq!(log(&g), [seen(BS, CODE), seen(BS, CODE), seen(BS, CODE + 2), seen(BS, CODE + 3)]);
}

#[test]
fn an_instruction_that_faults_reports_no_data_breakpoint() {
    let mut g = guest(|a| {
        // Reads watched data, then its push faults.
        a.push(qword_ptr(rdi))?;
        a.hlt()
    });
    g.idt(vector::PF, gate(sel::CODE64, HANDLER + 0x100, 0x8e) | 1 << 32);
    g.code(HANDLER + 0x100, 64, |a| a.hlt());
    g.cpu.regs.set(7, DATA);
    g.cpu.regs.set(4, 0x60_0000);
    set(&mut g, [DATA, 0, 0, 0], enable(0, ACCESS, 8));
    run(&mut g);
    assert_eq!((log(&g), g.cpu.debug.dr6), (vec![], DR6));
    assert!(!g.cpu.breakpoint_met());
}

#[test]
fn ports_are_watched_with_cr4_de_only() {
    let body = |a: &mut CodeAssembler| {
        a.mov(edx, 0x62)?;
        a.in_(eax, dx)?;
        a.out(0x60, al)?;
        a.mov(esi, DATA as u32)?;
        a.mov(ecx, 2)?;
        a.rep().outsb()?;
        a.out(0x70, al)?;
        a.hlt()
    };
    for de in [0, cr4::DE] {
        let mut g = guest(body);
        g.cpu.ctl.cr4 |= de;
        // Ports 0x60 to 0x63; 0x62 once more.
        set(&mut g, [0x61, 0x62, 0, 0], enable(0, PORT, 4) | enable(1, PORT, 1));
        run(&mut g);
        let rep = CODE + 18;
        let all = [seen(3, CODE + 6), seen(1, CODE + 8), seen(3, rep), seen(3, rep + 2)];
        assert_eq!(log(&g), if de == 0 { &[][..] } else { &all });
        assert_eq!(g.cpu.exits.get(), 5);
    }
}

#[test]
fn an_access_of_an_events_delivery_is_reported_before_the_handlers_first_instruction() {
    let mut g = guest(|a| a.nop());
    g.idt(0x30, gate(sel::CODE64, HANDLER + 0x100, 0x8e));
    g.code(HANDLER + 0x100, 64, |a| a.hlt());
    // The frame's RIP.
    set(&mut g, [0, STACK - 40, 0, 0], enable(1, WRITE, 8));
    let interrupt = Fault { vector: 0x30, error: None, source: Source::External };
    crate::system::deliver(&mut g.cpu, interrupt).expect("delivered");
    run(&mut g);
    assert_eq!(log(&g), [seen(2, HANDLER + 0x100)]);
}

#[test]
fn dr6_keeps_all_but_the_breakpoints() {
    let mut g = guest(|a| {
        a.mov(byte_ptr(rdi), al)?;
        a.hlt()
    });
    g.cpu.regs.set(7, DATA);
    g.cpu.debug.dr6 = DR6 | BS | 1 << 13 | 0xc;
    set(&mut g, [DATA, 0, 0, 0], enable(0, WRITE, 1));
    run(&mut g);
    assert_eq!(log(&g), [seen(BS | 1 << 13 | 1, CODE + 2)]);
}

#[test]
fn general_detect_pushes_rf() {
    let mut g = guest(|a| {
        a.mov(rax, dr0)?;
        a.hlt()
    });
    g.cpu.debug.dr7 = 0x2400;
    g.cpu.breakpoints_changed();
    run(&mut g);
    // Delivery cleared GD, so that the handler could work and the instruction ran the second time.
    assert_eq!(log(&g), [Seen { rf: true, ..seen(1 << 13, CODE) }]);
}

#[test]
fn breakpoints_are_linear_addresses() {
    let mut g = Guest::protected();
    for (r, base) in [(seg::CS, CODE - 0x100), (seg::DS, DATA)] {
        g.cpu.seg[r as usize] = Segment { base, ..g.cpu.seg[r as usize] };
    }
    g.cpu.rip = 0x100;
    g.cpu.mode_changed();
    g.code(CODE, 32, |a| {
        a.mov(byte_ptr(3), al)?;
        a.hlt()
    });
    set(&mut g, [DATA + 3, CODE, 0, 0], enable(0, WRITE, 1) | enable(1, EXECUTE, 1));
    assert_eq!(g.cpu.before_instruction(crate::cpu::Shadow::None), Err(crate::cpu::Stop::Fault));
    assert_eq!(g.cpu.debug.dr6, DR6 | 2);
    g.step().expect("the store");
    assert!(g.cpu.breakpoint_met());
}

#[test]
fn loaded_state_brings_its_breakpoints() {
    let mut g = guest(|a| {
        a.mov(byte_ptr(rdi), al)?;
        a.hlt()
    });
    g.cpu.regs.set(7, DATA);
    let mut s = g.cpu.save().expect("a state");
    s.debug.address[3] = DATA;
    s.debug.dr7 = enable(3, WRITE, 1);
    g.cpu.load_state(&s).expect("a valid state");
    run(&mut g);
    assert_eq!(log(&g), [seen(8, CODE + 2)]);
    g.cpu.init();
    assert!(!g.cpu.stepwise());
}
