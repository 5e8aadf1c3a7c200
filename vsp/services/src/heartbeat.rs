//! Heartbeat: whether the guest answers at all.

use std::time::{Duration, Instant};

use uuid::uuid;

use crate::link::{Answer, Routine, Service};
use crate::message::{Version, kind};

/// What it is.
pub static SERVICE: Service = Service {
    name: "heartbeat",
    interface: uuid!("57164f39-9115-4e78-ab55-382f3bd5422d"),
    versions: &[Version(3, 0), Version(1, 0)],
    kind: kind::HEARTBEAT,
};

/// How often it is asked, as Hyper-V does.
const INTERVAL: Duration = Duration::from_secs(2);
/// A guest that has not answered for so long does not answer.
pub const LOST: Duration = Duration::from_secs(10);

/// Asks the guest again and again.
#[derive(Debug)]
pub struct Heartbeat {
    sequence: u64,
    due: Instant,
    /// When the guest answered last.
    last: Option<Instant>,
}

impl Heartbeat {
    /// Of a guest that has not answered yet.
    pub fn new(now: Instant) -> Self {
        Self { sequence: 0, due: now, last: None }
    }

    /// When the guest answered last.
    pub fn last(&self) -> Option<Instant> {
        self.last
    }
}

impl Routine for Heartbeat {
    fn restart(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    fn resumed(&mut self, now: Instant) {
        // That it was silent while it stood still says nothing.
        self.last = self.last.map(|_| now);
    }

    fn question(&mut self, _: Version, now: Instant) -> Option<Vec<u8>> {
        if now < self.due {
            return None;
        }
        self.due = now + INTERVAL;
        self.sequence += 1;
        // A number, which the driver raises by one; what the guest says of its applications, and reserved.
        let mut body = vec![0; 40];
        body[..8].copy_from_slice(&self.sequence.to_le_bytes());
        Some(body)
    }

    fn answered(&mut self, answer: &Answer, now: Instant) {
        let number = answer.body.first_chunk().map(|b| u64::from_le_bytes(*b));
        if answer.status == 0 && number == Some(self.sequence + 1) {
            self.last = Some(now);
        }
    }

    fn due(&self) -> Option<Instant> {
        Some(self.due)
    }
}
