//! VMDK, the disk format of VMware's products (VMware, "Virtual Disk Format 5.0"; sections are named where a fact comes
//! from): read only, so that such disks can be converted.
//!
//! Owns the meaning of every byte of such an image: [`Vmdk`] reads ranges of the disk from sparse extents (monolithic,
//! in several files, compressed for streaming) and flat ones. It opens no file: whoever uses it opens those that a
//! descriptor names, or refuses to. Disks with parents, and those of ESX servers, are refused. An image may say
//! anything: what is kept of it in memory is bounded, whatever it says.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod descriptor;
mod error;
mod image;
mod sparse;

pub use error::VmdkError;
pub use image::{OpenExtent, Vmdk, extents_named};

/// A result of this room.
pub type Result<T, E = VmdkError> = std::result::Result<T, E>;

/// "KDMV", at the start of a sparse extent.
pub const SPARSE: &[u8; 4] = b"KDMV";
/// At the start of a descriptor.
pub const DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";

#[cfg(test)]
mod tests;
