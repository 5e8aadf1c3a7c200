//! What `cpu-programs` (bench/cpu/programs) says.

use std::path::Path;
use std::process::Command;

use crate::cpu::Set;

/// A program of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// The group that it counts for.
    pub group: String,
}

/// All programs of a set, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Catalogue {
    /// What the programs were compiled with, where they are ours.
    pub compiler: Option<String>,
    /// The programs.
    pub programs: Vec<Program>,
}

impl Catalogue {
    /// Asks the program in a guest's folder.
    pub fn of(set: Set, guest: &Path) -> Result<Self, String> {
        let binary = guest.join("cpu-programs");
        let mut command = Command::new(&binary);
        command.arg("list");
        if set != Set::Cpu {
            command.arg(guest.join("bench-commands"));
        }
        let out = command.output().map_err(|e| format!("{} does not start: {e}", binary.display()))?;
        let catalogue = Self::parse(&String::from_utf8_lossy(&out.stdout));
        if catalogue.programs.is_empty() {
            return Err(format!("{} lists no programs ({})", binary.display(), out.status));
        }
        Ok(catalogue)
    }

    fn parse(text: &str) -> Self {
        let mut catalogue = Self::default();
        for line in text.lines() {
            if let Some(compiler) = line.strip_prefix("VIREO-COMPILER ") {
                catalogue.compiler = Some(compiler.into());
            } else if let Some((name, group)) =
                line.strip_prefix("VIREO-PROGRAM ").and_then(|l| l.split_once(' '))
            {
                catalogue.programs.push(Program { name: name.into(), group: group.into() });
            }
        }
        catalogue
    }

    /// Those of the names given; all when there are none.
    pub fn only(mut self, names: &[String]) -> Result<Self, String> {
        if let Some(unknown) = names.iter().find(|n| self.programs.iter().all(|p| p.name != **n)) {
            let known: Vec<_> = self.programs.iter().map(|p| p.name.as_str()).collect();
            return Err(format!("no program '{unknown}'; there are {}", known.join(", ")));
        }
        if !names.is_empty() {
            self.programs.retain(|p| names.contains(&p.name));
        }
        Ok(self)
    }
}

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reply {
    /// The best time, by the clock of the side that ran it.
    pub seconds: f64,
    /// What the program computed.
    pub check: u64,
}

impl Reply {
    /// Reads the answer to a request for `name`, which took `elapsed` seconds of the host's clock in all.
    pub fn parse(answer: &str, name: &str, elapsed: f64) -> Result<Self, String> {
        if let Some(error) = answer.lines().find_map(|l| l.strip_prefix("VIREO-ERROR ")) {
            return Err(error.into());
        }
        let line = answer.lines().find_map(|l| l.strip_prefix("VIREO-CPU "));
        let line = line.ok_or_else(|| format!("no result for {name} in {answer:?}"))?;
        let words: Vec<_> = line.split_whitespace().collect();
        let (seconds, total, check) = match words[..] {
            [n, seconds, total, check] if n == name => {
                (seconds.parse::<f64>().ok(), total.parse::<f64>().ok(), u64::from_str_radix(check, 16).ok())
            }
            _ => (None, None, None),
        };
        let (Some(seconds), Some(total), Some(check)) = (seconds, total, check) else {
            return Err(format!("not a result for {name}: {line:?}"));
        };
        if !(seconds > 0.0 && seconds.is_finite()) {
            return Err(format!("{name} took {seconds} s: no time at all"));
        }
        // What is outside of the total (a process, its input, a line on the console) takes far less than a second. A
        // guest with a wrong clock would win or lose by that alone.
        if total > elapsed + 0.02 || elapsed > 2.0 * total + 2.0 {
            return Err(format!("{name} took {total} s by its own clock, {elapsed} s by the host's"));
        }
        Ok(Self { seconds, check })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_is_read_and_narrowed() {
        let text = "VIREO-COMPILER gcc 12.2.0\nVIREO-PROGRAM fib integer\nnoise\nVIREO-PROGRAM saxpy sse\n";
        let catalogue = Catalogue::parse(text);
        assert_eq!(catalogue.compiler.as_deref(), Some("gcc 12.2.0"));
        assert_eq!(catalogue.programs.len(), 2);
        assert_eq!(catalogue.programs[1], Program { name: "saxpy".into(), group: "sse".into() });
        assert_eq!(Catalogue::parse(text).only(&[]).unwrap().programs.len(), 2);
        assert_eq!(Catalogue::parse(text).only(&["saxpy".into()]).unwrap().programs[0].name, "saxpy");
        assert!(catalogue.only(&["fob".into()]).unwrap_err().contains("fib, saxpy"));
    }

    #[test]
    fn a_result_is_read() {
        let answer = "1 fib\nVIREO-CPU fib 0.040000000 0.090000000 00000000000000ff\n";
        assert_eq!(Reply::parse(answer, "fib", 0.1), Ok(Reply { seconds: 0.04, check: 255 }));
    }

    #[test]
    fn errors_and_answers_to_something_else_are_refused() {
        let error = |answer, elapsed| Reply::parse(answer, "fib", elapsed).unwrap_err();
        assert_eq!(error("VIREO-ERROR fib: ended by signal 11\n", 0.1), "fib: ended by signal 11");
        assert!(error("", 0.1).contains("no result"));
        assert!(error("VIREO-CPU lz 0.1 0.1 00\n", 0.1).contains("not a result for fib"));
        assert!(error("VIREO-CPU fib 0.1 0.1\n", 0.1).contains("not a result for fib"));
        assert!(error("VIREO-CPU fib 0.1 0.1 xyz\n", 0.1).contains("not a result for fib"));
        assert!(error("VIREO-CPU fib 0.0 0.0 00\n", 0.1).contains("no time"));
        assert!(error("VIREO-CPU fib nan 0.1 00\n", 0.1).contains("no time"));
        // An error beside a result counts: the check value changed from one run to the next.
        assert!(error("VIREO-ERROR fib: 1, then 2\nVIREO-CPU fib 0.1 0.1 02\n", 0.1).contains("then 2"));
    }

    #[test]
    fn a_clock_that_runs_wrong_is_noticed() {
        let answer = "VIREO-CPU fib 1.0 2.0 00\n";
        assert!(Reply::parse(answer, "fib", 2.0).is_ok());
        assert!(Reply::parse(answer, "fib", 1.5).unwrap_err().contains("by the host's"));
        assert!(Reply::parse(answer, "fib", 7.0).unwrap_err().contains("by the host's"));
    }
}
