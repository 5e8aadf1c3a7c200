//! The oracle against itself: the CPU agrees with the CPU, and wrong subjects are caught.

use std::collections::HashMap;
use vireo_isa::{Class, Desc};
use vireo_oracle::{BATCH, Case, End, Generator, Mode, Native, Outcome, Subject, compare, fuzz};

/// All modes this host can run.
fn modes() -> Vec<Mode> {
    let mut native = Native::new().expect("native");
    let (modes, missing): (Vec<_>, Vec<_>) =
        [Mode::Long, Mode::Protected, Mode::Protected16].into_iter().partition(|&mode| native.runs(mode));
    if !missing.is_empty() {
        println!("SKIPPED for {missing:?}: this host has no such code segments");
    }
    assert!(modes.contains(&Mode::Long));
    modes
}

#[test]
fn the_cpu_gives_the_same_answer_twice() {
    for mode in modes() {
        let mut generator = Generator::new(7, mode, &|_| true);
        let n = generator.forms().len() * 12;
        let (mut one, mut two) = (Native::new().expect("native"), Native::new().expect("native"));
        let mut ends: HashMap<String, u32> = HashMap::new();
        let mut lost = Vec::new();
        for _ in 0..n.div_ceil(BATCH) {
            let cases: Vec<Case> = (0..BATCH).filter_map(|_| generator.next_case()).map(|c| c.1).collect();
            let first = one.run_batch(&cases).expect("runs");
            // In another order, so that what one case leaves behind would show.
            let backwards: Vec<Case> = cases.iter().rev().cloned().collect();
            let mut second = two.run_batch(&backwards).expect("runs");
            second.reverse();
            for ((case, a), b) in cases.iter().zip(&first).zip(&second) {
                let end = match a.end {
                    End::Fault { vector, .. } => format!("#{vector}"),
                    other => format!("{other:?}"),
                };
                *ends.entry(end).or_default() += 1;
                if a.end == End::Lost {
                    lost.push(case.clone());
                    continue;
                }
                let differences = compare(case, a, b);
                assert!(differences.is_empty(), "{case:?} {differences:#?}\n{a:?}\n{b:?}");
            }
        }
        println!("{mode:?}: {ends:?}");
        assert!(lost.is_empty(), "{lost:#?}");
    }
}

/// The CPU with one lie.
struct Liar {
    native: Native,
    lie: fn(&Case, &mut Outcome),
}

impl Subject for Liar {
    fn run(&mut self, case: &Case, mode: Mode) -> Outcome {
        let mut outcome = self.native.run(case, mode);
        (self.lie)(case, &mut outcome);
        outcome
    }
}

fn run_liar(lie: fn(&Case, &mut Outcome), n: u64, filter: &dyn Fn(&Desc) -> bool) -> vireo_oracle::Report {
    let mut liar = Liar { native: Native::new().expect("native"), lie };
    fuzz(&mut liar, Mode::Long, 3, n, filter).expect("runs")
}

fn is(mnemonic: iced_x86::Mnemonic) -> impl Fn(&Desc) -> bool {
    move |d| d.code.mnemonic() == mnemonic
}

#[test]
fn an_honest_subject_passes() {
    let report = run_liar(|_, _| {}, 600, &|d| matches!(d.class, Class::Integer | Class::Stack));
    assert!(report.clean(), "{report}");
    assert!(report.never_generated().is_empty(), "{report}");
}

#[test]
fn a_wrong_flag_is_caught_and_shrunk() {
    // AF of ADD stuck at one.
    let report = run_liar(|_, o| o.cpu.rflags |= 0x10, 300, &is(iced_x86::Mnemonic::Add));
    assert!(!report.clean() && report.failed() > 50, "{report}");
    let failure = &report.failures[0];
    assert!(failure.differences.iter().all(|d| d.field == "rflags"), "{failure}");
    // Of the state only what the failure needs is left.
    assert!(failure.case.cpu.fx == vireo_oracle::FxImage::initial(), "{failure}");
    assert!(failure.case.cpu.gpr.iter().filter(|v| **v != 0).count() <= 3, "{failure}");
    let text = failure.to_string();
    assert!(text.contains("add") && text.contains("rflags: the CPU has"), "{text}");
}

#[test]
fn a_lost_store_is_caught() {
    let report = run_liar(|_, o| o.memory.clear(), 200, &is(iced_x86::Mnemonic::Movaps));
    let stores = iced_x86::Code::Movaps_xmmm128_xmm;
    assert_eq!(report.failed_by_form.keys().collect::<Vec<_>>(), [&stores], "{report}");
}

#[test]
fn a_missed_fault_is_caught() {
    let honest_only_without_faults = |case: &Case, o: &mut Outcome| {
        if matches!(o.end, End::Fault { vector: 13, .. }) {
            o.end = End::Done;
            o.cpu.rip = case.cpu.rip + case.bytes.len() as u64;
        }
    };
    let report = run_liar(honest_only_without_faults, 400, &is(iced_x86::Mnemonic::Movaps));
    assert!(report.failed() > 5 && report.failures[0].differences[0].field == "end", "{report}");
}

#[test]
fn wrong_vector_and_x87_results_are_caught() {
    let flip_xmm = |_: &Case, o: &mut Outcome| {
        let changed = o.cpu.fx.xmm(3) ^ 1;
        o.cpu.fx.set_xmm(3, changed);
    };
    assert!(run_liar(flip_xmm, 20, &is(iced_x86::Mnemonic::Pand)).failed() == 20);
    let round = |_: &Case, o: &mut Outcome| {
        let mut st = o.cpu.fx.st(0);
        st[0] ^= 1; // the last bit of the mantissa: what a 64-bit double would lose
        o.cpu.fx.set_st(0, st);
    };
    assert!(run_liar(round, 20, &is(iced_x86::Mnemonic::Fadd)).failed() == 20);
}

#[test]
fn a_subject_without_an_answer_fails() {
    let report = run_liar(|_, o| o.end = End::Lost, 20, &is(iced_x86::Mnemonic::Nop));
    assert_eq!(report.failed(), 20);
}

#[test]
fn every_known_form_is_made_or_excluded_with_a_reason() {
    for mode in modes() {
        let mut generator = Generator::new(1, mode, &|_| true);
        let mut missing: std::collections::BTreeSet<_> = generator.forms().iter().copied().collect();
        for _ in 0..generator.forms().len() * 3 {
            if let Some((form, _)) = generator.next_case() {
                missing.remove(&form);
            }
        }
        let excluded = Generator::not_made(mode);
        println!("{mode:?}: {} forms made, {} excluded", generator.forms().len(), excluded.len());
        let mut reasons = std::collections::BTreeMap::<&str, usize>::new();
        excluded.iter().for_each(|(_, reason)| *reasons.entry(reason).or_default() += 1);
        println!("{reasons:#?}");
        assert!(missing.is_empty(), "{mode:?}: never encoded: {missing:?}");
    }
}
