//! Files: opened with a lock, so that an image that is written has no other user.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, RenameFlags};
use vireo_vdisk::FileMedium;

use crate::{DiskError, Result};

/// A locked file, whose lock goes with it. If the lock were left to go with its last descriptor it would stay a little longer
/// now and then: a child has all descriptors between its fork and its exec, and a ring's until the kernel has put it away.
#[derive(Debug)]
pub struct Locked(pub File);

impl Deref for Locked {
    type Target = File;
    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Else it goes with the descriptor.
        _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

/// Opens a file. One that is written nobody else may use; one that is read nobody else may write. A block device is nobody
/// else's in either case: neither a mount's nor another program's that asks.
pub fn open(path: &Path, writable: bool) -> Result<(File, FileMedium)> {
    let device = std::fs::metadata(path).map_err(DiskError::io("open", path))?.file_type().is_block_device();
    // For a block device "exclusive" is the claim that mounts and device mappers make, too (open(2), O_EXCL).
    let exclusive = if device { OFlags::EXCL.bits().cast_signed() } else { 0 };
    let file = OpenOptions::new().read(true).write(writable).custom_flags(exclusive).open(path);
    let file = match file {
        Err(e) if device && e.kind() == ErrorKind::ResourceBusy => {
            return Err(DiskError::DeviceInUse(path.to_path_buf()));
        }
        other => other.map_err(DiskError::io("open", path))?,
    };
    lock(path, file, writable)
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
