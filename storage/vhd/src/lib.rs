//! VHD, the disk format of Virtual Server and of Hyper-V up to 2008 R2 (Microsoft, "Virtual Hard Disk Image Format
//! Specification", version 1.0, 2006; sections are named where a fact comes from).
//!
//! Owns the meaning of every byte of such an image but the payload: [`Vhd`] says where a range of the disk is, gives
//! new blocks a place, and makes what it changed durable in an order that a crash at any point survives. It reads and
//! writes no payload; it opens no parent, but says who it is ([`ParentLink`]).
//!
//! # What a crash may leave
//! There is no log. A change of the block table or of a sector bitmap stays in memory until [`Vhd::flush`], which first
//! makes durable what it leads to. So the table never leads to what is not there, and a sector is never said to be here
//! before its bytes are. What a block gives up is used again only when it is durable that the table does not lead
//! there. Space that was given away and never led to stays unused until the image is compacted. The footer at the end
//! may be missing while an image grows; its copy at the start counts then, as the specification has it.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod bitmap;
mod check;
mod compact;
mod create;
mod dump;
mod error;
mod footer;
mod header;
mod image;
mod resize;
mod trim;

pub use create::{DEFAULT_BLOCK, Kind, MAX_SIZE, NewVhd};
pub use dump::dump;
pub use error::VhdError;
pub use footer::{DiskType, Footer, Geometry};
pub use header::ParentLink;
pub use image::Vhd;

/// A result of this room.
pub type Result<T, E = VhdError> = std::result::Result<T, E>;

/// The checksum of a structure: the complement of the sum of its bytes, those of the checksum (at an offset) left out
/// ("Checksum").
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let sum = |b: &[u8]| b.iter().fold(0u32, |s, v| s.wrapping_add(u32::from(*v)));
    !sum(&bytes[..at]).wrapping_add(sum(&bytes[at + 4..]))
}

/// The bytes at an offset of a structure.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|n| bytes[at + n])
}

#[cfg(test)]
mod tests;
