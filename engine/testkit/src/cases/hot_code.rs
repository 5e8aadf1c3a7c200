//! Hot code that is overwritten, or moves.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vireo_core::state::{cr0, cr4, msr};
use vireo_isa::Feature;

use super::{Case, case};
use crate::asm::Phrases;
use crate::guest::Guest;
use crate::machine::Bench;
use crate::record::{Failure, Record};
use crate::tables::*;

pub const CASES: &[Case] = &[
    case("hot-code-overwrites-what-comes-next", next),
    case("hot-code-overwritten-through-an-alias", alias),
    case("hot-code-overwritten-by-the-host", by_host),
    case("hot-code-of-two-address-spaces", address_spaces),
    case("hot-stores-into-and-out-of-code", over_granules),
    case("hot-code-is-moved-and-taken-away", moved),
    case("hot-code-in-very-many-pages", many_pages),
    case("hot-code-over-a-page-end-that-moves", |b| moving_end(b, false)),
    case("hot-code-over-a-page-end-that-moves-and-misses", |b| moving_end(b, true)),
    case("hot-code-in-both-rings", rings),
    case("hot-sse-is-turned-off", sse_off),
    case("hot-user-access-with-smap", smap),
];

/// Where functions are.
const F: u64 = CODE_AP;
const ROUNDS: u32 = 200;

type Write = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Eight bytes of RAX to RDI, in different ways.
fn stores() -> Vec<(&'static str, Write)> {
    vec![
        ("MOV", |a| a.mov(qword_ptr(rdi), rax)),
        ("PUSH", |a| {
            a.lea(rsp, qword_ptr(rdi + 8))?;
            a.push(rax)
        }),
        ("locked XADD", |a| {
            a.xor(r11, r11)?;
            a.mov(qword_ptr(rdi), r11)?;
            a.mov(r11, rax)?;
            a.lock().xadd(qword_ptr(rdi), r11)
        }),
        ("MOVQ", |a| {
            a.movq(xmm3, rax)?;
            a.movq(qword_ptr(rdi), xmm3)
        }),
        ("MOVS", |a| {
            a.mov(qword_ptr(DATA + 0x100), rax)?;
            a.mov(esi, (DATA + 0x100) as u32)?;
            a.movsq()
        }),
        ("REP STOS", |a| {
            a.mov(ecx, 1)?;
            a.rep().stosq()
        }),
        ("REP MOVS", |a| {
            a.mov(qword_ptr(DATA + 0x100), rax)?;
            a.mov(esi, (DATA + 0x100) as u32)?;
            a.mov(ecx, 8)?;
            a.rep().movsb()
        }),
        ("POP", |a| {
            a.mov(rsp, STACK)?;
            a.push(rax)?;
            a.pop(qword_ptr(rdi))
        }),
    ]
}

/// The last round stores to the operand of the instruction behind the store.
fn next(bench: &Bench<'_>) -> Result<Record, Failure> {
    const OLD: u64 = 0x1111_2222_3333_4444;
    const NEW: u64 = 0x5566_7788_99aa_bbcc;
    let mut r = Record::default();
    for (name, store) in stores() {
        let mut g = Guest::new(bench, Mode::Long, |a| {
            // So that the page is known to be one for data too.
            a.inc(dword_ptr(F + 0xc00))?;
            a.mov(ebx, ROUNDS)?;
            a.mov(rax, NEW)?;
            a.jmp(F)
        })?;
        g.code(64, F, |a| {
            let (mut patched, mut again) = (a.create_label(), a.create_label());
            a.set_label(&mut again)?;
            a.mov(edi, (DATA + 0x80) as u32)?;
            a.lea(rdx, qword_ptr(patched))?;
            a.add(rdx, 2)?;
            a.cmp(ebx, 1)?;
            a.cmove(rdi, rdx)?;
            store(a)?;
            a.set_label(&mut patched)?;
            a.mov(rcx, OLD)?;
            a.dec(ebx)?;
            a.jnz(again)?;
            a.mov(qword_ptr(DATA), rcx)?;
            a.done()
        })?;
        g.run()?;
        r.expect("traps", g.vectors(), vec![])?;
        r.expect(name, g.machine.ram.u64(DATA), NEW)?;
    }
    Ok(r)
}

/// A store beside code, in its page, which in the last round but one reaches into the code's granule: with its first bytes,
/// and with its last.
fn over_granules(bench: &Bench<'_>) -> Result<Record, Failure> {
    const OLD: u32 = 0x1111_2222;
    const NEW: u32 = 0x5566_7788;
    const RET: u64 = 0xc3;
    const MOV: u64 = 0xb8;
    let mut r = Record::default();
    // Granules have 64 bytes. Where the function is, where the store goes, and what it stores.
    let new = u64::from(NEW);
    for (at, to, value) in
        [(F + 0x43a, F + 0x43b, new | RET << 32), (F + 0x480, F + 0x47d, new << 32 | MOV << 24)]
    {
        let mut g = Guest::new(bench, Mode::Long, |a| {
            a.mov(ebx, ROUNDS)?;
            a.jmp(F)
        })?;
        g.code(64, at, |a| {
            a.mov(eax, OLD)?;
            a.ret()
        })?;
        g.code(64, F, |a| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            a.mov(edi, (F + 0xc00) as u32)?;
            a.mov(edx, to as u32)?;
            a.cmp(ebx, 2)?;
            a.cmove(rdi, rdx)?;
            a.mov(rsi, value)?;
            a.mov(qword_ptr(rdi), rsi)?;
            a.call(at)?;
            a.add(qword_ptr(DATA), rax)?;
            a.dec(ebx)?;
            a.jnz(again)?;
            a.done()
        })?;
        g.run()?;
        let sum = u64::from(OLD) * u64::from(ROUNDS - 2) + 2 * new;
        r.expect("traps", g.vectors(), vec![])?;
        r.expect("sum", g.machine.ram.u64(DATA), sum)?;
    }
    Ok(r)
}

/// A function is executed at one address and changed at another, every few rounds.
fn alias(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let (mut again, mut stay) = (a.create_label(), a.create_label());
        a.mov(ebx, 10 * ROUNDS)?;
        a.mov(r12d, WINDOW as u32)?;
        a.set_label(&mut again)?;
        a.call(r12)?;
        a.call(WINDOW)?;
        a.dec(ebx)?;
        a.test(ebx, 63)?;
        a.jnz(stay)?;
        a.inc(dword_ptr(WINDOW_RAM + 2))?;
        a.set_label(&mut stay)?;
        a.test(ebx, ebx)?;
        a.jnz(again)?;
        a.mov(qword_ptr(DATA), r14)?;
        a.done()
    })?;
    // The operand of MOV EAX is what the guest counts up.
    g.code(64, WINDOW_RAM, |a| {
        a.nop()?;
        a.mov(eax, 0)?;
        a.add(r14, rax)?;
        a.ret()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let sum: u64 = (0..10 * u64::from(ROUNDS))
        .rev()
        .fold((0, 0), |(sum, value), left| (sum + 2 * value, value + u64::from(left % 64 == 0)))
        .0;
    r.expect("sum", g.machine.ram.u64(DATA), sum)?;
    Ok(r)
}

/// The guest waits for the host to change a function's answer.
fn by_host(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let mut again = a.create_label();
        a.report_value(1)?;
        a.set_label(&mut again)?;
        a.call(F)?;
        a.cmp(eax, 2)?;
        a.jne(again)?;
        a.report()?;
        a.done()
    })?;
    g.code(64, F, |a| {
        a.mov(eax, 1)?;
        a.ret()
    })?;
    g.run_with(|h| {
        h.wait_for_reports(1)?;
        std::thread::sleep(std::time::Duration::from_millis(5));
        h.write(F + 1, &[2]);
        Ok(())
    })?;
    let mut r = Record::default();
    r.expect("reports", g.reports(), vec![1, 2])?;
    Ok(r)
}

/// A second root, in which the window's first page is the RAM of its second.
const ROOT: u64 = PML4 + 0x8000;

fn second_address_space(g: &Guest) {
    let ram = &g.machine.ram;
    let (pdpt, pd, pt) = (ROOT + 0x1000, ROOT + 0x2000, ROOT + 0x3000);
    ram.write(pd, &ram.read::<4096>(PML4 + 0x2000));
    let entries = [
        (ROOT, pdpt | 7),
        (pdpt, pd | 7),
        (pd + 8 * (WINDOW >> 21), pt | 7),
        (pt, (WINDOW_RAM + 0x1000) | 7),
    ];
    for (at, entry) in entries {
        ram.write(at, &entry.to_le_bytes());
    }
}

/// A function in the window switches address spaces: by itself, and by a call that returns to the other's code.
fn address_spaces(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let mut again = a.create_label();
        a.mov(ebx, ROUNDS)?;
        a.mov(r12, PML4)?;
        a.mov(r13, ROOT)?;
        a.set_label(&mut again)?;
        a.call(WINDOW)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.done()
    })?;
    second_address_space(&g);
    for (n, root) in [(0, r13), (1, r12)] {
        let at = WINDOW_RAM + 0x1000 * n;
        // Assembled where it is executed, or its calls would lead elsewhere.
        let code = crate::asm::assemble(64, WINDOW, |a| {
            a.add(dword_ptr(DATA + 0x20 * n), 1)?;
            a.mov(cr3, root)?;
            a.add(dword_ptr(DATA + 8 + 0x20 * n), 1)?;
            a.mov(rax, root)?;
            a.call(F)?;
            a.add(dword_ptr(DATA + 16 + 0x20 * n), 1)?;
            a.call(F)?;
            a.add(dword_ptr(DATA + 24 + 0x20 * n), 1)?;
            a.ret()
        })?;
        g.machine.ram.write(at, &code);
    }
    // The other of the two.
    g.code(64, F, |a| {
        a.mov(rax, cr3)?;
        a.xor(rax, r12)?;
        a.xor(rax, r13)?;
        a.mov(cr3, rax)?;
        a.ret()
    })?;
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    // First in one, then three switches: each round starts in the other.
    let seen: Vec<u32> = (0..8).map(|n| g.machine.ram.u32(DATA + 8 * n)).collect();
    let half = ROUNDS / 2;
    r.expect("counts", seen, vec![half; 8])?;
    Ok(r)
}

/// The page of a hot function is exchanged, made inexecutable, taken away, and given back.
fn moved(bench: &Bench<'_>) -> Result<Record, Failure> {
    let entries: [u64; 6] = [
        WINDOW_RAM | 7,
        (WINDOW_RAM + 0x1000) | 7,
        0,
        WINDOW_RAM | 7,
        1 << 63 | WINDOW_RAM | 7,
        WINDOW_RAM | 7,
    ];
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let (mut again, mut other) = (a.create_label(), a.create_label());
        a.mov(r13d, DATA as u32)?;
        a.mov(r12d, WINDOW as u32)?;
        a.set_label(&mut other)?;
        a.mov(rax, qword_ptr(r13 + 0x100))?;
        a.mov(qword_ptr(PT), rax)?;
        a.invlpg(byte_ptr(r12))?;
        a.mov(ebx, ROUNDS)?;
        a.set_label(&mut again)?;
        a.call(WINDOW)?;
        a.call(r12)?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.jmp(AFTER)
    })?;
    g.code(64, AFTER, |a| {
        let mut end = a.create_label();
        a.mov(rsp, STACK)?;
        a.add(r13, 8)?;
        a.cmp(r13, (DATA + 8 * entries.len() as u64) as i32)?;
        a.je(end)?;
        // Behind the two moves at the start.
        a.jmp(CODE + 12)?;
        a.set_label(&mut end)?;
        a.done()
    })?;
    g.resume_at(AFTER);
    for (n, entry) in (0..).zip(entries) {
        g.machine.ram.write(DATA + 0x100 + 8 * n, &entry.to_le_bytes());
    }
    for n in [0, 1] {
        g.code(64, WINDOW_RAM + 0x1000 * n, |a| {
            a.inc(dword_ptr(DATA + 8 * n))?;
            a.ret()
        })?;
    }
    g.run()?;
    let mut r = Record::default();
    let traps: Vec<_> = g.traps().iter().map(|t| (t.vector, t.error, t.ip, t.cr2)).collect();
    r.expect("traps", traps, vec![(14, 0x10, WINDOW, WINDOW), (14, 0x11, WINDOW, WINDOW)])?;
    let ram = &g.machine.ram;
    r.expect("calls", [ram.u32(DATA), ram.u32(DATA + 8)], [6 * ROUNDS, 2 * ROUNDS])?;
    Ok(r)
}

/// More pairs of virtual and physical pages with hot code than engines care to remember, and beside them code that stays:
/// over a page border, and with calls.
fn many_pages(bench: &Bench<'_>) -> Result<Record, Failure> {
    const PAGES: u32 = 130;
    const RUNS: u32 = 28;
    let crossing = F + 0xffd;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let (mut frame, mut entry, mut page, mut run) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.mov(r12d, WINDOW_RAM as u32 | 7)?;
        a.mov(r13d, PAGES)?;
        a.set_label(&mut frame)?;
        a.xor(ecx, ecx)?;
        a.set_label(&mut entry)?;
        a.mov(qword_ptr(rcx * 8 + PT), r12)?;
        a.inc(ecx)?;
        a.cmp(ecx, 512)?;
        a.jne(entry)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(edi, WINDOW as u32)?;
        a.set_label(&mut page)?;
        a.call(crossing)?;
        a.mov(ebx, RUNS)?;
        a.set_label(&mut run)?;
        a.call(rdi)?;
        a.dec(ebx)?;
        a.jnz(run)?;
        a.add(edi, 0x1000)?;
        a.cmp(edi, (WINDOW + 0x20_0000) as i32)?;
        a.jne(page)?;
        a.add(r12, 0x1000)?;
        a.dec(r13d)?;
        a.jnz(frame)?;
        a.done()
    })?;
    g.code(64, crossing, |a| {
        a.add(dword_ptr(DATA), 0x1234_5678)?;
        a.ret()
    })?;
    for n in 0..u64::from(PAGES) {
        g.machine.ram.write(WINDOW_RAM + 0x1000 * n, &[0xc3]);
    }
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    r.expect("calls", g.machine.ram.u32(DATA), (PAGES * 512).wrapping_mul(0x1234_5678))?;
    Ok(r)
}

/// The same function is hot in both rings, which SYSCALL and SYSRET change all the time.
fn rings(bench: &Bench<'_>) -> Result<Record, Failure> {
    let (user, entry) = (F + 0x200, F + 0x400);
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(r14d, ROUNDS)?;
        a.mov(ecx, user as u32)?;
        a.mov(r11d, 2)?;
        a.mov(r12d, F as u32)?;
        a.sysretq()
    })?;
    g.code(64, F, |a| {
        a.mov(eax, cs)?;
        a.and(eax, 3)?;
        a.inc(dword_ptr(rax * 8 + DATA))?;
        a.ret()
    })?;
    g.code(64, user, |a| {
        a.mov(esp, USER_STACK as u32)?;
        a.call(F)?;
        a.call(r12)?;
        a.syscall()?;
        a.jmp(user)
    })?;
    g.code(64, entry, |a| {
        let mut end = a.create_label();
        a.mov(r15, rcx)?;
        a.mov(r13, r11)?;
        a.mov(esp, STACK as u32)?;
        a.call(F)?;
        a.call(r12)?;
        a.dec(r14d)?;
        a.jz(end)?;
        a.mov(rcx, r15)?;
        a.mov(r11, r13)?;
        a.sysretq()?;
        a.set_label(&mut end)?;
        a.done()
    })?;
    let start = &mut g.start.msrs;
    start.set(msr::STAR, u64::from(sel::CODE64) << 32 | 0x20 << 48);
    start.set(msr::LSTAR, entry);
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    let ram = &g.machine.ram;
    r.expect("calls", [ram.u32(DATA), ram.u32(DATA + 24)], [2 * ROUNDS; 2])?;
    Ok(r)
}

/// A hot function with SSE instructions meets CR0.TS, then CR4.OSFXSR clear, and goes on after each.
fn sse_off(bench: &Bench<'_>) -> Result<Record, Failure> {
    let mut g = Guest::new(bench, Mode::Long, |a| {
        a.mov(rdi, cr0)?;
        a.mov(rsi, cr4)?;
        for (r, bits) in [(rdi, cr0::TS), (rsi, 0), (rsi, cr4::OSFXSR)] {
            let mut again = a.create_label();
            a.mov(ebx, ROUNDS)?;
            a.set_label(&mut again)?;
            a.call(F)?;
            a.dec(ebx)?;
            a.jnz(again)?;
            a.xor(r, bits as i32)?;
            a.mov(cr0, rdi)?;
            a.mov(cr4, rsi)?;
            a.call(F)?;
            a.xor(r, bits as i32)?;
            a.mov(cr0, rdi)?;
            a.mov(cr4, rsi)?;
        }
        a.done()
    })?;
    g.code(64, F, |a| {
        a.inc(dword_ptr(DATA))?;
        a.movq(rax, xmm1)?;
        a.inc(dword_ptr(DATA + 8))?;
        a.paddq(xmm1, xmm1)?;
        a.ret()
    })?;
    // A fault in the function returns from it.
    g.resume_with(|a| a.ret())?;
    g.run()?;
    let mut r = Record::default();
    r.expect("vectors", g.vectors(), vec![(7, 0), (6, 0)])?;
    let ram = &g.machine.ram;
    r.expect("calls", [ram.u32(DATA), ram.u32(DATA + 8)], [3 * ROUNDS + 3, 3 * ROUNDS + 1])?;
    Ok(r)
}

/// Hot code with STAC and CLAC, and the same access without.
fn smap(bench: &Bench<'_>) -> Result<Record, Failure> {
    if !bench.model.has(Feature::Smap) {
        return Err(Failure::Skipped("the CPU model has no SMAP".into()));
    }
    let mut g = Guest::new(bench, Mode::Long, |a| {
        let mut again = a.create_label();
        a.mov(ebx, ROUNDS)?;
        a.mov(edi, WINDOW as u32)?;
        a.set_label(&mut again)?;
        a.stac()?;
        a.inc(dword_ptr(rdi))?;
        a.push(rdi)?;
        a.call(F)?;
        a.pop(rdi)?;
        a.clac()?;
        // In the last round only this touches the user's page.
        a.cmp(ebx, 1)?;
        a.mov(eax, STACK as u32)?;
        a.cmove(rax, rdi)?;
        a.inc(dword_ptr(rax - 0x800))?;
        a.dec(ebx)?;
        a.jnz(again)?;
        a.done()
    })?;
    g.code(64, F, |a| {
        a.add(dword_ptr(rdi), 2)?;
        a.ret()
    })?;
    // All but the window is the kernel's.
    g.machine.ram.write(PML4 + 0x2000, &0x83u64.to_le_bytes());
    g.machine.ram.write(PML4 + 0x2000 + 8 * ((WINDOW >> 21) - 1), &(PT | 7).to_le_bytes());
    g.start.control.cr4 |= cr4::SMAP;
    g.resume_with(|a| a.done())?;
    g.run()?;
    let mut r = Record::default();
    let trap = g.trap()?;
    r.expect("trap", (trap.vector, trap.error, trap.cr2), (14, 3, WINDOW - 0x800))?;
    r.expect("calls", g.machine.ram.u32(WINDOW_RAM), 3 * ROUNDS)?;
    Ok(r)
}

/// A hot instruction reaches from one page into a second, in whose place another comes; meanwhile its bytes in the first
/// one change, which then comes back. With `misses`, the caller has its operand miss the TLB at each call.
fn moving_end(bench: &Bench<'_>, misses: bool) -> Result<Record, Failure> {
    let (start, data) = (WINDOW + 0xffd, WINDOW + 0x5000);
    // Uses the same entry of a TLB as `data`, in engines that have one of less than 2 MiB.
    const RIVAL: u64 = WINDOW + 0x20_5000;
    let mut g = Guest::new(bench, Mode::Long, |a| {
        for page in [1u64, 2, 1] {
            a.mov(rax, (WINDOW_RAM + 0x1000 * page) | 7)?;
            a.mov(qword_ptr(PT + 8), rax)?;
            a.mov(edi, (WINDOW + 0x1000) as u32)?;
            a.invlpg(byte_ptr(rdi))?;
            a.mov(ebx, ROUNDS)?;
            a.call(WINDOW)?;
            if page == 2 {
                a.mov(dword_ptr(WINDOW_RAM + 0x1000 + 4), 0x10000)?;
            }
        }
        a.done()
    })?;
    let caller = crate::asm::assemble(64, WINDOW, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(start)?;
        if misses {
            a.mov(eax, dword_ptr(RIVAL))?;
        }
        a.dec(ebx)?;
        a.jnz(again)?;
        a.ret()
    })?;
    g.machine.ram.write(WINDOW_RAM, &caller);
    g.machine.ram.write(PML4 + 0x2000 + 8 * (RIVAL >> 21), &(PT | 7).to_le_bytes());
    for (page, immediate) in [(1u64, 1u32), (2, 0x100)] {
        let code = crate::asm::assemble(64, start, |a| {
            // Four bytes long, so that it may become any.
            a.db(&[0x81, 0x04, 0x25])?;
            a.dd(&[data as u32, immediate])?;
            a.ret()
        })?;
        g.machine.ram.write(WINDOW_RAM + 0xffd, &code[..3]);
        g.machine.ram.write(WINDOW_RAM + 0x1000 * page, &code[3..]);
    }
    g.run()?;
    let mut r = Record::default();
    r.expect("traps", g.vectors(), vec![])?;
    r.expect("sum", g.machine.ram.u32(WINDOW_RAM + 0x5000), ROUNDS * 0x1_0101)?;
    Ok(r)
}
