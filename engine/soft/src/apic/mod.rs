//! The local APIC of a vCPU (SDM vol. 3A, chapter 11).
//!
//! # Who owns what
//! [`Apic`] is a state machine without threads, clocks or I/O; it belongs to the vCPU's thread. Other threads reach a
//! vCPU through its [`Mailbox`] only, which is made of atomics: it takes vectors, NMI, INIT and start-up IPIs in, and
//! tells everybody where the vCPU is to be found ([`Routing`]: ids, mode, priority), so that routing takes no lock.
//!
//! * A sender calls [`route`] over the mailboxes, [`Mailbox::post`]s to each target and then wakes its vCPU.
//! * The vCPU takes the mail and gives the vectors to [`Apic::raise`]; NMI, INIT, SIPI and the PIC's interrupt
//!   are the processor's own business (`cpu.rs`).
//! * After each change of the APIC the vCPU calls [`crate::cpu::Cpu::apic_changed`], which publishes its routing and
//!   recomputes what the run loop looks at.
//!
//! # Time
//! All times are values of the guest's TSC, as RDTSC reads it. Counts of the bus clock
//! ([`vireo_core::model::APIC_BUS_HZ`]) are converted in `timer`.
//!
//! # What is not there
//! CMCI, EOI-broadcast suppression, writable xAPIC ids, and arbitration of the APIC bus.

mod cpu;
mod local;
mod mailbox;
mod message;
mod route;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

pub use local::Apic;
pub use mailbox::Mailbox;
