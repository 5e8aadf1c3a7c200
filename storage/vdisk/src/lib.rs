//! The ground floor of disks: the bytes that an image is written on, and the language in which an image says where a
//! range of its disk is.
//!
//! Owns [`Medium`] (a file or block device below a format), [`Image`] (what every format is), [`Extent`] (where a piece
//! of a disk is), [`Raw`], the format that is none, [`Compact`] (how an image comes to take less of its medium),
//! [`Fact`] (what an image's structures say), and what formats are tested by: [`crash`], a medium that forgets what was
//! not flushed, and [`trial`]. Never interprets a byte of an image, and knows no guest.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod compact;
pub mod crash;
mod extent;
mod fact;
mod finding;
mod image;
mod medium;
mod range;
mod raw;
mod space;
pub mod trial;

pub use compact::{Compact, Move, Used, compact, gaps, plan};
pub use extent::{Extent, Place};
pub use fact::{Fact, Runs};
pub use finding::Finding;
pub use image::{Image, ImageError};
pub use medium::{FileMedium, Medium};
pub use range::{OutOfRange, Piece, check_range, pieces};
pub use raw::Raw;
pub use space::Space;

/// The smallest unit of any disk, in bytes.
pub const SECTOR: u64 = 512;
