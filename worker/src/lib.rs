//! One virtual machine: builds a board from a spec, attaches its console and runs it to its end.
//!
//! Owns the choice of engine, the checks of a spec against this host, the console (terminal, socket or file), which disks there
//! are and where the guest finds them, screen, keyboard and mouse, the socket by which that is changed, the process's signals while a machine runs, and the
//! reaction to the guest's power events. It never parses a command line and never decides what machine to run.
#![forbid(unsafe_code)]

pub mod console;
pub mod control;
mod disks;
pub mod engines;
mod error;
mod nics;
pub mod output;
mod pci;
mod run;
mod services;
mod signals;
mod socket;
mod spec;
mod station;
mod vmbus;
mod vnc;

pub use disks::{DiskBus, DiskSpec, DiskStatus, Disks, DisksError};
pub use error::RunError;
pub use nics::{Network, NicModel, NicSpec, NicStatus, NicsError};
pub use run::{GuestEnd, Outcome, run};
pub use spec::{
    DynamicMemory, EngineChoice, EnlightenmentChoice, RunSpec, ScreenSpec, SerialSpec, parse_bytes,
    parse_memory, parse_translation_memory,
};
pub use vnc::{VncAddress, VncSpec, VncTls};
