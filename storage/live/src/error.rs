//! Why a disk cannot be used.

use std::io;
use std::path::{Path, PathBuf};

use vireo_chain::DiskError;

/// Why a disk cannot be opened, or changed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// Its images.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The kernel gives no ring.
    #[error(
        "the kernel gives no io_uring, which disks need (see kernel.io_uring_disabled and the memlock limit): {0}"
    )]
    Ring(#[source] io::Error),
    /// The disk cannot do that.
    #[error("{}: {what}", path.display())]
    NotSupported {
        /// Which.
        path: PathBuf,
        /// What it cannot do, and what to do instead.
        what: &'static str,
    },
}

impl LiveError {
    /// For `map_err`.
    pub(crate) fn io<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self::Io { what, path: path.to_path_buf(), source }
    }
}
