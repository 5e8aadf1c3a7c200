//! Times, ratios, geometric means and the limits they are held against.

use serde::Serialize;

use crate::cpu::reply::Catalogue;
use crate::cpu::side::{REWRITE, Side};
use crate::setting::Setting;

/// What a program took on one side.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// The time of each measurement, in seconds.
    pub times: Vec<f64>,
    /// What it computed, each different value once.
    pub checks: Vec<u64>,
    /// What went wrong.
    pub errors: Vec<String>,
}

impl Outcome {
    /// Adds a measurement.
    pub fn add(&mut self, seconds: f64, check: u64) {
        self.times.push(seconds);
        if !self.checks.contains(&check) {
            self.checks.push(check);
        }
    }

    /// The best time, in seconds; none when anything went wrong.
    pub fn best(&self) -> Option<f64> {
        self.times.iter().copied().reduce(f64::min).filter(|_| self.errors.is_empty())
    }
}

/// A program on all sides.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The group that it counts for.
    pub group: String,
    /// On the host's processor.
    pub native: Outcome,
    /// In ours.
    pub vireo: Outcome,
    /// In QEMU's software emulation.
    pub tcg: Outcome,
    /// In our interpreter, where that is measured.
    pub interpreter: Outcome,
}

impl Row {
    fn new(name: &str, group: &str) -> Self {
        let [native, vireo, tcg, interpreter] = Default::default();
        Self { name: name.into(), group: group.into(), native, vireo, tcg, interpreter }
    }

    /// One side.
    pub fn on(&self, side: Side) -> &Outcome {
        match side {
            Side::Native => &self.native,
            Side::Vireo => &self.vireo,
            Side::Tcg => &self.tcg,
            Side::Interpreter => &self.interpreter,
        }
    }

    fn on_mut(&mut self, side: Side) -> &mut Outcome {
        match side {
            Side::Native => &mut self.native,
            Side::Vireo => &mut self.vireo,
            Side::Tcg => &mut self.tcg,
            Side::Interpreter => &mut self.interpreter,
        }
    }

    /// Best time on one side by the best on another.
    pub fn ratio(&self, side: Side, by: Side) -> Option<f64> {
        Some(self.on(side).best()? / self.on(by).best()?)
    }
}

/// A limit that the project has set itself for how many times faster than TCG, or than our interpreter, ours is.
#[derive(Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Of what.
    pub what: String,
    /// Faster than what.
    pub than: Side,
    /// What was measured.
    pub measured: f64,
    /// What it must be at least.
    pub must: f64,
    /// What is aimed at, where that is more.
    pub aim: Option<f64>,
}

impl Verdict {
    /// Whether the limit is kept.
    pub fn passes(&self) -> bool {
        self.measured >= self.must
    }
}

/// Group, least geometric mean of TCG's time by ours, and the aim.
const LIMITS: [(&str, f64, Option<f64>); 4] =
    [("boot", 1.25, Some(2.0)), ("integer", 1.5, Some(2.0)), ("sse", 10.0, None), ("system", 3.0, Some(5.0))];

/// All that was measured.
#[derive(Serialize)]
pub struct Results {
    /// Where, and with what.
    #[serde(flatten)]
    pub setting: Setting,
    /// What our programs were compiled with.
    pub compiler: Option<String>,
    /// From the start of the process to the guest's first program.
    pub boot: Row,
    /// The programs.
    pub rows: Vec<Row>,
}

impl Results {
    /// Nothing measured yet.
    pub fn new(setting: Setting, catalogue: &Catalogue) -> Self {
        let rows = catalogue.programs.iter().map(|p| Row::new(&p.name, &p.group)).collect();
        Self { setting, compiler: catalogue.compiler.clone(), boot: Row::new("boot", "boot"), rows }
    }

    /// Adds a boot.
    pub fn booted(&mut self, side: Side, seconds: f64) {
        self.boot.on_mut(side).add(seconds, 0);
    }

    /// What a program took on one side; programs are numbered as in the catalogue.
    pub fn outcome(&mut self, program: usize, side: Side) -> &mut Outcome {
        self.rows[program].on_mut(side)
    }

    /// The groups, in the order of their first programs.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !groups.contains(&row.group.as_str()) {
                groups.push(&row.group);
            }
        }
        groups
    }

    /// The geometric mean of a ratio over the programs of a group that have both times.
    pub fn geomean(&self, group: &str, side: Side, by: Side) -> Option<f64> {
        geomean(self.rows.iter().filter(|r| r.group == group).filter_map(|r| r.ratio(side, by)))
    }

    /// The limits beside what was measured, as far as it was.
    pub fn verdicts(&self) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for (group, must, aim) in LIMITS {
            let measured = match group {
                "boot" => self.boot.ratio(Side::Tcg, Side::Vireo),
                _ => self.geomean(group, Side::Tcg, Side::Vireo),
            };
            let what = if group == "boot" { "boot to userland".into() } else { format!("{group} geomean") };
            let than = Side::Tcg;
            verdicts.extend(measured.map(|measured| Verdict { what, than, measured, must, aim }));
        }
        verdicts.extend(self.slowest(Side::Tcg, "program"));
        verdicts.extend(self.slowest(Side::Interpreter, REWRITE));
        verdicts
    }

    /// The verdict on the program that is slowest as compared to a side.
    fn slowest(&self, than: Side, of: &str) -> Option<Verdict> {
        let ratio = |row: &Row| Some((row.ratio(than, Side::Vireo)?, row.name.clone()));
        let (measured, name) = self.rows.iter().filter_map(ratio).min_by(|a, b| a.0.total_cmp(&b.0))?;
        Some(Verdict { what: format!("slowest {of} ({name})"), than, measured, must: 1.0, aim: None })
    }

    /// Programs that failed, or that computed different things.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = Vec::new();
        for row in &self.rows {
            let mut values: Vec<u64> = Vec::new();
            for side in Side::ALL {
                let outcome = row.on(side);
                complaints
                    .extend(outcome.errors.iter().map(|e| format!("{}, {}: {e}", row.name, side.name())));
                values.extend(&outcome.checks);
            }
            values.sort_unstable();
            values.dedup();
            if values.len() > 1 {
                let of = |side: Side| format!("{} {:x?}", side.name(), row.on(side).checks);
                complaints.push(format!(
                    "{}: check values differ: {}",
                    row.name,
                    Side::ALL.map(of).join(", ")
                ));
            }
        }
        complaints
    }
}

/// The geometric mean; of nothing, none.
fn geomean(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = ratios.fold((0_u32, 0.0), |(n, sum), ratio| (n + 1, sum + ratio.ln()));
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::cpu::reply::Program;

    /// Two integer programs and a system call; each side has one time, and all compute 7.
    pub fn sample() -> Results {
        let program = |name: &str, group: &str| Program { name: name.into(), group: group.into() };
        let catalogue = Catalogue {
            compiler: Some("gcc 12".into()),
            programs: vec![program("fib", "integer"), program("lz", "integer"), program("getppid", "system")],
        };
        let setting = Setting {
            vireo: "vireo 1".into(),
            qemu: "qemu 2".into(),
            kernel: "linux 6.1".into(),
            machine: "1 processor(s)".into(),
            host: "2 processor(s)".into(),
            load_before: 0.5,
        };
        let mut results = Results::new(setting, &catalogue);
        let times = [[0.010, 0.020, 0.160], [0.010, 0.040, 0.080], [0.010, 0.050, 0.040]];
        for (program, times) in times.into_iter().enumerate() {
            for (side, seconds) in Side::ALL.into_iter().zip(times) {
                results.outcome(program, side).add(seconds, 7);
            }
        }
        results
    }

    #[test]
    fn geometric_means() {
        let mean = geomean([2.0, 8.0].into_iter()).unwrap();
        assert!((mean - 4.0).abs() < 1e-12);
        assert_eq!(geomean(std::iter::empty()), None);
    }

    #[test]
    fn the_best_time_counts() {
        let mut outcome = Outcome::default();
        assert_eq!(outcome.best(), None);
        for seconds in [0.3, 0.1, 0.2] {
            outcome.add(seconds, 1);
        }
        assert_eq!((outcome.best(), outcome.checks.len()), (Some(0.1), 1));
        outcome.errors.push("hung".into());
        assert_eq!(outcome.best(), None);
    }

    #[test]
    fn verdicts_are_of_groups_and_of_the_slowest() {
        let verdicts = sample().verdicts();
        let told: Vec<_> = verdicts.iter().map(|v| (v.what.as_str(), v.passes())).collect();
        assert_eq!(
            told,
            [("integer geomean", true), ("system geomean", false), ("slowest program (getppid)", false)]
        );
        assert!((verdicts[0].measured - 4.0).abs() < 1e-12);
        assert!((verdicts[2].measured - 0.8).abs() < 1e-12);
    }

    #[test]
    fn different_values_and_errors_are_complaints() {
        let mut results = sample();
        assert!(results.complaints().is_empty());
        results.outcome(1, Side::Vireo).add(0.1, 8);
        results.outcome(2, Side::Tcg).errors.push("hung".into());
        let complaints = results.complaints();
        assert_eq!(complaints.len(), 2);
        assert!(complaints[0].starts_with("lz: check values differ: native [7], ours [7, 8]"));
        assert_eq!(complaints[1], "getppid, TCG: hung");
    }
}
