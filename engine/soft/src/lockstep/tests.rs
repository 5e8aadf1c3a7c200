//! Lock step finds no difference where there is none, and each kind there can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use vireo_core::Partition;
use vireo_core::model::Vendor;
use vireo_core::state::{Activity, cr4};

use super::{Counts, Lockstep, Outcome};
use crate::cpu::Stop;
use crate::partition::SoftPartition;
use crate::system::tests::guest::{CODE, End, Guest};

const DATA: u64 = 0x5_0000;

fn guest(chains: bool, code: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Guest {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.ctl.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
    g.cpu.mode_changed();
    g.code(CODE, 64, code);
    let shared = Arc::clone(&g.cpu.shared);
    g.cpu.lockstep = Some(Box::new(Lockstep::new(&shared, chains, 1)));
    g.cpu.enter();
    g
}

fn partition(g: &Guest) -> SoftPartition {
    SoftPartition(Arc::clone(&g.cpu.shared))
}

/// Runs to HLT; a difference ends the test's process.
fn run(g: &mut Guest) -> Counts {
    for _ in 0..100_000 {
        match g.cpu.run_in_lockstep() {
            Ok(()) | Err(Stop::Yield) => {}
            Err(stop) => panic!("{stop:?} at {:#x}", g.cpu.rip),
        }
        if g.cpu.activity == Activity::Halted {
            return g.cpu.lockstep.as_ref().expect("it is on").counts;
        }
    }
    panic!("it does not halt");
}

#[test]
fn a_kick_meanwhile_is_no_difference() {
    for chains in [false, true] {
        let mut g = guest(chains, program);
        g.cpu.shared.vcpus[0].requests.store(1, Relaxed);
        let counts = run(&mut g);
        assert!(counts.compared > 100, "{counts}");
        assert_eq!(counts.unstable, 0);
    }
}

/// A loop with calls, indirect jumps, stores, the stack, SSE and x87.
fn program(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut head, mut function, mut on) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rdi, DATA)?;
    a.mov(ecx, 400)?;
    a.fninit()?;
    a.set_label(&mut head)?;
    a.lea(rax, ptr(function))?;
    a.call(rax)?;
    a.call(function)?;
    a.lea(r11, ptr(on))?;
    a.jmp(r11)?;
    a.int3()?;
    a.set_label(&mut on)?;
    a.add(qword_ptr(rdi), rax)?;
    a.adc(r15, qword_ptr(rdi))?;
    a.cvtsi2sd(xmm1, ecx)?;
    a.addsd(xmm0, xmm1)?;
    a.movsd_2(qword_ptr(rdi + 8), xmm0)?;
    a.fld1()?;
    a.fstp(qword_ptr(rdi + 16))?;
    a.add(rdi, 40)?;
    a.dec(ecx)?;
    a.jne(head)?;
    a.hlt()?;
    a.set_label(&mut function)?;
    a.push(rcx)?;
    a.imul_3(rax, rcx, 77)?;
    a.pop(rcx)?;
    a.ret()
}

#[test]
fn a_program_shows_no_difference() {
    let mut g = guest(false, program);
    let counts = run(&mut g);
    assert!(counts.compared > 1500, "{counts}");
    assert!(counts.first < 20 && counts.device == 0 && counts.unstable == 0, "{counts}");
    let mut alone = guest(false, program);
    alone.cpu.lockstep = None;
    assert_eq!(alone.run(), End::Halted);
    assert_eq!(g.cpu.regs.architectural(), alone.cpu.regs.architectural());
    let memory = |g: &Guest| (0..2500).map(|i| g.read::<u64>(DATA + 8 * i)).collect::<Vec<_>>();
    assert_eq!(memory(&g), memory(&alone));
}

#[test]
fn chains_show_no_difference() {
    let mut g = guest(true, program);
    let counts = run(&mut g);
    assert!(counts.compared > 20 && counts.followed > 10 * counts.compared, "{counts}");
    assert_eq!(counts.unstable, 0, "{counts}");
}

#[test]
fn a_spoilt_block_in_a_chain_is_found() {
    let mut g = guest(true, program);
    // imul rax, rcx, 77: 78. The first chains know too few translations to come to it.
    g.cpu.code.translator.spoil = Some(|c| {
        if let Some(at) = c.windows(4).position(|w| w == [0x48, 0x6b, 0xc1, 77]) {
            c[at + 3] = 78;
        }
    });
    for _ in 0..100 {
        let single = g.cpu.single(usize::MAX).expect("a translation");
        match g.cpu.compare_chain(&single, 39) {
            Outcome::Done(Ok(())) | Outcome::Stands(Ok(())) => {}
            Outcome::Differs(d) => {
                let lines = d.registers.join("; ");
                assert!(lines.starts_with("rax ") || !d.memory.is_empty(), "{lines}");
                return;
            }
            Outcome::Done(end) | Outcome::Stands(end) | Outcome::Beside(end) => panic!("{end:?}"),
        }
    }
    panic!("it is not found");
}

#[test]
fn devices_are_not_accessed_twice() {
    let mut g = guest(false, |a| {
        a.mov(al, 7)?;
        a.mov(dx, 0x80)?;
        a.out(dx, al)?;
        a.hlt()
    });
    let counts = run(&mut g);
    assert_eq!(*g.bus.writes.lock().expect("not poisoned"), [(0x80, vec![7])]);
    assert_eq!(counts.once, 2, "{counts}");
}

/// Runs to HLT, while a device counts up the first word of the data, and tells of it.
fn run_beside_a_device(g: &mut Guest, pause: Duration) -> Counts {
    let word = g.cpu.mmu.ram.page(DATA).expect("RAM").host as usize;
    let (partition, done) = (partition(g), AtomicBool::new(false));
    std::thread::scope(|s| {
        s.spawn(|| {
            // SAFETY: a u64 of the guest's RAM, which outlives the scope; the guest only reads it.
            let word = unsafe { AtomicU64::from_ptr(word as *mut u64) };
            while !done.load(Relaxed) {
                word.fetch_add(1, Relaxed);
                partition.host_wrote(DATA, 8);
                std::thread::sleep(pause);
            }
        });
        let counts = run(g);
        done.store(true, Relaxed);
        counts
    })
}

#[test]
fn a_device_that_writes_meanwhile_is_no_difference() {
    for chains in [false, true] {
        let mut g = guest(chains, |a| {
            let mut head = a.create_label();
            a.mov(rdi, DATA)?;
            a.mov(ecx, 3000)?;
            a.set_label(&mut head)?;
            a.mov(rax, qword_ptr(rdi))?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.hlt()
        });
        let counts = run_beside_a_device(&mut g, Duration::from_micros(100));
        assert_eq!(counts.unstable, 0, "{counts}");
    }
}

#[test]
fn where_a_device_wrote_to_what_the_guest_writes_it_goes_on_from_there() {
    for chains in [false, true] {
        let mut g = guest(chains, |a| {
            let mut head = a.create_label();
            a.mov(rdi, DATA)?;
            a.mov(ecx, 30_000)?;
            a.set_label(&mut head)?;
            a.mov(rax, qword_ptr(rdi))?;
            a.mov(qword_ptr(rdi + 8), rax)?;
            a.inc(rbx)?;
            a.dec(ecx)?;
            a.jne(head)?;
            a.hlt()
        });
        let counts = run_beside_a_device(&mut g, Duration::from_micros(10));
        assert_eq!(counts.unstable, 0, "{counts}");
        assert_eq!(g.cpu.regs.architectural()[3], 30_000, "rounds of the loop, {counts}");
    }
}

/// Replaces bytes of translated code, which is 3 bytes long and occurs once.
fn replace(code: &mut [u8], from: [u8; 3], to: [u8; 3]) {
    if let Some(at) = code.windows(3).position(|w| w == from) {
        code[at..at + 3].copy_from_slice(&to);
    }
}

/// What lock step says of a block whose translation is spoilt: what differs, and how many of its instructions show it.
fn found(spoil: fn(&mut [u8])) -> (String, usize) {
    let mut g = guest(false, |a| {
        a.inc(r9)?;
        a.add(rax, rbx)?;
        a.mov(qword_ptr(rdi), rax)?;
        a.addps(xmm0, xmm1)?;
        a.cmp(rax, rcx)?;
        a.hlt()
    });
    g.cpu.code.translator.spoil = Some(spoil);
    // The first time it is not known what was in the page.
    for _ in 0..2 {
        g.cpu.rip = CODE;
        g.cpu.regs.set(0, 0x1_0000_0001);
        g.cpu.regs.set(1, 0x12_2233_4456);
        g.cpu.regs.set(3, 0x11_2233_4455);
        g.cpu.regs.set(7, DATA);
        g.write(DATA, u64::MAX);
        partition(&g).host_wrote(DATA, 8);
        g.cpu.fpu.set_xmm(0, 0x3f80_0000);
        g.cpu.fpu.set_xmm(1, 0x4040_0000);
        let single = g.cpu.single(usize::MAX).expect("a translation");
        if let Outcome::Differs(d) = g.cpu.compare(&single, 0) {
            assert_eq!(g.cpu.rip, CODE, "the state is that before");
            let shown = g.cpu.shrink(&single).map_or(single.len(), |(n, _)| n);
            let memory = d.memory.iter().map(|m| format!("{:#x}", m.gpa));
            return (d.registers.iter().cloned().chain(memory).collect::<Vec<_>>().join("; "), shown);
        }
    }
    (String::new(), 0)
}

#[test]
fn each_kind_of_difference_is_found() {
    assert_eq!(found(|_| ()).0, "", "without spoiling");
    // add rax, rbx: sub.
    let (what, n) = found(|c| replace(c, [0x48, 0x01, 0xd8], [0x48, 0x29, 0xd8]));
    assert!(what.starts_with("rax ") && n == 2, "{what} at {n}");
    // mov [r14], rax: mov [r14], eax.
    let (what, n) = found(|c| replace(c, [0x49, 0x89, 0x06], [0x41, 0x89, 0x06]));
    assert!(what.starts_with("0x50004") && n == 3, "{what} at {n}");
    // addps xmm0, xmm1: mulps, whose exceptions differ too.
    let (what, n) = found(|c| replace(c, [0x0f, 0x58, 0xc1], [0x0f, 0x59, 0xc1]));
    assert!(what.starts_with("xmm0 ") && n == 4, "{what} at {n}");
    // cmp rax, rcx: test.
    let (what, n) = found(|c| replace(c, [0x48, 0x39, 0xc8], [0x48, 0x85, 0xc8]));
    assert!(what.starts_with("rflags ") && n == 5, "{what} at {n}");
}

#[test]
fn a_write_that_nobody_was_told_of_is_found() {
    let mut g = guest(false, program);
    run(&mut g);
    let verify = |g: &mut Guest| {
        let mmu = &g.cpu.mmu;
        let l = g.cpu.lockstep.as_mut().expect("it is on");
        l.pages.begin(mmu, Vec::new());
        let page = l.pages.verify(mmu);
        l.pages.accept(mmu);
        page
    };
    assert_eq!(verify(&mut g), None);
    g.write::<u8>(DATA + 3, 0xee);
    assert_eq!(verify(&mut g), Some((DATA >> 12) as u32));
}
