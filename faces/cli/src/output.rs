//! Results on standard output.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::ValueEnum;
use serde::Serialize;

/// Output formats.
#[derive(Clone, Copy, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// A path on one line, which cannot steer a terminal.
pub fn printable(path: &Path) -> String {
    printable_text(&path.to_string_lossy())
}

/// The same, of a text.
pub fn printable_text(text: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// Prints a result; `table` does for people.
pub fn print<T: Serialize>(
    format: Format,
    what: &T,
    table: impl FnOnce(&T, &mut dyn Write) -> io::Result<()>,
) -> ExitCode {
    let mut out = io::stdout().lock();
    let printed = match format {
        Format::Table => table(what, &mut out),
        Format::Json => serde_json::to_string_pretty(what)
            .map_err(io::Error::from)
            .and_then(|text| writeln!(out, "{text}")),
    };
    match printed.and_then(|()| out.flush()) {
        // Who closes the pipe early (`head`) has what it wanted.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            crate::complain(&format_args!("standard output: {e}"));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
