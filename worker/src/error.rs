//! Why a machine could not be run; each in one line that says what to do.

use crate::disks::DisksError;
use crate::nics::NicsError;

/// A machine that could not be started, or that stopped for a reason of the host.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// No engine, or not the wanted one.
    #[error("{0}")]
    Engine(String),
    /// A CPU model that does not exist.
    #[error("CPU model {asked:?} is unknown; there are: {known}")]
    CpuModel {
        /// What was asked.
        asked: String,
        /// What there is.
        known: String,
    },
    /// A CPU model that this host's processor cannot provide.
    #[error("CPU model {name} cannot be had from the {engine} engine on this host: {missing}")]
    CpuModelMissing {
        /// The model.
        name: String,
        /// The engine.
        engine: String,
        /// What is missing.
        missing: String,
    },
    /// A number of vCPUs that the engine does not run.
    #[error("{asked} CPUs asked for; the {engine} engine runs 1 to {max}")]
    Cpus {
        /// What was asked.
        asked: u32,
        /// Which engine.
        engine: String,
        /// Its maximum.
        max: u32,
    },
    /// The console could not be set up.
    #[error("serial port: {0}")]
    Console(String),
    /// A disk.
    #[error(transparent)]
    Disks(#[from] DisksError),
    /// A screen without VMBus.
    #[error(
        "screen, keyboard and mouse need a guest with the interface of Hyper-V, so not --enlightenments none"
    )]
    NoVmBus,
    /// The VNC server.
    #[error("VNC: {0}")]
    Vnc(String),
    /// A network adapter.
    #[error(transparent)]
    Nics(#[from] NicsError),
    /// The socket by which the machine is changed.
    #[error("control socket: {0}")]
    Control(String),
    /// The signals that end a machine could not be caught.
    #[error("signals cannot be caught: {0}")]
    Signals(#[source] std::io::Error),
    /// Memory, kernel or tables.
    #[error("{0}")]
    Machine(String),
    /// The engine failed while the guest ran.
    #[error("the machine stopped because its engine failed: {0}")]
    EngineFailed(String),
}
