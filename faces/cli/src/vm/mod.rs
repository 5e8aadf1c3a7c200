//! `vireo vm`: running machines, each noun in a file of its own.

mod disk;
mod screen;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use crate::output::Format as Output;

/// Subcommands of `vireo vm`.
#[derive(Subcommand)]
pub enum VmCommand {
    /// Disks of a running machine.
    Disk {
        #[command(subcommand)]
        command: disk::VmDiskCommand,
    },
    /// Writes what is on the screen to a PNG file.
    Screenshot(screen::ScreenshotArgs),
    /// Types on the keyboard.
    Type(screen::TypeArgs),
}

/// The machine that is meant, and how to print its answer.
#[derive(Args)]
pub struct Target {
    /// The socket that the machine was started with (`vireo run --control`).
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// Runs a subcommand.
pub fn run(command: &VmCommand) -> ExitCode {
    match command {
        VmCommand::Disk { command } => disk::run(command),
        VmCommand::Screenshot(args) => screen::shoot(args),
        VmCommand::Type(args) => screen::type_keys(args),
    }
}
