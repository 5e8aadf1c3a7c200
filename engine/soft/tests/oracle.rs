//! Each instruction form, with random state, on the real CPU and on the software engine, compared bit for bit.
//!
//! The seeds are fixed; `make fuzz-cpu` runs as many cases as one has patience for.

mod subject;

use std::sync::Arc;

use subject::SoftSubject;
use vireo_core::CpuModel;
use vireo_oracle::{Mode, Native, fuzz};

const CASES: u64 = 60_000;

fn check(new: impl Fn(Arc<CpuModel>) -> SoftSubject, mode: Mode, seed: u64) {
    if !Native::new().expect("the oracle starts").runs(mode) {
        println!("SKIPPED: this kernel offers user mode no segment for {mode:?}");
        return;
    }
    let model = subject::model();
    let known = model.clone();
    let mut engine = new(model);
    let report = fuzz(&mut engine, mode, seed, CASES, &|d| known.has(d.feature)).expect("the oracle runs");
    println!("{report}");
    assert!(report.clean(), "the engine differs from the CPU:\n{report}");
}

#[test]
fn long_mode() {
    check(SoftSubject::new, Mode::Long, 1);
}

#[test]
fn long_mode_translated() {
    check(SoftSubject::translating, Mode::Long, 4);
}

#[test]
fn protected_mode_translated() {
    check(SoftSubject::translating, Mode::Protected, 5);
}

#[test]
fn protected_mode() {
    check(SoftSubject::new, Mode::Protected, 2);
}

#[test]
fn protected_mode_16_bit() {
    check(SoftSubject::new, Mode::Protected16, 3);
}
