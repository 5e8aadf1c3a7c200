//! What can go wrong with an image.

use std::io;

use vireo_vdisk::OutOfRange;

/// Why an image cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum VmdkError {
    /// Reading failed.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// It does not begin as one.
    #[error("this is no VMDK: it begins with neither \"KDMV\" nor \"# Disk DescriptorFile\"")]
    NotVmdk,
    /// It contradicts itself or the specification.
    #[error("the VMDK is damaged: {0}")]
    Damaged(String),
    /// It has something that is not known.
    #[error("the VMDK has {0}, which is not supported")]
    Unsupported(String),
    /// A file that it names cannot be opened, or may not.
    #[error("cannot open {name}, which the VMDK names: {source}")]
    Extent {
        /// The file, as it is named.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A range that is not on the disk.
    #[error(transparent)]
    OutOfRange(#[from] OutOfRange),
}

impl VmdkError {
    /// For `map_err`.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// It contradicts itself.
pub(crate) fn damaged<T>(what: impl Into<String>) -> crate::Result<T> {
    Err(VmdkError::Damaged(what.into()))
}
