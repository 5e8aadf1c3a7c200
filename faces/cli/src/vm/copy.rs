//! `vireo vm copy`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use vireo_services::CopyTo;
use vireo_worker::control::{Answer, Request, ask_with};

use super::{Machine, refused, unexpected};

/// Options of `vireo vm copy`.
#[derive(Args)]
pub struct CopyArgs {
    #[command(flatten)]
    machine: Machine,
    /// The file, on this host.
    file: PathBuf,
    /// Its absolute path in the guest; one that ends in a slash is a folder.
    #[arg(value_name = "GUEST-PATH")]
    to: String,
    /// In place of a file that is there.
    #[arg(long)]
    overwrite: bool,
    /// Make the folders that are not there.
    #[arg(long)]
    create_path: bool,
}

/// How often it is told how far a copy is.
const INTERVAL: Duration = Duration::from_millis(200);

/// Runs it.
pub fn run(args: &CopyArgs) -> ExitCode {
    let fail = |why: &dyn std::fmt::Display| {
        crate::complain(&format_args!("{}: {why}", args.file.display()));
        ExitCode::FAILURE
    };
    // The machine may run in another folder.
    let file = match std::path::absolute(&args.file) {
        Ok(file) => file,
        Err(e) => return fail(&e),
    };
    let mut path = args.to.clone();
    if path.ends_with(['/', '\\']) {
        match file.file_name().and_then(|name| name.to_str()) {
            Some(name) => path += name,
            None => return fail(&"its name is no text: say what it is called in the guest"),
        }
    }
    let to = CopyTo { path, overwrite: args.overwrite, create_path: args.create_path };
    let shown = std::io::stderr().is_terminal();
    let mut last = None;
    let copied = ask_with(&args.machine.control, &Request::Copy { file, to }, &mut |done, total| {
        if shown && last.is_none_or(|last: Instant| last.elapsed() > INTERVAL) {
            last = Some(Instant::now());
            let percent = u128::from(done) * 100 / u128::from(total.max(1));
            // A terminal that has gone shows nothing.
            _ = write!(std::io::stderr(), "\r{percent} %");
        }
    });
    if last.is_some() {
        _ = write!(std::io::stderr(), "\r     \r");
    }
    match copied {
        Ok(Answer::Done) => ExitCode::SUCCESS,
        Ok(_) => unexpected(),
        Err(e) => refused(&e),
    }
}
