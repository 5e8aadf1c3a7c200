//! The files of a disk, and how they may be used.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};
use vireo_chain::{Disk, Format};

use crate::{LiveError, Result};

/// What direct transfers have to be multiples of, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// The memory's address.
    pub memory: u32,
    /// The file's offset, and all lengths.
    pub offset: u32,
}

/// Where it is not known: what every file system takes.
const SAFE: Alignment = Alignment { memory: 4096, offset: 4096 };

/// A page of the page cache, in bytes.
pub const PAGE: u64 = 4096;

/// See the [module](self).
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    /// Of each image, through the page cache; the disk's own first.
    buffered: Vec<File>,
    /// The disk's own, past the page cache.
    direct: Option<(File, Alignment)>,
    /// The disk's own is a block device.
    device: bool,
}

impl Files {
    /// Those of a disk. `direct`: whether its own is to be used past the page cache; `None`: if it can.
    pub fn of(disk: &Disk, read_only: bool, direct: Option<bool>) -> Result<Self> {
        let (mut path, mut buffered) = (None, Vec::new());
        for layer in disk.files() {
            path.get_or_insert_with(|| layer.path.to_path_buf());
            buffered.push(layer.file.try_clone().map_err(LiveError::io("duplicate", layer.path))?);
        }
        let path = path.unwrap_or_default();
        let device = metadata(&buffered[0], &path)?.file_type().is_block_device();
        // What is only read, such as the medium of a CD, many machines read: they share the page cache.
        let direct = match direct.unwrap_or(!read_only) {
            true => open_direct(&buffered[0], read_only),
            false => Err(io::ErrorKind::Unsupported.into()),
        }
        .map_or_else(|e| if direct == Some(true) { Err(e) } else { Ok(None) }, |d| Ok(Some(d)))
        .map_err(LiveError::io("bypass the page cache for", &path))?;
        Ok(Self { path, buffered, direct, device })
    }

    /// The path of the disk's own.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The disk's own.
    pub fn own(&self) -> &File {
        &self.buffered[0]
    }

    /// Whether that is a block device.
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// What direct transfers with it need; `None`: there are none.
    pub fn alignment(&self) -> Option<Alignment> {
        Some(self.direct.as_ref()?.1)
    }

    /// All of them: first the direct one, or else the disk's own; then those of the images.
    pub fn all(&self) -> Vec<BorrowedFd<'_>> {
        let direct = self.direct.as_ref().map_or(&self.buffered[0], |d| &d.0);
        std::iter::once(direct).chain(&self.buffered).map(AsFd::as_fd).collect()
    }

    /// The number in [`Self::all`] of the file for direct transfers.
    pub const DIRECT: u32 = 0;

    /// The number in [`Self::all`] of an image's file.
    pub fn buffered(layer: u16) -> u32 {
        u32::from(layer) + 1
    }

    /// Sizes of the smallest and of the best unit of a block device, in bytes.
    pub fn sectors(&self) -> Result<Option<(u32, u32)>> {
        if !self.device {
            return Ok(None);
        }
        let sizes = rustix::fs::ioctl_blksszget(self.own())
            .and_then(|logical| Ok((logical, rustix::fs::ioctl_blkpbszget(self.own())?)));
        Ok(Some(sizes.map_err(|e| LiveError::io("ask for the sectors of", &self.path)(e.into()))?))
    }

    /// Length of the disk's own, in bytes.
    pub fn len(&self) -> Result<u64> {
        // Nobody uses the position; and of a block device only this tells.
        rustix::fs::seek(self.own(), rustix::fs::SeekFrom::End(0))
            .map_err(|e| LiveError::io("find the end of", &self.path)(e.into()))
    }

    /// Whether space can be given back to what is below.
    pub fn can_unmap(&self) -> bool {
        let Ok(meta) = self.own().metadata() else { return false };
        if !self.device {
            return true;
        }
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        // A partition has what its disk has.
        ["", "../"].iter().any(|up| {
            let path = format!("/sys/dev/block/{major}:{minor}/{up}queue/discard_max_bytes");
            std::fs::read_to_string(path).is_ok_and(|s| s.trim() != "0")
        })
    }

    /// Tells a raw disk from others: by its file, or device.
    pub fn identity(&self) -> Result<[u8; 16]> {
        let meta = metadata(self.own(), &self.path)?;
        let (volume, file) = if self.device { (0, meta.rdev()) } else { (meta.dev(), meta.ino()) };
        let mut id = [0; 16];
        id[..8].copy_from_slice(&volume.to_be_bytes());
        id[8..].copy_from_slice(&file.to_be_bytes());
        Ok(id)
    }
}

fn metadata(file: &File, path: &Path) -> Result<std::fs::Metadata> {
    file.metadata().map_err(LiveError::io("look at", path))
}

/// The same file once more, past the page cache.
fn open_direct(file: &File, read_only: bool) -> io::Result<(File, Alignment)> {
    // By way of what is open: a path may lead elsewhere by now, and a claimed block device cannot be claimed again.
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let found = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    let alignment = match found {
        Ok(s) if s.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            Alignment { memory: s.stx_dio_mem_align, offset: s.stx_dio_offset_align }
        }
        // Older than Linux 6.1, or a file system that does not say.
        _ => SAFE,
    };
    let usable = |n: u32| n.is_power_of_two() && u64::from(n) <= PAGE;
    match usable(alignment.memory) && usable(alignment.offset) {
        true => Ok((file, alignment)),
        false => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Whether a disk's own image is nothing but its contents.
pub fn is_raw(disk: &Disk) -> bool {
    disk.files().next().is_some_and(|f| f.format == Format::Raw)
}
