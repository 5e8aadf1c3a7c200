//! Files: opened with a lock, so that an image that is written has no other user.

use std::fs::{File, OpenOptions};
use std::path::Path;

use rustix::fs::FlockOperation;
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

/// A number of chance.
pub fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    // So few bytes come at once and in full.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("the system has random numbers");
    bytes
}
