//! Address spaces with identifiers: what a change of space keeps, and what drops it. Entries of the TLB show in that a
//! changed page table is not noticed.

use iced_x86::code_asm::{cr3, ptr, qword_ptr, rax, rbx, rcx, rdi};
use vireo_core::model::Vendor;
use vireo_core::state::cr4;
use vireo_core::{PageRange, TlbFlusher, TlbScope, VcpuSet};

use super::guest::{CODE, Guest, PAGES};
use crate::mmu::{Entry, View};

/// Where the page under test is mapped: to one page in space 1, to another in space 2.
const AT: u64 = 0x40_0000;
const FIRST: u64 = 0x5_0000;
const SECOND: u64 = 0x5_1000;
const THIRD: u64 = 0x5_2000;
const KEEP: u64 = 1 << 63;
/// Root of space 2, and the tables of either page.
const OTHER: u64 = 0x9_0000;
const TABLES: [u64; 2] = [0x8_0000, 0x8_1000];
const ROOTS: [u64; 2] = [PAGES | 1, OTHER | 2];
const GLOBAL: u64 = 0x100;
/// INVPCID descriptor.
const DESCRIPTOR: u64 = 0x6_0000;

/// 64-bit mode with PCIDs, in space 1.
fn guest(attributes: u64) -> Guest {
    let mut g = Guest::long(Vendor::Intel);
    for (i, (root, page)) in [(PAGES, FIRST), (OTHER, SECOND)].into_iter().enumerate() {
        g.write::<u64>(root, (root + 0x1000) | 7);
        g.write::<u64>(root + 0x1000, (root + 0x2000) | 7);
        g.write::<u64>(root + 0x2000, 0x87);
        g.write::<u64>(root + 0x2000 + 8 * (AT >> 21), TABLES[i] | 7);
        g.write::<u64>(TABLES[i], page | 7 | attributes);
        g.write::<u64>(page, i as u64 + 1);
    }
    g.write::<u64>(THIRD, 3);
    g.cpu.ctl.cr4 |= cr4::PCIDE | cr4::PGE;
    g.cpu.mmu.flush_all();
    enter(&mut g, 0, 0);
    g
}

fn do_code(
    g: &mut Guest,
    body: impl FnOnce(&mut iced_x86::code_asm::CodeAssembler) -> Result<(), iced_x86::IcedError>,
) {
    g.code(CODE, 64, body);
    g.cpu.code.clear();
    g.cpu.rip = CODE;
    g.step().expect("no fault");
}

/// Goes to a space.
fn enter(g: &mut Guest, space: usize, keep: u64) {
    g.cpu.regs.set(0, ROOTS[space] | keep);
    do_code(g, |a| a.mov(cr3, rax));
}

/// What is at the page under test.
fn look(g: &mut Guest) -> u64 {
    g.cpu.regs.set(7, AT);
    do_code(g, |a| a.mov(rbx, qword_ptr(rdi)));
    g.cpu.regs.get(3)
}

fn invpcid(g: &mut Guest, kind: u64, pcid: u64, linear: u64) {
    g.write(DESCRIPTOR, pcid);
    g.write(DESCRIPTOR + 8, linear);
    g.cpu.regs.set(7, DESCRIPTOR);
    g.cpu.regs.set(1, kind);
    do_code(g, |a| a.invpcid(rcx, ptr(rdi)));
}

/// Fills the TLB in both spaces, and maps a third page in their places. In space 2.
fn stale(attributes: u64) -> Guest {
    let mut g = guest(attributes);
    assert_eq!(look(&mut g), 1);
    enter(&mut g, 1, 0);
    look(&mut g);
    TABLES.iter().for_each(|t| g.write::<u64>(*t, THIRD | 7 | attributes));
    g
}

#[test]
fn a_space_that_is_kept_has_its_translations_still() {
    let mut g = stale(0);
    assert_eq!(look(&mut g), 2);
    enter(&mut g, 0, KEEP);
    assert_eq!(look(&mut g), 1);
    enter(&mut g, 1, KEEP);
    assert_eq!(look(&mut g), 2);
    // Without the bit they go, of that space alone.
    enter(&mut g, 1, 0);
    assert_eq!(look(&mut g), 3);
    enter(&mut g, 0, KEEP);
    assert_eq!(look(&mut g), 1);
    enter(&mut g, 0, 0);
    assert_eq!(look(&mut g), 3);
}

#[test]
fn a_space_that_is_entered_without_the_bit_starts_empty() {
    let mut g = stale(0);
    enter(&mut g, 0, 0);
    assert_eq!(look(&mut g), 3);
    enter(&mut g, 1, KEEP);
    assert_eq!(look(&mut g), 2);
}

#[test]
fn global_pages_are_those_of_all_spaces() {
    let mut g = stale(GLOBAL);
    // The one that was filled first, in space 1.
    assert_eq!(look(&mut g), 1);
    enter(&mut g, 0, KEEP);
    assert_eq!(look(&mut g), 1);
    invpcid(&mut g, 3, 0, 0);
    assert_eq!(look(&mut g), 1);
    invpcid(&mut g, 2, 0, 0);
    assert_eq!(look(&mut g), 3);
}

#[test]
fn invpcid_reaches_spaces_that_are_not_in_use() {
    for (kind, linear) in [(0, AT), (1, 0)] {
        let mut g = stale(0);
        invpcid(&mut g, kind, 1, linear);
        assert_eq!(look(&mut g), 2, "the space in use");
        enter(&mut g, 0, KEEP);
        assert_eq!(look(&mut g), 3);
        invpcid(&mut g, kind, 1, linear);
        enter(&mut g, 1, KEEP);
        assert_eq!(look(&mut g), 2);
        invpcid(&mut g, kind, 2, linear);
        assert_eq!(look(&mut g), 3);
    }
    for kind in [2, 3] {
        let mut g = stale(0);
        invpcid(&mut g, kind, 0, 0);
        assert_eq!(look(&mut g), 3);
        enter(&mut g, 0, KEEP);
        assert_eq!(look(&mut g), 3);
    }
}

#[test]
fn more_spaces_than_are_kept_are_only_slower() {
    let mut g = stale(0);
    for pcid in 3..40 {
        g.cpu.regs.set(0, OTHER | pcid);
        do_code(&mut g, |a| a.mov(cr3, rax));
        assert_eq!(look(&mut g), 3);
    }
    enter(&mut g, 0, KEEP);
    assert_eq!(look(&mut g), 3);
}

#[test]
fn a_change_that_drops_all_drops_what_is_kept() {
    let mut g = stale(0);
    g.cpu.regs.set(0, g.cpu.ctl.cr4 & !cr4::PGE);
    do_code(&mut g, |a| a.mov(iced_x86::code_asm::cr4, rax));
    enter(&mut g, 0, KEEP);
    assert_eq!(look(&mut g), 3);
}

#[test]
fn a_watched_page_is_dropped_from_spaces_that_are_kept() {
    let mut g = stale(0);
    g.cpu.debug.address[0] = AT;
    // Reads and writes of 8 bytes.
    g.cpu.debug.dr7 = 0x400 | 1 | 3 << 16 | 2 << 18;
    g.cpu.breakpoints_changed();
    enter(&mut g, 0, KEEP);
    // Each access to it has to take the slow path, where watchpoints are looked at.
    assert!(!Entry::hits(g.cpu.mmu.entry(View::Kernel, AT).read, AT, 8));
}

/// Another vCPU wants these flushed, and this one serves it.
fn flush_from_afar(g: &mut Guest, scopes: impl Iterator<Item = TlbScope>) {
    scopes.for_each(|scope| g.cpu.shared.flush_tlbs(0, &VcpuSet::below(1), &scope));
    g.cpu.serve_flushes();
}

#[test]
fn a_flush_from_afar_reaches_spaces_that_are_not_in_use() {
    for scope in [TlbScope::All, TlbScope::NonGlobal, TlbScope::Pages(vec![PageRange::at(AT)])] {
        let mut g = stale(0);
        flush_from_afar(&mut g, std::iter::once(scope.clone()));
        assert_eq!(look(&mut g), 3, "{scope:?}");
        enter(&mut g, 0, KEEP);
        assert_eq!(look(&mut g), 3, "{scope:?}, another space");
    }
}

#[test]
fn pages_of_users_that_are_flushed_from_afar_leave_the_kernel_its_own() {
    /// The page after the one under test, in the other half.
    const ABOVE: u64 = 0xffff_8000_0000_0000 + AT + 0x1000;
    for pages in [1, 1000] {
        let mut g = guest(GLOBAL);
        [PAGES, OTHER].iter().for_each(|root| g.write(root + 8 * 256, (root + 0x1000) | 7));
        let look_above = |g: &mut Guest| {
            g.cpu.regs.set(7, ABOVE);
            do_code(g, |a| a.mov(rbx, qword_ptr(rdi)));
            g.cpu.regs.get(3)
        };
        let map = |g: &mut Guest, page| g.write::<u64>(TABLES[0] + 8, page | 7 | GLOBAL);
        map(&mut g, FIRST);
        assert_eq!((look(&mut g), look_above(&mut g)), (1, 1));
        map(&mut g, THIRD);
        g.write::<u64>(TABLES[0], THIRD | 7 | GLOBAL);
        // Every other page: no two make one range.
        flush_from_afar(&mut g, (0..pages).map(|n| TlbScope::Pages(vec![PageRange::at(AT + 0x2000 * n)])));
        assert_eq!((look(&mut g), look_above(&mut g)), (3, 1), "{pages} pages");
        flush_from_afar(&mut g, std::iter::once(TlbScope::Pages(vec![PageRange::at(ABOVE)])));
        assert_eq!(look_above(&mut g), 3);
    }
}
