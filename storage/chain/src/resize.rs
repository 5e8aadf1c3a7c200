//! Disks that become larger or smaller.

use std::path::Path;

use vireo_vdisk::Place;

use crate::disk::Layer;
use crate::{Disk, DiskError, Format, Result, family};

/// What may be done to make a disk smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrink {
    /// Nothing: it is refused.
    Never,
    /// What is zero may go.
    Zeros,
    /// Of a raw disk, which says nothing of what it holds, data may go as well.
    Data,
}

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;

impl Disk {
    /// Makes the disk larger, durably. What is new is zero.
    ///
    /// # Errors
    /// Those of the image; a parent that is larger than the disk, whose data would be seen.
    pub fn grow(&mut self, size: u64) -> Result<()> {
        let largest = self.layers[1..].iter_mut().map(|l| l.any.image().size()).max();
        if largest.is_some_and(|parent| parent > self.size) && size > self.size {
            let what = "a disk that is smaller than its parent cannot grow: its parent's data would be seen";
            return Err(DiskError::Contradiction(what.into()));
        }
        let top = &mut self.layers[0];
        top.any.image().grow(size).map_err(DiskError::image(&top.path))?;
        self.size = size;
        Ok(())
    }
}

/// Changes the size of a disk that is not in use. Gives the size it had.
///
/// # Errors
/// Those of the image; it would become smaller, and may not; others are made on it.
pub fn resize(path: &Path, format: Option<Format>, size: u64, shrink: Shrink) -> Result<u64> {
    let mut disk = Disk::open(path, format, true)?;
    family::refuse_children(&disk.layers[0])?;
    let before = disk.size();
    if size >= before {
        disk.grow(size)?;
        return disk.close().map(|()| before);
    }
    let top = &mut disk.layers[0];
    let refuse = |what: &str| Err(DiskError::Contradiction(format!("{}: {what}", path.display())));
    if shrink == Shrink::Never {
        return refuse("the disk is larger than that, and becomes smaller only with --shrink");
    }
    let loses = shrink != Shrink::Data || top.format != Format::Raw;
    if loses && has_data(top, size, before)? {
        return refuse(match top.format {
            Format::Raw => "there is data beyond that size, which is lost only with --lose-data",
            _ => "there is data beyond that size: move it inside the disk first",
        });
    }
    top.any.image().shrink(size).map_err(DiskError::image(&top.path))?;
    disk.close().map(|()| before)
}

/// Whether a range of a disk without its parents is not zero.
fn has_data(layer: &mut Layer, from: u64, to: u64) -> Result<bool> {
    let image = layer.any.image();
    for at in (from..to).step_by(PIECE as usize) {
        let len = PIECE.min(to - at);
        for e in image.resolve(at, len).map_err(DiskError::image(&layer.path))? {
            let Place::Medium(at) = e.place else { continue };
            let mut bytes = vec![0; e.len as usize];
            image.medium().read(at, &mut bytes).map_err(DiskError::io("read", &layer.path))?;
            if bytes.iter().any(|b| *b != 0) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
