//! What a case saw.

use std::fmt;

use vireo_core::EngineError;

/// Named observations in the order in which they were made; equal on all engines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record(pub Vec<(String, String)>);

/// A case did not see what it has to.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something had another value.
    #[error("{what}: expected {expected}, saw {seen}")]
    Different {
        /// What was looked at.
        what: String,
        /// What the architecture says.
        expected: String,
        /// What the engine did.
        seen: String,
    },
    /// The guest did not come to its end.
    #[error("the guest did not finish: {0}")]
    Stuck(String),
    /// The engine refused or failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The guest's code does not assemble: a fault of the case.
    #[error("the guest does not assemble: {0}")]
    Assembler(String),
    /// Does not apply to this engine on this host; says why.
    #[error("not applicable: {0}")]
    Skipped(String),
}

impl From<iced_x86::IcedError> for Failure {
    fn from(e: iced_x86::IcedError) -> Self {
        Self::Assembler(e.to_string())
    }
}

impl Record {
    /// Notes a value that has to be the expected one.
    pub fn expect<T: fmt::Debug + PartialEq>(
        &mut self,
        what: &str,
        seen: T,
        expected: T,
    ) -> Result<(), Failure> {
        self.note(what, &seen);
        if seen == expected {
            return Ok(());
        }
        Err(Failure::Different {
            what: what.into(),
            expected: format!("{expected:x?}"),
            seen: format!("{seen:x?}"),
        })
    }

    /// Notes that something holds.
    pub fn check(&mut self, what: &str, holds: bool, seen: impl fmt::Debug) -> Result<(), Failure> {
        self.0.push((what.into(), holds.to_string()));
        if holds {
            return Ok(());
        }
        Err(Failure::Different { what: what.into(), expected: "it holds".into(), seen: format!("{seen:x?}") })
    }

    /// Notes a value that has to be the same on all engines, whatever it is.
    pub fn note(&mut self, what: &str, seen: &impl fmt::Debug) {
        self.0.push((what.into(), format!("{seen:x?}")));
    }
}
