//! Shutdown: the guest is asked to switch itself off, or to restart, in good order.

use std::time::Duration;

use uuid::uuid;

use crate::error::ServiceError;
use crate::link::Service;
use crate::message::{Version, kind};
use crate::text::utf16;
use crate::{Asked, Services};

/// What it is.
pub static SERVICE: Service = Service {
    name: "shutdown",
    interface: uuid!("0e0b6031-5213-4934-818b-38d90ced39db"),
    versions: &[Version(3, 2), Version(3, 1), Version(3, 0), Version(1, 0)],
    kind: kind::SHUTDOWN,
};

/// A driver answers at once, and acts afterwards.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of the text that the guest may show.
const TEXT: usize = 2048;

/// What the guest is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownKind {
    /// Switch itself off.
    PowerOff,
    /// Start anew.
    Restart,
}

impl Services {
    /// Asks the guest to end, or to start anew. When this returns it has said that it will.
    ///
    /// # Errors
    /// It cannot, does not answer, or refuses.
    pub fn shutdown(&self, kind: ShutdownKind) -> Result<(), ServiceError> {
        let what = match kind {
            ShutdownKind::PowerOff => "to switch itself off",
            ShutdownKind::Restart => "to restart",
        };
        self.ask_for(Asked::Shutdown, question(kind), PATIENCE, what).map(|_| ())
    }
}

/// A reason, how long the guest has (it is not told to hurry), flags, and a text.
fn question(kind: ShutdownKind) -> Vec<u8> {
    /// Planned, as Windows numbers reasons.
    const PLANNED: u32 = 0x8000_0000;
    /// Applications that do not end hold nothing up. Linux makes no difference.
    const FORCE: u32 = 1;
    const RESTART: u32 = 2;
    let flags = match kind {
        ShutdownKind::PowerOff => FORCE,
        ShutdownKind::Restart => RESTART | FORCE,
    };
    let mut body = Vec::new();
    for word in [PLANNED, 0, flags] {
        body.extend(word.to_le_bytes());
    }
    body.extend(utf16("The host asks for it.", TEXT).unwrap_or_default());
    body.resize(12 + TEXT, 0);
    body
}
