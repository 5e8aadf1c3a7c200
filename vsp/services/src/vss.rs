//! Backup (VSS): file systems are frozen while something is copied, and thawed afterwards, come what may.

use std::time::{Duration, Instant};

use uuid::uuid;

use crate::error::ServiceError;
use crate::link::{Answer, Routine, Service};
use crate::message::{Version, kind};
use crate::{Asked, Services};

/// What it is.
pub static SERVICE: Service = Service {
    name: "backup (VSS)",
    interface: uuid!("35fa2e29-ea23-4236-96ae-3a6ebacba440"),
    // Before this one, drivers cannot freeze.
    versions: &[Version(5, 0)],
    kind: kind::VSS,
};

/// What freezing may take: a guest writes first what it has not.
const PATIENCE: Duration = Duration::from_secs(60);
/// What the other questions may.
const PATIENCE_SHORT: Duration = Duration::from_secs(30);
/// A guest that could not thaw is asked again after so long.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time for which file systems may be frozen.
pub const FREEZE_MAX: Duration = Duration::from_secs(600);

/// Operations (enum hv_vss_op).
mod operation {
    pub const HOT_BACKUP: u8 = 2;
    pub const FREEZE: u8 = 5;
    pub const THAW: u8 = 6;
}

/// An operation, and room for what some guests say to it.
fn question(operation: u8) -> Vec<u8> {
    let mut body = vec![0; 12];
    body[0] = operation;
    body
}

/// Thaws a guest whose time is over.
#[derive(Default)]
pub struct Thaw {
    /// It may be frozen, and is thawed then.
    until: Option<Instant>,
    /// The guest is asked to thaw, as that was then.
    asked: Option<Instant>,
}

impl Thaw {
    /// When the guest is to be thawed, if it may be frozen.
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Sets that.
    pub fn set(&mut self, until: Option<Instant>) {
        self.until = until;
    }
}

impl Routine for Thaw {
    fn restart(&mut self, _: Instant) {
        (self.until, self.asked) = (None, None);
    }

    fn question(&mut self, _: Version, now: Instant) -> Option<Vec<u8>> {
        self.asked = self.until.filter(|until| *until <= now);
        self.asked.map(|_| question(operation::THAW))
    }

    fn answered(&mut self, answer: &Answer, now: Instant) {
        // It may have been frozen again, or thawed, meanwhile.
        if self.asked.take() == self.until {
            self.until = if answer.status == 0 { None } else { self.until.map(|_| now + RETRY) };
        }
    }

    fn due(&self) -> Option<Instant> {
        self.until
    }
}

impl Services {
    /// Has the guest write what it holds back, and freeze its file systems, for at most `most`: it is thawed then if nobody has
    /// done that. When this returns they are frozen.
    ///
    /// # Errors
    /// It cannot; nothing is frozen, or it is thawed as soon as it can be.
    pub fn freeze(&self, most: Duration) -> Result<(), ServiceError> {
        if most.is_zero() || most > FREEZE_MAX {
            let seconds = FREEZE_MAX.as_secs();
            return Err(ServiceError::Invalid(format!("file systems are frozen for 1 to {seconds} s")));
        }
        self.ask_for(Asked::Vss, question(operation::HOT_BACKUP), PATIENCE_SHORT, "to be backed up")?;
        // Whatever becomes of the question, a thaw follows it.
        self.thaw_at(Some(Instant::now() + PATIENCE + most));
        let frozen =
            self.ask_for(Asked::Vss, question(operation::FREEZE), PATIENCE, "to freeze its file systems");
        let end = Instant::now() + if frozen.is_ok() { most } else { Duration::ZERO };
        self.thaw_at(Some(end));
        frozen.map(|_| ())
    }

    /// Has the guest go on writing.
    ///
    /// # Errors
    /// It cannot.
    pub fn thaw(&self) -> Result<(), ServiceError> {
        let thawed =
            self.ask_for(Asked::Vss, question(operation::THAW), PATIENCE_SHORT, "to thaw its file systems");
        if thawed.is_ok() {
            self.thaw_at(None);
        }
        thawed.map(|_| ())
    }

    fn thaw_at(&self, until: Option<Instant>) {
        self.hub().change(|state| state.vss_routine().set(until));
        self.hub().ring();
    }

    /// Whether the guest is frozen, as far as we know; for how long still.
    pub fn frozen(&self) -> Option<Duration> {
        let now = Instant::now();
        let until = self.hub().change(|state| state.vss_routine().until());
        until.map(|until| until.saturating_duration_since(now))
    }
}
