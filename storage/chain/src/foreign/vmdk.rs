//! VMDK.

use std::io;
use std::path::{Path, PathBuf};

use vireo_vdisk::{FileMedium, Medium};
use vireo_vmdk::Vmdk;

use super::{Backing, beside, refuse};
use crate::{DiskError, Result, Source, file};

/// A disk that is read.
pub struct VmdkSource {
    path: PathBuf,
    image: Vmdk,
}

/// Opens an image.
pub fn open(path: &Path, medium: FileMedium, backing: Backing) -> Result<VmdkSource> {
    let failed = DiskError::image(path);
    if !Vmdk::is_one_file(&medium).map_err(&failed)? && backing == Backing::Refuse {
        let (names, _) = vireo_vmdk::extents_named(&medium).map_err(&failed)?;
        if let Some(name) = names.first() {
            return Err(refuse(path, name));
        }
    }
    let mut extent = |name: &str| -> io::Result<Box<dyn Medium>> {
        let (_, medium) = file::open(&beside(path, name), false).map_err(io::Error::other)?;
        Ok(Box::new(medium))
    };
    let image = Vmdk::open(Box::new(medium), &mut extent).map_err(&failed)?;
    Ok(VmdkSource { path: path.to_path_buf(), image })
}

/// Size of the disk, and of a grain, and the first other file that it names.
pub fn describe(path: &Path, medium: &FileMedium) -> Result<(u64, Option<u32>, Option<PathBuf>)> {
    let failed = DiskError::image(path);
    if !Vmdk::is_one_file(medium).map_err(&failed)? {
        let (names, size) = vireo_vmdk::extents_named(medium).map_err(&failed)?;
        return Ok((size, None, names.first().map(|name| beside(path, name))));
    }
    let (_, medium) = file::open(path, false)?;
    let refused = &mut |_: &str| Err(io::ErrorKind::PermissionDenied.into());
    let image = Vmdk::open(Box::new(medium), refused).map_err(&failed)?;
    Ok((image.size(), image.grain().map(|g| g as u32), None))
}

impl Source for VmdkSource {
    fn size(&self) -> u64 {
        self.image.size()
    }
    fn sector(&mut self) -> u32 {
        512
    }
    fn read(&mut self, at: u64, to: &mut [u8]) -> Result<bool> {
        self.image.read(at, to).map_err(DiskError::image(&self.path))
    }
}
