//! A pair of rings in the guest's memory: one that the guest writes, one that it reads.
//!
//! Each is a page of control words, then data. Both sides keep to whole 8 bytes, and never fill a ring, so that equal indices
//! mean empty.

mod memory;
mod packet;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use memory::{RingMemory, RingPair};
pub use packet::{Packet, PacketError, kind};
pub use reader::RingReader;
pub use writer::{RingFull, RingWriter, TransferRange};

/// Offsets of the control words (struct hv_ring_buffer).
mod control {
    /// Where the writer goes on, in bytes from the start of the data.
    pub const WRITE: u64 = 0;
    /// Where the reader goes on.
    pub const READ: u64 = 4;
    /// Not 0: the reader looks by itself and wants no signal.
    pub const INTERRUPT_MASK: u64 = 8;
    /// Not 0: the writer waits for so many bytes to be free, and wants a signal then.
    pub const PENDING_SEND: u64 = 12;
    /// What the writer can do.
    pub const FEATURES: u64 = 64;
    /// It sets [`PENDING_SEND`].
    pub const FEATURE_PENDING_SEND: u32 = 1;
}

/// The ring is not usable any more: the guest has put something there that no driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest broke the ring: {0}")]
pub struct RingBroken(pub &'static str);
