//! Files: opened with a lock, so that an image that is written has no other user.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, OFlags, RenameFlags};
use vireo_vdisk::FileMedium;

use crate::{DiskError, Result};

/// How long a file may be in use by one that is about to let go of it, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(1);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(10);

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
    let kind = std::fs::metadata(path).map_err(DiskError::io("open", path))?.file_type();
    let device = kind.is_block_device();
    // Opening a FIFO may never end; and /dev/null takes what is written and forgets it.
    if !device && !kind.is_file() {
        return Err(DiskError::NoFile(path.to_path_buf()));
    }
    // For a block device "exclusive" is the claim that mounts and device mappers make, too (open(2), O_EXCL).
    let exclusive = if device { OFlags::EXCL.bits().cast_signed() } else { 0 };
    let open = || OpenOptions::new().read(true).write(writable).custom_flags(exclusive).open(path);
    let file = match soon(ErrorKind::ResourceBusy, open) {
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
    match soon(ErrorKind::WouldBlock, || Ok(rustix::fs::flock(&file, how)?)) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(DiskError::InUse(path.to_path_buf())),
        other => other.map_err(DiskError::io("lock", path))?,
    }
    let medium = file.try_clone().map(FileMedium::new).map_err(DiskError::io("open", path))?;
    Ok((file, medium))
}

/// Tries again for a moment while something is in use. The files of a machine that was killed outlive it: its io_uring lets go
/// of them only when the last of its requests has ended.
fn soon<T>(in_use: ErrorKind, attempt: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(e) if e.kind() == in_use && Instant::now() < end => std::thread::sleep(BETWEEN_ATTEMPTS),
            other => return other,
        }
    }
}

/// Takes the space that all of a file needs, durably. A file system that cannot do that leaves the file as it is.
pub fn allocate(path: &Path, file: &File) -> Result<()> {
    use rustix::io::Errno;
    let error = |e: std::io::Error| DiskError::io("allocate the space of", path)(e);
    match file.metadata().map_err(error)?.len() {
        0 => return Ok(()),
        len => match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            other => other.map_err(|e| error(e.into()))?,
        },
    }
    file.sync_all().map_err(error)
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
