//! Which images were made on which. A parent knows nothing of its children: they are looked for beside it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vireo_vdisk::FileMedium;
use vireo_vhd::Vhd;
use vireo_vhdx::{Open, Vhdx};

use crate::disk::{Any, Layer};
use crate::{DiskError, Format, Result};

impl Any {
    /// Whether an image is the parent that this one was made on.
    pub(crate) fn is_made_on(&self, parent: &Self) -> bool {
        match (self, parent) {
            (Self::Vhd(child), Self::Vhd(parent)) => {
                child.parent().is_some_and(|l| l.id == parent.footer().id)
            }
            (Self::Vhdx(child), Self::Vhdx(parent)) => child
                .parent()
                .is_some_and(|l| l.linkage == parent.data_write() || l.linkage2 == Some(parent.data_write())),
            _ => false,
        }
    }
}

/// Images in some folders that were made on one. Those that others have open are looked at as well; those that have their
/// parent in another file, of which this is a copy, are not meant.
///
/// # Errors
/// A folder cannot be read.
pub fn children<'a>(parent: &Layer, folders: impl IntoIterator<Item = &'a Path>) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let folder = if folder == Path::new("") { Path::new(".") } else { folder };
        for entry in std::fs::read_dir(folder).map_err(DiskError::io("read", folder))? {
            let path = entry.map_err(DiskError::io("read", folder))?.path();
            let candidate = Format::of_name(&path) == Some(parent.format)
                && peek(&path, parent.format).is_some_and(|any| {
                    any.is_made_on(&parent.any) && !has_parent_elsewhere(&any, &path, parent)
                });
            if candidate {
                found.push(path.canonicalize().map_err(DiskError::io("find", &path))?);
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Whether the file that a child names, which is the one that counts, is another than this one and its parent as well. A
/// file that is not its parent does not count: it may stand where the true one was.
fn has_parent_elsewhere(child: &Any, path: &Path, parent: &Layer) -> bool {
    let named = child.parent_paths(path).unwrap_or_default().into_iter().find(|p| p.exists());
    named.is_some_and(|named| {
        std::fs::metadata(&named).is_ok_and(|m| (m.dev(), m.ino()) != parent.identity)
            && peek(&named, parent.format).is_some_and(|other| child.is_made_on(&other))
    })
}

/// What can be read of an image without regard to others that use it. `None`: nothing.
fn peek(path: &Path, format: Format) -> Option<Any> {
    let medium = FileMedium::new(std::fs::File::open(path).ok().filter(|f| {
        // Not a pipe, for which it would wait.
        f.metadata().is_ok_and(|m| m.is_file())
    })?);
    match format {
        Format::Vhd => Vhd::open(medium, false).ok().map(Any::Vhd),
        Format::Vhdx => Vhdx::open(medium, Open::Read).ok().map(Any::Vhdx),
        _ => None,
    }
}

/// Refuses to change a disk that others are made on.
pub fn refuse_children(parent: &Layer) -> Result<()> {
    let folder = parent.path.parent().unwrap_or(Path::new(""));
    match children(parent, [folder])?.into_iter().next() {
        Some(child) => Err(DiskError::HasChild { path: parent.path.clone(), child }),
        None => Ok(()),
    }
}
