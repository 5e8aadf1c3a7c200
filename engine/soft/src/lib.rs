//! The software engine: executes x86-64 guests, kernel and all, in an unprivileged process.
//!
//! Owns the software CPU: decoding into blocks of micro-operations, the interpreter that executes them, the
//! software TLB and page walker, segmentation, exceptions, system instructions, the local APIC. It implements
//! the traits of `vireo-core` and never knows a device: ports, MMIO and foreign MSRs go to the board's bus.
//!
//! # How an instruction runs
//! `code` finds or builds the block at the current address; the run loop in `vcpu` calls the handler of each
//! micro-operation. Handlers of integer instructions are in `exec`, those that need privilege or change mode in
//! `system`; x87, MMX, SSE and rare integer instructions are executed by `host`, which re-encodes the same instruction
//! for the host CPU. All memory access goes through `mmu`.
//!
//! # Exact by construction
//! Arithmetic flags are the host's own, taken after the host executed the same instruction ([`cpu::flags`] says how), so
//! undefined flags are those of the host CPU too. The CPU oracle compares every instruction form with the real CPU.
//!
//! # Interpreter and translator
//! Blocks that run often become host code (`translate`), which works on the same state ([`cpu::Cpu`]) and TLB. The
//! interpreter is its reference, and executes for it whatever is rare: TLB misses, faults, devices, most system instructions.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the software engine executes x86 guest instructions on an x86-64 host");

mod apic;
mod clock;
mod code;
mod cpu;
mod debug;
mod engine;
mod exec;
mod flush;
mod host;
mod lockstep;
mod mmu;
mod partition;
mod step;
mod system;
mod translate;
mod vcpu;

pub use engine::{MAX_VCPUS, SoftEngine};
pub use step::{Step, Stepper};
