//! What can go wrong with a disk.

use std::io;
use std::path::{Path, PathBuf};

use vireo_vdisk::ImageError;

use crate::Format;

/// Why something cannot be done with a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
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
    /// The image refused.
    #[error("{}: {source}", path.display())]
    Image {
        /// Which.
        path: PathBuf,
        /// What its format says.
        source: ImageError,
    },
    /// A folder, a FIFO, a character device.
    #[error("{} is neither a file nor a block device", .0.display())]
    NoFile(PathBuf),
    /// Somebody else has it open.
    #[error("{} is in use by another program", .0.display())]
    InUse(PathBuf),
    /// A block device that is mounted, a part of another device, or open.
    #[error("the device {} is mounted, or in use by another device or program: unmount it first", .0.display())]
    DeviceInUse(PathBuf),
    /// Its content is an image's, its name is not.
    #[error("{} looks like {content}, but is not named like one: rename it, or say which format it is", path.display())]
    Ambiguous {
        /// Which.
        path: PathBuf,
        /// What its content is.
        content: Format,
    },
    /// A format of others.
    #[error("{} is {format}, which is only read: convert it", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Its format.
        format: Format,
    },
    /// An image names another file as a part of its disk.
    #[error(
        "{} has a part of its disk in another file, \"{file}\"; any file can be named there, so it is read only with --follow-backing",
        path.display()
    )]
    NamesFile {
        /// The image.
        path: PathBuf,
        /// The file, as it is named.
        file: String,
    },
    /// It is named like an image, and is none, or one of another format.
    #[error("{} is no {named}, as which it is named, but looks like {content}: rename it, or say which format it is", path.display())]
    NotAsNamed {
        /// Which.
        path: PathBuf,
        /// What its name says.
        named: Format,
        /// What its content is.
        content: Format,
    },
    /// A differencing image's parent cannot be found.
    #[error("{} has a parent that is nowhere it says: {tried}", path.display())]
    NoParent {
        /// The child.
        path: PathBuf,
        /// Where it was looked for.
        tried: String,
    },
    /// A parent is not the one that the child was made for, or was changed since.
    #[error("{} is not what its child {} was made on: it is another image, or was changed since", parent.display(), child.display())]
    WrongParent {
        /// The parent.
        parent: PathBuf,
        /// The child.
        child: PathBuf,
    },
    /// It may not be changed: another would no longer be what it is.
    #[error("{} must stay as it is: {} is made on it", path.display(), child.display())]
    HasChild {
        /// Which.
        path: PathBuf,
        /// The other.
        child: PathBuf,
    },
    /// So many images on one another, or in a ring.
    #[error("{} has more than {most} parents, or is its own", path.display(), most = crate::disk::MOST_LAYERS)]
    TooDeep {
        /// The child.
        path: PathBuf,
    },
    /// What was asked for contradicts itself.
    #[error("{0}")]
    Contradiction(String),
    /// Whoever asked for it no longer wants it.
    #[error("cancelled")]
    Cancelled,
}

impl DiskError {
    /// Which formats a user may say, where it is not clear which one the file has: whoever asks users knows how they say it.
    pub fn sayable(&self) -> Vec<Format> {
        match self {
            // A guest may write on a raw disk whatever it likes.
            Self::Ambiguous { content, .. } => vec![*content, Format::Raw],
            Self::NotAsNamed { content, .. } => vec![*content],
            _ => Vec::new(),
        }
    }

    /// The same of a file that is to have another name.
    pub(crate) fn renamed(mut self, part: &Path, name: &Path) -> Self {
        if let Self::Io { path, .. } | Self::Image { path, .. } = &mut self
            && path == part
        {
            *path = name.to_path_buf();
        }
        self
    }

    /// For `map_err`.
    pub(crate) fn io<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> Self + 'a {
        move |source| Self::Io { what, path: path.to_path_buf(), source }
    }
    /// For `map_err`.
    pub(crate) fn image<'a, E: std::error::Error + Send + Sync + 'static>(
        path: &'a Path,
    ) -> impl Fn(E) -> Self + 'a {
        move |e| Self::Image { path: path.to_path_buf(), source: ImageError::new(e) }
    }
}
