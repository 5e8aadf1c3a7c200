//! Hypercalls about other processors, well made and not.

use proptest::prelude::*;
use vireo_core::{HypercallRegs, PageRange, TlbScope, VcpuSet};

use super::{INPUT, Rig};
use crate::Status;

const VCPUS: u32 = 70;
const OK: u64 = 0;
const INVALID_CODE: u64 = Status::InvalidCode as u64;
const INVALID_INPUT: u64 = Status::InvalidInput as u64;
const INVALID_PARAMETER: u64 = Status::InvalidParameter as u64;
const INVALID_ALIGNMENT: u64 = Status::InvalidAlignment as u64;

const FAST: u64 = 1 << 16;
/// Control bits for so many words of a variable header.
const fn variable(words: u64) -> u64 {
    words << 17
}
/// Control bits for a list of so many, of which the first are done.
const fn list(count: u64, first: u64) -> u64 {
    count << 32 | first << 48
}

/// A rig whose guest knows of these calls.
fn rig() -> Rig {
    let rig = Rig::with("hyperv-1-flush", VCPUS);
    rig.set_up();
    rig
}

impl Rig {
    /// A call with this input in memory.
    fn call_with(&self, control: u64, input: &[u64]) -> u64 {
        for (at, word) in (INPUT..).step_by(8).zip(input) {
            self.memory.write_obj(at, *word).unwrap();
        }
        self.call(control, INPUT)
    }

    /// The only flush since it was last asked: whose TLBs, and what.
    fn flush(&self) -> (Vec<u32>, TlbScope) {
        let flushes = std::mem::take(&mut *self.partition.flushes.lock().unwrap());
        let [(0, of, scope)] = &flushes[..] else { panic!("{flushes:?}") };
        (of.iter_below(u32::MAX).collect(), scope.clone())
    }

    fn has_flushed(&self) -> bool {
        !self.partition.flushes.lock().unwrap().is_empty()
    }

    /// Who was interrupted, and by what vector.
    fn interrupted(&self) -> Vec<(u64, u32)> {
        self.interrupts().iter().map(|(address, data)| (address >> 12 & 0xff, *data)).collect()
    }
}

#[test]
fn a_space_is_flushed_on_those_that_are_named() {
    let rig = rig();
    assert_eq!(rig.call_with(0x2, &[0x1000, 0, 0b1010]), OK);
    assert_eq!(rig.flush(), (vec![1, 3], TlbScope::All));
    assert_eq!(rig.call_with(0x2, &[0x1000, 0b110, 1 << 63]), OK);
    assert_eq!(rig.flush(), (vec![63], TlbScope::NonGlobal));
    let all: Vec<u32> = (0..VCPUS).collect();
    assert_eq!(rig.call_with(0x2, &[0, 0b101, 1]), OK);
    assert_eq!(rig.flush(), (all.clone(), TlbScope::NonGlobal));
    assert_eq!(rig.call_with(0x2, &[0, 0, 0]), OK);
    assert_eq!(rig.flush(), (all, TlbScope::All), "nobody is everybody");
    assert_eq!(rig.call_with(0x2, &[0, 1 << 4, 1]), INVALID_PARAMETER);
    assert_eq!(
        rig.call_with(0x2 | FAST, &[0, 0, 1]),
        INVALID_INPUT,
        "three words are too many for two registers"
    );
    assert_eq!(rig.call_with(0x2 | list(1, 0), &[0, 0, 1]), INVALID_INPUT, "it takes no list");
    assert_eq!(rig.call_with(0x2 | variable(1), &[0, 0, 1]), INVALID_INPUT, "it takes no set");
    assert!(!rig.has_flushed());
}

/// What a list of ranges comes to, each a page and how many more.
fn pages<const N: usize>(ranges: [(u64, u64); N]) -> TlbScope {
    TlbScope::Pages(ranges.into_iter().map(|(at, more)| PageRange::between(at, at + 4096 * more)).collect())
}

#[test]
fn a_list_names_pages() {
    let rig = rig();
    assert_eq!(rig.call_with(0x3 | list(2, 0), &[0, 0, 1, 0x7000_1002, 0xffff_8000_0000_0000]), OK | 2 << 32);
    assert_eq!(rig.flush(), (vec![0], pages([(0x7000_1000, 2), (0xffff_8000_0000_0000, 0)])));
    assert_eq!(rig.call_with(0x3 | list(2, 1), &[0, 0, 1, 0x7000_1002, 0x5000]), OK | 2 << 32);
    assert_eq!(rig.flush().1, pages([(0x5000, 0)]), "the first was done");
    // As many as can be, and the end of the address space.
    assert_eq!(rig.call_with(0x3 | list(1, 0), &[0, 0, 1, 0x7000_0fff]), OK | 1 << 32);
    assert_eq!(rig.flush().1, pages([(0x7000_0000, 4095)]));
    assert_eq!(rig.call_with(0x3 | list(1, 0), &[0, 0, 1, !0xfff]), OK | 1 << 32);
    assert_eq!(rig.flush().1, pages([(!0xfff, 0)]));
    assert_eq!(rig.call_with(0x3 | list(2, 0), &[0, 0, 1, 0x5000, !0xffe]), OK | 2 << 32);
    assert_eq!(rig.flush().1, TlbScope::All);
    // Extended ranges: of large pages, or of fewer small ones.
    assert_eq!(rig.call_with(0x3 | list(1, 0), &[0, 1 << 3, 1, 0x20_0800]), OK | 1 << 32);
    assert_eq!(rig.flush().1, TlbScope::All);
    assert_eq!(rig.call_with(0x3 | list(1, 0), &[0, 1 << 3, 1, 0x20_0001]), OK | 1 << 32);
    assert_eq!(rig.flush().1, pages([(0x20_0000, 1)]));

    assert_eq!(rig.call_with(0x3, &[0, 0, 1]), INVALID_INPUT, "no list");
    assert_eq!(rig.call_with(0x3 | list(2, 2), &[0, 0, 1, 0, 0]), INVALID_INPUT, "nothing left");
    assert_eq!(rig.call(0x3 | list(509, 0), INPUT) as u32, OK as u32, "a page is full");
    assert!(rig.has_flushed());
    rig.partition.flushes.lock().unwrap().clear();
    assert_eq!(rig.call(0x3 | list(510, 0), INPUT), INVALID_INPUT, "over the end of a page");
    assert_eq!(rig.call(0x3 | list(2, 0), INPUT + 4096 - 32), INVALID_INPUT, "over the end of a page");
    assert_eq!(rig.call(0x3 | list(1, 0), INPUT + 4), INVALID_ALIGNMENT);
    assert_eq!(rig.call(0x3 | list(1, 0), 0x1_0000_0000_0000), INVALID_INPUT, "no memory there");
    assert!(!rig.has_flushed());
}

#[test]
fn sets_reach_beyond_the_first_64() {
    let rig = rig();
    // Space, flags, format, banks that there are, banks.
    assert_eq!(rig.call_with(0x13 | variable(2), &[0, 0b100, 0, 0b11, 1 << 5, 0b110]), OK);
    assert_eq!(rig.flush(), (vec![5, 65, 66], TlbScope::NonGlobal));
    assert_eq!(rig.call_with(0x13 | variable(1), &[0, 0, 0, 0b10, u64::MAX]), OK);
    let (of, _) = rig.flush();
    assert!(of.starts_with(&[64, 65]) && of.len() == 64, "who is not there is left out later");
    assert_eq!(rig.call_with(0x13 | variable(1), &[0, 0, 0, 1 << 63, u64::MAX]), OK);
    assert_eq!(rig.flush().0, []);
    assert_eq!(rig.call_with(0x13, &[0, 0, 1, 0]), OK);
    assert_eq!(rig.flush().0.len(), VCPUS as usize, "all");
    assert_eq!(rig.call_with(0x14 | variable(1) | list(1, 0), &[0, 0, 0, 0b10, 0b1, 0x9000]), OK | 1 << 32);
    assert_eq!(rig.flush(), (vec![64], pages([(0x9000, 0)])));
    assert_eq!(rig.call_with(0x13 | variable(1), &[0, 0, 0, 0b11, 1, 1]), INVALID_INPUT, "a bank is missing");
    assert_eq!(rig.call_with(0x13 | variable(2), &[0, 0, 0, 0b1, 1, 1]), INVALID_INPUT, "one too many");
    assert_eq!(rig.call_with(0x13, &[0, 0, 2, 0]), INVALID_PARAMETER, "no such format");
    assert_eq!(rig.call(0x14 | variable(0x3ff) | list(0xfff, 0), INPUT), INVALID_INPUT);
    assert!(!rig.has_flushed());
}

#[test]
fn several_are_interrupted_at_once() {
    let rig = rig();
    rig.interrupted();
    let fast = |vector: u64, mask: u64, control: u64| {
        let mut regs = HypercallRegs { long_mode: true, ..Default::default() };
        (regs.gpr[1], regs.gpr[2], regs.gpr[8]) = (control, vector, mask);
        rig.hv.hypercall(0, &regs).unwrap().gpr[0]
    };
    assert_eq!(fast(0xfb, 1 << 63 | 0b11, 0xb | FAST), OK);
    assert_eq!(rig.interrupted(), [(0, 0xfb), (1, 0xfb), (63, 0xfb)]);
    assert_eq!(rig.call_with(0xb, &[0x10, 0b100]), OK);
    assert_eq!(rig.interrupted(), [(2, 0x10)]);
    assert_eq!(rig.call_with(0x15 | variable(1), &[0xff, 0, 0b10, !0]), OK);
    assert_eq!(rig.interrupted(), (64..70).map(|vp| (vp, 0xff)).collect::<Vec<_>>());
    assert_eq!(rig.call_with(0x15, &[0xff, 1, 0]), OK);
    assert_eq!(rig.interrupted().len(), VCPUS as usize);
    for vector in [0xf, 0x100, 0x1_0000_0020, 0x20 | 1 << 36] {
        assert_eq!(fast(vector, 1, 0xb | FAST), INVALID_PARAMETER, "no vector, or another trust level");
    }
    assert_eq!(fast(0x20, 1, 0x15 | FAST), INVALID_INPUT, "a set has no place in registers");
    // The same of 32-bit code: EDX:EAX, EBX:ECX, EDI:ESI.
    let mut regs = HypercallRegs::default();
    (regs.gpr[0], regs.gpr[1], regs.gpr[6], regs.gpr[7]) = (0xb | FAST, 0x20, 0b1, 0b1);
    assert_eq!(rig.hv.hypercall(0, &regs).unwrap().gpr[0], OK);
    assert_eq!(rig.interrupted(), [(0, 0x20), (32, 0x20)]);
}

#[test]
fn who_was_not_told_of_them_has_none() {
    let rig = Rig::with("hyperv-1", VCPUS);
    rig.set_up();
    for control in [0x2, 0x3 | list(1, 0), 0xb, 0x13, 0x14 | list(1, 0), 0x15] {
        assert_eq!(rig.call(control, INPUT), INVALID_CODE);
    }
    assert!(!rig.has_flushed());
}

/// What the calls must come to, said once more and otherwise.
fn expected(of: &[u32]) -> VcpuSet {
    let mut set = VcpuSet::default();
    of.iter().for_each(|vp| set.add_word((vp / 64) as usize, 1 << (vp % 64)));
    set
}

proptest! {
    #[test]
    fn any_set_comes_out_as_it_went_in(
        of in prop::collection::btree_set(0..VCPUS, 0..20),
        pages in prop::collection::vec(any::<u64>(), 1..60),
    ) {
        let rig = rig();
        let banks: Vec<u64> = (0..2).map(|b| of.iter().filter(|vp| *vp / 64 == b).map(|vp| 1 << (vp % 64)).sum()).collect();
        let there: Vec<u64> = banks.iter().copied().filter(|b| *b != 0).collect();
        let which = (0..).zip(&banks).filter(|(_, b)| **b != 0).map(|(i, _)| 1_u64 << i).sum();
        let pages: Vec<u64> = pages.iter().map(|p| p & !0xfff).collect();
        let ranges = pages.iter().map(|p| PageRange::at(*p)).collect();
        let input = [&[0, 0, 0, which], &there[..], &pages[..]].concat();
        let control = 0x14 | variable(there.len() as u64) | list(pages.len() as u64, 0);
        prop_assert_eq!(rig.call_with(control, &input), (pages.len() as u64) << 32);
        let of: Vec<u32> = of.into_iter().collect();
        prop_assert_eq!(&rig.partition.flushes.lock().unwrap()[..], &[(0, expected(&of), TlbScope::Pages(ranges))]);
    }

    #[test]
    fn no_input_does_harm(
        words in prop::collection::vec(prop_oneof![0..16_u64, any::<u64>()], 512),
        calls in prop::collection::vec((
            prop::sample::select(vec![0x2_u64, 0x3, 0xb, 0x13, 0x14, 0x15]),
            prop_oneof![Just(0_u64), 0..8_u64, 0..0x400_u64], prop_oneof![Just(0_u64), 0..8_u64, 0..0x1000_u64], 0..8_u64,
            prop_oneof![(0..0x200_u64).prop_map(|w| INPUT + 8 * w), any::<u64>()], any::<bool>(), any::<u64>(), any::<bool>(),
        ), 1..30),
    ) {
        let rig = rig();
        for (at, word) in (INPUT..).step_by(8).zip(&words) {
            rig.memory.write_obj(at, *word).unwrap();
        }
        for (code, header, count, first, input, fast, second, long_mode) in calls {
            let control = code | variable(header) | list(count, first) | if fast { FAST } else { 0 };
            let mut regs = HypercallRegs { long_mode, ..Default::default() };
            (regs.gpr[1], regs.gpr[2], regs.gpr[8]) = (control, input, second);
            if !long_mode {
                (regs.gpr[0], regs.gpr[2]) = (control & 0xffff_ffff, control >> 32);
                (regs.gpr[1], regs.gpr[3]) = (input & 0xffff_ffff, input >> 32);
            }
            let after = rig.hv.hypercall(0, &regs).unwrap();
            // Nothing but the result changes; a list is done whole, or not.
            let result = if long_mode { after.gpr[0] } else { after.gpr[2] << 32 | after.gpr[0] };
            let succeeded = result as u16 == 0;
            prop_assert_eq!(result >> 32, if succeeded { count } else { 0 });
            prop_assert_eq!((after.gpr[8], after.xmm, after.cpl), (regs.gpr[8], regs.xmm, 0));
            if !succeeded {
                prop_assert!(!rig.has_flushed() && rig.interrupts().is_empty());
            }
            for (_, _, scope) in rig.partition.flushes.lock().unwrap().drain(..) {
                prop_assert!(!matches!(scope, TlbScope::Pages(p) if p.len() > 512));
            }
            rig.interrupts();
        }
    }
}
