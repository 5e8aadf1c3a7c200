//! One virtual machine: builds a board from a spec, attaches its console and runs it to its end.
//!
//! Owns the choice of engine, the checks of a spec against this host, the console (terminal, socket or file), the process's
//! signals while a machine runs, and the reaction to the guest's power events. It never parses a command line and never decides what machine to run.
#![forbid(unsafe_code)]

pub mod console;
pub mod engines;
mod error;
pub mod output;
mod run;
mod signals;
mod spec;

pub use error::RunError;
pub use run::{GuestEnd, Outcome, run};
pub use spec::{
    EngineChoice, RunSpec, SerialSpec, parse_enlightenments, parse_memory, parse_translation_memory,
};
