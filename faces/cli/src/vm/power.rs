//! `vireo vm shutdown`, `vireo vm freeze`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use vireo_services::Pulse;
use vireo_worker::control::{Answer, ControlError, MachineInfo, Request};

use super::{Machine, refused, unexpected};

/// Options of `vireo vm shutdown`.
#[derive(Args)]
pub struct ShutdownArgs {
    #[command(flatten)]
    machine: Machine,
    /// The guest is to start anew.
    #[arg(long)]
    restart: bool,
    /// Wait until the machine has ended; or with --restart, until the guest answers again.
    #[arg(long)]
    wait: bool,
    /// How long to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 300, requires = "wait")]
    timeout: u64,
}

/// Options of `vireo vm freeze`.
#[derive(Args)]
pub struct FreezeArgs {
    #[command(flatten)]
    machine: Machine,
    /// The guest is thawed after so many seconds, if nobody has done that: 1 to 600.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 30)]
    seconds: u64,
}

/// How often it is looked whether the machine has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Runs `vireo vm shutdown`.
pub fn shutdown(args: &ShutdownArgs) -> ExitCode {
    let before = match args.machine.ask(&Request::Info) {
        Ok(Answer::Info { info }) => info.resets,
        Ok(_) => return unexpected(),
        Err(e) => return refused(&e),
    };
    let code = args.machine.have(&Request::Shutdown { restart: args.restart });
    if code != ExitCode::SUCCESS || !args.wait {
        return code;
    }
    let end = Instant::now() + Duration::from_secs(args.timeout);
    while Instant::now() < end {
        match (args.machine.ask(&Request::Info), args.restart) {
            (Err(ControlError::NotThere { .. }), false) => return ExitCode::SUCCESS,
            (Err(e @ ControlError::NotThere { .. }), true) => return refused(&e),
            (Ok(Answer::Info { info }), true) if is_back(&info, before) => return ExitCode::SUCCESS,
            // It is about to end, or goes on.
            _ => std::thread::sleep(LOOK),
        }
    }
    let what = if args.restart { "is not back" } else { "has not ended" };
    crate::complain(&format_args!("the guest said that it would, and {what} after {} s", args.timeout));
    ExitCode::from(4)
}

fn is_back(info: &MachineInfo, resets: u32) -> bool {
    info.resets > resets && info.heartbeat == Pulse::Ok
}

/// Runs `vireo vm freeze`.
pub fn freeze(args: &FreezeArgs) -> ExitCode {
    args.machine.have(&Request::Freeze { seconds: args.seconds })
}
