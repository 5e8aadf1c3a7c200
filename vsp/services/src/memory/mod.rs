//! Dynamic memory: a guest gives back what it does not need, and gets it again; it may get more than it started with.
//!
//! It is a protocol of its own, not of the framework. The driver tells each second what its guest needs; what it is to have follows
//! from that ([`MemoryLimits::target`]), or is said by somebody.

mod balloon;
mod pages;
mod protocol;
mod target;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use uuid::{Uuid, uuid};
use vireo_memory::GuestMemory;

use crate::Services;
use crate::error::ServiceError;
pub(crate) use balloon::{Balloon, Memory};
pub use protocol::PAGE;
pub use target::MemoryLimits;

/// By which drivers find it.
pub const INTERFACE: Uuid = uuid!("525074dc-8985-46e2-8057-a307dc18a502");
/// For people.
pub const NAME: &str = "dynamic memory";

/// How long a guest may take to give or take memory.
const PATIENCE: Duration = Duration::from_secs(45);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(50);

/// A guest's memory, in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryStatus {
    /// What the guest has.
    pub assigned: u64,
    /// What it is to have.
    pub target: u64,
    /// What it needs, as it tells; Linux does so from 45 s after its driver started.
    pub demand: Option<u64>,
    /// What it has free, as it tells.
    pub available: Option<u64>,
    /// What it has given back.
    pub given_back: u64,
    /// What it got beyond its startup.
    pub added: u64,
    /// What it starts with.
    pub startup: u64,
    /// Least that it is left with.
    pub minimum: u64,
    /// Most that it gets.
    pub maximum: u64,
    /// The target was said by somebody, and does not follow what the guest needs.
    pub manual: bool,
}

impl Memory for Arc<GuestMemory> {
    fn discard(&self, pages: Range<u64>) -> bool {
        let Some(gpa) = pages.start.checked_mul(PAGE) else { return false };
        GuestMemory::discard(self, gpa, (pages.end - pages.start) * PAGE).is_ok()
    }
}

impl Services {
    /// The guest's memory.
    pub fn memory(&self) -> MemoryStatus {
        self.hub().change(|state| {
            let balloon = state.balloon();
            let limits = *balloon.limits();
            MemoryStatus {
                assigned: balloon.assigned(),
                target: balloon.target(),
                demand: balloon.demand(),
                available: balloon.available(),
                given_back: balloon.given(),
                added: balloon.added(),
                startup: limits.startup,
                minimum: limits.minimum,
                maximum: limits.maximum,
                manual: balloon.wanted().is_some(),
            }
        })
    }

    /// Says how much memory the guest is to have, or (`None`) that it is to have what it needs; waits until it has, as far as it
    /// can.
    ///
    /// # Errors
    /// It cannot have that, or has no driver for it, or the driver does nothing.
    pub fn set_memory(&self, wanted: Option<u64>) -> Result<MemoryStatus, ServiceError> {
        self.hub().change(|state| {
            let balloon = state.balloon_mut();
            if !balloon.is_open() {
                return Err(ServiceError::Absent(NAME));
            }
            if !balloon.ready() {
                return Err(ServiceError::Silent(NAME));
            }
            check(balloon, wanted)?;
            balloon.want(wanted);
            Ok(())
        })?;
        self.hub().ring();
        let asked = Instant::now();
        while !self.hub().change(|state| state.balloon().settled(Instant::now())) {
            if asked.elapsed() > PATIENCE {
                return Err(ServiceError::NoAnswer { service: NAME, waited: asked.elapsed() });
            }
            std::thread::sleep(LOOK);
        }
        Ok(self.memory())
    }
}

fn check(balloon: &Balloon, wanted: Option<u64>) -> Result<(), ServiceError> {
    let limits = balloon.limits();
    if !limits.dynamic() {
        return Err(ServiceError::Invalid(
            "the machine's memory is fixed: it was started without --memory-min and --memory-max".into(),
        ));
    }
    let (minimum, maximum) = (limits.minimum >> 20, limits.maximum >> 20);
    match wanted {
        Some(wanted) if wanted != limits.bounded(wanted) => Err(ServiceError::Invalid(format!(
            "{} MiB is not within the machine's limits, {minimum} to {maximum} MiB",
            wanted >> 20
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
