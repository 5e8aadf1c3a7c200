//! Code that is met at another address is moved there, and is right there.

use iced_x86::code_asm::{CodeAssembler, ptr, qword_ptr, rax, rbx, rcx, rdx, rsp};
use vireo_core::model::Vendor;
use vireo_core::state::{Segment, cr4};

use crate::cpu::{Stop, seg};
use crate::system::tests::guest::{CODE, Guest, PAGES, STACK, sel};

/// Where the two pages at CODE are mapped. The second has the first one's entries among page ids and in the TLB.
const PLACES: [u64; 3] = [16 << 30, (16 << 30) + (16 << 20), (100 << 30) + 0x5000];
/// Where the code begins in its page, behind data: not in one granule with them.
const START: u64 = 0x40;
const VALUE: u64 = 0x1234_5678;
const GLOBAL: u64 = 0x100;

/// In each place: its own address, what is in its page, a store there, where a call returns to, and its second page.
fn program(a: &mut CodeAssembler) -> Result<(), iced_x86::IcedError> {
    let (mut data, mut stored) = (a.create_label(), a.create_label());
    let (mut start, mut function) = (a.create_label(), a.create_label());
    a.set_label(&mut data)?;
    a.dq(&[VALUE])?;
    a.set_label(&mut stored)?;
    a.dq(&[0; START as usize / 8 - 1])?;
    a.set_label(&mut start)?;
    a.lea(rax, ptr(start))?;
    a.mov(rbx, qword_ptr(data))?;
    a.mov(qword_ptr(stored), rax)?;
    a.call(function)?;
    a.jmp(CODE + 0x1000)?;
    a.set_label(&mut function)?;
    a.mov(rcx, qword_ptr(rsp))?;
    a.ret()
}

/// 64-bit mode, the code in all places.
fn guest() -> Guest {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.ctl.cr4 |= cr4::PGE;
    // A page directory and a page table for each GiB with a place.
    for (gib, tables) in [(16, 0x8_0000), (100, 0x8_4000)] {
        g.write::<u64>(PAGES + 0x1000 + 8 * gib, tables | 7);
        for at in PLACES.into_iter().filter(|at| at >> 30 == gib) {
            let table = tables + 0x1000 * (1 + (at >> 24 & 1));
            g.write::<u64>(tables + 8 * (at >> 21 & 511), table | 7);
            for page in 0..2 {
                g.write::<u64>(table + 8 * ((at >> 12 & 511) + page), (CODE + 0x1000 * page) | 7 | GLOBAL);
            }
        }
    }
    g.code(CODE, 64, program);
    g.code(CODE + 0x1000, 64, |a| {
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.lea(rdx, ptr(here))?;
        a.ud2()
    });
    g.cpu.mmu.flush_all();
    g.cpu.enter();
    g
}

/// Another address space.
fn change_space(g: &mut Guest) {
    g.cpu.mmu.flush_non_global();
}

fn to_kernel(g: &mut Guest) {
    let flat = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    g.cpu.seg = [flat(sel::DATA, 0xc093); 6];
    g.cpu.seg[seg::CS as usize] = flat(sel::CODE64, 0xa09b);
    g.cpu.cpl = 0;
    g.cpu.mode_changed();
}

/// Runs the program in a place, as translated code, and sees what it has found.
fn run(g: &mut Guest, at: u64) {
    g.cpu.rip = at + START;
    g.cpu.regs.set(4, STACK);
    (0..4).for_each(|n| g.cpu.regs.set(n, 0));
    let mut ended = false;
    for _ in 0..20 {
        g.cpu.renew_budget();
        match g.cpu.run_hot().expect("it can be translated") {
            Ok(()) => {}
            Err(Stop::Fault) => {
                ended = true;
                break;
            }
            Err(other) => panic!("{other:?} at {:#x}", g.cpu.rip),
        }
    }
    assert!(ended && g.cpu.rip == at + 0x1007, "ended {ended} at {:#x}, in {at:#x}", g.cpu.rip);
    let back: u64 = g.read(STACK - 8);
    let found = [0, 3, 1, 2].map(|n| g.cpu.regs.get(n));
    assert_eq!(found, [at + START, VALUE, back, at + 0x1000], "in {at:#x}");
    assert_eq!(back & !0xfff, at);
    assert_eq!(g.read::<u64>(CODE + 8), at + START);
}

/// As often as it takes until all translations are there and lead to each other. Gives how many were made until now.
fn warm_up(g: &mut Guest, at: u64) -> u64 {
    (0..3).for_each(|_| run(g, at));
    g.cpu.code.translator.built
}

/// What a run takes: interpreted instructions, and what is left of the budget, which ways out of translated code count down.
fn effort(g: &mut Guest, at: u64) -> (u64, i32) {
    let before = g.cpu.instructions;
    run(g, at);
    (g.cpu.instructions - before, g.cpu.gate.budget)
}

#[test]
fn code_is_moved_to_each_place_and_back() {
    let mut g = guest();
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    let built = warm_up(&mut g, PLACES[0]);
    let usual = effort(&mut g, PLACES[0]);
    for n in [1, 2, 0, 2, 1, 0] {
        change_space(&mut g);
        assert_eq!(warm_up(&mut g, PLACES[n]), built, "nothing is translated again");
        assert_eq!(effort(&mut g, PLACES[n]), usual, "nor is it slower");
    }
}

#[test]
fn code_in_use_in_the_same_space_stays() {
    let mut g = guest();
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    let built = warm_up(&mut g, PLACES[0]);
    for n in [1, 0, 2, 0, 1, 2] {
        run(&mut g, PLACES[n]);
    }
    assert_eq!(g.cpu.code.translator.built, 3 * built);
}

#[test]
fn code_of_the_kernel_at_the_same_address_stays() {
    let mut g = guest();
    warm_up(&mut g, PLACES[0]);
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    let built = warm_up(&mut g, PLACES[0]);
    change_space(&mut g);
    run(&mut g, PLACES[1]);
    to_kernel(&mut g);
    run(&mut g, PLACES[0]);
    assert_eq!(g.cpu.code.translator.built, built);
}

#[test]
fn moved_code_finds_its_other_pages_anew() {
    let mut g = guest();
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    warm_up(&mut g, PLACES[0]);
    change_space(&mut g);
    // The second page is in use where it was, and has the entry of the one that the first page's code will go to.
    g.cpu.rip = PLACES[0] + 0x1000;
    assert_eq!(g.cpu.run_hot(), Some(Err(Stop::Fault)));
    run(&mut g, PLACES[1]);
}

#[test]
fn moved_code_that_is_overwritten_is_made_anew() {
    let mut g = guest();
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    let built = warm_up(&mut g, PLACES[0]);
    change_space(&mut g);
    run(&mut g, PLACES[2]);
    g.cpu.shared.code.invalidate((CODE >> 12) as u32, u64::MAX);
    assert!(warm_up(&mut g, PLACES[2]) > built);
}
