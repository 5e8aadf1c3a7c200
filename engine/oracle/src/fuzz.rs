//! Drives generator, CPU and subject.

use crate::case::Mode;
use crate::compare::compare;
use crate::generate::Generator;
use crate::native::{BATCH, Native, NativeError};
use crate::report::{Failure, Report};
use crate::shrink::shrink;
use crate::{End, Subject};
use vireo_isa::Desc;

/// Forms of which a failure is shrunk and kept; the others are counted.
const KEPT_FAILURES: usize = 40;

/// Compares `subject` with the CPU in `n` random cases from `seed`, over the forms that `filter` lets pass.
///
/// The same arguments give the same cases on every host with the same features.
///
/// # Errors
/// When the CPU cannot be asked.
pub fn fuzz(
    subject: &mut dyn Subject,
    mode: Mode,
    seed: u64,
    n: u64,
    filter: &dyn Fn(&Desc) -> bool,
) -> Result<Report, NativeError> {
    let mut native = Native::new()?;
    let mut generator = Generator::new(seed, mode, filter);
    let mut report = Report::default();
    report.by_form.extend(generator.forms().iter().map(|&code| (code, 0)));
    if report.by_form.is_empty() {
        return Ok(report);
    }
    let mut number = 0;
    while number < n {
        let wanted = (n - number).min(BATCH as u64);
        let made: Vec<_> = (number..number + wanted)
            .filter_map(|number| generator.next_case().map(|(form, case)| (number, form, case)))
            .collect();
        number += wanted;
        let cases: Vec<_> = made.iter().map(|(_, _, case)| case.clone()).collect();
        let outcomes = native.run_batch(&cases)?;
        for ((number, form, case), outcome) in made.into_iter().zip(&outcomes) {
            *report.by_form.entry(form).or_default() += 1;
            if outcome.end == End::Lost {
                report.lost += 1;
                continue;
            }
            report.cases += 1;
            let differences = compare(&case, outcome, &subject.run(&case, mode));
            if differences.is_empty() {
                continue;
            }
            let count = report.failed_by_form.entry(form).or_default();
            *count += 1;
            if *count == 1 && report.failures.len() < KEPT_FAILURES {
                let (case, differences) = shrink(&mut native, subject, case, differences)?;
                report.failures.push(Failure { form, number, case, differences });
            }
        }
    }
    Ok(report)
}
