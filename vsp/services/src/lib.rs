//! Integration services: what a host and the system in its guest do for each other, over VMBus, with the drivers and daemons that
//! guests have.
//!
//! | service | what it does |
//! |---|---|
//! | shutdown | the guest ends, or starts anew, in good order |
//! | heartbeat | says whether the guest answers |
//! | time synchronisation | the guest learns what time it is: at its start, after a pause, now and then |
//! | key-value exchange | the guest tells its system, names and addresses; both leave pairs for each other |
//! | backup (VSS) | file systems are frozen and thawed |
//! | file copy | a file comes into the guest |
//! | dynamic memory | the guest gives memory back, gets it again, and more than it started with |
//!
//! Owns their protocols and who waits for whom. All but dynamic memory speak the framework of [`message`]: the host asks
//! one question at a time, the guest answers. A conversation is pure (`link`, `memory::balloon`): packets and times in, packets
//! out; `hub` has the channels and the one thread that serves them all. It never waits for the guest: who asks ([`Services`]) waits on
//! its own thread, and for no longer than it says.
//!
//! # Whom to trust
//! A guest's packets are copied out of its ring before they are looked at; an answer counts if it is to the question that was asked, and
//! is read within its own length. What a guest tells (names, addresses, what memory it needs) is its word. What it can make the host
//! keep is one answer for each service, and a bit for each of its pages.
//!
//! Sources: Linux's drivers (drivers/hv/hv_util.c, hv_kvp.c, hv_snapshot.c, hv_fcopy.c, hv_balloon.c) and headers
//! (include/linux/hyperv.h, include/uapi/linux/hyperv.h) for layouts and for what guests do.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod copy;
mod error;
mod heartbeat;
mod hub;
mod kvp;
mod link;
mod memory;
pub mod message;
mod port;
mod shutdown;
#[cfg(test)]
mod tests;
mod text;
mod time;
mod vss;

use std::ops::Range;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vireo_vmbus::{Device, VmBus};

pub use copy::{CopyError, CopyTo};
pub use error::ServiceError;
pub use kvp::{Item, Pool};
pub use memory::{MemoryLimits, MemoryStatus, PAGE};
pub use shutdown::ShutdownKind;
pub use time::{HostTime, TimeSource};
pub use vss::FREEZE_MAX;

use hub::Hub;
use link::{Answer, Job};

/// What key-value exchange is called ([`ServiceStatus::name`]).
pub const KVP_NAME: &str = kvp::NAME;

/// How much later than it should a thread may tell that time is over.
const SLACK: Duration = Duration::from_secs(1);

/// How far a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceState {
    /// The guest has no driver for it.
    Absent,
    /// There is a driver, which has not said what it speaks.
    Negotiating,
    /// It can be used.
    Ready,
    /// The driver speaks no version that we do.
    Refused,
}

/// A service, as it is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// What it is called.
    pub name: String,
    /// How far it is.
    pub state: ServiceState,
    /// The version that both speak.
    pub version: Option<String>,
}

/// Whether a guest answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pulse {
    /// It has no driver to answer.
    Absent,
    /// It has, and has not answered yet.
    Waiting,
    /// It answers.
    Ok,
    /// It did, and does not any more.
    Lost,
}

/// Services that are asked by others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Shutdown,
    Kvp,
    Vss,
    Copy,
}

/// The services of one machine. They end when this is dropped.
pub struct Services {
    hub: Arc<Hub>,
    thread: Option<JoinHandle<()>>,
    /// Held by who copies a file.
    copies: Mutex<()>,
}

impl Services {
    /// Services of a machine with so much memory. `reserve` are the ranges of its pages, by number, that the guest does not find at
    /// its start; no page of it is at or beyond `limit`.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn start(limits: MemoryLimits, reserve: Vec<Range<u64>>, limit: u64) -> std::io::Result<Self> {
        let mut services = Self::unserved(limits, reserve, limit);
        let served = Arc::clone(&services.hub);
        let thread = std::thread::Builder::new().name("services".into()).spawn(move || served.run())?;
        services.thread = Some(thread);
        Ok(services)
    }

    /// The same, without a thread: nothing is done but by [`Self::turn`]. For tests.
    #[doc(hidden)]
    pub fn unserved(limits: MemoryLimits, reserve: Vec<Range<u64>>, limit: u64) -> Self {
        let hub = Hub::new(memory::Balloon::new(limits, reserve, limit));
        Self { hub, thread: None, copies: Mutex::default() }
    }

    /// Does what the thread does in a round.
    #[doc(hidden)]
    pub fn turn(&self, now: Instant) {
        self.hub.turn(now);
    }

    /// Says what memory the guest is to have, and waits for nothing.
    #[doc(hidden)]
    pub fn want_memory(&self, wanted: Option<u64>) {
        self.hub.change(|state| state.balloon_mut().want(wanted));
    }

    /// What an answer to a question for a pair is taken for.
    #[doc(hidden)]
    pub fn read_pair(status: u32, body: Vec<u8>) -> Result<Option<Item>, ServiceError> {
        kvp::parse_enumerated(&Answer { status, body })
    }

    /// Puts them on a bus; `None`: it has no room for them.
    pub fn attach(&self, bus: &Arc<VmBus>, source: Arc<dyn TimeSource>) -> Option<()> {
        self.hub.attach(bus, source)
    }

    /// Service number `which` as a device, for tests.
    #[doc(hidden)]
    pub fn device(&self, which: usize) -> Arc<dyn Device> {
        self.hub.device(which)
    }

    fn hub(&self) -> &Hub {
        &self.hub
    }

    fn copies(&self) -> &Mutex<()> {
        &self.copies
    }

    /// How far each service is.
    pub fn status(&self) -> Vec<ServiceStatus> {
        self.hub.change(hub::State::status)
    }

    /// Whether the guest answers, and how long ago it last did.
    pub fn pulse(&self) -> (Pulse, Option<Duration>) {
        self.hub.change(|state| {
            let link = state.heartbeat();
            let ago = link.routine().last().map(|last| last.elapsed());
            let pulse = match (link.phase(), ago) {
                (link::Phase::Absent | link::Phase::Refused, _) => Pulse::Absent,
                (_, None) => Pulse::Waiting,
                (_, Some(ago)) if ago < heartbeat::LOST => Pulse::Ok,
                _ => Pulse::Lost,
            };
            (pulse, ago)
        })
    }

    /// Asks the guest, and waits for its answer.
    fn ask(&self, asked: Asked, body: Vec<u8>, patience: Duration) -> Result<Answer, ServiceError> {
        let now = Instant::now();
        let (asker, answer) = sync_channel(1);
        let job = Job { body, asked: now, deadline: now + patience, asker };
        let service = match asked {
            Asked::Shutdown => &shutdown::SERVICE,
            Asked::Kvp => &kvp::SERVICE,
            Asked::Vss => &vss::SERVICE,
            Asked::Copy => &copy::SERVICE,
        };
        self.hub.change(|state| state.ask(asked, job))?;
        self.hub.ring();
        // While the machine stands still, nobody tells that time is over.
        answer
            .recv_timeout(patience + SLACK)
            .unwrap_or_else(|_| Err(ServiceError::NoAnswer { service: service.name, waited: now.elapsed() }))
    }

    /// The same, of what has to succeed.
    fn ask_for(
        &self,
        asked: Asked,
        body: Vec<u8>,
        patience: Duration,
        what: &str,
    ) -> Result<Answer, ServiceError> {
        let answer = self.ask(asked, body, patience)?;
        match answer.status {
            0 => Ok(answer),
            status => Err(ServiceError::Refused { what: what.into(), status }),
        }
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        self.hub.end();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            _ = thread.join();
        }
    }
}
