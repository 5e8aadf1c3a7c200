//! The cases.

mod apic;
mod control;
mod debug;
mod faults;
mod flushes;
mod hot_calls;
mod hot_code;
mod hot_faults;
mod hot_loops;
mod hot_random;
mod hot_smp;
mod hot_strings;
mod hot_system;
mod hot_traps;
mod interrupts;
mod io;
mod memory;
mod modes;
mod rings;
mod states;

use crate::machine::Bench;
use crate::record::{Failure, Record};

/// A guest, what is done to it, and what has to be seen.
pub struct Case {
    /// Unique name.
    pub name: &'static str,
    body: fn(&Bench<'_>) -> Result<Record, Failure>,
}

impl Case {
    /// Runs it on an engine.
    pub fn run(&self, bench: &Bench<'_>) -> Result<Record, Failure> {
        (self.body)(bench)
    }
}

const fn case(name: &'static str, body: fn(&Bench<'_>) -> Result<Record, Failure>) -> Case {
    Case { name, body }
}

/// All cases that need one engine.
pub fn cases() -> Vec<Case> {
    let rooms: [&[Case]; 20] = [
        modes::CASES,
        faults::CASES,
        rings::CASES,
        io::CASES,
        interrupts::CASES,
        apic::CASES,
        memory::CASES,
        control::CASES,
        debug::CASES,
        states::CASES,
        hot_loops::CASES,
        hot_calls::CASES,
        hot_random::CASES,
        hot_smp::CASES,
        hot_strings::CASES,
        hot_system::CASES,
        hot_traps::CASES,
        hot_faults::CASES,
        hot_code::CASES,
        flushes::CASES,
    ];
    rooms.into_iter().flatten().map(|c| case(c.name, c.body)).collect()
}

pub use states::{Transfer, transfers};
