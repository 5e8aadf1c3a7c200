//! Operating modes and paging.

use iced_x86::code_asm::*;
use vireo_core::state::SegmentRegisters;

use super::{Case, case};
use crate::asm::{Phrases, assemble};
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("real-mode", real_mode),
    case("big-real-mode", big_real_mode),
    case("protected-16", protected_16),
    case("protected-32", protected_32),
    case("paging-32", |bench| remap(bench, Mode::Paging32, WINDOW32, PT32)),
    case("paging-pae", |bench| remap(bench, Mode::Pae, WINDOW, PT)),
    case("long-mode", |bench| remap(bench, Mode::Long, WINDOW, PT)),
    case("compatibility-mode", compatibility_mode),
    case("mode-ladder", mode_ladder),
    case("cpuid", cpuid),
];

fn real_mode(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Real, |a| {
        // Segments are selector * 16; interrupts go through the vector table at 0.
        a.mov(ax, DATA as i32 >> 4)?;
        a.mov(es, ax)?;
        a.mov(word_ptr(4).es(), 0x1234)?;
        a.int(0x40)?;
        a.report()?;
        a.mov(eax, 0xffff_fff0u32)?;
        a.add(eax, 0x20)?;
        a.pushf()?;
        a.pop(bx)?;
        a.mov(ax, bx)?;
        a.and(eax, 0x8d5)?;
        a.report()?;
        a.done()
    })?;
    let ram = &g.machine.ram;
    ram.write(0x40 * 4, &[0, 0, (CODE_AP >> 4) as u8, (CODE_AP >> 12) as u8]);
    // The handler runs with CS = CODE_AP / 16, IP = 0.
    let handler = assemble(16, 0, |a| {
        a.mov(eax, 0)?;
        a.mov(ax, cs)?;
        a.iret()
    })?;
    ram.write(CODE_AP, &handler);
    g.run()?;
    let mut r = Record::default();
    r.expect("write through ES", g.machine.ram.u32(DATA + 4), 0x1234)?;
    r.expect("CS in the handler, flags of an addition", g.reports(), vec![(CODE_AP >> 4) as u32, 0x1])?;
    Ok(r)
}

fn big_real_mode(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Real, |a| {
        a.mov(esi, (WINDOW_RAM + 8) as u32)?;
        a.mov(dword_ptr(esi), 0xcafe_babe_u32)?;
        a.mov(eax, dword_ptr(esi))?;
        a.report()?;
        a.done()
    })?;
    g.start.segments.data[SegmentRegisters::DS].limit = u32::MAX;
    g.start.segments.data[SegmentRegisters::DS].attributes |= 1 << 15;
    g.run()?;
    let mut r = Record::default();
    r.expect("read back", g.reports(), vec![0xcafe_babe])?;
    r.expect("in RAM above 1 MiB", g.machine.ram.u32(WINDOW_RAM + 8), 0xcafe_babe)?;
    Ok(r)
}

fn protected_16(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Protected16, |a| {
        a.mov(ax, i32::from(sel::SMALL))?;
        a.mov(es, ax)?;
        a.mov(dword_ptr(16).es(), 0x5566_7788)?;
        a.mov(eax, dword_ptr(16).es())?;
        a.report()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("read back", g.reports(), vec![0x5566_7788])?;
    r.expect("segment base", g.machine.ram.u32(WINDOW_RAM + 16), 0x5566_7788)?;
    Ok(r)
}

fn protected_32(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Protected32, |a| {
        let mut round = a.create_label();
        a.xor(eax, eax)?;
        a.mov(ecx, 100)?;
        a.set_label(&mut round)?;
        a.add(eax, ecx)?;
        a.dec(ecx)?;
        a.jnz(round)?;
        a.report()?;
        a.push(0x1357)?;
        a.pop(dword_ptr(DATA))?;
        a.mov(eax, dword_ptr(DATA))?;
        a.report()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("sum and stack", g.reports(), vec![5050, 0x1357])?;
    Ok(r)
}

/// Writes through a window, changes its page table, writes again.
fn remap(bench: &Bench<'_>, mode: Mode, window: u64, entry: u64) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, mode, |a| {
        a.mov(dword_ptr(window), 0x1111_1111)?;
        a.mov(dword_ptr(entry), ((WINDOW_RAM + 0x5000) | 7) as i32)?;
        a.invlpg(dword_ptr(window))?;
        a.mov(dword_ptr(window), 0x2222_2222)?;
        a.mov(eax, dword_ptr(entry))?;
        a.report()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    let ram = &g.machine.ram;
    r.expect("before", ram.u32(WINDOW_RAM), 0x1111_1111)?;
    r.expect("after", ram.u32(WINDOW_RAM + 0x5000), 0x2222_2222)?;
    r.expect("accessed and dirty", ram.u32(entry) & 0x60, 0x60)?;
    r.expect("seen by the guest", g.reports(), vec![ram.u32(entry)])?;
    Ok(r)
}

/// 64-bit code goes to 32-bit code and back by far returns.
fn compatibility_mode(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(rax, u64::MAX)?;
        a.push(i32::from(sel::CODE32))?;
        a.push(CODE_AP as i32)?;
        // retfq
        a.db(&[0x48, 0xcb])
    })?;
    let back = CODE + 0x100;
    g.code(32, CODE_AP, |a| {
        // The opcode of `dec eax` is a REX prefix in 64-bit mode.
        a.db(&[0x48])?;
        a.report()?;
        a.push(i32::from(sel::CODE64))?;
        a.push(back as i32)?;
        a.retf()
    })?;
    g.code(64, back, |a| {
        a.mov(rax, 0x1_0000_0005u64)?;
        a.shr(rax, 32)?;
        a.report()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("32-bit and 64-bit values", g.reports(), vec![0xffff_fffe, 1])?;
    Ok(r)
}

/// Real mode to long mode by the guest's own instructions, as firmware and boot loaders do it.
fn mode_ladder(bench: &Bench<'_>) -> Result<Record, Failure> {
    let (in32, in64) = (CODE + 0x100, CODE + 0x200);
    let mut g = Guest::new(bench, Mode::Real, |a| {
        a.cli()?;
        a.lgdt(fword_ptr(DATA))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // jmp far CODE32:in32
        a.db(&[0x66, 0xea])?;
        a.dd(&[in32 as u32])?;
        a.dw(&[sel::CODE32])
    })?;
    let ram = &g.machine.ram;
    ram.write(DATA, &(13u16 * 8 - 1).to_le_bytes());
    ram.write(DATA + 2, &(GDT as u32).to_le_bytes());
    g.code(32, in32, |a| {
        a.mov(eax, i32::from(sel::DATA))?;
        a.mov(ds, eax)?;
        a.mov(ss, eax)?;
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PML4 as i32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea])?;
        a.dd(&[in64 as u32])?;
        a.dw(&[sel::CODE64])
    })?;
    g.code(64, in64, |a| {
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.report()?;
        a.mov(r8, 0x1234_5678_0000_0000u64)?;
        a.shr(r8, 32)?;
        a.mov(eax, r8d)?;
        a.report()?;
        a.done()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("EFER and a 64-bit register", g.reports(), vec![0x500, 0x1234_5678])?;
    Ok(r)
}

/// Every leaf as the guest sees it is the model's.
fn cpuid(bench: &Bench<'_>) -> Result<Record, Failure> {
    use vireo_core::model::CpuidContext;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        // A list of (leaf, subleaf) at DATA + 0x10.., answers behind each; RSI walks it.
        let mut next = a.create_label();
        a.mov(esi, (DATA + 0x10) as u32)?;
        a.set_label(&mut next)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(ecx, dword_ptr(rsi + 4))?;
        a.cpuid()?;
        a.mov(dword_ptr(rsi + 8), eax)?;
        a.mov(dword_ptr(rsi + 12), ebx)?;
        a.mov(dword_ptr(rsi + 16), ecx)?;
        a.mov(dword_ptr(rsi + 20), edx)?;
        a.add(rsi, 24)?;
        a.dec(dword_ptr(DATA))?;
        a.jnz(next)?;
        a.done()
    })?;
    let m = &bench.model;
    let context = CpuidContext {
        apic_id: 0,
        vcpus: 1,
        osxsave: false,
        xcr0: 1,
        apic_enabled: true,
        tsc_hz: g.machine.partition.clock().tsc_hz,
    };
    let (basic, extended) = (m.cpuid(0, 0, &context)[0], m.cpuid(0x8000_0000, 0, &context)[0]);
    let mut list: Vec<(u32, u32)> = (0..=basic).chain(0x8000_0000..=extended).map(|l| (l, 0)).collect();
    list.extend([(4, 1), (4, 2), (4, 3), (4, 4), (0xb, 1), (0xb, 2), (0xd, 1), (0xd, 2)]);
    if m.has(vireo_isa::Feature::Hypervisor) {
        let last = m.cpuid(0x4000_0000, 0, &context)[0];
        list.extend((0x4000_0000..=last).map(|l| (l, 0)));
    }
    let ram = &g.machine.ram;
    ram.write(DATA, &(list.len() as u32).to_le_bytes());
    for (i, (leaf, sub)) in (0..).zip(&list) {
        ram.write(DATA + 0x10 + 24 * i, &leaf.to_le_bytes());
        ram.write(DATA + 0x14 + 24 * i, &sub.to_le_bytes());
    }
    g.run()?;
    let mut r = Record::default();
    for (i, (leaf, sub)) in (0..).zip(list) {
        let at = DATA + 0x18 + 24 * i;
        let mut seen = [0, 4, 8, 12].map(|o| g.machine.ram.u32(at + o));
        let mut expected = m.cpuid(leaf, sub, &context);
        // What the model says about speculation is narrowed to the host's truth by hardware engines.
        for (l, s, word) in
            [(7, 0, 3), (7, 2, 3), (0x8000_0008, 0, 1), (0x8000_0021, 0, 0), (0x8000_0021, 0, 2)]
        {
            if (leaf, sub) == (l, s) {
                (seen[word], expected[word]) = (0, 0);
            }
        }
        r.expect(&format!("CPUID {leaf:#x}.{sub}"), seen, expected)?;
    }
    // The rate of the TSC belongs to the host and the engine, not to the comparison.
    r.0.retain(|(what, _)| !["0x15.", "0x16.", "0x40000010."].iter().any(|l| what.contains(l)));
    Ok(r)
}
