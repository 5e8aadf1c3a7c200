//! What can go wrong with an image.

use std::io;

use vireo_vdisk::OutOfRange;

use crate::Guid;

/// Why an image cannot be opened, made, or used.
#[derive(Debug, thiserror::Error)]
pub enum VhdxError {
    /// Reading or writing failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// It does not begin as one.
    #[error("this is no VHDX: it does not begin with \"vhdxfile\"")]
    NotVhdx,
    /// It contradicts itself or the specification.
    #[error("the VHDX is damaged: {0}")]
    Damaged(String),
    /// It has something that is not known.
    #[error("the VHDX has {0}, which is not supported")]
    Unsupported(String),
    /// It has something that must be understood to use it, and is not.
    #[error("the VHDX has a {kind} {id} that is required, and not known")]
    Required {
        /// Region or metadata item.
        kind: &'static str,
        /// Which.
        id: Guid,
    },
    /// A disk of this size cannot be.
    #[error("a VHDX of {size} bytes is not possible: it takes a multiple of {sector}, at most 64 TiB")]
    BadSize {
        /// The size asked for, in bytes.
        size: u64,
        /// Size of a sector, in bytes.
        sector: u32,
    },
    /// The block table cannot be longer.
    #[error("the VHDX has no room in its block table for a disk of {size} bytes: convert it")]
    FullTable {
        /// The size asked for, in bytes.
        size: u64,
    },
    /// Blocks of this size cannot be.
    #[error("blocks of {0} bytes are not possible: it takes a power of two from 1 to 256 MiB")]
    BadBlock(u32),
    /// Sectors of this size cannot be.
    #[error("sectors of {0} bytes are not possible: it takes 512 or 4096")]
    BadSector(u32),
    /// A path that the image has no room for.
    #[error("what the image is to say of its parent is too long: {0} bytes")]
    LongLink(usize),
    /// It was opened to be read.
    #[error("the VHDX was opened read-only")]
    ReadOnly,
    /// A range that is not on the disk.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
}

impl VhdxError {
    /// For `map_err`.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// It contradicts itself.
pub(crate) fn damaged<T>(what: impl Into<String>) -> crate::Result<T> {
    Err(VhdxError::Damaged(what.into()))
}
