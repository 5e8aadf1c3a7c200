//! Signals that end the machine as its user would.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::console::{ConsoleEvent, Events};

/// From now on SIGINT, SIGTERM and SIGHUP are [`ConsoleEvent::Quit`]: left alone they would end the process with the
/// terminal in raw mode and the socket in place.
///
/// # Errors
/// The host refused a handler or a thread.
pub(crate) fn watch(events: Events) -> io::Result<()> {
    let ignored = ignored();
    // Whoever starts a program with a signal ignored (nohup, a shell's background jobs) wants it to live on.
    let caught = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|s| ignored >> (s - 1) & 1 == 0);
    let mut signals = Signals::new(caught)?;
    let take = move || signals.forever().for_each(|_| events(ConsoleEvent::Quit));
    std::thread::Builder::new().name("signals".into()).spawn(take)?;
    Ok(())
}

/// The signals that this process ignores, signal 1 in bit 0 (proc_pid_status(5), SigIgn); none when the host does not
/// tell.
fn ignored() -> u64 {
    std::fs::read_to_string("/proc/self/status").map_or(0, |status| parse_ignored(&status))
}

fn parse_ignored(status: &str) -> u64 {
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    mask.and_then(|m| u64::from_str_radix(m.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_found() {
        assert_eq!(
            parse_ignored("Name:\tvireo\nSigBlk:\tff\nSigIgn:\t0000000000001001\nSigCgt:\t2\n"),
            0x1001
        );
        assert_eq!(parse_ignored("Name:\tvireo\n"), 0);
        // The Rust runtime ignores SIGPIPE (13) at start.
        assert_eq!(ignored() >> 12 & 1, 1);
    }
}
