//! Processes of switches: this one, or one in the background.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vireo_switchd::control::Request;
use vireo_switchd::{Folders, Service};

/// How long a switch may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(20);

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
    let service = Service::start(here.folders, name).map_err(|e| format!("switch {name}: {e}"))?;
    let end = service.ender();
    let take = move || signals.forever().take(1).for_each(|_| end());
    std::thread::Builder::new().name("signals".into()).spawn(take).map_err(|e| format!("a thread: {e}"))?;
    service.wait().map_err(|e| format!("switch {name}: {e}"))
}

/// Starts a switch in the background, and waits until it serves.
pub fn start(here: &Here<'_>, name: &str) -> Result<(), String> {
    let sockets = here.folders.sockets(name);
    if sockets.is_running() {
        return Err(format!("switch {name} is running already"));
    }
    let log = sockets.log();
    let failed = |e: std::io::Error| format!("switch {name}: {e}");
    sockets.make().map_err(failed)?;
    // What a killed one left is no sign that it serves.
    _ = std::fs::remove_file(sockets.control());
    let says = File::options().create(true).append(true).open(&log).map_err(failed)?;
    says.set_len(0).map_err(failed)?;
    let mut command = Command::new(std::env::current_exe().map_err(failed)?);
    command.args(["switch", "serve", name, "--background"]);
    if let Some(folder) = here.folder {
        command.arg("--folder").arg(folder);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(says);
    let child = command.spawn().map_err(failed)?;
    until_served(child, &sockets.control(), &log, name)
}

fn until_served(mut child: Child, control: &Path, log: &Path, name: &str) -> Result<(), String> {
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
            return Err(format!("switch {name} was told to end, and has not after {} s", PATIENCE.as_secs()));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
