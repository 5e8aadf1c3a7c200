//! What leaves the processor: ports, MMIO, MSRs, hypercalls.

use iced_x86::code_asm::*;

use super::{Case, case};
use crate::asm::Phrases;
use crate::bus::{BOARD_MSR, Event, HYPERCALL_ADD};
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("port-io", port_io),
    case("port-io-strings", port_strings),
    case("mmio", mmio),
    case("mmio-strings", mmio_strings),
    case("mmio-read-modify-write", mmio_rmw),
    case("msr-of-the-board", board_msr),
    case("unknown-msr", unknown_msr),
    case("hypercall", hypercall),
];

fn pattern(port: u16, seen: usize, size: u8) -> Vec<u8> {
    (0..size).map(|i| (port as u8).wrapping_add(0x11 * i).wrapping_add(seen as u8)).collect()
}

fn port_io(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(rax, u64::MAX)?;
        a.in_(al, 0x50)?;
        a.report()?;
        a.mov(edx, 0x1234)?;
        a.in_(ax, dx)?;
        a.report()?;
        a.mov(rbx, rax)?;
        a.in_(eax, dx)?;
        a.mov(qword_ptr(DATA), rax)?;
        a.out(0x51, al)?;
        a.out(dx, ax)?;
        a.out(dx, eax)?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("narrow reads keep the upper bits", g.reports(), vec![0xffff_ff50, 0xffff_4635])?;
    r.expect("a 32-bit read clears the upper half", g.machine.ram.u64(DATA), 0x6958_4736)?;
    r.expect(
        "order, ports and sizes",
        g.events(),
        vec![
            Event::PioRead(0x50, pattern(0x50, 0, 1)),
            Event::PioRead(0x1234, pattern(0x1234, 1, 2)),
            Event::PioRead(0x1234, pattern(0x1234, 2, 4)),
            Event::PioWrite(0x51, vec![0x36]),
            Event::PioWrite(0x1234, vec![0x36, 0x47]),
            Event::PioWrite(0x1234, vec![0x36, 0x47, 0x58, 0x69]),
        ],
    )?;
    Ok(r)
}

fn port_strings(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.cld()?;
        a.mov(edx, 0x320)?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 3)?;
        a.rep().insw()?;
        a.mov(eax, edi)?;
        a.report()?;
        a.mov(esi, DATA as u32)?;
        a.mov(ecx, 3)?;
        a.rep().outsw()?;
        a.mov(eax, ecx)?;
        a.report()?;
        a.mov(esi, DATA as u32)?;
        a.mov(ecx, 1)?;
        a.rep().outsd()?;
        // Backwards, byte by byte.
        a.std()?;
        a.mov(esi, (DATA + 1) as u32)?;
        a.mov(ecx, 2)?;
        a.rep().outsb()?;
        a.cld()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    let events = g.events();
    let words: Vec<Vec<u8>> = events
        .iter()
        .filter_map(|e| if let Event::PioRead(0x320, d) = e { Some(d.clone()) } else { None })
        .collect();
    r.expect("three words were read", words.iter().map(Vec::len).collect::<Vec<_>>(), vec![2; 3])?;
    let in_ram: [u8; 6] = g.machine.ram.read(DATA);
    r.expect("and are in RAM", in_ram.to_vec(), words.concat())?;
    let written: Vec<Vec<u8>> = events
        .iter()
        .filter_map(|e| if let Event::PioWrite(0x320, d) = e { Some(d.clone()) } else { None })
        .collect();
    let mut expected = words;
    expected.extend([in_ram[..4].to_vec(), vec![in_ram[1]], vec![in_ram[0]]]);
    // What a device gives to a read depends on how many reads there were before; engines may prefetch none.
    r.expect("written", written, expected)?;
    r.expect("registers", g.reports(), vec![DATA as u32 + 6, 0])?;
    Ok(r)
}

fn mmio(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, MMIO as u32)?;
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.mov(byte_ptr(rbx + 1), al)?;
        a.mov(word_ptr(rbx + 2), ax)?;
        a.mov(dword_ptr(rbx + 4), eax)?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.mov(dword_ptr(rbx + 16), 0x1020_3040)?;
        a.xor(eax, eax)?;
        a.mov(al, byte_ptr(rbx + 1))?;
        a.report()?;
        a.movzx(eax, word_ptr(rbx + 2))?;
        a.report()?;
        a.movsx(eax, byte_ptr(rbx + 0x80))?;
        a.report()?;
        a.mov(eax, dword_ptr(rbx + 4))?;
        a.report()?;
        a.mov(rax, qword_ptr(rbx + 8))?;
        a.mov(qword_ptr(DATA), rax)?;
        a.done()
    })?;
    g.run()?;
    let read = |offset: u8, size: u8| (0..size).map(|i| (offset ^ 0x5a).wrapping_add(i)).collect::<Vec<_>>();
    let mut r = Record::default();
    r.expect("values", g.reports(), vec![0x5b, 0x5958, 0xffff_ffda, 0x6160_5f5e])?;
    r.expect("8 bytes", g.machine.ram.u64(DATA).to_le_bytes().to_vec(), read(8, 8))?;
    r.expect(
        "order, addresses and sizes",
        g.events(),
        vec![
            Event::MmioWrite(MMIO + 1, vec![0x11]),
            Event::MmioWrite(MMIO + 2, vec![0x11, 0x22]),
            Event::MmioWrite(MMIO + 4, vec![0x11, 0x22, 0x33, 0x44]),
            Event::MmioWrite(MMIO + 8, vec![0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]),
            Event::MmioWrite(MMIO + 16, vec![0x40, 0x30, 0x20, 0x10]),
            Event::MmioRead(MMIO + 1, read(1, 1)),
            Event::MmioRead(MMIO + 2, read(2, 2)),
            Event::MmioRead(MMIO + 0x80, read(0x80, 1)),
            Event::MmioRead(MMIO + 4, read(4, 4)),
            Event::MmioRead(MMIO + 8, read(8, 8)),
        ],
    )?;
    Ok(r)
}

fn mmio_strings(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.cld()?;
        a.mov(esi, CODE as u32)?;
        a.mov(edi, MMIO as u32)?;
        a.mov(ecx, 2)?;
        a.rep().movsd()?;
        a.mov(esi, (MMIO + 0x40) as u32)?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, 4)?;
        a.rep().movsb()?;
        a.mov(eax, edi)?;
        a.report()?;
        a.done()
    })?;
    g.run()?;
    let code: [u8; 8] = g.machine.ram.read(CODE);
    let mut r = Record::default();
    let mut expected: Vec<_> =
        (0..2).map(|i| Event::MmioWrite(MMIO + 4 * i as u64, code[4 * i..4 * i + 4].to_vec())).collect();
    expected.extend((0x40..0x44).map(|i: u64| Event::MmioRead(MMIO + i, vec![i as u8 ^ 0x5a])));
    r.check("one access an element", g.events() == expected, g.events())?;
    r.expect("copied", g.machine.ram.read::<4>(DATA), [0x1a, 0x1b, 0x18, 0x19])?;
    r.expect("RDI", g.reports(), vec![DATA as u32 + 4])?;
    Ok(r)
}

fn mmio_rmw(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, MMIO as u32)?;
        a.or(dword_ptr(rbx), 1)?;
        a.push(qword_ptr(rbx + 8))?;
        a.pop(rax)?;
        a.report()?;
        a.mov(eax, 0x0102_0304)?;
        a.xchg(dword_ptr(rbx + 16), eax)?;
        a.report()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("values", g.reports(), vec![0x5554_5352, 0x4d4c_4b4a])?;
    r.expect(
        "events",
        g.events(),
        vec![
            Event::MmioRead(MMIO, vec![0x5a, 0x5b, 0x5c, 0x5d]),
            Event::MmioWrite(MMIO, vec![0x5b, 0x5b, 0x5c, 0x5d]),
            Event::MmioRead(MMIO + 8, (0x52..0x5a).collect()),
            Event::MmioRead(MMIO + 16, vec![0x4a, 0x4b, 0x4c, 0x4d]),
            Event::MmioWrite(MMIO + 16, vec![4, 3, 2, 1]),
        ],
    )?;
    Ok(r)
}

fn board_msr(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ecx, BOARD_MSR)?;
        a.mov(rax, u64::MAX)?;
        a.rdmsr()?;
        a.mov(qword_ptr(DATA), rax)?;
        a.mov(qword_ptr(DATA + 8), rdx)?;
        a.inc(eax)?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.report()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("RAX", g.machine.ram.u64(DATA), 0x5566_7788)?;
    r.expect("RDX", g.machine.ram.u64(DATA + 8), 0x1122_3344)?;
    r.expect("after the write", g.reports(), vec![0x5566_7789])?;
    r.expect(
        "events",
        g.events(),
        vec![
            Event::MsrRead(BOARD_MSR),
            Event::MsrWrite(BOARD_MSR, 0x1122_3344_5566_7789),
            Event::MsrRead(BOARD_MSR),
        ],
    )?;
    Ok(r)
}

/// MSRs of nobody, among them some that KVM would serve by itself.
fn unknown_msr(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut r = Record::default();
    for index in [0x11u32, 0x1234, 0x4000_0000, 0x4b56_4d01, 0xc000_1234] {
        for write in [false, true] {
            let mut g = Guest::new(bench, Mode::Long, |a| {
                a.mov(ecx, index)?;
                a.xor(eax, eax)?;
                a.xor(edx, edx)?;
                if write { a.wrmsr() } else { a.rdmsr() }
            })?;
            g.resume_with(|a| a.done())?;
            g.run()?;
            r.expect(&format!("MSR {index:#x}, write {write}"), g.vectors(), vec![(13, 0)])?;
            let event = if write { Event::MsrWrite(index, 0) } else { Event::MsrRead(index) };
            r.expect("the board was asked", g.events(), vec![event])?;
        }
    }
    Ok(r)
}

/// As a guest calls by its hypercall page: whatever the engine's instruction is.
fn hypercall(bench: &Bench<'_>) -> Result<Record, Failure> {
    const PAGE: u64 = CODE + 0x800;
    const RET: u8 = 0xc3;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.movd(xmm0, dword_ptr(DATA))?;
        a.mov(eax, HYPERCALL_ADD as u32)?;
        a.mov(ecx, 40)?;
        a.mov(edx, 2)?;
        a.call(PAGE)?;
        a.report()?;
        a.movd(eax, xmm0)?;
        a.report()?;
        // One that the board does not know.
        a.mov(eax, 0x9999)?;
        a.call(PAGE)
    })?;
    let instruction = g.machine.partition.hypercall_instruction(bench.model.vendor());
    g.machine.ram.write(PAGE, &[instruction.code(), vec![RET]].concat());
    g.resume_with(|a| a.done())?;
    g.machine.ram.write(DATA, &0xdead_beef_u32.to_le_bytes());
    g.run()?;
    let mut r = Record::default();
    r.expect("sum, and XMM0 turned around", g.reports(), vec![42, 0])?;
    r.expect("the unknown one raises #UD", g.vectors(), vec![(6, 0)])?;
    Ok(r)
}
