//! VHDX, the disk format of Hyper-V since 2012 (Microsoft, [MS-VHDX]: "Virtual Hard Disk v2 File Format"; sections are
//! named where a fact comes from).
//!
//! Owns the meaning of every byte of such an image but the payload: [`Vhdx`] says where a range of the disk is, gives
//! new blocks a place, and makes what it changed durable by the log. It reads and writes no payload; it opens no
//! parent, but says who it is ([`ParentLink`]).
//!
//! # What a crash may leave
//! A change of the block table or of a sector bitmap stays in memory until [`Vhdx::flush`], which first makes durable
//! what it leads to, then writes the changed pages to the log, makes that durable, and writes them in their places.
//! What an entry of the log says is durable there before the next entry is written, so the log is never more than one
//! entry long (or as many as one flush needs) and a replay at the next opening completes it: in memory, if the image is
//! opened to be read only. What a block gives up is used again only when its entry in the table is durable.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod bytes;
mod check;
mod compact;
mod create;
mod dump;
mod error;
mod guid;
mod header;
mod image;
mod log;
mod metadata;
mod overlay;
mod pages;
mod region;
mod resize;
mod table;
mod trim;

pub use create::{DEFAULT_BLOCK, Kind, MAX_SIZE, NewVhdx};
pub use dump::dump;
pub use error::VhdxError;
pub use guid::Guid;
pub use image::{Open, Vhdx};
pub use metadata::{Metadata, ParentLink};

/// A result of this room.
pub type Result<T, E = VhdxError> = std::result::Result<T, E>;

/// What everything in an image is a multiple of: regions, blocks, the log.
pub const MIB: u64 = 1 << 20;

#[cfg(test)]
mod tests;
