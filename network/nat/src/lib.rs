//! A private network for guests, which reaches the host's networks by the host's own sockets, and needs no privileges for it.
#![warn(missing_docs)]

mod config;
mod dhcp;
mod dns;
mod engine;
mod forward;
mod fragments;
mod host;
mod icmp;
mod link;
mod outbox;
pub mod simulation;
mod slots;
mod sockets;
mod stats;
mod talk;
mod tcp;
mod wire;

#[cfg(test)]
mod tests;

pub use config::{MTU_MAX, MTU_MIN, NatConfig, NatError, Network, NoNetwork};
pub use forward::{Forward, NoForward, Protocol};
pub use link::Nat;
pub use stats::{Stats, Traffic};
