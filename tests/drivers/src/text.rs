//! What a guest says.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vireo_chipset::lines::SerialSink;

use crate::LIMIT;

/// Text that a guest wrote, and those who wait for more of it.
#[derive(Default)]
pub struct Text {
    bytes: Mutex<Vec<u8>>,
    more: Condvar,
    /// What it says when it has failed: nothing more is waited for then.
    failure: Option<&'static str>,
}

impl SerialSink for Text {
    fn write(&self, bytes: &[u8]) {
        self.bytes().extend(bytes);
        self.more.notify_all();
    }
}

impl Text {
    /// Of a guest that says this when it has failed.
    pub fn of(failure: Option<&'static str>) -> Self {
        Self { failure, ..Self::default() }
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it.
    pub fn all(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }

    /// Begins anew.
    pub fn forget(&self) {
        self.bytes().clear();
    }

    /// Waits for a line that starts with `marker`; gives what follows it.
    ///
    /// # Panics
    /// It does not come, or the guest has failed.
    pub fn line(&self, marker: &str) -> String {
        let found = |text: &str| {
            let mut lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
            lines.find_map(|l| l.strip_prefix(marker)).map(|line| line.trim().to_owned())
        };
        self.wait(marker, found, || ())
    }

    /// Waits until `found` finds something in it; `meanwhile` is done again and again.
    ///
    /// # Panics
    /// It does not, or the guest has failed.
    pub fn wait<R>(&self, what: &str, found: impl Fn(&str) -> Option<R>, mut meanwhile: impl FnMut()) -> R {
        let end = Instant::now() + LIMIT;
        loop {
            let text = self.all();
            if let Some(result) = found(&text) {
                return result;
            }
            let failed = self.failure.is_some_and(|failure| text.contains(failure));
            assert!(Instant::now() < end && !failed, "no {what} in:\n{text}");
            meanwhile();
            // More may have come since: then this looks a moment later.
            drop(self.more.wait_timeout(self.bytes(), Duration::from_millis(5)));
        }
    }
}
