//! A disk as another file, of any format.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::create::create_as;
use crate::{Disk, DiskError, NewDisk, Progress, Result, Watcher, file};

/// What can be copied.
pub trait Source {
    /// Size of the disk, in bytes.
    fn size(&self) -> u64;

    /// Size of a sector, in bytes.
    fn sector(&mut self) -> u32;

    /// Reads a range of whole sectors. Whether all of it is known to be zero.
    ///
    /// # Errors
    /// The range is not on the disk; those of the format.
    fn read(&mut self, at: u64, to: &mut [u8]) -> Result<bool>;
}

impl Source for Disk {
    fn size(&self) -> u64 {
        Self::size(self)
    }
    fn sector(&mut self) -> u32 {
        Self::sector(self)
    }
    fn read(&mut self, at: u64, to: &mut [u8]) -> Result<bool> {
        Self::read(self, at, to)
    }
}

/// Bytes that are copied at once: no more than a block, so that none comes to be for zeros.
const PIECE: u64 = 1 << 20;

/// Copies a disk, with what its parents have of it, to a new file. The file is there under its name when all of it is,
/// durably; before, beside it.
///
/// # Errors
/// Those of both disks; cancelled: then nothing is left of the new one.
pub fn convert(from: &mut dyn Source, to: &Path, new: &NewDisk, watcher: Watcher<'_>) -> Result<()> {
    let part = beside(to)?;
    let (size, sector) = (Some(from.size()), Some(new.sector.unwrap_or(from.sector())));
    let new = NewDisk { size, sector, ..new.clone() };
    create_as(&part, to, &new, None)
        .and_then(|()| {
            file::finish(&part, to, || copy(from, Disk::open(&part, Some(new.format), true)?, watcher))
        })
        .map_err(|e| e.renamed(&part, to))
}

/// The name that a file has until it is whole. One that a crash left is removed.
///
/// # Errors
/// There is a file of the name that it is to have; another program makes it just now.
pub(crate) fn beside(to: &Path) -> Result<PathBuf> {
    if to.symlink_metadata().is_ok() {
        return Err(DiskError::io("create", to)(rustix::io::Errno::EXIST.into()));
    }
    let mut name = OsString::from(".");
    name.push(to.file_name().unwrap_or_default());
    name.push(".vireo-part");
    let part = to.with_file_name(name);
    if part.symlink_metadata().is_ok() {
        // It is locked while somebody writes it.
        drop(file::open(&part, true)?);
        std::fs::remove_file(&part).map_err(DiskError::io("remove", &part))?;
    }
    Ok(part)
}

fn copy(from: &mut dyn Source, mut to: Disk, watcher: Watcher<'_>) -> Result<()> {
    let all = from.size();
    let what = "copying";
    let mut buffer = vec![0; PIECE.min(all) as usize];
    for done in (0..all).step_by(PIECE as usize) {
        if !watcher(Progress { what, done, all }) {
            return Err(DiskError::Cancelled);
        }
        let piece = &mut buffer[..PIECE.min(all - done) as usize];
        // What is not written of a new disk is zero.
        if !from.read(done, piece)? && piece.iter().any(|b| *b != 0) {
            to.write(done, piece)?;
        }
    }
    to.close()?;
    watcher(Progress { what, done: all, all });
    Ok(())
}
