//! Endless loops of every kind: each is hot, and the timer's interrupt and the host's kick reach the guest in it.

use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::apic::enable_x2apic;
use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::{Bench, LIMIT};
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("hot-loops-take-interrupts", interrupted),
    case("hot-loops-are-paused", paused),
    case("hot-loop-around-the-address-space", around),
];

/// Where loops are.
const LOOP: u64 = CODE_AP;
/// A stack of theirs.
const TOP: u64 = DATA + 0x800;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

fn jump_to_itself(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.jmp(LOOP)
}

fn condition(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.test(eax, 0)?;
    a.inc(rbx)?;
    a.test(eax, 0)?;
    a.je(LOOP)
}

fn indirect_jump(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(r11, LOOP)?;
    a.jmp(r11)
}

fn indirect_jump_by_memory(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, LOOP)?;
    a.mov(qword_ptr(TOP), rax)?;
    a.jmp(qword_ptr(TOP))
}

fn call_and_return(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut f = a.create_label();
    a.call(f)?;
    a.jmp(LOOP)?;
    a.set_label(&mut f)?;
    a.ret()
}

/// Calls that never return, on a stack that starts anew.
fn calls_only(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rsp, TOP)?;
    a.call(LOOP)
}

fn indirect_calls_only(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rsp, TOP)?;
    a.mov(eax, LOOP as u32)?;
    a.call(rax)
}

/// A return to itself, which no call foresees.
fn returns_only(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rsp, TOP)?;
    a.ret()
}

fn pushes_and_returns(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(LOOP as i32)?;
    a.ret_1(0)
}

/// The sequence that stands for an indirect jump in kernels.
fn retpoline(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut set_up, mut capture) = (a.create_label(), a.create_label());
    a.mov(eax, LOOP as u32)?;
    a.call(set_up)?;
    a.set_label(&mut capture)?;
    a.pause()?;
    a.lfence()?;
    a.jmp(capture)?;
    a.set_label(&mut set_up)?;
    a.mov(qword_ptr(rsp), rax)?;
    a.ret()
}

fn loop_instruction(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, 2)?;
    a.loop_(LOOP)
}

fn jump_if_zero(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.xor(ecx, ecx)?;
    a.jrcxz(LOOP)
}

fn rare_instruction(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rdx, cr2)?;
    a.xlatb()?;
    a.jmp(LOOP)
}

fn identify(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cpuid()?;
    a.jmp(LOOP)
}

fn strings(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, 200)?;
    a.mov(edi, DATA as u32)?;
    a.rep().stosb()?;
    a.jmp(LOOP)
}

fn interrupt_return(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(rax, rsp)?;
    a.mov(edx, ss)?;
    a.push(rdx)?;
    a.push(rax)?;
    a.pushfq()?;
    a.mov(edx, cs)?;
    a.push(rdx)?;
    a.push(LOOP as i32)?;
    a.iretq()
}

fn far_return(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(i32::from(sel::CODE64))?;
    a.push(LOOP as i32)?;
    a.db(&[0x48, 0xcb])
}

fn floating_point(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.fld1()?;
    a.fstp(st0)?;
    a.jmp(LOOP)
}

fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pause()?;
    a.lock().xadd(dword_ptr(DATA), eax)?;
    a.jmp(LOOP)
}

fn device(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ecx, MMIO as u32)?;
    a.mov(eax, dword_ptr(rcx))?;
    a.jmp(LOOP)
}

/// Two blocks, the second in the next page, reached and left by instructions over the border.
fn over_page_ends(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut second = a.create_label();
    a.jmp(second)?;
    a.nops_with_size(0xfeb)?;
    a.nops_with_size(9)?;
    a.set_label(&mut second)?;
    a.mov(rbx, 0x1122_3344_5566_7788u64)?;
    a.jmp(LOOP)
}

fn loops() -> Vec<(&'static str, Write)> {
    vec![
        ("jump to itself", jump_to_itself),
        ("condition", condition),
        ("indirect jump", indirect_jump),
        ("indirect jump by memory", indirect_jump_by_memory),
        ("call and return", call_and_return),
        ("calls only", calls_only),
        ("indirect calls only", indirect_calls_only),
        ("returns only", returns_only),
        ("pushes and returns", pushes_and_returns),
        ("retpoline", retpoline),
        ("LOOP", loop_instruction),
        ("JRCXZ", jump_if_zero),
        ("rare instructions", rare_instruction),
        ("CPUID", identify),
        ("strings", strings),
        ("IRET", interrupt_return),
        ("far return", far_return),
        ("floating point", floating_point),
        ("spinning", spin),
        ("device", device),
        ("over page ends", over_page_ends),
    ]
}

/// A guest that goes to a loop after this.
fn looping(bench: &Bench<'_>, body: Write, before: Write) -> Result<Guest, Failure> {
    let g = Guest::new(bench, Mode::Long, |a| {
        before(a)?;
        a.mov(ebx, DATA as u32)?;
        a.mov(eax, LOOP as u32)?;
        a.jmp(rax)
    })?;
    g.code(64, LOOP, body)?;
    g.machine.ram.write(TOP, &LOOP.to_le_bytes());
    Ok(g)
}

/// The timer's interrupt ends each.
fn interrupted(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut r = Record::default();
    for (name, body) in loops() {
        let mut g = looping(bench, body, |a| {
            enable_x2apic(a)?;
            a.write_msr(0x83e, 0xb)?;
            a.write_msr(0x832, 0x50)?;
            a.write_msr(0x838, 1_000_000)?;
            a.sti()
        })?;
        g.end_interrupts();
        g.resume_with(|a| a.done())?;
        g.run().map_err(|e| Failure::Stuck(format!("{name}: {e}")))?;
        r.expect(name, g.vectors(), vec![(0x50, 0)])?;
    }
    Ok(r)
}

/// Waits until the guest is in its loop, hot, and stops it there.
fn pause(g: &mut Guest, name: &str) -> Result<(), Failure> {
    g.run_part(|h| {
        h.wait_for_reports(1)?;
        std::thread::sleep(Duration::from_millis(5));
        h.gate.pause_all(LIMIT).map_err(|e| {
            // The guest's thread is never joined: this is the last that is heard of the case.
            println!("FAILED   {name} cannot be paused: {e}");
            Failure::Stuck(format!("{name}: {e}"))
        })
    })
}

fn paused(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut r = Record::default();
    for (name, body) in loops() {
        pause(&mut looping(bench, body, |a| a.report_value(1))?, name)?;
        r.note(name, &"paused");
    }
    Ok(r)
}

/// Code falls off the last page onto the first, and jumps back by less than 2 GiB.
fn around(bench: &Bench<'_>) -> Result<Record, Failure> {
    const LAST: u64 = u64::MAX << 12;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.report_value(1)?;
        a.mov(rax, LAST)?;
        a.jmp(rax)
    })?;
    let ram = &g.machine.ram;
    let (pdpt, pd, pt) = (PML4 + 0x8000, PML4 + 0x9000, PML4 + 0xa000);
    for (at, entry) in
        [(PML4 + 8 * 511, pdpt), (pdpt + 8 * 511, pd), (pd + 8 * 511, pt), (pt + 8 * 511, WINDOW_RAM)]
    {
        ram.write(at, &(entry | 7).to_le_bytes());
    }
    ram.write(WINDOW_RAM, &[0x90; 0x1000]);
    g.code(64, 0, |a| {
        a.db(&[0xe9])?;
        a.dd(&[(LAST as u32).wrapping_sub(5)])
    })?;
    pause(&mut g, "around the address space")?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    Ok(r)
}
