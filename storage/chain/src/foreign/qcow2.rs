//! qcow2, by the crate `imago`.

use std::path::{Path, PathBuf};

use imago::file::File;
use imago::{FormatAccess, Mapping, StorageOpenOptions};
use vireo_vdisk::Medium;

use super::{Backing, MOST_LAYERS, beside, refuse};
use crate::{DiskError, Format, Result, Source, file};

/// Where the header says how the disk is encrypted (QEMU's "qcow2" specification, "Header"); 0: not at all.
const CRYPT_METHOD: u64 = 32;

/// A disk that is read.
pub struct Qcow2 {
    path: PathBuf,
    disk: FormatAccess<File>,
}

impl Qcow2 {
    /// Opens an image, with those below it.
    pub fn open(path: &Path, backing: Backing) -> Result<Self> {
        Ok(Self { path: path.to_path_buf(), disk: layer(path, Format::Qcow2, backing, 1)? })
    }
}

fn storage(path: &Path) -> Result<File> {
    let (file, _) = file::open(path, false)?;
    File::from_open_file(file, StorageOpenOptions::new()).map_err(DiskError::io("open", path))
}

fn image(path: &Path) -> Result<imago::qcow2::Qcow2<File>> {
    // The crate does not look, and would take what is encrypted for the disk.
    let mut method = [0; 4];
    file::open(path, false)?.1.read(CRYPT_METHOD, &mut method).map_err(DiskError::io("read", path))?;
    if method != [0; 4] {
        let what = format!("{} is encrypted, which is not supported", path.display());
        return Err(DiskError::Contradiction(what));
    }
    imago::qcow2::Qcow2::open_image(storage(path)?, false).map_err(DiskError::io("understand", path))
}

/// An image, with those below it.
fn layer(path: &Path, format: Format, backing: Backing, depth: usize) -> Result<FormatAccess<File>> {
    if depth > MOST_LAYERS {
        return Err(DiskError::TooDeep { path: path.to_path_buf() });
    }
    match format {
        Format::Raw => {
            let raw = imago::raw::Raw::open_image(storage(path)?, false);
            return raw.map(FormatAccess::new).map_err(DiskError::io("open", path));
        }
        Format::Qcow2 => {}
        other => {
            let what = format!("{} is {other}, on which a qcow2 cannot be", path.display());
            return Err(DiskError::Contradiction(what));
        }
    }
    let mut image = image(path)?;
    let named = |name: &str| match backing {
        Backing::Refuse => Err(refuse(path, name)),
        Backing::Follow => Ok(beside(path, name)),
    };
    let data = match (image.requires_external_data_file(), image.implicit_external_data_file()) {
        (false, _) => None,
        (true, Some(name)) => Some(storage(&named(name)?)?),
        (true, None) => Some(storage(&named("a file that it does not name")?)?),
    };
    let below = match image.implicit_backing_file() {
        None => None,
        Some(name) => {
            let at = named(name)?;
            let format = match image.implicit_backing_format() {
                Some(format) => format.parse().map_err(DiskError::Contradiction)?,
                None => Format::of(&at, &file::open(&at, false)?.1, None)?,
            };
            Some(layer(&at, format, backing, depth + 1)?)
        }
    };
    image.set_data_file(data);
    image.set_backing(below);
    Ok(FormatAccess::new(image))
}

/// Size of the disk, and of a cluster, and the file below it.
pub fn describe(path: &Path) -> Result<(u64, Option<u32>, Option<PathBuf>)> {
    let mut image = image(path)?;
    let below = image.implicit_backing_file().or(image.implicit_external_data_file());
    let below = below.map(|name| beside(path, name));
    image.set_backing(None);
    let size = FormatAccess::new(image).size();
    Ok((size, None, below))
}

impl Source for Qcow2 {
    fn size(&self) -> u64 {
        self.disk.size().next_multiple_of(512)
    }
    fn sector(&mut self) -> u32 {
        512
    }
    fn read(&mut self, at: u64, to: &mut [u8]) -> Result<bool> {
        let failed = DiskError::io("read", &self.path);
        let (mut next, mut rest, mut zero) = (at, to, true);
        while !rest.is_empty() {
            let (mapping, len) = self.disk.get_mapping(next, rest.len() as u64).map_err(&failed)?;
            let known = matches!(mapping, Mapping::Zero { .. } | Mapping::Eof { .. });
            // The end is of no length: behind it there is nothing.
            let len = if len == 0 { rest.len() } else { rest.len().min(len as usize) };
            let (piece, more) = rest.split_at_mut(len);
            match known {
                true => piece.fill(0),
                false => self.disk.read(&mut *piece, next).map_err(&failed)?,
            }
            zero &= known;
            next += len as u64;
            rest = more;
        }
        Ok(zero)
    }
}
