//! The results for people.

use std::fmt;

use crate::cpu::results::{Results, Row};
use crate::cpu::side::Side;

/// Shows all results: a line for each program, one for each group, then the limits.
pub struct Table<'a>(pub &'a Results);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let results = self.0;
        write!(f, "{}", results.setting)?;
        if let Some(compiler) = &results.compiler {
            writeln!(f, "programs  compiled by {compiler}")?;
        }
        let heads = [
            "native ms",
            "ours ms",
            "TCG ms",
            "int. ms",
            "ours/native",
            "TCG/native",
            "TCG/ours",
            "int./ours",
        ];
        write!(f, "\n{:<18}", "")?;
        heads.iter().try_for_each(|head| write!(f, " {head:>11}"))?;
        writeln!(f)?;
        row(f, &results.boot)?;
        for group in results.groups() {
            writeln!(f)?;
            results.rows.iter().filter(|r| r.group == group).try_for_each(|r| row(f, r))?;
            write!(f, "{:<18}{:48}", format!("geomean {group}"), "")?;
            ratios(f, |side, by| results.geomean(group, side, by))?;
        }
        writeln!(
            f,
            "\nBest times, by the guest's clock in guests. TCG/ours: how many times faster than TCG ours is; int.: our interpreter.\n"
        )?;
        // A program that fails, or computes something else, may be fast.
        if !results.complaints().is_empty() {
            return writeln!(f, "No verdict: programs failed, or check values differ.");
        }
        for v in results.verdicts() {
            let verdict = if v.passes() { "PASS" } else { "FAIL" };
            let than = v.than.name();
            write!(f, "{verdict}  {:<32} {:>7.2} x {than}, must {}", v.what, v.measured, v.must)?;
            v.aim.map_or(Ok(()), |aim| write!(f, ", aim {aim}"))?;
            writeln!(f)?;
        }
        Ok(())
    }
}

fn row(f: &mut fmt::Formatter<'_>, row: &Row) -> fmt::Result {
    write!(f, "{:<18}", row.name)?;
    for side in Side::ALL {
        let outcome = row.on(side);
        match outcome.best() {
            Some(seconds) => write!(f, " {:>11.3}", seconds * 1000.0)?,
            None if !outcome.errors.is_empty() => write!(f, " {:>11}", "FAILED")?,
            None => write!(f, " {:>11}", "-")?,
        }
    }
    ratios(f, |side, by| row.ratio(side, by))
}

/// The last columns and the end of the line.
fn ratios(f: &mut fmt::Formatter<'_>, ratio: impl Fn(Side, Side) -> Option<f64>) -> fmt::Result {
    use Side::{Interpreter, Native, Tcg, Vireo};
    for (side, by) in [(Vireo, Native), (Tcg, Native), (Tcg, Vireo), (Interpreter, Vireo)] {
        match ratio(side, by) {
            Some(ratio) => write!(f, " {ratio:>11.2}")?,
            None => write!(f, " {:>11}", "-")?,
        }
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::results::tests::sample;

    #[test]
    fn a_table_has_rows_means_and_verdicts() {
        let mut results = sample();
        let text = Table(&results).to_string();
        let words = |start: &str| {
            let line =
                text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{start}: {text}"));
            line.split_whitespace().map(str::to_string).collect::<Vec<_>>()
        };
        assert_eq!(words("fib"), ["fib", "10.000", "20.000", "160.000", "-", "2.00", "16.00", "8.00", "-"]);
        assert_eq!(words("geomean integer"), ["geomean", "integer", "2.83", "11.31", "4.00", "-"]);
        assert_eq!(words("boot"), ["boot", "-", "-", "-", "-", "-", "-", "-", "-"]);
        assert!(text.contains("PASS  integer geomean") && text.contains("FAIL  system geomean"));

        results.outcome(2, Side::Vireo).errors.push("hung".into());
        let text = Table(&results).to_string();
        assert!(text.contains("FAILED") && text.contains("No verdict") && !text.contains("PASS"), "{text}");
    }
}
