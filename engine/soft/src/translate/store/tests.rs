//! Memory is used again, and not too early.

use iced_x86::code_asm::{eax, rax};
use vireo_core::model::Vendor;

use super::*;
use crate::cpu::Stop;
use crate::system::tests::guest::{CODE, Guest};

fn code() -> SharedCode {
    let code = SharedCode::new(2, 0, false).expect("memory for code");
    code.room().expect("there is room at first");
    code.add_bare(|_| vec![0xcc]).expect("room that was just given");
    code
}

#[test]
fn memory_is_not_used_again_while_a_vcpu_may_be_in_it() {
    let code = code();
    code.enter(0);
    code.enter(1);
    code.clear();
    assert!(code.room().is_none() && code.room_left().is_none(), "both have been in it");
    code.enter(0);
    assert!(code.room().is_none(), "one has been in it");
    code.leave(1);
    assert!(code.room().is_some(), "one left, the other came later");
}

#[test]
fn a_vcpu_that_came_later_does_not_hold_memory_back() {
    let code = code();
    code.enter(0);
    code.clear();
    code.enter(1);
    assert!(code.room().is_none());
    code.enter(0);
    assert!(code.room().is_some());
}

#[test]
fn code_that_changes_again_and_again_is_always_the_last_and_stays_within_its_memory() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.enter();
    let mut most = 0;
    for n in 0..20_000 {
        g.code(CODE, 64, |a| {
            a.mov(eax, n)?;
            a.add(rax, 1)?;
            a.ud2()
        });
        g.cpu.shared.code_changed(None, (CODE >> 12) as u32, u64::MAX);
        g.cpu.rip = CODE;
        g.cpu.renew_budget();
        assert_eq!(g.cpu.run_hot(), Some(Err(Stop::Fault)));
        assert_eq!(g.cpu.regs.get(0), n as u64 + 1);
        let (bytes, about) = g.cpu.shared.code.bytes();
        most = most.max(bytes + about);
    }
    assert_eq!(g.cpu.code.translator.built, 20_000, "nothing was kept that had changed");
    // What describes it fills two fifths of the 16 MiB of test guests; the code is short.
    assert!((6 << 20..10 << 20).contains(&most), "{most} bytes");
}

#[test]
fn there_is_room_for_bare_code_after_the_last_translation_of_a_segment() {
    let code = code();
    let add = |bytes: usize| code.add_bare(|_| vec![0xcc; bytes]);
    while code.room_left().is_some() {
        add(MOST_CODE).expect("there is room for the largest translation");
    }
    // What filled the segment began where there was room for any translation.
    add(4).expect("room after what filled the segment");
}

#[test]
fn code_that_is_overwritten_soon_after_its_translation_is_left_to_the_interpreter() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.enter();
    for n in 0..200 {
        g.code(CODE, 64, |a| {
            a.mov(eax, n)?;
            a.jmp(CODE)
        });
        g.cpu.shared.code_changed(None, (CODE >> 12) as u32, u64::MAX);
        g.cpu.drop_stale_code();
        // Hot by then, where code stays.
        for _ in 0..40 {
            g.cpu.rip = CODE;
            g.cpu.gate.budget = 1;
            g.cpu.run_block(false).expect("it runs");
        }
        assert_eq!(g.cpu.regs.get(0), n as u64);
    }
    let built = g.cpu.code.translator.built;
    assert!((1..100).contains(&built), "{built} translations");
}
