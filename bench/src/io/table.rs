//! The best figures, and their ratios.

use std::fmt;

use serde::Serialize;

use crate::io::guest::Side;
use crate::setting::Setting;

/// All figures of the path alone on one line.
#[derive(Serialize)]
struct Null {
    line: String,
    /// Requests per second and channel, best.
    rate: f64,
    target: f64,
    /// Nanoseconds of processor time for a request, least.
    cost: f64,
}

/// Sides by name, each with its best rate, in the order in which they came.
#[derive(Serialize)]
struct Rates {
    line: String,
    rates: Vec<(&'static str, f64)>,
}

impl Rates {
    fn of(&self, side: &str) -> Option<f64> {
        self.rates.iter().find(|(name, _)| *name == side).map(|(_, rate)| *rate)
    }

    fn add(lines: &mut Vec<Self>, line: &str, side: &'static str, rate: f64) {
        let at = lines.iter().position(|l| l.line == line).unwrap_or_else(|| {
            lines.push(Self { line: line.into(), rates: Vec::new() });
            lines.len() - 1
        });
        let rates = &mut lines[at].rates;
        match rates.iter_mut().find(|(name, _)| *name == side) {
            Some((_, best)) => *best = best.max(rate),
            None => rates.push((side, rate)),
        }
    }

    /// One side's rate as a part of another's.
    fn ratio(&self, side: &str, to: &str) -> String {
        match (self.of(side), self.of(to)) {
            (Some(side), Some(to)) => format!("{:.2}", side / to),
            _ => "-".into(),
        }
    }

    fn rate(&self, side: &str) -> String {
        self.of(side).map_or("-".into(), |rate| format!("{rate:.0}"))
    }
}

/// What was measured, where, and with what. Rates are requests per second, the best of all rounds.
#[derive(Serialize)]
pub struct Table {
    #[serde(flatten)]
    setting: Setting,
    null: Vec<Null>,
    files: Vec<Rates>,
    guests: Vec<Rates>,
}

impl Table {
    /// An empty one.
    pub fn new(setting: Setting) -> Self {
        Self { setting, null: Vec::new(), files: Vec::new(), guests: Vec::new() }
    }

    /// A figure of the path alone.
    pub fn null(&mut self, line: &str, rate: f64, target: f64, cost: f64) {
        match self.null.iter_mut().find(|l| l.line == line) {
            Some(l) => (l.rate, l.cost) = (l.rate.max(rate), l.cost.min(cost)),
            None => self.null.push(Null { line: line.into(), rate, target, cost }),
        }
    }

    /// A figure on a file.
    pub fn file(&mut self, line: &str, side: &'static str, rate: f64) {
        Rates::add(&mut self.files, line, side, rate);
    }

    /// A figure of fio.
    pub fn guest(&mut self, line: &str, side: Side, rate: f64) {
        Rates::add(&mut self.guests, line, side.name(), rate);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.setting)?;
        writeln!(f, "figures   requests per second, the best of all rounds")?;
        if !self.null.is_empty() {
            writeln!(
                f,
                "\n{:<28} {:>11} {:>9} {:>9}",
                "path alone, 4k randread", "per channel", "to 300k", "CPU ns"
            )?;
            for l in &self.null {
                writeln!(f, "{:<28} {:>11.0} {:>9.2} {:>9.0}", l.line, l.rate, l.rate / l.target, l.cost)?;
            }
        }
        if !self.files.is_empty() {
            let head = ["io_uring", "raw", "vhdx", "raw/io_u", "vhdx/raw"];
            writeln!(f, "\n{:<28} {}", "path on a file", head.map(|h| format!("{h:>9}")).join(" "))?;
            for l in &self.files {
                let [plain, raw, vhdx] = ["io_uring", "raw", "vhdx"].map(|side| l.rate(side));
                let row = [plain, raw, vhdx, l.ratio("raw", "io_uring"), l.ratio("vhdx", "raw")];
                writeln!(f, "{:<28} {}", l.line, row.map(|c| format!("{c:>9}")).join(" "))?;
            }
        }
        if !self.guests.is_empty() {
            let names = Side::ALL.map(Side::name);
            let head = names.into_iter().chain(["scsi/TCG", "virt/TCG", "scsi/host"]);
            let head: Vec<_> = head.map(|h| format!("{h:>9}")).collect();
            writeln!(f, "\n{:<28} {}", "fio", head.join(" "))?;
            for l in &self.guests {
                let ratios = [l.ratio("scsi", "TCG"), l.ratio("virtio", "TCG"), l.ratio("scsi", "host")];
                let row: Vec<_> = names.into_iter().map(|n| l.rate(n)).chain(ratios).collect();
                let row: Vec<_> = row.iter().map(|c| format!("{c:>9}")).collect();
                writeln!(f, "{:<28} {}", l.line, row.join(" "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_counts_and_what_was_not_measured_has_no_ratio() {
        let mut lines = Vec::new();
        for (side, rate) in [("raw", 10.0), ("raw", 30.0), ("raw", 20.0), ("vhdx", 15.0)] {
            Rates::add(&mut lines, "x", side, rate);
        }
        assert_eq!(lines.len(), 1);
        assert_eq!(
            (lines[0].ratio("vhdx", "raw"), lines[0].ratio("raw", "io_uring")),
            ("0.50".into(), "-".into())
        );
    }
}
