//! Disks that take no more of the host than they need.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::Serialize;
use vireo_vdisk::{Compact, ImageError, Medium, Place};

use crate::disk::Layer;
use crate::{DiskError, Format, Progress, Result, Watcher};

/// What came of it.
#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
pub struct Compacted {
    /// What the disk took on the host, in bytes.
    pub before: u64,
    /// What it takes now, in bytes.
    pub after: u64,
}

/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;

/// Gives back what is zero of a disk that is not in use, moves its last blocks to where nothing is, and cuts off the
/// end. Nothing that is read changes, and children still know it; parents stay as they are. If it is cancelled or
/// crashes the disk is whole, and the next time goes on.
///
/// # Errors
/// Those of the image; cancelled.
pub fn compact(path: &Path, format: Option<Format>, watcher: Watcher<'_>) -> Result<Compacted> {
    let takes = || Ok(std::fs::metadata(path).map_err(DiskError::io("look at", path))?.blocks() * 512);
    let before = takes()?;
    let mut layer = Layer::open(path, format, true)?;
    let done = drop_zeros(&mut layer, watcher).and_then(|()| {
        let mut moving = |done, all| watcher(Progress { what: "moving", done, all });
        let packed = vireo_vdisk::compact(layer.any.compact(), &mut moving);
        match packed.map_err(DiskError::image(path))? {
            true => Ok(()),
            false => Err(DiskError::Cancelled),
        }
    });
    // Also of what was done before it was cancelled.
    layer.close().and(done)?;
    Ok(Compacted { before, after: takes()? })
}

/// Gives back blocks that are zero.
fn drop_zeros(layer: &mut Layer, watcher: Watcher<'_>) -> Result<()> {
    let block = layer.block().map_or(PIECE, u64::from);
    let image = layer.any.compact();
    let size = image.size();
    let mut buffer = vec![0; PIECE.min(block) as usize];
    for at in (0..size).step_by(block as usize) {
        if !watcher(Progress { what: "looking for zeros", done: at, all: size }) {
            return Err(DiskError::Cancelled);
        }
        drop_if_zero(image, at, block.min(size - at), &mut buffer).map_err(DiskError::image(&layer.path))?;
    }
    image.flush().map_err(DiskError::image(&layer.path))
}

fn drop_if_zero(image: &mut dyn Compact, at: u64, len: u64, buffer: &mut [u8]) -> Result<(), ImageError> {
    let extents = image.resolve(at, len)?;
    let here = extents.iter().any(|e| matches!(e.place, Place::Medium(_)));
    if !here || extents.iter().any(|e| e.place == Place::Parent) {
        return Ok(());
    }
    for e in extents {
        let Place::Medium(from) = e.place else { continue };
        if !is_zero(image.medium(), from, e.len, buffer)? {
            return Ok(());
        }
    }
    for e in image.deallocate(at, len)? {
        let Place::Medium(from) = e.place else { continue };
        image.medium().punch(from, e.len).map_err(ImageError::new)?;
    }
    Ok(())
}

fn is_zero(medium: &dyn Medium, at: u64, len: u64, buffer: &mut [u8]) -> Result<bool, ImageError> {
    let step = buffer.len() as u64;
    for done in (0..len).step_by(buffer.len()) {
        let piece = &mut buffer[..step.min(len - done) as usize];
        medium.read(at + done, piece).map_err(ImageError::new)?;
        if piece.iter().any(|b| *b != 0) {
            return Ok(false);
        }
    }
    Ok(true)
}
