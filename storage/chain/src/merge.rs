//! A child that becomes one with its parent.
//!
//! Into the parent: what the child has of its own is written there. All the while the child hides what changes, so the
//! disk, as it is seen through the child, is the same at each moment; a crash or a cancellation loses nothing, and the
//! next merge begins anew. A VHDX changes its identity when it is written, so the child is told the parent's next one
//! before.

use std::path::Path;

use vireo_vdisk::{Extent, Place};

use crate::convert::beside;
use crate::create::{Kind, NewDisk, create_as};
use crate::disk::{Any, Disk, Layer};
use crate::{DiskError, Format, Progress, Result, Watcher, family, file};

/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;
/// Bytes that are copied between two flushes.
const BATCH: u64 = 1 << 30;

/// Merges a child into its parent, and removes it.
///
/// # Errors
/// Those of both images; others are made on one of them; the child is smaller than the parent; cancelled: then child
/// and parent are there, and the child is as it was.
pub fn merge(path: &Path, format: Option<Format>, watcher: Watcher<'_>) -> Result<()> {
    let (mut child, mut parent) = pair(path, format, true)?;
    refuse_relatives(&child, &parent)?;
    let (size, base) = (child.any.image().size(), parent.any.image().size());
    if size < base {
        let what = format!("{} is smaller than its parent: merge it to a new file", path.display());
        return Err(DiskError::Contradiction(what));
    }
    if let (Any::Vhdx(child), Any::Vhdx(parent)) = (&mut child.any, &mut parent.any) {
        let link = child.parent().cloned().unwrap_or_default();
        let (linkage, linkage2) = (parent.data_write(), parent.next_data_write());
        child.relink(vireo_vhdx::ParentLink { linkage, linkage2, ..link }).map_err(DiskError::image(path))?;
    }
    if size > base {
        parent.any.image().grow(size).map_err(DiskError::image(&parent.path))?;
    }
    let merged = write_own(&mut child, &mut parent, watcher);
    // What was done is kept, though it may have been cancelled.
    parent.close().and(merged)?;
    drop(child);
    std::fs::remove_file(path).map_err(DiskError::io("remove", path))?;
    file::sync_folder(path)
}

/// Merges a child and its parent into a new image, whose parent is the parent's. Both stay as they are.
///
/// # Errors
/// Those of the images; the new one is named like another format; cancelled: then nothing is left of it.
pub fn merge_to(path: &Path, format: Option<Format>, to: &Path, watcher: Watcher<'_>) -> Result<()> {
    let (mut child, mut parent) = pair(path, format, false)?;
    if Format::of_name(to) != Some(child.format) {
        let (to, format) = (to.display(), child.format);
        let what = format!("{to} is to be {format}, as the child is, but is not named like one");
        return Err(DiskError::Contradiction(what));
    }
    let kind = match parent.parent_paths() {
        Some(paths) => Kind::Differencing(paths.into_iter().find(|p| p.exists()).unwrap_or_default()),
        None if parent.is_fixed() => Kind::Fixed,
        None => Kind::Dynamic,
    };
    let image = child.any.image();
    let (size, sector) = (Some(image.size()), Some(image.sector()));
    let new = NewDisk { format: child.format, kind, size, block: parent.block(), sector, allocate: false };
    let id = match &child.any {
        Any::Vhdx(i) => Some(i.metadata().id.0),
        _ => None,
    };
    let part = beside(to)?;
    let made = create_as(&part, to, &new, id);
    let filled = made.and_then(|()| {
        file::finish(&part, to, || {
            let mut made = Layer::open(&part, Some(new.format), true)?;
            write_own(&mut parent, &mut made, &mut |p| watcher(Progress { done: p.done / 2, ..p }))?;
            write_own(&mut child, &mut made, &mut |p| watcher(Progress { done: (p.all + p.done) / 2, ..p }))?;
            made.close()
        })
    });
    filled.map_err(|e| e.renamed(&part, to))
}

/// A child and its parent.
fn pair(path: &Path, format: Option<Format>, writable: bool) -> Result<(Layer, Layer)> {
    let child = Layer::open(path, format, writable)?;
    let Some(paths) = child.parent_paths() else {
        return Err(DiskError::Contradiction(format!("{} has no parent to merge with", path.display())));
    };
    let parent = Disk::open_parent(&child, &paths, writable)?;
    if parent.is_same(&child) {
        return Err(DiskError::TooDeep { path: path.to_path_buf() });
    }
    Ok((child, parent))
}

/// Others that are made on the child would lose it; on the parent, what it was.
fn refuse_relatives(child: &Layer, parent: &Layer) -> Result<()> {
    let folder = |l: &Layer| l.path.parent().unwrap_or(Path::new("")).to_path_buf();
    let folders = [folder(child), folder(parent)];
    let itself = child.path.canonicalize().map_err(DiskError::io("find", &child.path))?;
    for layer in [child, parent] {
        let found = family::children(layer, folders.iter().map(AsRef::as_ref))?;
        if let Some(other) = found.into_iter().find(|p| *p != itself) {
            return Err(DiskError::HasChild { path: layer.path.clone(), child: other });
        }
    }
    Ok(())
}

/// Writes what one image has of its own to another.
fn write_own(from: &mut Layer, to: &mut Layer, watcher: Watcher<'_>) -> Result<()> {
    let size = from.any.image().size().min(to.any.image().size());
    let mut buffer = vec![0; PIECE as usize];
    for at in (0..size).step_by(PIECE as usize) {
        if !watcher(Progress { what: "merging", done: at, all: size }) {
            return Err(DiskError::Cancelled);
        }
        let mut next = at;
        let extents = from.any.image().resolve(at, PIECE.min(size - at));
        for e in extents.map_err(DiskError::image(&from.path))? {
            write_extent(from, to, next, e, &mut buffer[..e.len as usize])?;
            next += e.len;
        }
        if at % BATCH == 0 {
            to.any.image().flush().map_err(DiskError::image(&to.path))?;
        }
    }
    watcher(Progress { what: "merging", done: size, all: size });
    Ok(())
}

fn write_extent(from: &mut Layer, to: &mut Layer, at: u64, e: Extent, buffer: &mut [u8]) -> Result<()> {
    match e.place {
        Place::Parent => Ok(()),
        // In a base what was never written is no loss.
        Place::Zero => to.zero(at, e.len),
        Place::Medium(place) => {
            from.any.image().medium().read(place, buffer).map_err(DiskError::io("read", &from.path))?;
            match buffer.iter().all(|b| *b == 0) {
                true => to.zero(at, e.len),
                false => to.write(at, buffer),
            }
        }
    }
}
