//! Saved state.

use serde::{Deserialize, Serialize};

use crate::crash::CrashRegisters;
use crate::stimer::{Stimer, TIMERS};
use crate::{Message, SINTS};

/// Version of [`HypervState`].
pub const VERSION: u32 = 1;
/// Its name in messages.
pub const DEVICE: &str = "Hyper-V interface";

/// All of the interface's state. Ports are not in it: whoever connected them does so again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HypervState {
    pub(crate) version: u32,
    /// Reference time at which it was saved.
    pub(crate) reference: u64,
    pub(crate) global: Global,
    pub(crate) vps: Vec<VpState>,
}

/// Registers of the whole partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Global {
    pub guest_os_id: u64,
    pub hypercall: u64,
    pub reference_tsc: u64,
    pub crash: CrashRegisters,
}

/// Those of a vCPU.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VpState {
    pub assist_page: u64,
    pub control_and_pages: [u64; 3],
    pub sints: [u64; SINTS],
    pub queues: Vec<Vec<Message>>,
    pub timers: [Stimer; TIMERS],
}
