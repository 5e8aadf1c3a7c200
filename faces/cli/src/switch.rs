//! `vireo switch`.

mod capture;
mod process;
mod set;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use vireo_switchd::control::{self, Answer, Request};
use vireo_switchd::{Config, Folders, Lock, SwitchKind, Uplink};

use crate::output::Format as Output;

/// Where switches are.
#[derive(Args)]
pub struct Place {
    /// The folder of settings and sockets; else VIREO_FOLDER, else /var/lib/vireo and /run/vireo for root, and for others what
    /// XDG_STATE_HOME and XDG_RUNTIME_DIR say.
    #[arg(long, value_name = "FOLDER", global = true)]
    folder: Option<PathBuf>,
}

/// Subcommands of `vireo switch`.
#[derive(Subcommand)]
pub enum SwitchCommand {
    /// Makes a switch, and starts it in the background.
    Create {
        /// What it is to be called.
        name: String,
        /// What it connects: machines with each other (private), these and the host (internal), these and a network (external).
        #[arg(long, value_enum, default_value_t = Kind::Private)]
        kind: Kind,
        /// What is behind it: a TAP device (tap=NAME), or the host's own sockets (nat, or nat=NETWORK). Of an internal switch, the host's own device:
        /// without, a TAP device with the switch's name.
        #[arg(long, value_name = "tap=NAME|nat[=NETWORK]")]
        uplink: Option<Uplink>,
        /// Longest packet, in bytes, that adapters are told.
        #[arg(long, default_value_t = 1500)]
        mtu: u32,
        /// It is not started yet.
        #[arg(long)]
        no_start: bool,
    },
    /// Serves a switch in the foreground, until it is stopped or gets SIGINT or SIGTERM.
    Serve {
        /// Which.
        name: String,
        /// It was started by another one of us.
        #[arg(long, hide = true)]
        background: bool,
    },
    /// Starts a switch in the background.
    Start {
        /// Which.
        name: String,
    },
    /// Stops a switch. Machines lose their carrier until it is started again.
    Stop {
        /// Which.
        name: String,
    },
    /// Stops a switch, and forgets its settings.
    Delete {
        /// Which.
        name: String,
    },
    /// Says which switches there are.
    List {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Says what a switch does: ports, what passed and what was dropped and why, stations, members of groups.
    Show {
        /// Which.
        name: String,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Changes settings of a port, of a switch that runs or not; or, without one, of the switch and of all ports that have none of their own.
    Set(Box<set::SetArgs>),
    /// Writes frames that pass a switch to a file, as pcapng, until it is interrupted.
    Capture {
        /// Which.
        name: String,
        /// The file; - is standard output.
        file: PathBuf,
        /// Only what comes or goes by this port.
        #[arg(long)]
        port: Option<String>,
        /// Ends by itself after so many seconds.
        #[arg(long)]
        seconds: Option<u64>,
    },
}

/// Kinds of switches.
#[derive(Clone, Copy, ValueEnum)]
pub enum Kind {
    /// Machines with each other.
    Private,
    /// These and the host.
    Internal,
    /// These and a network.
    External,
}

/// Runs a subcommand.
pub fn run(place: &Place, command: &SwitchCommand) -> ExitCode {
    match attempt(place, command) {
        Ok(code) => code,
        Err(why) => {
            crate::complain(&why);
            ExitCode::FAILURE
        }
    }
}

fn attempt(place: &Place, command: &SwitchCommand) -> Result<ExitCode, String> {
    let folder = place.folder.clone();
    let folder = folder.map(std::path::absolute).transpose().map_err(|e| format!("the folder: {e}"))?;
    let folders = match &folder {
        Some(folder) => Folders::under(folder),
        None => Folders::usual()?,
    };
    let here = process::Here { folders: &folders, folder: folder.as_deref() };
    match command {
        SwitchCommand::Create { name, kind, uplink, mtu, no_start } => {
            create(&here, &config(name, *kind, uplink.as_ref(), *mtu)?, !no_start)?;
        }
        SwitchCommand::Serve { name, background } => process::serve(&here, name, *background)?,
        SwitchCommand::Start { name } => {
            known(&folders, name)?;
            start(&here, name)?;
        }
        SwitchCommand::Stop { name } => {
            known(&folders, name)?;
            process::stop(&here, name)?;
        }
        SwitchCommand::Delete { name } => {
            known(&folders, name)?;
            delete(&here, name)?;
        }
        SwitchCommand::List { output } => return show::list(&folders, *output),
        SwitchCommand::Show { name, output } => {
            known(&folders, name)?;
            return match ask(&folders, name, &Request::Show)? {
                Answer::Status(status) => Ok(show::print_status(&status, *output)),
                _ => Err("the switch answers something else".into()),
            };
        }
        SwitchCommand::Set(args) => {
            known(&folders, &args.name)?;
            set(&here, &args.name, args.request()?)?;
        }
        SwitchCommand::Capture { name, file, port, seconds } => {
            known(&folders, name)?;
            capture::run(&folders.sockets(name).control(), file, port.clone(), *seconds)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(folders: &Folders, name: &str, request: &Request) -> Result<Answer, String> {
    control::ask(&folders.sockets(name).control(), request).map_err(|e| e.to_string())
}

/// Whether there is such a switch.
fn known(folders: &Folders, name: &str) -> Result<(), String> {
    match folders.has(name) {
        true => Ok(()),
        false => Err(format!("there is no switch {name} (vireo switch list)")),
    }
}

/// The settings of a new switch.
fn config(name: &str, kind: Kind, uplink: Option<&Uplink>, mtu: u32) -> Result<Config, String> {
    let (kind, uplink) = match (kind, uplink) {
        (Kind::Private, None) => (SwitchKind::Private, None),
        (Kind::Private, Some(_)) => return Err("a private switch has no uplink: --kind external has".into()),
        (Kind::Internal, None) => {
            let tap = format!("tap={name}").parse();
            let tap = tap.map_err(|e| format!("the host's device cannot be called as the switch: {e}"))?;
            (SwitchKind::Internal, Some(tap))
        }
        (Kind::Internal, Some(Uplink::Nat(_))) => {
            return Err(
                "an internal switch has the host behind it, by tap=NAME: --kind external has nat".into()
            );
        }
        (Kind::Internal, tap) => (SwitchKind::Internal, tap.cloned()),
        (Kind::External, None) => return Err("an external switch needs --uplink tap=NAME or nat".into()),
        (Kind::External, uplink) => (SwitchKind::External, uplink.cloned()),
    };
    let mut config = Config::new(name, kind, uplink).map_err(|e| e.to_string())?;
    let mtu = vireo_switchd::Change { key: "mtu".into(), value: mtu.to_string() };
    config.change(None, &[mtu]).map_err(|e| e.to_string())?;
    Ok(config)
}

fn create(here: &process::Here<'_>, config: &Config, start: bool) -> Result<(), String> {
    let name = &config.name;
    let path = here.folders.config(name);
    here.folders.make().map_err(|e| format!("{}: {e}", path.display()))?;
    let lock = match process::lock(here, name)? {
        Some(lock) if !here.folders.has(name) => lock,
        None if !here.folders.has(name) => return Err(process::busy(name)),
        _ => return Err(format!("there is a switch {name} already")),
    };
    let saved = config.save(&path).map_err(|e| e.to_string());
    if saved.is_err() || !start {
        return remove(name, &lock).and(saved);
    }
    process::start(here, name, &lock).inspect_err(|_| {
        // As if it had not been tried.
        _ = std::fs::remove_file(&path);
        _ = lock.remove();
    })
}

fn start(here: &process::Here<'_>, name: &str) -> Result<(), String> {
    let lock = process::lock(here, name)?.ok_or_else(|| format!("switch {name} is running already"))?;
    // It may have been deleted since it was looked for.
    if let Err(why) = known(here.folders, name) {
        return remove(name, &lock).and(Err(why));
    }
    process::start(here, name, &lock)
}

/// Changes settings: of a switch that runs by asking it, else in its file.
fn set(here: &process::Here<'_>, name: &str, request: Request) -> Result<(), String> {
    let Some(lock) = process::lock(here, name)? else { return ask(here.folders, name, &request).map(drop) };
    let path = here.folders.config(name);
    let change = || {
        let mut config = Config::load(&path)?;
        match request {
            Request::Set { port, changes } => config.change(port.as_deref(), &changes)?,
            Request::Forget { port } => config.forget(&port)?,
            _ => {}
        }
        config.save(&path)
    };
    remove(name, &lock).and(change().map_err(|e| e.to_string()))
}

fn delete(here: &process::Here<'_>, name: &str) -> Result<(), String> {
    let lock = process::take(here, name)?;
    let path = here.folders.config(name);
    match std::fs::remove_file(&path) {
        // Another one has deleted it.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        done => done.map_err(|e| format!("{}: {e}", path.display()))?,
    }
    remove(name, &lock)
}

/// Removes the files of a switch that does not run.
fn remove(name: &str, lock: &Lock) -> Result<(), String> {
    lock.remove().map_err(|e| format!("the sockets of {name}: {e}"))
}
