//! Progress on standard error, and signals that end what takes long.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vireo_chain::Progress;

use super::tell::Size;

/// How often a line is written: one that changes, on a terminal, or a new one.
const OFTEN: Duration = Duration::from_millis(200);
const SELDOM: Duration = Duration::from_secs(10);

/// Watches something that takes long. On a terminal a line shows how far it is; elsewhere there is one now and then, if
/// it does take long. SIGINT and SIGTERM have it end in good order.
pub struct Watch {
    stop: Arc<AtomicBool>,
    terminal: bool,
    told: Option<Instant>,
    /// What the line on the terminal is about.
    line: Option<&'static str>,
}

impl Watch {
    /// From now on.
    pub fn new() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            // Without it the signal ends the process, and leaves a part.
            _ = signal_hook::flag::register(signal, Arc::clone(&stop));
        }
        let terminal = io::stderr().is_terminal();
        Self { stop, terminal, told: (!terminal).then(Instant::now), line: None }
    }

    /// Tells how far it is; says whether to go on.
    pub fn step(&mut self, p: Progress) -> bool {
        let pause = if self.terminal { OFTEN } else { SELDOM };
        let other = self.terminal && (self.line != Some(p.what) || p.done == p.all);
        if other || self.told.is_none_or(|t| t.elapsed() >= pause) {
            self.told = Some(Instant::now());
            let percent = p.done.saturating_mul(100).checked_div(p.all).unwrap_or(100);
            let text = format!("{} {percent:3} % of {}", p.what, Size(p.all));
            if self.terminal {
                if self.line.is_some_and(|what| what != p.what) {
                    _ = writeln!(io::stderr());
                }
                _ = write!(io::stderr(), "\r{text}\x1b[K");
                self.line = Some(p.what);
            } else {
                _ = writeln!(io::stderr(), "{text}");
            }
        }
        !self.stop.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.line.is_some() {
            _ = writeln!(io::stderr());
        }
    }
}
