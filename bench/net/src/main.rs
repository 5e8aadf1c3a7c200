//! Networks, measured: the switch's data plane alone through real rings, what policy costs, frames from worker to worker beside the
//! kernel's bridge between TAP devices, and guests beside those of QEMU's software emulation.
//!
//! It judges no figure: a measurement fails only when frames do not arrive.
#![forbid(unsafe_code)]

mod alone;
mod frames;
mod guests;
mod pair;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::guests::{Setup, Way};
use crate::table::Table;

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// The data plane alone.
    Alone,
    /// What policy costs.
    Policy,
    /// From worker to worker, and from TAP device to TAP device through the kernel's bridge.
    Pair,
    /// From a guest to the host, beside TCG.
    Host,
    /// From a guest to another, beside TCG.
    Guest,
}

/// How to print the results.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Measures networks on this host.
#[derive(Parser)]
#[command(name = "vireo-bench-net", version)]
struct Options {
    /// How often all is measured; the best counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each figure is measured, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Only these subjects.
    #[arg(long, value_enum, value_name = "SUBJECT,…", value_delimiter = ',')]
    only: Vec<Subject>,
    /// The `vireo` binary, for guests.
    #[arg(long, value_name = "FILE")]
    vireo: PathBuf,
    /// Folder of a guest with iperf3 and qperf, as built by guests/build.sh.
    #[arg(long, value_name = "FOLDER")]
    guest: PathBuf,
    /// Each guest's processors.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
    cpus: u32,
    /// How to print the results.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

fn main() -> ExitCode {
    match measure(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vireo-bench-net: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> AnyResult<()> {
    let wants = |subject| options.only.is_empty() || options.only.contains(&subject);
    let time = Duration::from_secs(options.seconds.into());
    let setup = Setup {
        vireo: options.vireo.clone(),
        guest: options.guest.clone(),
        cpus: options.cpus,
        seconds: options.seconds,
    };
    let mut table = Table::default();
    for round in 1..=options.rounds {
        eprintln!("measuring: round {round} of {}", options.rounds);
        if wants(Subject::Alone) {
            alone::measure(time, &mut table)?;
        }
        if wants(Subject::Policy) {
            alone::measure_policy(time, &mut table)?;
        }
        if wants(Subject::Pair) {
            pair::measure(time, &mut table)?;
        }
        for (subject, way) in [(Subject::Host, Way::Host), (Subject::Guest, Way::Guest)] {
            if wants(subject) {
                guests::measure(&setup, way, &mut table)?;
            }
        }
    }
    table.print(options.output)
}
