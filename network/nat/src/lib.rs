//! A private network for guests, which reaches the host's networks by the host's own sockets, and needs no privileges for it.
//!
//! Owns the translation: who guests are (ARP, DHCP, router advertisements), what becomes of their connections and datagrams
//! ([`NatConfig`], [`Nat`]), and which ports of the host lead to them ([`Forward`]). Adapters are plugged into it as into any
//! `vireo_frame::Link`, one or, behind a port of a switch, several.
//!
//! # A connection's way
//! A guest's first segment makes the host connect; the guest is answered when the host is, or told as it would be by a router. From
//! then on there are two connections, the host's and one of our own with the guest, which is as simple as both ends being on one
//! host allow. *From the guest*, payload goes to the host's socket on the thread that puts the frame, straight from guest memory;
//! what has been taken is acknowledged, and what the socket has no room for is kept, of which the window that the guest is told is
//! the measure. *To the guest*, bytes are received into pieces with room for headers in front, and sent from there, 64 KiB in a
//! frame where the adapter takes it, by the network's own thread; they are kept until the guest has acknowledged them. Buffers begin
//! small, and grow while it is they that somebody waits for.
//!
//! Datagrams go by a connected socket for each pair of ends, so that errors come back; answers of DNS are those of the host's own
//! resolvers. Echo requests go by the kernel's ping sockets, where it allows them.
//!
//! # Whom to trust
//! Nobody. What guests send is read in a frame's head, each byte once; numbers of sequence are taken modulo 2^32 and checked against
//! what was sent (RFC 9293, 5961). A guest that is slow, or lets a connection wait, has its own bytes kept, within bounds, and
//! nobody else's. What guests can make the host hold: so many flows each of connections and datagrams as [`NatConfig::flows`] says, a
//! quarter of the connections not yet made, of which each waits for 30 s at most. Where all are taken, a station that has fewer takes
//! one of that which has most, until all have the same: none keeps others out. Who call forwarded ports count as one station. What they hold besides: for each connection 64 KiB each way, and 64 MiB more for all together; 16 packets in
//! fragments; 512 frames that wait for room.
//!
//! All but `sockets` and `link` is pure: it is told the time, and sees the host behind a trait ([`simulation`] is another one).
#![deny(unsafe_op_in_unsafe_fn)]
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
mod shared;
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
pub use stats::Stats;
