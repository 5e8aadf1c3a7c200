//! Frames: what network adapters and networks give each other.
//!
//! Owns the frame ([`Frame`]) with what is still to be done to it ([`Intent`]: a checksum to be filled in, a cut into segments, a
//! tag), which travels with it and is done only where somebody cannot take it ([`fit`]); the reading of headers ([`headers`]); and
//! the seam between a guest's adapter and what it is plugged into ([`Link`], [`Adapter`]). It knows no device and no medium.
//!
//! # Whom to trust
//! A frame's head is a copy that nobody changes any more; its tail may be guest memory, is read once, and nothing is decided by it.
//! What an intent says is checked when the frame is made ([`Frame::new`]), so who takes frames need not.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
mod checksum;
mod filter;
mod fit;
mod frame;
pub mod headers;
mod link;
mod offload;
mod rss;
#[cfg(test)]
mod tests;
mod traffic;
pub mod trial;

pub use address::{Mac, NoMac};
pub use checksum::{Sum, pseudo_header};
pub use filter::Filter;
pub use fit::{Ability, fit};
pub use frame::{BadFrame, Checksum, FRAME_MAX, Frame, HEAD_MAX, Intent, SegmentKind, Segmentation};
pub use headers::Tag;
pub use link::{Adapter, End, Full, Link, NotAllowed};
pub use offload::{OFFLOAD_HEADER, UnknownSegments};
pub use rss::{RSS_KEY, rss_hash};
pub use traffic::Traffic;
