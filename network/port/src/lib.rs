//! A port of the switch, between a worker and the switch's own process.
//!
//! Owns the rings in shared memory by which frames go both ways ([`PortMemory`], [`RingWriter`], [`RingReader`]), what is said over the
//! socket beside them ([`wire`]), and the worker's end ([`SwitchPort`], a [`vireo_frame::Link`]). It decides nothing about frames:
//! that is the switch's business, whose process has the other end of each port.
//!
//! # A port
//! The worker connects to the switch's socket and says who it is. It gets a sealed memory file with a ring each way, and keeps the
//! connection: when either end closes it, the port is gone. A frame is put into a ring once, whole, with its intent, however long it is;
//! who waits for frames or for room says so in the ring and is woken by a byte on the socket. So sides that are busy make no
//! system calls.
//!
//! Why no eventfds: whether a write to one blocks is a property that all who have it share, so a worker could fill it, make it block, and
//! hold up the switch. A socket is asked not to block each time.
//!
//! # Whom to trust
//! Nobody: both sides read indices once, check them, and keep their own. What is decided about a frame is decided about a copy of its
//! head, and that copy is what the receiver gets. Neither can make the file shorter than the other's mapping of it.
#![warn(missing_docs)]

mod client;
mod memory;
mod reader;
mod record;
#[cfg(test)]
mod tests;
pub mod wire;
mod writer;

pub use client::{ConnectError, SwitchPort};
pub use memory::{PortMemory, RING_MAX, RING_MIN, Way};
pub use reader::RingReader;
pub use record::Record;
pub use wire::PortRequest;
pub use writer::{Refused, RingWriter};

/// The other side has written into a ring what none does. The ring is not usable any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side broke the ring: {0}")]
pub struct RingBroken(pub &'static str);
