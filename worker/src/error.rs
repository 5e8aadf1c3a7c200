//! Why a machine could not be run; each in one line that says what to do.

use std::path::PathBuf;

/// A machine that could not be started, or that stopped for a reason of the host.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A file that cannot be read.
    #[error("{what} {path}: {reason}", path = .path.display())]
    File {
        /// `kernel`, `initrd`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
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
    #[error("CPU model {name} needs what this host's processor does not have: {missing}")]
    CpuModelMissing {
        /// The model.
        name: String,
        /// Names of the missing features.
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
    /// Memory, kernel or tables.
    #[error("{0}")]
    Machine(String),
    /// The engine failed while the guest ran.
    #[error("the machine stopped because its engine failed: {0}")]
    EngineFailed(String),
}
