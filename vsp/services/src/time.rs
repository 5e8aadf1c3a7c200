//! Time synchronisation: the guest learns what time it is, at once where it cannot know, and now and then else.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use uuid::uuid;

use crate::link::{Routine, Service};
use crate::message::{Version, kind};

/// What it is.
pub static SERVICE: Service = Service {
    name: "time synchronisation",
    interface: uuid!("9527e630-d0ae-497b-adce-e80ab0175caf"),
    versions: &[Version(4, 0), Version(3, 0), Version(1, 0)],
    kind: kind::TIME,
};

/// From this version on a sample has the reference time at which it was taken, so that its way to the guest costs no precision.
const WITH_REFERENCE: Version = Version(4, 0);

/// How often there is a sample, as Hyper-V does.
const INTERVAL: Duration = Duration::from_secs(5);

/// The guest is to set its clock.
const SYNC: u8 = 1;
/// The guest may use it to steer its clock.
const SAMPLE: u8 = 2;

/// Seconds from 1601, where Windows begins to count, to 1970.
const EPOCH: u64 = 11_644_473_600;

/// What a sample is made of. Both in units of 100 ns.
pub trait TimeSource: Send + Sync {
    /// Since the beginning of 1601, in UTC.
    fn utc(&self) -> u64;
    /// The guest's reference time.
    fn reference(&self) -> u64;
}

/// This host's clock, and a guest's reference time.
pub struct HostTime<F>(pub F);

impl<F: Fn() -> u64 + Send + Sync> TimeSource for HostTime<F> {
    fn utc(&self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let units = (since_1970 + Duration::from_secs(EPOCH)).as_nanos() / 100;
        u64::try_from(units).unwrap_or(u64::MAX)
    }

    fn reference(&self) -> u64 {
        (self.0)()
    }
}

/// Tells the guest the time.
pub struct TimeSync {
    /// `None`: there is no machine yet.
    source: Option<Arc<dyn TimeSource>>,
    /// The guest does not know the time: it was paused, or is new.
    lost: bool,
    due: Instant,
}

impl TimeSync {
    /// For a guest that is new.
    pub fn new(now: Instant) -> Self {
        Self { source: None, lost: true, due: now }
    }

    /// Gets what samples are made of.
    pub fn set_source(&mut self, source: Arc<dyn TimeSource>) {
        self.source = Some(source);
    }
}

impl Routine for TimeSync {
    fn restart(&mut self, now: Instant) {
        (self.lost, self.due) = (true, now);
    }

    fn resumed(&mut self, now: Instant) {
        self.restart(now);
    }

    fn question(&mut self, version: Version, now: Instant) -> Option<Vec<u8>> {
        let source = self.source.as_ref().filter(|_| now >= self.due)?;
        let flags = if std::mem::take(&mut self.lost) { SYNC } else { SAMPLE };
        self.due = now + INTERVAL;
        let mut body = source.utc().to_le_bytes().to_vec();
        if version >= WITH_REFERENCE {
            body.extend(source.reference().to_le_bytes());
            // No leap second is near; the stratum is that of a host that is synchronised itself, and reserved.
            body.extend([flags, 0, 2, 0, 0, 0, 0, 0]);
        } else {
            // The guest's time and the time that an exchange takes: not measured.
            body.extend([0; 16]);
            body.push(flags);
        }
        Some(body)
    }

    fn due(&self) -> Option<Instant> {
        self.source.is_some().then_some(self.due)
    }
}
