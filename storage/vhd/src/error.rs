//! What can go wrong with an image.

use std::io;

use vireo_vdisk::OutOfRange;

/// Why an image cannot be opened, made, or used.
#[derive(Debug, thiserror::Error)]
pub enum VhdError {
    /// Reading or writing failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// There is no footer, at the end or at the start.
    #[error("this is no VHD: there is no footer with a right checksum at its end or its start")]
    NotVhd,
    /// It contradicts itself or the specification.
    #[error("the VHD is damaged: {0}")]
    Damaged(String),
    /// It has something that is not known.
    #[error("the VHD has {0}, which is not supported")]
    Unsupported(String),
    /// A disk of this size cannot be.
    #[error("a VHD of {0} bytes is not possible: it takes a multiple of 512, at least 512, at most 2040 GiB")]
    BadSize(u64),
    /// Blocks of this size cannot be.
    #[error("blocks of {0} bytes are not possible: it takes a power of two from 4096 to 256 MiB")]
    BadBlock(u32),
    /// A path that the header has no room for.
    #[error("the path of the parent is too long for a VHD: {0}")]
    LongPath(String),
    /// It was opened to be read.
    #[error("the VHD was opened read-only")]
    ReadOnly,
    /// A range that is not on the disk.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
    /// The table's entries lead to the first 2 TiB of a file.
    #[error("the VHD's file cannot grow beyond 2 TiB")]
    Full,
}

impl VhdError {
    /// For `map_err`.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
