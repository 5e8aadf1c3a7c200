//! `vireo switch capture`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vireo_switchd::control::Capture;

/// Captures until a signal, or so many seconds have passed.
pub fn run(control: &Path, file: &Path, port: Option<String>, seconds: Option<u64>) -> Result<(), String> {
    let failed = |e: io::Error| format!("{}: {e}", file.display());
    let mut capture = Capture::start(control, port).map_err(|e| e.to_string())?;
    let mut out: Box<dyn Write> = match file == Path::new("-") {
        true => Box::new(io::stdout().lock()),
        false => Box::new(File::create(file).map_err(failed)?),
    };
    let (end, end_later) = (capture.ender().map_err(failed)?, capture.ender().map_err(failed)?);
    let ended = Arc::new(AtomicBool::new(false));
    let (by_signal, by_time) = (Arc::clone(&ended), Arc::clone(&ended));
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let thread = std::thread::Builder::new().name("signals".into());
    let wait = move || {
        if signals.forever().next().is_some() {
            by_signal.store(true, Ordering::SeqCst);
            end();
        }
    };
    thread.spawn(wait).map_err(failed)?;
    if let Some(seconds) = seconds {
        let wait = move || {
            std::thread::sleep(Duration::from_secs(seconds));
            by_time.store(true, Ordering::SeqCst);
            end_later();
        };
        std::thread::Builder::new().name("end".into()).spawn(wait).map_err(failed)?;
    }
    let mut bytes = vec![0; 1 << 16];
    loop {
        match capture.read(&mut bytes) {
            Ok(0) => {
                out.flush().map_err(failed)?;
                return match ended.load(Ordering::SeqCst) {
                    true => Ok(()),
                    false => Err(format!("the switch ended: {} has what passed until then", file.display())),
                };
            }
            Ok(count) => out.write_all(&bytes[..count]).map_err(failed)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("the switch ended: {e}")),
        }
    }
}
