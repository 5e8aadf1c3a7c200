//! Disks as users have them: files of any format, differencing ones with their parents.
//!
//! Owns which format a file is of ([`Format`]), how an image finds its parents and makes sure that they are the right
//! ones, the lock by which two programs cannot write one image, and what is done to whole disks: create, describe,
//! check, dump, convert, resize, compact, merge. It knows no guest, and no format's bytes. Formats of other makers it
//! only reads ([`open_source`]).
//!
//! # Which format
//! By content, and never against the name: what a guest writes on a raw disk must not make its host see an image there,
//! whose parent could be any file. So content that is an image's counts only in a file that is named like one
//! ([`Format::of`]); else the user has to say.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod check;
mod compact;
mod convert;
mod create;
mod disk;
mod dump;
mod error;
mod family;
mod file;
mod foreign;
mod format;
mod info;
mod merge;
mod payload;
mod progress;
mod resize;

pub use check::{Report, check};
pub use compact::{Compacted, compact};
pub use convert::{Source, convert};
pub use create::{Kind, NewDisk, create};
pub use disk::Disk;
pub use dump::dump;
pub use error::DiskError;
pub use foreign::{Backing, open_source};
pub use format::Format;
pub use info::{Info, info};
pub use merge::{merge, merge_to};
pub use payload::LayerFile;
pub use progress::{Progress, Watcher};
pub use resize::{Shrink, resize};

/// A result of this room.
pub type Result<T, E = DiskError> = std::result::Result<T, E>;

#[cfg(test)]
mod tests;
