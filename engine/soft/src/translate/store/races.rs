//! What other vCPUs, and their threads, do while one is in a translation. It waits there for a byte of memory.

use std::sync::Arc;
use std::time::Duration;

use iced_x86::code_asm::{byte_ptr, dword_ptr, eax};
use vireo_core::model::Vendor;

use super::*;
use crate::cpu::{Stop, seg};
use crate::partition::Shared;
use crate::system::tests::guest::{CODE, Guest};

/// The byte that the vCPU waits for.
const FLAG: u64 = 0x5_0000;

/// Has a vCPU wait in a translation, `meanwhile` happen on another thread, and the vCPU then change its own next instruction.
/// Gives what that instruction loads: 2 if it is the new one, 1 if it is the old one.
fn changes_itself(meanwhile: impl FnOnce(&Arc<Shared>) + Send + 'static) -> u64 {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.enter();
    g.code(CODE, 64, |a| {
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.cmp(byte_ptr(FLAG), 0)?;
        a.je(wait)?;
        // The operand of the next instruction.
        a.mov(dword_ptr(CODE + 22), 2)?;
        a.mov(eax, 1)?;
        a.ud2()
    });
    g.cpu.rip = CODE;
    let entry = g.cpu.hot_entry(true).expect("it can be translated");
    g.cpu.shared.code.enter(0);
    g.cpu.gate.budget = i32::MAX;
    // So that the store hits the TLB, and generated code looks after it.
    g.cpu.host_write(seg::DS, CODE, 4).expect("it may be written");
    let flag = g.cpu.mmu.ram.page(FLAG).expect("RAM").host.addr() + (FLAG & 0xfff) as usize;
    let shared = Arc::clone(&g.cpu.shared);
    let other = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        meanwhile(&shared);
        // SAFETY: a byte of the guest's memory, which lives until this thread has been joined.
        unsafe { (flag as *mut u8).write_volatile(1) };
    });
    let mut end = g.cpu.run_translated(entry);
    while end.is_ok() {
        g.cpu.shared.code.enter(0);
        g.cpu.gate.budget = i32::MAX;
        end = g.cpu.run_block(false);
    }
    other.join().expect("the other thread");
    assert_eq!(end, Err(Stop::Fault));
    g.cpu.regs.get(0)
}

#[test]
fn a_vcpu_sees_its_own_change_of_code() {
    assert_eq!(changes_itself(|_| ()), 2);
}

#[test]
fn a_vcpu_sees_its_own_change_of_code_whose_translation_went_with_its_segment() {
    assert_eq!(changes_itself(|s| s.code.clear()), 2);
}

/// Another vCPU overwrites bytes of the granule that the waiting one changes next.
fn overwrite_beside(s: &Arc<Shared>) {
    let page = (CODE >> 12) as u32;
    s.watch.after_write(page, 60, 1, |granules| s.code_changed(Some(1), page, granules));
}

#[test]
fn a_vcpu_sees_its_own_change_of_code_after_anothers_in_the_same_granule() {
    assert_eq!(changes_itself(overwrite_beside), 2);
}

/// As a page walk does within a helper, which then goes on.
#[test]
fn a_vcpu_sees_its_own_change_of_code_after_anothers_that_it_has_heard_of() {
    let heard = |s: &Arc<Shared>| {
        overwrite_beside(s);
        s.vcpus[0].requests.store(0, Relaxed);
    };
    assert_eq!(changes_itself(heard), 2);
}

/// Translates what is at an address.
fn translate(g: &mut Guest, rip: u64) -> Key {
    g.cpu.rip = rip;
    g.cpu.hot_entry(true).expect("it can be translated");
    g.cpu.translation_key().expect("it can be fetched").0
}

/// The exit of a translation that goes to an address. It lives as long as its segment is not used again, dropped or not.
fn exit_to<'a>(shared: &'a Arc<Shared>, from: &Key, target: u64) -> &'a Exit {
    let shard = shared.code.shard(from.page());
    let t = shard.get(from).expect("it was just translated");
    let exit: *const Exit = t.exits.iter().find(|e| e.target() == target).expect("it jumps there");
    // SAFETY: see above; the tests that use it translate too little for that.
    unsafe { &*exit }
}

/// An exit of a dropped translation is not linked, unchecked, to one of the placement that came in its place: who goes that
/// way is no user of it, so it could be moved meanwhile.
#[test]
fn exits_lead_unchecked_only_within_a_placement() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.enter();
    let far = CODE + 0x80;
    g.code(CODE, 64, |a| {
        a.mov(eax, 1)?;
        a.jmp(far)
    });
    g.code(far, 64, |a| a.ud2());
    let near = translate(&mut g, CODE);
    let key = translate(&mut g, far);
    let shared = Arc::clone(&g.cpu.shared);
    let exit = exit_to(&shared, &near, far);
    let leads = || shared.code.memory.slot(exit.number);
    shared.code.shard(key.page()).link(exit, &key);
    assert_ne!(leads(), exit.unlinked, "in the same placement");
    shared.code.invalidate(key.page(), u64::MAX);
    assert_eq!(leads(), exit.unlinked);
    translate(&mut g, far);
    shared.code.shard(key.page()).link(exit, &key);
    assert_eq!(leads(), exit.unlinked, "the placement is another, at the same place");
}

#[test]
fn exits_of_an_emptied_segment_lead_nowhere() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.enter();
    g.code(CODE, 64, |a| a.jmp(CODE + 0x1000));
    g.code(CODE + 0x1000, 64, |a| a.ud2());
    let shared = Arc::clone(&g.cpu.shared);
    let [from, to] = [CODE, CODE + 0x1000].map(|rip| {
        let key = translate(&mut g, rip);
        // The other one goes into the next segment.
        while shared.code.room_left().is_some() {
            shared.code.add_bare(|_| vec![0xcc; MOST_CODE]).expect("there is room");
        }
        key
    });
    let exit = exit_to(&shared, &from, CODE + 0x1000);
    shared.code.shard(to.page()).link(exit, &to);
    assert_ne!(shared.code.memory.slot(exit.number), exit.unlinked);
    let segment = shared.code.memory.segment_at(exit.origin().start);
    assert_ne!(
        segment,
        shared.code.memory.segment_at(shared.code.shard(to.page()).get(&to).unwrap().origin.start)
    );
    shared.code.empty(segment..segment + 1);
    assert_eq!(shared.code.memory.slot(exit.number), exit.unlinked);
}

#[test]
fn code_is_translated_after_ids_began_anew() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.enter();
    for n in 0..8 {
        if n == 2 {
            g.cpu.shared.code.users.use_up();
        }
        let at = CODE + 0x40 * n;
        g.code(at, 64, |a| a.ud2());
        g.cpu.rip = at;
        // The first time, the vCPU has not been outside since everything was dropped.
        assert!((0..2).any(|_| g.cpu.hot_entry(true).is_some()), "block {n}");
    }
    assert_eq!(g.cpu.shared.code.era(), 1);
}

#[test]
fn lists_of_exits_stay_as_short_as_they_can_be() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.enter();
    g.code(CODE, 64, |a| a.jmp(CODE + 0x1000));
    g.code(CODE + 0x1000, 64, |a| a.ud2());
    let shared = Arc::clone(&g.cpu.shared);
    let [from, to] = [CODE, CODE + 0x1000].map(|rip| translate(&mut g, rip));
    let exit = exit_to(&shared, &from, CODE + 0x1000);
    shared.code.shard(to.page()).link(exit, &to);
    let listed = || shared.code.shard(to.page()).get(&to).expect("it is there").linked.len();
    shared.code.most_links.store(0, Relaxed);
    shared.code.sweep_links();
    assert_eq!(listed(), 1, "it leads there");
    shared.code.unlink(exit);
    shared.code.most_links.store(0, Relaxed);
    shared.code.sweep_links();
    assert_eq!(listed(), 0, "it leads elsewhere");
}
