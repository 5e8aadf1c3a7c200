//! The instruction table of `vireo-isa`, put to the real CPU: what it says about alignment, LOCK, flags, floating
//! point and privilege must be what happens.

use iced_x86::Code;
use std::collections::{BTreeMap, BTreeSet};
use vireo_isa::{Class, Desc, Feature, Fp, Privilege, describe, flag};
use vireo_oracle::{BATCH, Case, End, Generator, Mode, Native, Outcome, Rng, code_of, host_is_amd};

fn general_protection(end: End) -> bool {
    matches!(end, End::Fault { vector: 13, error: Some(0), .. })
}

fn faulted_with(end: End, wanted: u8) -> bool {
    matches!(end, End::Fault { vector, .. } if vector == wanted)
}

/// Runs `rounds` cases of each form that passes, and shows them with their outcomes.
fn each(
    mode: Mode,
    rounds: usize,
    filter: &dyn Fn(&Desc) -> bool,
    see: &mut dyn FnMut(Code, &Case, &Outcome),
) {
    let mut native = Native::new().expect("native");
    if !native.runs(mode) {
        println!("SKIPPED for {mode:?}: this host has no such code segment");
        return;
    }
    let mut generator = Generator::new(11, mode, filter);
    let mut left = generator.forms().len() * rounds;
    while left > 0 {
        let made: Vec<_> = (0..left.min(BATCH)).map(|_| generator.next_case()).collect();
        left -= made.len();
        let cases: Vec<Case> = made.iter().flatten().map(|(_, case)| case.clone()).collect();
        let outcomes = native.run_batch(&cases).expect("runs");
        for (case, outcome) in cases.iter().zip(&outcomes) {
            assert_ne!(outcome.end, End::Lost, "{case:?}");
            see(code_of(case), case, outcome);
        }
    }
}

#[test]
fn aligned_is_when_misaligned_operands_fault() {
    let mut faulting = BTreeSet::new();
    let has_memory = |d: &Desc| {
        matches!(d.class, Class::Avx | Class::Sse | Class::Mmx | Class::Integer | Class::X87 | Class::FpState)
            && d.code.op_code().op_kinds().iter().any(|k| format!("{k:?}").contains("mem"))
            && d.privilege == Privilege::Any
            // Ill-formed images raise #GP by themselves.
            && !matches!(d.code.mnemonic(), iced_x86::Mnemonic::Ldmxcsr | iced_x86::Mnemonic::Vldmxcsr)
    };
    each(Mode::Protected, 96, &has_memory, &mut |code, _, outcome| {
        // In flat 32-bit code an operand raises #GP(0) for its alignment only.
        if general_protection(outcome.end) {
            faulting.insert(code);
        }
    });
    let marked: BTreeSet<Code> =
        Generator::new(0, Mode::Protected, &|d| d.aligned && has_memory(d)).forms().iter().copied().collect();
    let stores_through_cs: Vec<_> = faulting.difference(&marked).collect();
    // Processors of AMD take operands of SHA instructions as they are.
    let lenient = |code: &Code| host_is_amd() && describe(*code).feature == Feature::Sha;
    let unseen: Vec<_> = marked.difference(&faulting).filter(|code| !lenient(code)).collect();
    assert!(unseen.is_empty(), "marked aligned, never faulted: {unseen:?}");
    // A CS override makes stores fault: allow forms that store, never forms that only load.
    for code in stores_through_cs {
        let mut instruction = iced_x86::Instruction::new();
        instruction.set_code(*code);
        instruction.set_op_kind(0, iced_x86::OpKind::Memory);
        let mut factory = iced_x86::InstructionInfoFactory::new();
        let access = factory.info(&instruction).op0_access();
        let stores = !matches!(
            access,
            iced_x86::OpAccess::Read
                | iced_x86::OpAccess::CondRead
                | iced_x86::OpAccess::None
                | iced_x86::OpAccess::NoMemAccess
        );
        assert!(stores, "{code:?} faults on misaligned operands, and the table does not say so");
    }
}

#[test]
fn flags_change_only_where_the_table_says() {
    for mode in [Mode::Long, Mode::Protected, Mode::Protected16] {
        let mut changed: BTreeMap<Code, u64> = BTreeMap::new();
        each(mode, 16, &|_| true, &mut |code, case, outcome| {
            *changed.entry(code).or_default() |= case.cpu.rflags ^ outcome.cpu.rflags;
        });
        for (code, bits) in &changed {
            let desc = describe(*code);
            let allowed = desc.flags_written | desc.flags_undefined;
            assert_eq!(
                bits & !u64::from(allowed),
                0,
                "{mode:?} {code:?} changes flags {bits:x}, allowed {allowed:x}"
            );
        }
        // And most of what it says may change does: a table of ones would pass the test above.
        let silent: Vec<_> = changed
            .iter()
            .filter(|(code, bits)| **bits == 0 && describe(**code).flags_written & flag::STATUS != 0)
            .map(|(code, _)| code)
            .collect();
        assert!(silent.len() < 20, "{mode:?}: {silent:?}");
    }
}

#[test]
fn privileged_forms_fault_in_user_mode() {
    for mode in [Mode::Long, Mode::Protected, Mode::Protected16] {
        let privileged = |d: &Desc| {
            matches!(d.privilege, Privilege::Cpl0 | Privilege::Iopl | Privilege::IoBitmap | Privilege::Cpl0Ud)
        };
        let mut seen = BTreeSet::new();
        each(mode, 8, &privileged, &mut |code, case, outcome| {
            // A prefix may have made it undefined, or a page end have kept it from being fetched.
            if case.bytes[0] == 0xf0 || !privileged(describe(code)) || faulted_with(outcome.end, 14) {
                return;
            }
            seen.insert(code);
            let undefined = describe(code).privilege == Privilege::Cpl0Ud;
            // MOV to or from an absent control or debug register is undefined as well.
            let absent = faulted_with(outcome.end, 6) && code.mnemonic() == iced_x86::Mnemonic::Mov;
            let right =
                if undefined { faulted_with(outcome.end, 6) } else { general_protection(outcome.end) };
            assert!(right || absent, "{mode:?} {case:?} {outcome:?}");
        });
        assert!(seen.len() > 40, "{mode:?}: {}", seen.len());
    }
}

fn uses_mxcsr(fp: Fp) -> bool {
    matches!(fp, Fp::Sse { mxcsr: true } | Fp::MmxSse { mxcsr: true } | Fp::Avx { mxcsr: true })
}

#[test]
fn only_marked_forms_raise_floating_point_exceptions_and_nops_never_fault() {
    let mut raised = BTreeSet::new();
    for mode in [Mode::Long, Mode::Protected, Mode::Protected16] {
        each(mode, 64, &|d| d.fp != Fp::None || d.class == Class::Nop, &mut |code, case, outcome| {
            let fp = describe(code).fp;
            let mxcsr = uses_mxcsr(fp);
            if faulted_with(outcome.end, 19) {
                assert!(mxcsr, "{case:?} {outcome:?}");
                raised.insert(code);
            }
            if outcome.end == End::Done && outcome.cpu.fx.mxcsr() != case.cpu.fx.mxcsr() {
                assert!(mxcsr || describe(code).class == Class::FpState, "{case:?} {outcome:?}");
                raised.insert(code);
            }
            if faulted_with(outcome.end, 16) {
                let waits = matches!(fp, Fp::X87 { waiting: true } | Fp::Wait | Fp::Mmx | Fp::MmxSse { .. });
                assert!(waits, "{case:?} {outcome:?}");
            }
            if describe(code).class == Class::Nop && case.bytes[0] != 0xf0 && !faulted_with(outcome.end, 14) {
                // Processors of AMD know prefetches of memory only.
                if host_is_amd() && matches!(case.bytes[..], [.., 0x0f, 0x0d, 0xc0..=0xff]) {
                    assert!(faulted_with(outcome.end, 6), "{case:?} {outcome:?}");
                } else {
                    assert_eq!(outcome.end, End::Done, "{case:?} {outcome:?}");
                }
            }
        });
    }
    let host = vireo_oracle::host_features();
    let marked = vireo_isa::known().filter(|d| uses_mxcsr(d.fp) && host.has(d.feature));
    let silent: Vec<_> = marked.map(|d| d.code).filter(|c| !raised.contains(c)).collect();
    assert!(silent.is_empty(), "marked as governed by MXCSR, never showed it: {silent:?}");
}

#[test]
fn lock_is_undefined_exactly_where_the_table_says() {
    let mut native = Native::new().expect("native");
    let mut generator = Generator::new(5, Mode::Long, &|d| d.class == Class::Integer);
    let mut cases = Vec::new();
    for _ in 0..generator.forms().len() * 4 {
        let Some((_, mut case)) = generator.next_case() else { continue };
        if case.cpu.rip != vireo_oracle::windows::ENTRY || case.bytes.len() > 13 {
            continue;
        }
        if case.bytes[0] != 0xf0 {
            case.bytes.insert(0, 0xf0);
        }
        cases.push(case);
    }
    let outcomes = native.run_batch(&cases).expect("runs");
    let (mut undefined, mut locked) = (0, 0);
    for (case, outcome) in cases.iter().zip(&outcomes) {
        // Without the check for LOCK, to learn what it is put on.
        let options =
            vireo_isa::decoder_options(vireo_oracle::model()) | iced_x86::DecoderOptions::NO_INVALID_CHECK;
        let i = iced_x86::Decoder::new(64, &case.bytes, options).decode();
        let allowed = describe(i.code()).lockable && i.op0_kind() == iced_x86::OpKind::Memory;
        assert_eq!(faulted_with(outcome.end, 6), !allowed, "{case:?} {outcome:?}");
        *(if allowed { &mut locked } else { &mut undefined }) += 1;
    }
    assert!(undefined > 500 && locked > 100, "{undefined} {locked}");
}

#[test]
fn results_depend_on_no_flag_that_is_not_marked_as_read() {
    for mode in [Mode::Long, Mode::Protected, Mode::Protected16] {
        let mut native = Native::new().expect("native");
        if !native.runs(mode) {
            println!("SKIPPED for {mode:?}: this host has no such code segment");
            continue;
        }
        let mut generator = Generator::new(17, mode, &|_| true);
        let mut rng = Rng::new(18);
        // An interrupt may change the rest in 32-bit code.
        let visible = if mode == Mode::Long { u64::MAX } else { 0xffff_ffff };
        let mut needed: BTreeMap<Code, u64> = BTreeMap::new();
        for _ in 0..generator.forms().len() * 12 / BATCH {
            let cases: Vec<Case> = (0..BATCH).filter_map(|_| generator.next_case()).map(|c| c.1).collect();
            let flipped: Vec<Case> = cases
                .iter()
                .map(|case| {
                    let mut other = case.clone();
                    other.cpu.rflags ^=
                        u64::from((flag::STATUS | flag::DF) & !describe(code_of(case)).flags_read);
                    other
                })
                .collect();
            let all_flipped: Vec<Case> = cases
                .iter()
                .map(|case| {
                    let mut other = case.clone();
                    // A random part: signed conditions compare SF with OF, and flipping both hides them.
                    other.cpu.rflags ^= rng.next() & u64::from(flag::STATUS | flag::DF);
                    other
                })
                .collect();
            let plain = native.run_batch(&cases).expect("runs");
            let unread = native.run_batch(&flipped).expect("runs");
            let read = native.run_batch(&all_flipped).expect("runs");
            for (i, case) in cases.iter().enumerate() {
                let gpr = |o: &Outcome| o.cpu.gpr.map(|r| r & visible);
                let result = |o: &Outcome| (o.end, gpr(o), o.cpu.rip, o.cpu.fx.0, o.memory.clone());
                assert!(result(&plain[i]) == result(&unread[i]), "{case:?}\n{:?}\n{:?}", plain[i], unread[i]);
                let depends = result(&plain[i]) != result(&read[i]);
                *needed.entry(code_of(case)).or_default() += u64::from(depends);
            }
        }
        // The other way round: what is marked as read does matter, at least sometimes. Only CMC turns a flag
        // into nothing but flags; chance leaves a few more.
        let idle: Vec<_> = needed
            .iter()
            .filter(|(code, n)| **n == 0 && describe(**code).flags_read & flag::STATUS != 0)
            .map(|(code, _)| code)
            .collect();
        assert!(idle.len() < 12, "{mode:?}: {idle:?}");
    }
}
