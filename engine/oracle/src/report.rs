//! What a fuzzing run says at its end.

use crate::case::Case;
use crate::compare::Difference;
use iced_x86::Code;
use std::collections::BTreeMap;
use std::fmt;

/// A case in which the subject differs from the CPU, made as small as it gets.
#[derive(Clone)]
pub struct Failure {
    /// The form it was generated for.
    pub form: Code,
    /// Number of the case in the run: the same seed and number give the same case again.
    pub number: u64,
    /// The shrunk case.
    pub case: Case,
    /// Its differences.
    pub differences: Vec<Difference>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex: Vec<String> = self.case.bytes.iter().map(|b| format!("{b:02x}")).collect();
        writeln!(f, "case {} ({:?}, {:?}): {}", self.number, self.form, self.case.mode, hex.join(" "))?;
        writeln!(f, "    {}", self.case.disassembly())?;
        for difference in &self.differences {
            writeln!(f, "    {difference}")?;
        }
        let cpu = &self.case.cpu;
        writeln!(f, "  from rflags={:x} gpr={:x?}", cpu.rflags, cpu.gpr)?;
        writeln!(
            f,
            "    fcw={:04x} fsw={:04x} ftw={:02x} mxcsr={:08x}",
            cpu.fx.u16(0),
            cpu.fx.u16(2),
            cpu.fx.0[4],
            cpu.fx.mxcsr()
        )?;
        for (i, high) in cpu.high.iter().enumerate().filter(|(i, high)| (cpu.fx.xmm(*i), **high) != (0, 0)) {
            writeln!(f, "    ymm{i}={high:032x}_{:032x}", cpu.fx.xmm(i))?;
        }
        for i in (0..8).filter(|&i| cpu.fx.st(i) != [0; 10]) {
            writeln!(f, "    st{i}={:02x?}", cpu.fx.st(i))?;
        }
        for patch in &self.case.memory.patches {
            writeln!(f, "    [{:x}]={:02x?}", patch.address, patch.bytes)?;
        }
        Ok(())
    }
}

/// The result of a run.
#[derive(Clone, Default)]
pub struct Report {
    /// Cases compared.
    pub cases: u64,
    /// Cases the native side gave no answer for.
    pub lost: u64,
    /// Cases per form; forms that could never be encoded count zero.
    pub by_form: BTreeMap<Code, u64>,
    /// Cases that differed, per form.
    pub failed_by_form: BTreeMap<Code, u64>,
    /// One shrunk failure per form, for the first forms that failed.
    pub failures: Vec<Failure>,
}

impl Report {
    /// Nothing differed, and something was compared.
    #[must_use]
    pub fn clean(&self) -> bool {
        self.failed_by_form.is_empty() && self.cases > 0
    }

    /// Cases that differed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed_by_form.values().sum()
    }

    /// Forms that should have been generated and never were: holes in the coverage.
    #[must_use]
    pub fn never_generated(&self) -> Vec<Code> {
        self.by_form.iter().filter(|(_, n)| **n == 0).map(|(code, _)| *code).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let covered = self.by_form.values().filter(|n| **n > 0).count();
        let fewest = self.by_form.values().filter(|n| **n > 0).min().unwrap_or(&0);
        writeln!(
            f,
            "{} cases of {covered} of {} forms (at least {fewest} each), {} lost, {} differ in {} forms",
            self.cases,
            self.by_form.len(),
            self.lost,
            self.failed(),
            self.failed_by_form.len()
        )?;
        let never = self.never_generated();
        if !never.is_empty() {
            writeln!(f, "never generated: {never:?}")?;
        }
        for failure in &self.failures {
            write!(f, "{failure}")?;
        }
        if self.failed_by_form.len() > self.failures.len() {
            writeln!(f, "forms that differ: {:?}", self.failed_by_form)?;
        }
        Ok(())
    }
}
