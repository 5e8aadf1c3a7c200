//! Where the log goes: standard error. Of a process in the background that is a file, which is not to fill its file system.

use std::fs::File;
use std::io::{Stderr, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the log of a process in the background, at most and a line.
const MOST: u64 = 1 << 20;

static LIMIT: AtomicU64 = AtomicU64::new(u64::MAX);

/// From now on the log is a file of our own, to which is appended: it begins anew when it has become long.
pub fn bound() {
    LIMIT.store(MOST, Ordering::Relaxed);
}

/// Standard error, as the log is written to it.
pub struct Log(Stderr);

/// What `tracing` asks for each line.
pub fn writer() -> Log {
    Log(std::io::stderr())
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        shorten(&self.0, LIMIT.load(Ordering::Relaxed));
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

fn shorten(log: impl AsFd, most: u64) {
    if most == u64::MAX {
        return;
    }
    // Where it fails, the log goes on.
    let Ok(file) = log.as_fd().try_clone_to_owned().map(File::from) else { return };
    if file.metadata().is_ok_and(|data| data.is_file() && data.len() > most) {
        _ = file.set_len(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_begins_anew() {
        let path = std::env::temp_dir().join(format!("vireo-log-{}", std::process::id()));
        let mut log = File::options().create(true).append(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let length = |log: &File| log.metadata().unwrap().len();
        for _ in 0..5 {
            shorten(&log, 100);
            log.write_all(&[b'x'; 60]).unwrap();
        }
        assert_eq!(length(&log), 60, "after 120 it was begun anew, twice");
        log.write_all(&[b'x'; 600]).unwrap();
        shorten(&log, u64::MAX);
        assert_eq!(length(&log), 660, "one without a limit is nobody's to shorten");
    }
}
