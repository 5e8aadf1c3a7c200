//! What can go wrong at the engine seam.

/// An engine could not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The engine cannot run on this host at all.
    #[error("engine {engine} is not usable on this host: {reason}")]
    Unusable {
        /// Name of the engine.
        engine: &'static str,
        /// Why, in words for the operator.
        reason: String,
    },
    /// The number of vCPUs is outside what the engine offers.
    #[error("{asked} vCPUs asked for, but engine {engine} runs 1 to {max}")]
    VcpuCount {
        /// Name of the engine.
        engine: &'static str,
        /// What the spec asked for.
        asked: u32,
        /// The largest number it runs.
        max: u32,
    },
    /// A vCPU index was out of range, or its vCPU was already taken.
    #[error("vCPU {0} does not exist or is already taken")]
    NoVcpu(u32),
    /// A RAM range is not page-aligned, empty, outside the physical address width or overlaps another.
    #[error("RAM range {start:#x}+{len:#x} cannot be mapped: {reason}")]
    BadRange {
        /// First guest-physical address.
        start: u64,
        /// Length in bytes.
        len: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// State that cannot be loaded into this vCPU.
    #[error("vCPU state refused: {0}")]
    BadState(String),
    /// An ability that this engine, or this host, does not have.
    #[error("engine {engine} cannot {what}: {reason}")]
    Unsupported {
        /// Name of the engine.
        engine: &'static str,
        /// What was asked.
        what: &'static str,
        /// Why it cannot.
        reason: String,
    },
    /// A system call failed.
    #[error("{what} failed: {source}")]
    Os {
        /// What was being done.
        what: &'static str,
        /// The error of the operating system.
        #[source]
        source: std::io::Error,
    },
    /// The engine met a condition that is a fault of its own; the machine stops, the host goes on.
    #[error("engine fault: {0}")]
    Internal(String),
}

impl EngineError {
    /// Wraps the error of a system call with what was being done.
    pub fn os(what: &'static str, source: impl Into<std::io::Error>) -> Self {
        Self::Os { what, source: source.into() }
    }
}
