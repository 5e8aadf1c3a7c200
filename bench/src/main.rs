//! Side-by-side measurements against QEMU's software emulation (TCG), in turn, with the same kernel, initial RAM disk,
//! memory and number of processors. Prints times and their ratio.
//!
//! It judges no figure: a measurement fails only when a guest does not get as far as the measurement needs, or when a
//! program computes something else than elsewhere.
#![deny(unsafe_code)]

mod boot;
mod clock;
mod cpu;
mod idle;
mod io;
mod peer;
mod report;
mod setting;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use vireo_tests::{Failure, Guest};

use crate::cpu::Set;
use crate::peer::Machines;
use crate::report::Report;
use crate::setting::Setting;

/// Compares Vireo with QEMU TCG on this host: boot, memory and clock, or what a subcommand names.
#[derive(Parser)]
#[command(name = "vireo-bench", version, args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    subject: Option<Subject>,
    #[command(flatten)]
    machine: Option<MachineOptions>,
}

#[derive(Subcommand)]
enum Subject {
    /// The programs of bench/cpu: natively, in ours and in TCG.
    Cpu(cpu::Options),
    /// Real programs of Debian: in ours and in TCG.
    Programs(cpu::Options),
    /// Builds and pipes that keep several processors busy: in ours and in TCG.
    Parallel(cpu::Options),
    /// Disks: requests of a driver in this process, and of fio in guests.
    Io(io::Options),
}

#[derive(Args)]
struct MachineOptions {
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

type AnyResult<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let done = match Options::parse() {
        Options { subject: Some(Subject::Cpu(options)), .. } => cpu::measure(Set::Cpu, &options),
        Options { subject: Some(Subject::Programs(options)), .. } => cpu::measure(Set::Programs, &options),
        Options { subject: Some(Subject::Parallel(options)), .. } => cpu::measure(Set::Parallel, &options),
        Options { subject: Some(Subject::Io(options)), .. } => io::measure(&options),
        Options { machine: Some(options), .. } => measure_machine(&options),
        Options { .. } => Err("what to measure? see --help".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vireo-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn measure_machine(options: &MachineOptions) -> AnyResult<()> {
    let machines = Machines { vireo: options.vireo.clone(), guest: Guest::at(&options.guest) };
    let mut report = Report::of(Setting::of_this_host(&options.vireo, &options.guest, "512 MiB")?);
    for &cpus in &options.cpus {
        report.boots.push(boot::measure(&machines, cpus, options.runs)?);
    }
    report.idle = Some(idle::measure(&machines)?);
    for &cpus in &options.cpus {
        report.clocks.push(clock::measure(&machines, cpus, options.clock_seconds)?);
    }
    report.print(options.output)?;
    Ok(())
}

/// Tells on standard error what is measured now; standard output is for the results.
fn progress(what: &str) {
    eprintln!("measuring {what}");
}

/// A guest that came too short of what a measurement needs.
type Measured<T> = Result<T, Failure>;
