//! The sides of the comparison: `cpu-programs` as a process of the host, or as the first program of a guest.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::Serialize;
use vireo_tests::{Guest, GuestRun, Process};

use crate::Measured;
use crate::cpu::reply::Reply;
use crate::cpu::{Options, Set};

/// Far beyond what a boot or a program takes, a build on a busy host too: what hangs is killed.
const LIMIT: Duration = Duration::from_secs(600);
/// What `cpu-programs` prints when it takes the next request.
const READY: &str = "VIREO-READY";

/// Who runs the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The host's processor.
    Native,
    /// Ours.
    Vireo,
    /// QEMU's software emulation.
    Tcg,
    /// Ours without its translator.
    Interpreter,
}

/// The group of programs whose code changes: these are measured in our interpreter too, which is to be no faster.
pub const REWRITE: &str = "rewrite";

impl Side {
    /// All, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Native, Self::Vireo, Self::Tcg, Self::Interpreter];

    /// The sides on which a set is measured. What Debian packages is not what the host has installed.
    pub fn of(set: Set) -> impl Iterator<Item = Self> {
        let of_any = |side: &Self| matches!(side, Self::Vireo | Self::Tcg);
        Self::ALL.into_iter().filter(move |side| set == Set::Cpu || of_any(side))
    }

    /// Whether programs of a group are measured on it.
    pub fn measures(self, group: &str) -> bool {
        self != Self::Interpreter || group == REWRITE
    }

    /// Its name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Vireo => "ours",
            Self::Tcg => "TCG",
            Self::Interpreter => "our interpreter",
        }
    }
}

/// Runs programs on one side.
pub struct Runner {
    side: Side,
    start: Start,
    process: Option<Process>,
    /// How often the process has said that it is ready.
    ready: usize,
}

/// How a side is started.
pub enum Start {
    Process(PathBuf),
    Vireo { run: GuestRun, binary: PathBuf, engine: String, translate: bool },
    Qemu(GuestRun),
}

impl Start {
    /// A guest on one side; none natively.
    pub fn guest(side: Side, run: GuestRun, options: &Options) -> Option<Self> {
        let (binary, engine) = (options.vireo.clone(), options.engine.clone());
        let vireo = |translate| Some(Self::Vireo { run: run.clone(), binary, engine, translate });
        match side {
            Side::Native => None,
            Side::Vireo => vireo(true),
            Side::Interpreter => vireo(false),
            Side::Tcg => Some(Self::Qemu(run)),
        }
    }

    /// The command line that starts it.
    pub fn command(&self) -> Command {
        match self {
            Self::Process(binary) => {
                let mut command = Command::new(binary);
                command.arg("serve");
                command
            }
            Self::Vireo { run, binary, engine, translate } => {
                let mut command = run.vireo(binary);
                command.args(["--engine", engine]);
                if !translate {
                    command.env("VIREO_TRANSLATOR", "off");
                }
                command
            }
            Self::Qemu(run) => run.qemu(),
        }
    }
}

impl Runner {
    /// A runner whose machine is started when it is needed.
    pub fn new(side: Side, set: Set, options: &Options) -> Self {
        let arguments = match set {
            Set::Cpu => "vireo.args=serve",
            Set::Programs | Set::Parallel => "vireo.args=serve:/etc/bench-commands",
        };
        let run = Guest::at(&options.guest).run("bench").parameter(arguments).parameter("quiet");
        let run = run.cpus(options.cpus.unwrap_or(set.cpus())).memory_mib(set.memory_mib());
        let native = || Start::Process(options.guest.join("cpu-programs"));
        let start = Start::guest(side, run, options).unwrap_or_else(native);
        Self { side, start, process: None, ready: 0 }
    }

    /// Which side it is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// Ends the process. The next measurement starts one.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Starts afresh; for a guest, the time from the start of the process to its first program.
    pub fn restart(&mut self) -> Measured<Option<Duration>> {
        self.process = None;
        self.ready = 1;
        let mut process = Process::start(self.start.command(), LIMIT)?;
        let time = process.wait_for(READY)?;
        self.process = Some(process);
        Ok((self.side != Side::Native).then_some(time))
    }

    /// Measures a program. After a failure of the process (a hang, an end) the next call starts a new one.
    pub fn measure(&mut self, name: &str, repeats: u32) -> Result<Reply, String> {
        if self.process.is_none() {
            self.restart().map_err(|e| e.to_string())?;
        }
        let mut process = self.process.take().ok_or("the process has gone")?;
        let (answer, elapsed) = self.ask(&mut process, name, repeats).map_err(|e| e.to_string())?;
        self.process = Some(process);
        Reply::parse(&answer, name, elapsed)
    }

    /// Sends a request; returns what came up to the next READY, and the seconds until then.
    fn ask(&mut self, process: &mut Process, name: &str, repeats: u32) -> Measured<(String, f64)> {
        process.allow(LIMIT);
        let sent = process.elapsed();
        process.send(format!("{repeats} {name}\n").as_bytes())?;
        self.ready += 1;
        let arrived = process.wait_for_times(READY, self.ready)?;
        Ok((last_answer(&process.output()), arrived.saturating_sub(sent).as_secs_f64()))
    }
}

/// What stands between the last two READYs.
fn last_answer(output: &str) -> String {
    output.rsplit(READY).nth(1).unwrap_or_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_is_found() {
        assert_eq!(last_answer("boot\nVIREO-READY\none\nVIREO-READY\ntwo\nVIREO-READY"), "\ntwo\n");
        assert_eq!(last_answer("boot\n"), "");
    }

    #[test]
    fn real_programs_are_not_run_natively() {
        assert_eq!(Side::of(Set::Cpu).count(), 4);
        for set in [Set::Programs, Set::Parallel] {
            assert!(Side::of(set).eq([Side::Vireo, Side::Tcg]));
        }
    }

    #[test]
    fn the_interpreter_runs_only_what_rewrites_code() {
        assert!(Side::ALL.iter().all(|s| s.measures(REWRITE)));
        assert!(!Side::Interpreter.measures("integer") && Side::Tcg.measures("integer"));
    }
}
