//! Files: opened with a lock, so that an image that is written has no other user.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::{FlockOperation, RenameFlags};
use vireo_vdisk::FileMedium;

use crate::{DiskError, Result};

/// Opens a file. One that is written nobody else may use; one that is read nobody else may write.
pub fn open(path: &Path, writable: bool) -> Result<(File, FileMedium)> {
    let file = OpenOptions::new().read(true).write(writable).open(path);
    lock(path, file.map_err(DiskError::io("open", path))?, writable)
}

/// Makes a new file, which nobody else may use.
pub fn create(path: &Path) -> Result<(File, FileMedium)> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    lock(path, file.map_err(DiskError::io("create", path))?, true)
}

fn lock(path: &Path, file: File, writable: bool) -> Result<(File, FileMedium)> {
    let how = if writable {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    match rustix::fs::flock(&file, how) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(DiskError::InUse(path.to_path_buf())),
        other => other.map_err(|e| DiskError::io("lock", path)(e.into()))?,
    }
    let medium = file.try_clone().map(FileMedium::new).map_err(DiskError::io("open", path))?;
    Ok((file, medium))
}

/// Makes durable which names a file's folder has.
pub fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    File::open(folder).and_then(|f| f.sync_all()).map_err(DiskError::io("flush", folder))
}

/// Fills a new file, then gives it its name, durably. Nothing is left of it if that fails.
pub fn finish(part: &Path, name: &Path, fill: impl FnOnce() -> Result<()>) -> Result<()> {
    let filled = fill().and_then(|()| {
        // Fails if there is one meanwhile.
        rustix::fs::renameat_with(rustix::fs::CWD, part, rustix::fs::CWD, name, RenameFlags::NOREPLACE)
            .map_err(|e| DiskError::io("name", name)(e.into()))
    });
    match filled {
        Ok(()) => sync_folder(name),
        Err(e) => {
            _ = std::fs::remove_file(part);
            Err(e)
        }
    }
}

/// A number of chance.
pub fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // So few bytes come at once and in full.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("the system has random numbers");
    bytes
}
