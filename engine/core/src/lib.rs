//! The engine seam: everything a board needs to run guest instructions, whoever executes them.
//!
//! Owns the contracts ([`Engine`], [`Partition`], [`Vcpu`], [`Bus`]), the architectural vCPU state and
//! its reset values, CPU models as data, the dirty bitmap, the run gate (pause with a deadline,
//! throttle) and the capability report. It knows no device, makes no system call but for waiting, and never
//! depends on a particular engine: `vireo-kvm` and `vireo-soft` implement it, `vireo-testkit` holds both to it.
//!
//! # Stages of a partition
//! 1. [`Engine::probe`] tells what this host can do and why not.
//! 2. [`Engine::new_partition`] with a [`PartitionSpec`] (vCPU count, CPU model) gives a [`Partition`].
//! 3. [`Partition::map_ram`] for each RAM range; memory may also change later, while paused.
//! 4. [`Partition::take_vcpu`] hands out each [`Vcpu`] once, to be moved to its own thread, where
//!    [`Vcpu::run`] executes until something only the board can decide comes up ([`Exit`]).
//!
//! # Paused
//! While [`RunGate::pause_all`] holds, no vCPU executes and no engine thread touches guest RAM. State may
//! be saved or loaded only then.

#![warn(missing_docs)]

pub mod bus;
pub mod capability;
pub mod dirty;
pub mod error;
pub mod gate;
pub mod model;
pub mod partition;
pub mod ram;
pub mod state;
pub mod tlb;

pub use bus::{Bus, HypercallRegs, MsiMessage, MsrFault};
pub use capability::{Ability, Capabilities, EngineKind, Probe};
pub use dirty::DirtyBitmap;
pub use error::EngineError;
pub use gate::{PauseError, RunGate};
pub use model::CpuModel;
pub use partition::{Engine, Exit, Partition, PartitionSpec, PartitionStats, Vcpu};
pub use ram::{HostRam, RamRange};
pub use state::VcpuState;
pub use tlb::{PageRange, TlbFlusher, TlbScope, VcpuSet};
