//! Signals that end the machine as its user would.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

use crate::console::{ConsoleEvent, Events};

/// From now on SIGINT, SIGTERM and SIGHUP are [`ConsoleEvent::Quit`]: left alone they would end the process with the
/// terminal in raw mode and the socket in place.
///
/// # Errors
/// The host refused a handler or a thread.
pub(crate) fn watch(events: Events) -> io::Result<Ending> {
    let ignored = ignored();
    // Whoever starts a program with a signal ignored (nohup, a shell's background jobs) wants it to live on.
    let caught = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|s| ignored >> (s - 1) & 1 == 0);
    let mut signals = Signals::new(caught)?;
    let ending = Ending::default();
    let has_begun = Arc::clone(&ending.has_begun);
    let take = move || {
        for signal in signals.forever() {
            if !has_begun.load(Ordering::SeqCst) {
                events(ConsoleEvent::Quit);
            } else if let Err(e) = emulate_default_handler(signal) {
                tracing::error!("signal {signal} does not end the process: {e}");
            }
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(take)?;
    Ok(ending)
}

/// The end of a machine takes longer than this only if a disk does not do what was asked of it.
const USUAL: Duration = Duration::from_secs(5);

/// The machine's end, which waits for its disks: dropped when it has come.
#[derive(Default)]
pub(crate) struct Ending {
    has_begun: Arc<AtomicBool>,
    /// Dropped with it.
    come: Option<Sender<()>>,
}

impl Ending {
    /// Nothing is to be put back any more: from now on a signal ends the process at once. If the end does not come, it says so.
    pub(crate) fn begin(&mut self) {
        self.has_begun.store(true, Ordering::SeqCst);
        let (come, has_come) = channel::<()>();
        self.come = Some(come);
        let say = move || {
            if has_come.recv_timeout(USUAL) == Err(RecvTimeoutError::Timeout) {
                tracing::warn!(
                    "the machine has ended, but a disk has not done all that was asked of it: waiting for that; SIGTERM or SIGINT ends at once"
                );
            }
        };
        // Without it nothing is said.
        _ = std::thread::Builder::new().name("ending".into()).spawn(say);
    }
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
