//! What fuzz targets share: an input read piece by piece, a medium that an image is written on, a chipset to plug devices
//! into, a disk that does things in the order that an input says, and a witness of what the host writes.
//!
//! Owns nothing of what is fuzzed; a target uses only what its crate offers to everybody.
#![forbid(unsafe_code)]

mod desk;
mod medium;
mod rig;
mod witness;

use vireo_frame::Intent;
use vireo_frame::trial::any_packet;

pub use desk::{Bell, Desk, PATIENCE};
pub use medium::{Patched, use_image};
pub use rig::Rig;
pub use witness::{Witness, guest};

/// An input. Past its end it is zeros.
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether all was used.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// So many bytes, or what is left.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(len.min(self.0.len()));
        self.0 = later;
        now
    }

    /// So many bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A packet with so much payload at most, right, nearly or not at all; and what is said of it.
    pub fn packet(&mut self, most: usize) -> (Vec<u8>, Intent) {
        any_packet(most, &mut || self.u8())
    }
}
