//! Disks of other makers' formats, which are only read: to become a disk that Vireo uses.
//!
//! Such an image may name other files as parts of its disk, and whoever made it may have named any file of this host.
//! So they are read only where the user says so.

mod qcow2;
mod vmdk;

use std::path::{Path, PathBuf};

use crate::{Disk, DiskError, Format, Info, Result, Source, file};

/// What to do with other files that an image names as parts of its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// The image is refused.
    Refuse,
    /// They are read.
    Follow,
}

/// Most images on one another.
const MOST_LAYERS: usize = crate::disk::MOST_LAYERS;

/// Opens a disk of any format to be copied.
///
/// # Errors
/// Those of the system; images that are none, damaged, in use, or of a kind that is not known; other files that they
/// name, unless they are to be read.
pub fn open_source(path: &Path, format: Option<Format>, backing: Backing) -> Result<Box<dyn Source>> {
    let (_file, medium) = file::open(path, false)?;
    match Format::of(path, &medium, format)? {
        Format::Qcow2 => Ok(Box::new(qcow2::Qcow2::open(path, backing)?)),
        Format::Vmdk => Ok(Box::new(vmdk::open(path, medium, backing)?)),
        own => Ok(Box::new(Disk::open(path, Some(own), false)?)),
    }
}

/// Describes an image; no other file that it names is opened. `None`: it is of no such format.
pub fn info(path: &Path, format: Option<Format>, allocated: u64) -> Result<Option<Info>> {
    let (_file, medium) = file::open(path, false)?;
    let format = Format::of(path, &medium, format)?;
    let (size, block, parent) = match format {
        Format::Qcow2 => qcow2::describe(path)?,
        Format::Vmdk => vmdk::describe(path, &medium)?,
        _ => return Ok(None),
    };
    let kind = if parent.is_some() { "differencing" } else { "dynamic" };
    let path = path.to_path_buf();
    let format = format.to_string();
    Ok(Some(Info { path, format, kind, size, allocated, sector: 512, block, id: None, parent }))
}

/// Where a file is that an image names.
fn beside(image: &Path, name: &str) -> PathBuf {
    image.parent().unwrap_or(Path::new("")).join(name)
}

/// An image names another file, and may not have it read.
fn refuse(path: &Path, names: &str) -> DiskError {
    DiskError::NamesFile { path: path.to_path_buf(), file: names.to_owned() }
}
