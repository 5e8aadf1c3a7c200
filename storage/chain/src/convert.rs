//! A disk as another file, of any format.

use std::path::{Path, PathBuf};

use crate::{Disk, DiskError, NewDisk, Result, create};

/// Bytes that are copied at once: no more than a block, so that none comes to be for zeros.
const PIECE: u64 = 1 << 20;

/// Copies a disk, with what its parents have of it, to a new file. `progress(done, all)`, in bytes, is asked now and then whether
/// to go on. The file is there under its name when all of it is, durably; before, beside it.
///
/// # Errors
/// Those of both disks; cancelled.
pub fn convert(
    from: &mut Disk,
    to: &Path,
    new: &NewDisk,
    mut progress: impl FnMut(u64, u64) -> bool,
) -> Result<()> {
    if to.exists() {
        let exists = std::io::ErrorKind::AlreadyExists.into();
        return Err(DiskError::io("create", to)(exists));
    }
    let part = beside(to);
    let new =
        NewDisk { size: Some(from.size()), sector: Some(new.sector.unwrap_or(from.sector())), ..new.clone() };
    create(&part, &new)?;
    let copied = Disk::open(&part, Some(new.format), true)
        .and_then(|disk| copy(from, disk, &mut progress))
        .and_then(|()| std::fs::rename(&part, to).map_err(DiskError::io("name", to)));
    if copied.is_err() {
        _ = std::fs::remove_file(&part);
    }
    copied
}

fn beside(to: &Path) -> PathBuf {
    let mut name = to.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn copy(from: &mut Disk, mut to: Disk, progress: &mut impl FnMut(u64, u64) -> bool) -> Result<()> {
    let size = from.size();
    let mut buffer = vec![0; PIECE.min(size) as usize];
    for at in (0..size).step_by(PIECE as usize) {
        if !progress(at, size) {
            return Err(DiskError::Cancelled);
        }
        let piece = &mut buffer[..PIECE.min(size - at) as usize];
        // What is not written of a new disk is zero.
        if !from.read(at, piece)? && piece.iter().any(|b| *b != 0) {
            to.write(at, piece)?;
        }
    }
    progress(size, size);
    to.close()
}
