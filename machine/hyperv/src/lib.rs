//! The hypervisor interface that guests of Hyper-V know: what an unmodified guest with stock drivers finds below it.
//!
//! Owns the CPUID leaves of the hypervisor's range, the synthetic MSRs, the hypercalls, the synthetic interrupt controllers
//! (SynIC) with their messages, events and timers, and reference time. One [`Hyperv`] serves all vCPUs of a partition, above
//! either engine; it knows no VMBus: whoever wants a guest's messages and events connects a port ([`MessagePort`],
//! [`EventPort`]).
//!
//! Source of all facts, where nothing else is named: "Hypervisor Top-Level Functional Specification" (TLFS), version 6.0b.
//!
//! # Where this differs from Hyper-V
//! Pages that the guest asks for (hypercall page, message page, event page, reference TSC page) are its own RAM at the address
//! it names, not pages laid over it: what was there before is lost, as with every other hypervisor that offers this interface.
//! A TLB flush of one address space is one of all.
//! Automatic EOI is not done, as the hint tells guests (leaf 4000_0004h, EAX bit 9).
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod crash;
mod enlightenments;
mod hypercall;
mod hyperv;
mod message;
pub mod msr;
mod ports;
mod processors;
mod reference;
mod state;
mod stimer;
mod synic;
#[cfg(test)]
mod tests;

pub use crash::{CrashSink, GuestCrash};
pub use enlightenments::Enlightenments;
pub use hypercall::Status;
pub use hyperv::{Hyperv, Seams};
pub use message::Message;
pub use ports::{EventPort, MessagePort};
pub use state::HypervState;
pub use synic::QueueFull;

/// Synthetic interrupt sources of a vCPU (TLFS 11.2).
pub const SINTS: usize = 16;

/// Events of one source: bits of its part of the event page (TLFS 11.7).
pub const EVENTS: u16 = 2048;
