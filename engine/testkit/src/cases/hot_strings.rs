//! Repeated string instructions in hot code: where they meet a page they may not use, after whole pages, how far they came is
//! exact, and they go on from there; a page's end is where they leave it.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("hot-rep-meets-absent-destination", |bench| meets(bench, Side::To, 0, 2)),
    case("hot-rep-meets-read-only-destination", |bench| meets(bench, Side::To, 5, 3)),
    case("hot-rep-meets-absent-source", |bench| meets(bench, Side::From, 0, 0)),
    case("hot-rep-to-the-end-of-a-page-and-over-it", ends),
];

const ROUNDS: i32 = 60;
/// Bytes that are moved or stored: three pages and a bit, not beginning at the start of one.
const BYTES: u64 = 0x3100;
const FROM: u64 = WINDOW + 0x10;
const TO: u64 = WINDOW + 0x801b;
/// Where the instruction under test is.
const F: u64 = CODE_AP + 0x400;
/// RCX, RSI and RDI when the trap came, and in the end.
const SEEN: u64 = DATA;

/// Which operand lacks a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    From,
    To,
}

/// An instruction that is repeated.
struct Repeated {
    name: &'static str,
    write: fn(&mut CodeAssembler) -> Result<(), IcedError>,
    size: u64,
    moves: bool,
}

const REPEATED: [Repeated; 6] = [
    Repeated { name: "movsb", write: |a| a.rep().movsb(), size: 1, moves: true },
    Repeated { name: "movsw", write: |a| a.rep().movsw(), size: 2, moves: true },
    Repeated { name: "movsd", write: |a| a.rep().movsd(), size: 4, moves: true },
    Repeated { name: "movsq", write: |a| a.rep().movsq(), size: 8, moves: true },
    Repeated { name: "stosb", write: |a| a.rep().stosb(), size: 1, moves: false },
    Repeated { name: "stosq", write: |a| a.rep().stosq(), size: 8, moves: false },
];

impl Repeated {
    fn count(&self) -> u64 {
        BYTES / self.size
    }

    /// Where the first element of an operand is.
    fn start(&self, operand: u64, backwards: bool) -> u64 {
        operand + if backwards { self.size * (self.count() - 1) } else { 0 }
    }

    /// How many elements are done before one meets a page, and the address that it faults at.
    fn fault(&self, operand: u64, backwards: bool, page: u64) -> (u64, u64) {
        let mut at = self.start(operand, backwards);
        let mut done = 0;
        loop {
            if at & !0xfff == page {
                return (done, at);
            }
            if (at + self.size - 1) & !0xfff == page {
                return (done, page);
            }
            at = if backwards { at - self.size } else { at + self.size };
            done += 1;
        }
    }
}

/// Runs it in full some rounds, and in the last one without a page of one side; then on from there.
fn guest(bench: &Bench<'_>, it: &Repeated, backwards: bool, entry: u64, page: u64) -> Result<Guest, Failure> {
    let slot = PT + 8 * ((page - WINDOW) >> 12);
    let direction = |a: &mut CodeAssembler| if backwards { a.std() } else { a.cld() };
    let keep = |a: &mut CodeAssembler, at: u64| {
        (0..).zip([rcx, rsi, rdi]).try_for_each(|(n, r)| a.mov(qword_ptr(at + 8 * n), r))
    };
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(ebx, ROUNDS)?;
        a.jmp(CODE_AP)
    })?;
    g.code(64, CODE_AP, |a| {
        let mut usual = a.create_label();
        a.mov(esi, it.start(FROM, backwards) as u32)?;
        a.mov(edi, it.start(TO, backwards) as u32)?;
        a.mov(ecx, it.count() as u32)?;
        a.mov(rax, 0x0807_0605_0403_0201_u64)?;
        a.cmp(ebx, 1)?;
        a.jne(usual)?;
        a.mov(qword_ptr(slot), entry as i32)?;
        a.invlpg(byte_ptr(page))?;
        a.set_label(&mut usual)?;
        direction(a)?;
        a.jmp(F)
    })?;
    g.code(64, F, |a| {
        (it.write)(a)?;
        a.cld()?;
        a.dec(ebx)?;
        a.jnz(CODE_AP)?;
        a.done()
    })?;
    g.code(64, AFTER, |a| {
        keep(a, SEEN)?;
        a.mov(qword_ptr(slot), ((page - WINDOW + WINDOW_RAM) | 7) as i32)?;
        a.invlpg(byte_ptr(page))?;
        direction(a)?;
        (it.write)(a)?;
        keep(a, SEEN + 0x40)?;
        a.done()
    })?;
    g.resume_at(AFTER);
    g.start.general.rflags = 2;
    for n in 0..BYTES {
        g.machine.ram.write(FROM - WINDOW + WINDOW_RAM + n, &[n as u8 ^ (n >> 8) as u8]);
    }
    Ok(g)
}

fn meets(bench: &Bench<'_>, side: Side, rights: u64, error: u64) -> Result<Record, Failure> {
    let mut r = Record::default();
    for it in REPEATED.iter().filter(|it| it.moves || side == Side::To) {
        for backwards in [false, true] {
            let operand = if side == Side::To { TO } else { FROM };
            // The third page on the way: two whole ones lie before it, or one.
            let page = (operand & !0xfff) + if backwards { 0x1000 } else { 0x2000 };
            let entry = if rights == 0 { 0 } else { (page - WINDOW + WINDOW_RAM) | rights };
            let mut g = guest(bench, it, backwards, entry, page)?;
            g.run().map_err(|e| Failure::Stuck(format!("{}: {e}", it.name)))?;
            let (done, address) = it.fault(operand, backwards, page);
            let trap = g.trap()?;
            r.expect(it.name, (trap.vector, trap.error, trap.ip, trap.cr2), (14, error, F, address))?;
            let moved = |at: u64, n: u64| if backwards { at.wrapping_sub(n) } else { at + n };
            let registers = |done: u64| {
                let by = done * it.size;
                let from = moved(it.start(FROM, backwards), if it.moves { by } else { 0 });
                [it.count() - done, from, moved(it.start(TO, backwards), by)]
            };
            let ram = &g.machine.ram;
            let seen = |at: u64| [0, 8, 16].map(|n| ram.u64(at + n));
            r.expect(it.name, seen(SEEN), registers(done))?;
            r.expect(it.name, seen(SEEN + 0x40), registers(it.count()))?;
            let right = |n: u64| match it.moves {
                true => n as u8 ^ (n >> 8) as u8,
                false => 1 + (n % it.size) as u8,
            };
            let all = it.count() * it.size;
            let wrong = (0..all).find(|&n| ram.read::<1>(TO - WINDOW + WINDOW_RAM + n) != [right(n)]);
            r.expect("first wrong byte", wrong, None)?;
        }
    }
    Ok(r)
}

/// A few elements up to the end of a page of the destination or the source, and one more: which is in a page elsewhere.
fn ends(bench: &Bench<'_>) -> Result<Record, Failure> {
    const END: u64 = WINDOW + 0x1000;
    const NEXT: u64 = WINDOW_RAM + 0x5000;
    const ELEMENTS: u64 = 4;
    let mut r = Record::default();
    for it in &REPEATED {
        let before = END - ELEMENTS * it.size;
        let elsewhere = WINDOW + 0x3800;
        for (from, to) in [(elsewhere, before), (before, elsewhere)] {
            let one = |a: &mut CodeAssembler, n: u64| {
                a.mov(esi, from as u32)?;
                a.mov(edi, to as u32)?;
                a.mov(ecx, n as u32)?;
                (it.write)(a)
            };
            let mut g = Guest::new(bench, Mode::Long, |a| {
                a.mov(ebx, ROUNDS)?;
                a.mov(rax, 0x0807_0605_0403_0201_u64)?;
                a.jmp(F)
            })?;
            g.code(64, F, |a| {
                let mut again = a.create_label();
                a.set_label(&mut again)?;
                one(a, ELEMENTS)?;
                one(a, ELEMENTS + 1)?;
                a.dec(ebx)?;
                a.jnz(again)?;
                a.done()
            })?;
            let ram = &g.machine.ram;
            ram.write(PT + 8, &(NEXT | 7).to_le_bytes());
            for n in 0..(ELEMENTS + 1) * it.size {
                if from == elsewhere || n < ELEMENTS * it.size {
                    ram.write(from - WINDOW + WINDOW_RAM + n, &[0x40 + n as u8]);
                }
                ram.write(NEXT + n, &[0x80 + n as u8]);
            }
            g.run()?;
            r.expect(it.name, g.vectors(), vec![])?;
            let ram = &g.machine.ram;
            let last = |at: u64| (0..it.size).map(|n| ram.read::<1>(at + n)[0]).collect::<Vec<_>>();
            let stored: Vec<u8> = (0..it.size).map(|n| 1 + n as u8).collect();
            let next_of_source: Vec<u8> = (0..it.size)
                .map(|n| if from == before { 0x80 + n as u8 } else { 0x40 + (ELEMENTS * it.size + n) as u8 })
                .collect();
            let expected = if it.moves { next_of_source } else { stored };
            let behind =
                if to == before { NEXT } else { elsewhere - WINDOW + WINDOW_RAM + ELEMENTS * it.size };
            r.expect(it.name, last(behind), expected)?;
            if to == before {
                r.expect("beyond", last(WINDOW_RAM + 0x1000), vec![0; it.size as usize])?;
            }
        }
    }
    Ok(r)
}
