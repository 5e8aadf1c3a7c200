//! Side-by-side measurements against QEMU's software emulation (TCG), in turn, with the same kernel, initial RAM disk,
//! memory and number of processors. Prints times and their ratio.
//!
//! It judges nothing: a measurement fails only when a guest does not get as far as the measurement needs.
#![forbid(unsafe_code)]

mod boot;
mod clock;
mod idle;
mod peer;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use vireo_tests::{Failure, Guest};

use crate::peer::Machines;
use crate::report::Report;

/// Compares Vireo with QEMU TCG on this host.
#[derive(Parser)]
#[command(name = "vireo-bench", version)]
struct Options {
    /// The `vireo` binary.
    #[arg(long, value_name = "FILE")]
    vireo: PathBuf,
    /// Folder of the guest, as built by guests/build.sh.
    #[arg(long, value_name = "FOLDER")]
    guest: PathBuf,
    /// Boots of each side, for each number of processors.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
    /// Numbers of processors, each measured.
    #[arg(long, value_name = "LIST", default_value = "1,4", value_delimiter = ',')]
    cpus: Vec<u32>,
    /// How long the clocks are compared, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=300))]
    clock_seconds: u32,
    /// How to print the results.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match measure(&options).and_then(|report| Ok(report.print(options.output)?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vireo-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &Options) -> Result<Report, Box<dyn std::error::Error>> {
    let machines = Machines { vireo: options.vireo.clone(), guest: Guest::at(&options.guest) };
    let mut report = Report::of_this_host(&options.vireo, &options.guest)?;
    for &cpus in &options.cpus {
        report.boots.push(boot::measure(&machines, cpus, options.runs)?);
    }
    report.idle = Some(idle::measure(&machines)?);
    for &cpus in &options.cpus {
        report.clocks.push(clock::measure(&machines, cpus, options.clock_seconds)?);
    }
    Ok(report)
}

/// Tells on standard error what is measured now; standard output is for the results.
fn progress(what: &str) {
    eprintln!("measuring {what}");
}

/// A guest that came too short of what a measurement needs.
type Measured<T> = Result<T, Failure>;
