//! RAM: the dirty log, read-only ranges, mapping changes.

use std::sync::Arc;

use iced_x86::code_asm::*;
use vireo_core::{HostRam, RamRange, dirty};

use super::{Case, case};
use crate::asm::Phrases;
use crate::bus::Event;
use crate::guest::Guest;
use crate::machine::{Bench, Host};
use crate::ram::Ram;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("dirty-log", dirty_log),
    case("dirty-log-many-pages", dirty_many),
    case("dirty-log-while-rewriting", dirty_rewriting),
    case("dirty-log-overfull", dirty_overfull),
    case("dirty-log-off", dirty_off),
    case("dirty-log-of-moved-ram", dirty_moved),
    case("read-only-ram", read_only),
    case("unmapped-ram", unmapped),
    case("bad-ranges", bad_ranges),
];

/// Pages at or above 1 MiB in harvested bits: those that the guests write on purpose.
fn window_pages(bits: &[u64]) -> Vec<u64> {
    dirty::pages(bits).filter(|&p| p >= WINDOW_RAM).collect()
}

/// The pages of [`window_pages`] written since the last harvest.
fn harvest(h: &Host<'_>) -> Result<Vec<u64>, Failure> {
    Ok(window_pages(&h.partition.dirty_harvest()?))
}

/// For each number the host writes to DATA: writes that many pages from 1 MiB on, reports it.
fn on_demand(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    demand(a, WINDOW_RAM, false)
}

/// As [`on_demand`], from another address on; `rewriting`: writes to DATA all the time while it waits.
fn demand(a: &mut CodeAssembler, from: u64, rewriting: bool) -> Result<(), iced_x86::IcedError> {
    let (mut wait, mut page) = (a.create_label(), a.create_label());
    a.set_label(&mut wait)?;
    a.pause()?;
    if !rewriting {
        a.cmp(dword_ptr(DATA), 0)?;
        a.je(wait)?;
    }
    a.xor(eax, eax)?;
    a.xchg(dword_ptr(DATA), eax)?;
    a.test(eax, eax)?;
    a.jz(wait)?;
    a.mov(ecx, eax)?;
    a.mov(edi, from as u32)?;
    a.set_label(&mut page)?;
    a.inc(dword_ptr(rdi + 8))?;
    a.add(edi, 0x1000)?;
    a.dec(ecx)?;
    a.jnz(page)?;
    a.report()?;
    a.jmp(wait)
}

fn ask(h: &Host<'_>, pages: u32) -> Result<(), Failure> {
    let before = h.bus.reports().len();
    h.write(DATA, &pages.to_le_bytes());
    h.wait_for_reports(before + 1)
}

fn dirty_log(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, on_demand)?;
    let mut r = Record::default();
    g.run_part(|h| {
        ask(h, 5)?;
        h.partition.dirty_start()?;
        ask(h, 3)?;
        r.expect("written since the start", harvest(h)?, vec![0x10_0000, 0x10_1000, 0x10_2000])?;
        r.expect("nothing since", harvest(h)?, vec![])?;
        ask(h, 1)?;
        h.write(0x14_0ffe, &[1; 4]);
        let second = h.partition.dirty_harvest()?;
        let expected = vec![0x10_0000, 0x14_0000, 0x14_1000];
        r.expect("again, and by the host", window_pages(&second), expected.clone())?;
        h.partition.dirty_put_back(&second);
        r.expect("put back", harvest(h)?, expected)?;
        h.partition.dirty_stop()?;
        ask(h, 2)?;
        h.partition.dirty_start()?;
        r.expect("clean after a new start", harvest(h)?, vec![])?;
        ask(h, 2)?;
        r.expect("and recording", harvest(h)?, vec![0x10_0000, 0x10_1000])?;
        Ok(h.partition.dirty_stop()?)
    })?;
    Ok(r)
}

/// The same pages in rounds with few harvests: none is lost.
fn dirty_many(bench: &Bench<'_>) -> Result<Record, Failure> {
    in_rounds(bench, false)
}

/// The same, while another page is written without pause.
fn dirty_rewriting(bench: &Bench<'_>) -> Result<Record, Failure> {
    in_rounds(bench, true)
}

fn in_rounds(bench: &Bench<'_>, rewriting: bool) -> Result<Record, Failure> {
    const PAGES: u32 = 256;
    const ROUNDS: usize = 24;
    let mut g = Guest::new(bench, Mode::Long, |a| demand(a, WINDOW_RAM, rewriting))?;
    let mut r = Record::default();
    g.run_part(|h| {
        h.partition.dirty_start()?;
        for round in 0..ROUNDS {
            ask(h, PAGES)?;
            if round % 8 == 7 {
                let seen = harvest(h)?.len();
                r.expect("pages", seen, PAGES as usize)?;
            }
        }
        Ok(h.partition.dirty_stop()?)
    })?;
    let count = g.machine.ram.u32(WINDOW_RAM + 8);
    r.expect("rounds", count as usize, ROUNDS)?;
    Ok(r)
}

/// More different pages between two harvests than a ring of 4096 entries holds: the engine has to empty it meanwhile.
fn dirty_overfull(bench: &Bench<'_>) -> Result<Record, Failure> {
    const FROM: u64 = 16 << 20;
    const PAGES: u32 = 10_000;
    let mut g = Guest::new(bench, Mode::Long, |a| demand(a, FROM, false))?;
    let (_ram, range) = extra(FROM, u64::from(PAGES) * dirty::PAGE, true)?;
    g.machine.partition.map_ram(range)?;
    let mut r = Record::default();
    g.run_part(|h| {
        h.partition.dirty_start()?;
        for _ in 0..2 {
            ask(h, PAGES)?;
            let seen = harvest(h)?;
            r.expect("pages", seen.len(), PAGES as usize)?;
            r.expect(
                "first and last",
                (seen.first().copied(), seen.last().copied()),
                (Some(FROM), Some(FROM + u64::from(PAGES - 1) * dirty::PAGE)),
            )?;
        }
        Ok(h.partition.dirty_stop()?)
    })?;
    Ok(r)
}

fn dirty_off(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, on_demand)?;
    let mut r = Record::default();
    g.run_part(|h| {
        ask(h, 4)?;
        r.expect("never started", harvest(h)?, vec![])
    })?;
    Ok(r)
}

/// A range that moves while the log is on, as a frame buffer does: what was written before is not forgotten, and where it is then
/// is watched as well.
fn dirty_moved(bench: &Bench<'_>) -> Result<Record, Failure> {
    const HERE: u64 = 16 << 20;
    const THERE: u64 = 24 << 20;
    const LEN: u64 = 1 << 20;
    let mut g = Guest::new(bench, Mode::Long, |a| demand(a, HERE, false))?;
    let (ram, range) = extra(HERE, LEN, true)?;
    let pages = |n: u64| (0..n).map(|page| HERE + page * dirty::PAGE).collect::<Vec<_>>();
    g.machine.partition.map_ram(range.clone())?;
    g.run_part(|h| {
        h.partition.dirty_start()?;
        ask(h, 5)
    })?;
    g.machine.partition.unmap_ram(HERE, LEN)?;
    g.machine.partition.map_ram(RamRange { gpa: THERE, ..range.clone() })?;
    g.machine.partition.unmap_ram(THERE, LEN)?;
    g.machine.partition.map_ram(range)?;
    let mut r = Record::default();
    g.run_part(|h| {
        r.expect("written before it moved", harvest(h)?, pages(5))?;
        ask(h, 3)?;
        r.expect("written after", harvest(h)?, pages(3))?;
        Ok(h.partition.dirty_stop()?)
    })?;
    r.expect("both times", ram.u32(8), 2)?;
    Ok(r)
}

fn extra(gpa: u64, len: u64, writable: bool) -> Result<(Arc<Ram>, RamRange), Failure> {
    let ram = Arc::new(Ram::new(len as usize)?);
    let host = Arc::clone(&ram) as Arc<dyn HostRam>;
    Ok((ram, RamRange { gpa, len, host, offset: 0, writable }))
}

/// Reads come from RAM, writes go to the board and change nothing.
fn read_only(bench: &Bench<'_>) -> Result<Record, Failure> {
    let at = 0x30_0000;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, at as u32)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.report()?;
        a.mov(dword_ptr(rbx), 0x1234_5678)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.report()?;
        a.done()
    })?;
    let (rom, range) = extra(at, 0x2000, false)?;
    rom.write(0, &0x00dd_ba11_u32.to_le_bytes());
    g.machine.partition.map_ram(range)?;
    g.run()?;
    let mut r = Record::default();
    r.expect("reads", g.reports(), vec![0x00dd_ba11, 0x00dd_ba11])?;
    r.expect("writes", g.events(), vec![Event::MmioWrite(at, vec![0x78, 0x56, 0x34, 0x12])])?;
    Ok(r)
}

/// A range that was unmapped is the board's.
fn unmapped(bench: &Bench<'_>) -> Result<Record, Failure> {
    let at = 0x30_0000;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, at as u32)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.report()?;
        a.done()
    })?;
    let (ram, range) = extra(at, 0x1000, true)?;
    ram.write(0, &7u32.to_le_bytes());
    g.machine.partition.map_ram(range)?;
    g.run()?;
    let mut r = Record::default();
    r.expect("mapped", g.reports(), vec![7])?;
    g.machine.partition.unmap_ram(at, 0x1000)?;
    g.run()?;
    r.expect("not mapped", g.reports(), vec![7, 0x5d5c_5b5a])?;
    Ok(r)
}

fn bad_ranges(bench: &Bench<'_>) -> Result<Record, Failure> {
    let g = Guest::new(bench, Mode::Long, |a| a.done())?;
    let partition = &g.machine.partition;
    let mut r = Record::default();
    for (what, gpa, len) in [
        ("overlap", RAM - 0x1000, 0x2000),
        ("unaligned", 0x30_0800, 0x1000),
        ("beyond the address width", 1 << 52, 0x1000),
    ] {
        let (_, range) = extra(gpa, len, true)?;
        let outcome = partition.map_ram(range);
        r.check(what, matches!(outcome, Err(vireo_core::EngineError::BadRange { .. })), &outcome)?;
    }
    let outcome = partition.unmap_ram(0, 0x1000);
    r.check("part of a range", matches!(outcome, Err(vireo_core::EngineError::BadRange { .. })), &outcome)?;
    Ok(r)
}
