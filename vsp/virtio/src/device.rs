//! What a virtio device is, apart from its transport.

use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::queue::{Broken, ServedQueue};
use crate::run::Rests;

/// What a device is to the driver, before anything is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Device type (virtio 1.2, chapter 5).
    pub kind: u16,
    /// PCI class in bits 23:16, subclass in 15:8, programming interface in 7:0.
    pub class: u32,
}

/// Saved state of what devices keep for their drivers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState(pub(crate) Kept);

/// The same, by kinds of devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kept {
    Net(crate::net::Settings),
}

/// How it goes on with a queue after [`Device::serve`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing was left in it, or not yet looked at: the driver shall tell of more.
    Drained,
    /// What is left in it is of no use until [`Kicker::kick`].
    Waits,
    /// What is left in it is to be looked at again then.
    At(Instant),
}

/// A device model. It is served by one thread, which calls [`Device::serve`]; all else may be called from any thread at any
/// time, and must be short.
pub trait Device: Send + Sync {
    /// What it is.
    fn identity(&self) -> Identity;

    /// Feature bits 0 to 23 and from 50 on that it offers; those of the transport are added. The same at all times.
    fn features(&self) -> u64;

    /// Most entries of each of its queues: powers of two, at most 1024; at most 63 queues. The same at all times.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Device-specific configuration, as it is now; `data` is zero before, and what lies beyond stays so.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// It is on a transport: how it gets served when it is not the driver that wants it.
    fn connect(&self, kicker: Kicker) {
        let _ = kicker;
    }

    /// It leaves its transport: when this returns, nobody else calls it, or has anything to do with its queues.
    fn disconnect(&self) {}

    /// There is a driver, and this was agreed on; its queues are served from now on, each once. It calls nobody else from here.
    fn start(&self, features: u64) {
        let _ = features;
    }

    /// There is no driver any more: as after power-on. The device rests. It calls nobody else from here.
    fn stop(&self) {}

    /// What the driver has set, beside what its transport keeps.
    fn save(&self) -> Option<DeviceState> {
        None
    }

    /// Takes over what [`Self::save`] of a device that offers the same gave; there is a driver, and the device rests.
    fn restore(&self, state: &DeviceState) {
        let _ = state;
    }

    /// Takes chains from `queue` until there are none, or it can take no more now. Chains complete here or, later, on other
    /// threads.
    ///
    /// # Errors
    /// The driver broke the rules: the device needs a reset.
    fn serve(&self, queue: &ServedQueue) -> Result<Turn, Broken>;
}

/// Wakes a device's thread, and tells the driver of changes.
#[derive(Clone)]
pub struct Kicker(pub(crate) Weak<Core>);

impl Kicker {
    /// Has queue `index` served.
    pub fn kick(&self, index: usize) {
        if let Some(core) = self.0.upgrade() {
            core.run.kick(index);
        }
    }

    /// Lets the calling thread use the queues, beside the device's own.
    pub(crate) fn visit(&self) -> Result<Visit, Rests> {
        let core = self.0.upgrade().ok_or(Rests::NoDriver)?;
        core.run.visit()?;
        Ok(Visit(core))
    }

    /// The device-specific configuration has changed.
    pub fn config_changed(&self) {
        if let Some(core) = self.0.upgrade() {
            core.config_changed();
        }
    }
}

/// Leave to use a device's queues; while it lasts, the device does not rest.
pub(crate) struct Visit(Arc<Core>);

impl Deref for Visit {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.0
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
