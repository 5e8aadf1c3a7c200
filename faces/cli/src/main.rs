//! The `vireo` command: parses what the user typed, calls the rooms below, prints what they say.
//!
//! Results go to standard output, everything else to standard error. It decides nothing about machines.
#![forbid(unsafe_code)]

mod disk;
mod host;
mod log;
mod output;
mod run;
mod size;
mod switch;
mod vm;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Open virtualization platform for Linux hosts.
#[derive(Parser)]
#[command(name = "vireo", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a virtual machine in the foreground until its guest switches it off.
    #[command(after_help = run::AFTER_HELP)]
    Run(Box<run::RunArgs>),
    /// Disks: creates, describes, checks, converts them.
    Disk {
        #[command(subcommand)]
        command: disk::DiskCommand,
    },
    /// Running machines: their disks, networks, screen, memory and guests.
    #[command(after_help = vm::AFTER_HELP)]
    Vm {
        #[command(subcommand)]
        command: vm::VmCommand,
    },
    /// Virtual switches: makes, serves, shows, changes them.
    Switch {
        #[command(flatten)]
        place: switch::Place,
        #[command(subcommand)]
        command: switch::SwitchCommand,
    },
    /// About this host.
    Host {
        #[command(subcommand)]
        command: host::HostCommand,
    },
}

fn main() -> ExitCode {
    use tracing_subscriber::EnvFilter;
    let wanted = std::env::var("VIREO_LOG").unwrap_or_else(|_| "warn".into());
    let filter = EnvFilter::try_new(&wanted);
    let refused = filter.as_ref().err().map(ToString::to_string);
    // Standard error may be full or closed, which is no reason to end a guest.
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "warn".into()))
        .with_writer(log::writer)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false)
        .init();
    if let Some(why) = refused {
        _ = writeln!(std::io::stderr(), "vireo: VIREO_LOG={wanted} is not understood: {why}");
    }
    raise_descriptors();
    match Cli::parse().command {
        Command::Run(args) => run::run(&args),
        Command::Disk { command } => disk::run(&command),
        Command::Vm { command } => vm::run(&command),
        Command::Switch { place, command } => switch::run(&place, &command),
        Command::Host { command } => host::run(&command),
    }
}

/// Has as many file descriptors as the host allows, which is far more than a process has by itself: networks take one for each flow of
/// a guest, switches two for each port.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where even that is refused, it is as it was.
    _ = setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit });
}

/// One line on standard error.
fn complain(message: &dyn std::fmt::Display) {
    // Where standard error takes nothing, there is nobody to tell.
    _ = writeln!(std::io::stderr(), "vireo: {message}");
}
