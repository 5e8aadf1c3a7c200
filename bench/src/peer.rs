//! The two sides of each comparison.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use vireo_tests::{Guest, GuestRun, Process};

use crate::Measured;

/// Far beyond what a guest takes: one that hangs is killed.
const LIMIT: Duration = Duration::from_secs(600);

/// Who runs the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Ours.
    Vireo,
    /// QEMU's software emulation.
    Tcg,
}

/// What was measured on both sides.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Pair<T> {
    /// Ours.
    pub vireo: T,
    /// The peer's.
    pub tcg: T,
}

impl<T> Pair<T> {
    /// Both sides measured one after the other.
    pub fn measure(mut side: impl FnMut(Peer) -> Measured<T>) -> Measured<Self> {
        Ok(Self { vireo: side(Peer::Vireo)?, tcg: side(Peer::Tcg)? })
    }

    /// Both sides converted.
    pub fn map<U>(&self, f: impl Fn(&T) -> U) -> Pair<U> {
        Pair { vireo: f(&self.vireo), tcg: f(&self.tcg) }
    }
}

/// What both sides run.
pub struct Machines {
    /// The `vireo` binary.
    pub vireo: PathBuf,
    /// The guest.
    pub guest: Guest,
}

impl Machines {
    /// Starts a run on one side.
    pub fn start(&self, peer: Peer, run: &GuestRun) -> Measured<Process> {
        let command = match peer {
            Peer::Vireo => run.vireo(&self.vireo),
            Peer::Tcg => run.qemu(),
        };
        Process::start(command, LIMIT)
    }
}
