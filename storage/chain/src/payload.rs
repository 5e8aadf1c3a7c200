//! A disk for whoever moves the payload without us: a running machine.

use std::fs::File;
use std::path::Path;

use vireo_vdisk::{Extent, Image, Place};

use crate::disk::{Any, Layer};
use crate::{Disk, DiskError, Format, Result};

/// One image of a disk, as a file.
#[derive(Clone, Copy, Debug)]
pub struct LayerFile<'a> {
    /// The path by which it was opened.
    pub path: &'a Path,
    /// What it is opened as. Its lock goes with it.
    pub file: &'a File,
    /// Its format.
    pub format: Format,
}

impl Disk {
    /// Its images: its own first, its base last. [`Disk::extents`] counts them so.
    pub fn files(&self) -> impl Iterator<Item = LayerFile<'_>> {
        self.layers.iter().map(|l| LayerFile { path: &l.path, file: &l.file, format: l.format })
    }

    /// Tells it from other disks, wherever it is opened: that of the disk (VHDX), or of the base (VHD), so that a checkpoint
    /// changes nothing. `None`: the format has none.
    pub fn id(&self) -> Option<[u8; 16]> {
        match &self.layers[self.layers.len() - 1].any {
            Any::Raw(_) => None,
            Any::Vhd(i) => Some(i.footer().id),
            Any::Vhdx(i) => Some(i.metadata().id.in_text_order()),
        }
    }

    /// The smallest unit that is written without reading, in bytes, as the format has it. `None`: it does not say.
    pub fn physical_sector(&self) -> Option<u32> {
        match &self.layers[0].any {
            Any::Raw(_) | Any::Vhd(_) => None,
            Any::Vhdx(i) => Some(i.metadata().physical_sector),
        }
    }

    /// The extents of a range, each with the number of its image: none of them is a parent's.
    ///
    /// # Errors
    /// The range is not on the disk; those of the images.
    pub fn extents(&mut self, at: u64, len: u64) -> Result<Vec<(usize, Extent)>> {
        let mut found = Vec::new();
        self.resolve(0, at, len, &mut found)?;
        Ok(found)
    }

    /// As [`Image::place`], of its own image.
    ///
    /// # Errors
    /// The range is not on the disk, or that is read-only; those of the image.
    pub fn place(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        let (image, path) = self.own();
        image.place(at, len).map_err(DiskError::image(path))
    }

    /// As [`Image::written`], of its own image.
    ///
    /// # Errors
    /// The range is not on the disk; those of the image.
    pub fn written(&mut self, at: u64, len: u64) -> Result<()> {
        let (image, path) = self.own();
        image.written(at, len).map_err(DiskError::image(path))
    }

    /// A range of whole sectors is not needed any more: each of them reads as it did, or as zeros. Gives back what can be.
    ///
    /// # Errors
    /// The range is not on the disk, or that is read-only; those of the image.
    pub fn unmap(&mut self, at: u64, len: u64) -> Result<()> {
        let (image, path) = self.own();
        for e in image.unmap(at, len).map_err(DiskError::image(path))? {
            let Place::Medium(at) = e.place else { continue };
            image.medium().punch(at, e.len).map_err(DiskError::io("give back space of", path))?;
        }
        Ok(())
    }

    /// As [`Image::flush`], of its own image.
    ///
    /// # Errors
    /// Those of the image.
    pub fn flush(&mut self) -> Result<()> {
        let (image, path) = self.own();
        image.flush().map_err(DiskError::image(path))
    }

    fn own(&mut self) -> (&mut dyn Image, &Path) {
        let Layer { any, path, .. } = &mut self.layers[0];
        (any.image(), path)
    }
}
