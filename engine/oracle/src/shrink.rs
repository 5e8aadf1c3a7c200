//! Makes a failing case smaller, as long as it keeps failing.

use crate::Subject;
use crate::case::{Case, CpuImage, FxImage};
use crate::compare::{Difference, code_of, compare};
use crate::native::{Native, NativeError};

/// The smallest case found, with its differences.
///
/// # Errors
/// When no sandbox can be started.
pub fn shrink(
    native: &mut Native,
    subject: &mut dyn Subject,
    case: Case,
    differences: Vec<Difference>,
) -> Result<(Case, Vec<Difference>), NativeError> {
    let (mut best, mut known) = (case, differences);
    // Every accepted step makes a register, a patch or a prefix go away, so this ends.
    'again: loop {
        let candidates = smaller(&best);
        let outcomes = native.run_batch(&candidates)?;
        for (candidate, outcome) in candidates.into_iter().zip(&outcomes) {
            let found = compare(&candidate, outcome, &subject.run(&candidate, candidate.mode));
            if !found.is_empty() {
                (best, known) = (candidate, found);
                continue 'again;
            }
        }
        return Ok((best, known));
    }
}

/// All cases that are one step simpler.
fn smaller(case: &Case) -> Vec<Case> {
    let mut all = Vec::new();
    let mut propose = |change: &dyn Fn(&mut Case)| {
        let mut next = case.clone();
        change(&mut next);
        if next != *case {
            all.push(next);
        }
    };
    if case.bytes.len() > 1 {
        propose(&|c| {
            let code = code_of(c);
            let first = c.bytes.remove(0);
            if code_of(c) != code {
                c.bytes.insert(0, first);
            }
        });
    }
    propose(&|c| c.cpu.fx = FxImage::initial());
    propose(&|c| c.cpu.high = [0; 16]);
    for i in 0..case.memory.patches.len() {
        propose(&|c| {
            c.memory.patches.remove(i);
        });
    }
    propose(&|c| c.cpu.rflags = 0x202);
    for i in 0..16 {
        let rest = if i == 4 { CpuImage::initial(case.mode).gpr[4] } else { 0 };
        propose(&|c| c.cpu.gpr[i] = rest);
        propose(&|c| c.cpu.fx.set_xmm(i, 0));
        propose(&|c| c.cpu.high[i] = 0);
    }
    for i in 0..8 {
        propose(&|c| c.cpu.fx.set_st(i, [0; 10]));
    }
    propose(&|c| c.cpu.fx.set_mxcsr(0x1f80));
    propose(&|c| c.cpu.fx.set_u16(0, 0x37f));
    propose(&|c| c.cpu.fx.set_u16(2, 0));
    all
}
