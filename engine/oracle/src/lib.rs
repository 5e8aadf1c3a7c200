//! Runs single instructions on the real CPU and compares an engine with it.
//!
//! A [`Case`] is one instruction with all registers and the memory it can see. [`Native`] executes it
//! unmodified, at CPL 3, in a sandboxed child process; an engine does the same behind the [`Subject`] trait;
//! [`compare`] says where the two [`Outcome`]s differ. [`Generator`] makes random cases of every instruction
//! form that `vireo-isa` knows and that a user-mode process can reproduce, and [`fuzz`] drives it all from a
//! seed and shrinks what fails.
//!
//! It owns: the sandbox, the generator and the comparison policy. It never judges an engine by anything but
//! the host CPU, and knows no engine.

mod case;
mod compare;
mod exclude;
mod fuzz;
mod generate;
mod layout;
mod native;
mod operands;
mod record;
mod report;
mod rng;
mod sandbox;
mod shrink;
mod special;
mod state;
mod trampoline;

pub use case::{Case, Change, CpuImage, End, FxImage, MemImage, Mode, Outcome, Patch, changes};
pub use compare::{Difference, code_of, compare};
pub use exclude::excluded;
pub use fuzz::fuzz;
pub use generate::{Generator, has_avx, host_features, host_is_amd, model};
pub use native::{BATCH, Native, NativeError};
pub use report::{Failure, Report};
pub use rng::Rng;

/// The address map of every case.
pub mod windows {
    pub use crate::layout::{
        BASE16, BYTES, CODE, DATA, ENTRY, FILLER, GUARD, LANDING, PAGE, PAGES, READ_ONLY, STACK, WINDOWS,
        Window, address, background, offset,
    };
}

/// Something that executes one instruction: an engine, or the real CPU.
pub trait Subject {
    /// Executes the instruction at `case.cpu.rip`, once (a REP string instruction to its end), from exactly
    /// the state the case describes, and reports the state after it. `mode` equals `case.mode`.
    ///
    /// Memory is [`MemImage::materialize`] in the windows of [`windows::WINDOWS`], with their access rights
    /// as user pages; everything else is absent. An exception is reported, not delivered: registers are those
    /// at its boundary, RIP included, RFLAGS without RF. A branch that reached its target is
    /// [`End::Done`], even if nothing can be fetched there.
    fn run(&mut self, case: &Case, mode: Mode) -> Outcome;
}
