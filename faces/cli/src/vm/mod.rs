//! `vireo vm`: what is asked of running machines. A file for each noun.

mod copy;
mod disk;
mod info;
mod kvp;
mod memory;
mod nic;
mod power;
mod screen;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use vireo_worker::control::{Answer, ControlError, Reason, Request, ask};

use crate::output::Format as Output;

/// Shown below the commands.
pub const AFTER_HELP: &str = "\
Exit status: 0 it is done; 1 it could not be done; 2 wrong usage; 3 the guest has no service that could do it;
4 the guest does not answer.";

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
    /// Says what a machine is, and what its guest tells of itself.
    Info(info::InfoArgs),
    /// Asks the guest to switch itself off, or to restart, in good order.
    Shutdown(power::ShutdownArgs),
    /// Resets the machine, whatever its guest is at.
    Reset(Machine),
    /// Interrupts the guest by an NMI: one that is set up for it writes a dump of itself.
    Nmi(Machine),
    /// Has the guest write what it holds back and freeze its file systems.
    Freeze(power::FreezeArgs),
    /// Has the guest thaw them.
    Thaw(Machine),
    /// Copies a file into the guest.
    Copy(copy::CopyArgs),
    /// Pairs of keys and values that host and guest leave for each other.
    Kvp {
        #[command(subcommand)]
        command: kvp::KvpCommand,
    },
    /// Says what memory the guest has and needs, or how much it is to have.
    Memory(memory::MemoryArgs),
}

/// The machine that is meant.
#[derive(Args)]
pub struct Machine {
    /// The socket that the machine was started with (`vireo run --control`).
    #[arg(long, value_name = "SOCKET")]
    control: PathBuf,
}

/// The machine that is meant, and how to print its answer.
#[derive(Args)]
pub struct Target {
    #[command(flatten)]
    machine: Machine,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Machine {
    fn ask(&self, request: &Request) -> Result<Answer, ControlError> {
        ask(&self.control, request)
    }

    /// Asks for something that has no result but that it is done.
    fn have(&self, request: &Request) -> ExitCode {
        match self.ask(request) {
            Ok(Answer::Done) => ExitCode::SUCCESS,
            Ok(_) => unexpected(),
            Err(e) => refused(&e),
        }
    }
}

impl Target {
    /// Asks the machine, if there is something to ask.
    fn ask(&self, request: Result<Request, String>) -> Result<Answer, String> {
        self.machine.ask(&request?).map_err(|e| e.to_string())
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

/// Says why something was not done; the exit code that tells it.
fn refused(e: &ControlError) -> ExitCode {
    crate::complain(e);
    match e {
        ControlError::Refused { reason: Some(Reason::NoService), .. } => ExitCode::from(3),
        ControlError::Refused { reason: Some(Reason::NoAnswer), .. } => ExitCode::from(4),
        _ => ExitCode::FAILURE,
    }
}

/// The machine said something that is no answer to what it was asked.
fn unexpected() -> ExitCode {
    crate::complain(&"the machine's answer is to another question");
    ExitCode::FAILURE
}

/// Runs a subcommand.
pub fn run(command: &VmCommand) -> ExitCode {
    match command {
        VmCommand::Disk { command } => disk::run(command),
        VmCommand::Nic { command } => nic::run(command),
        VmCommand::Screenshot(args) => screen::shoot(args),
        VmCommand::Type(args) => screen::type_keys(args),
        VmCommand::Info(args) => info::run(args),
        VmCommand::Shutdown(args) => power::shutdown(args),
        VmCommand::Reset(machine) => machine.have(&Request::Reset),
        VmCommand::Nmi(machine) => machine.have(&Request::Nmi),
        VmCommand::Freeze(args) => power::freeze(args),
        VmCommand::Thaw(machine) => machine.have(&Request::Thaw),
        VmCommand::Copy(args) => copy::run(args),
        VmCommand::Kvp { command } => kvp::run(command),
        VmCommand::Memory(args) => memory::run(args),
    }
}
