//! Programs natively, in ours and in TCG, in turn: for each program one side after the other, and that in several
//! rounds, so that a disturbance of the host hits all sides. The best time of each side counts.
//!
//! What a program computes (its check value) must be the same on all sides. The ratios are shown beside the limits
//! that the project has set itself; they decide nothing here.

mod reply;
mod results;
mod side;
mod systemd;
mod table;

use std::path::PathBuf;

use clap::Args;

use crate::cpu::reply::{Catalogue, Program, Reply};
use crate::cpu::results::{Outcome, Results};
use crate::cpu::side::{Runner, Side};
use crate::cpu::systemd::Systemd;
use crate::setting::Setting;
use crate::{AnyResult, Format, progress};

/// Which programs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Those of bench/cpu, which also run natively.
    Cpu,
    /// Real programs as Debian packages them.
    Programs,
    /// Loads of many processes, on several processors.
    Parallel,
}

impl Set {
    /// Processors of the guest, unless the options say otherwise.
    fn cpus(self) -> u32 {
        if self == Self::Parallel { 4 } else { 1 }
    }

    /// Memory of the guest. A compiler's initial RAM disk, its contents and a build take more than the others.
    fn memory_mib(self) -> u32 {
        if self == Self::Parallel { 1024 } else { 512 }
    }
}

/// Options of any set.
#[derive(Args)]
pub struct Options {
    /// The `vireo` binary.
    #[arg(long, value_name = "FILE")]
    vireo: PathBuf,
    /// Folder of the guest, as built by guests/build.sh.
    #[arg(long, value_name = "FOLDER")]
    guest: PathBuf,
    /// What executes our guest, as in `vireo run`.
    #[arg(long, value_name = "ENGINE", default_value = "soft")]
    engine: String,
    /// Boots of each side; all programs are measured after each.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How often a program runs each time it is measured.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Processors of the guest: 1, or 4 for parallel loads, when not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: Option<u32>,
    /// Folder of a guest with systemd, as built by guests/build.sh, whose boot is measured as one more program.
    #[arg(long, value_name = "FOLDER")]
    systemd: Option<PathBuf>,
    /// Only these programs.
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    only: Vec<String>,
    /// How to print the results.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Measures a set and prints the results. An error when a program failed anywhere or check values differ.
pub fn measure(set: Set, options: &Options) -> AnyResult<()> {
    let machine = format!("{} processor(s), {} MiB", options.cpus.unwrap_or(set.cpus()), set.memory_mib());
    let setting = Setting::of_this_host(&options.vireo, &options.guest, &machine)?;
    let systemd = Systemd::of(options);
    let mut catalogue = Catalogue::of(set, &options.guest)?;
    catalogue.programs.extend(systemd.as_ref().map(|_| Systemd::program()));
    let catalogue = catalogue.only(&options.only)?;
    let mut results = Results::new(setting, &catalogue);
    let mut runners = Side::of(set).map(|side| Runner::new(side, set, options)).collect::<Vec<_>>();
    for round in 1..=options.rounds {
        for runner in &mut runners {
            if runner.side() == Side::Interpreter {
                // It is needed late, or not at all.
                runner.stop();
                continue;
            }
            progress(&format!("start, {}, {round} of {}", runner.side().name(), options.rounds));
            if let Some(time) = runner.restart()? {
                results.booted(runner.side(), time.as_secs_f64());
            }
        }
        for program in 0..catalogue.programs.len() {
            let Program { name, group } = &catalogue.programs[program];
            progress(&format!("{name}, {round} of {}", options.rounds));
            for runner in runners.iter_mut().filter(|r| r.side().measures(group)) {
                let outcome = results.outcome(program, runner.side());
                measure_once(outcome, || match &systemd {
                    Some(systemd) if name == systemd::NAME => systemd.boot(runner.side(), options),
                    _ => runner.measure(name, options.repeats),
                });
            }
        }
    }
    match options.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&results)?),
        Format::Table => print!("{}", table::Table(&results)),
    }
    let complaints = results.complaints();
    if complaints.is_empty() { Ok(()) } else { Err(complaints.join("\n").into()) }
}

/// Measures a program on one side. One that has failed there is not tried again: it may have hung.
fn measure_once(outcome: &mut Outcome, measure: impl FnOnce() -> Result<Reply, String>) {
    if !outcome.errors.is_empty() {
        return;
    }
    match measure() {
        Ok(Reply { seconds, check }) => outcome.add(seconds, check),
        Err(e) => outcome.errors.push(e),
    }
}
