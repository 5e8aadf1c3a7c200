//! What a virtio device is, apart from its transport.

use std::sync::Weak;
use std::time::Instant;

use crate::core::Core;
use crate::queue::{Broken, ServedQueue};

/// What a device is to the driver, before anything is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Device type (virtio 1.2, chapter 5).
    pub kind: u16,
    /// PCI class in bits 23:16, subclass in 15:8, programming interface in 7:0.
    pub class: u32,
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

    /// The device-specific configuration has changed.
    pub fn config_changed(&self) {
        if let Some(core) = self.0.upgrade() {
            core.config_changed();
        }
    }
}
