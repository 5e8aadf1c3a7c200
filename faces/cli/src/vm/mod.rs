//! `vireo vm`: a file for each thing of a machine.

mod disk;
mod nic;
mod screen;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use vireo_worker::control::{Answer, Request, ask};

use crate::output::Format as Output;

/// Subcommands of `vireo vm`.
#[derive(Subcommand)]
pub enum VmCommand {
    /// Disks of a running machine.
    Disk {
        #[command(subcommand)]
        command: disk::VmDiskCommand,
    },
    /// Network adapters of a running machine.
    Nic {
        #[command(subcommand)]
        command: nic::VmNicCommand,
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

impl Target {
    /// Asks the machine, if there is something to ask.
    fn ask(&self, request: Result<Request, String>) -> Result<Answer, String> {
        ask(&self.control, &request?).map_err(|e| e.to_string())
    }
}

/// Says what was answered, or why nothing was.
fn tell(answer: Result<Answer, String>, say: impl FnOnce(Answer) -> ExitCode) -> ExitCode {
    match answer {
        Ok(answer) => say(answer),
        Err(e) => {
            crate::complain(&e);
            ExitCode::FAILURE
        }
    }
}

/// Runs a subcommand.
pub fn run(command: &VmCommand) -> ExitCode {
    match command {
        VmCommand::Disk { command } => disk::run(command),
        VmCommand::Nic { command } => nic::run(command),
        VmCommand::Screenshot(args) => screen::shoot(args),
        VmCommand::Type(args) => screen::type_keys(args),
    }
}
