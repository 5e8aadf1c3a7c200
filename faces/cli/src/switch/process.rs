//! Processes of switches: this one, or one in the background.
//!
//! Who starts one has its lock, and the process that is started inherits it as its standard input: nobody comes in between.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vireo_switchd::control::Request;
use vireo_switchd::{Folders, Lock, Service};

/// How long a switch may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(20);
/// The same, of who wants to be the first.
const SOON: Duration = Duration::from_micros(500);

/// Where switches are.
pub struct Here<'a> {
    /// All of it.
    pub folders: &'a Folders,
    /// What the user said, if anything.
    pub folder: Option<&'a Path>,
}

/// Serves a switch until it is to end.
pub fn serve(here: &Here<'_>, name: &str, background: bool) -> Result<(), String> {
    if background {
        Service::leave_terminal();
        crate::log::bound();
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(|e| format!("signals: {e}"))?;
    let service = match background {
        true => Service::start_locked(here.folders, name, inherited(here, name)?),
        false => Service::start(here.folders, name),
    };
    let service = service.map_err(|e| format!("switch {name}: {e}"))?;
    let end = service.ender();
    let take = move || signals.forever().take(1).for_each(|_| end());
    std::thread::Builder::new().name("signals".into()).spawn(take).map_err(|e| format!("a thread: {e}"))?;
    service.wait().map_err(|e| format!("switch {name}: {e}"))
}

/// The lock that who started us has taken.
fn inherited(here: &Here<'_>, name: &str) -> Result<Lock, String> {
    let file = std::io::stdin().as_fd().try_clone_to_owned();
    let lock = file.and_then(|file| here.folders.sockets(name).inherit(File::from(file)));
    let lock = lock.map_err(|e| format!("switch {name}: its lock: {e}"))?;
    lock.ok_or_else(|| format!("switch {name}: standard input is not its lock"))
}

/// The lock of a switch; `None`: another process has it.
pub fn lock(here: &Here<'_>, name: &str) -> Result<Option<Lock>, String> {
    here.folders.sockets(name).lock().map_err(|e| format!("switch {name}: {e}"))
}

/// Why nothing can be done to a switch whose lock another process has.
pub fn busy(name: &str) -> String {
    format!("switch {name} is being made, started or deleted by another process")
}

/// Starts a switch whose lock we have in the background, and waits until it serves. If it does not, nothing is left running.
pub fn start(here: &Here<'_>, name: &str, lock: &Lock) -> Result<(), String> {
    let sockets = here.folders.sockets(name);
    let log = sockets.log();
    let failed = |e: std::io::Error| format!("switch {name}: {e}");
    // What a killed one left is no sign that it serves.
    _ = std::fs::remove_file(sockets.control());
    let says = File::options().create(true).append(true).open(&log).map_err(failed)?;
    says.set_len(0).map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["switch", "serve", name, "--background"]);
    if let Some(folder) = here.folder {
        command.arg("--folder").arg(folder);
    }
    // It keeps no file system from being unmounted.
    command.current_dir("/");
    command.stdin(lock.share().map_err(failed)?).stdout(Stdio::null()).stderr(says);
    let mut child = command.spawn().map_err(failed)?;
    until_served(&mut child, &sockets.control(), &log, name).inspect_err(|_| {
        _ = child.kill();
        _ = child.wait();
    })
}

fn until_served(child: &mut Child, control: &Path, log: &Path, name: &str) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if control.exists() {
            return Ok(());
        }
        if let Ok(Some(_)) = child.try_wait() {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            let last = said.lines().last().unwrap_or("it ended, and said nothing");
            return Err(last.strip_prefix("vireo: ").unwrap_or(last).to_string());
        }
        std::thread::sleep(LOOK);
    }
    Err(format!("switch {name} does not serve after {} s: {} may say why", PATIENCE.as_secs(), log.display()))
}

fn has_not_ended(name: &str) -> String {
    format!("switch {name} was told to end, and has not after {} s", PATIENCE.as_secs())
}

/// Stops a switch, and waits for its end.
pub fn stop(here: &Here<'_>, name: &str) -> Result<(), String> {
    let sockets = here.folders.sockets(name);
    if !sockets.is_running() {
        return Err(format!("switch {name} is not running"));
    }
    super::ask(here.folders, name, &Request::End)?;
    let begun = Instant::now();
    while sockets.is_running() {
        if begun.elapsed() > PATIENCE {
            return Err(has_not_ended(name));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// The lock of a switch, which is stopped if it runs; and stopped again if a supervisor has started it anew by then.
pub fn take(here: &Here<'_>, name: &str) -> Result<Lock, String> {
    let begun = Instant::now();
    loop {
        // It may begin just now, or be about to end: then nobody is there to be told.
        let told = super::ask(here.folders, name, &Request::End);
        // Often enough to have the lock before a process that the supervisor starts meanwhile.
        for _ in 0..LOOK.as_micros() / SOON.as_micros() {
            if let Some(lock) = lock(here, name)? {
                return Ok(lock);
            }
            std::thread::sleep(SOON);
        }
        if begun.elapsed() > PATIENCE {
            return Err(told.err().unwrap_or_else(|| has_not_ended(name)));
        }
    }
}
