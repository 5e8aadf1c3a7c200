//! New disks.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use vireo_vdisk::Medium;
use vireo_vhd::NewVhd;
use vireo_vhdx::{Guid, NewVhdx};

use crate::disk::{Any, Layer};
use crate::file::{self, Locked};
use crate::{DiskError, Format, Result};

/// How a new disk is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All of it.
    Fixed,
    /// What has been written.
    Dynamic,
    /// What has been written; the rest is a parent's, of the same format, which must not be written any more.
    Differencing(PathBuf),
}

/// What a new disk is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewDisk {
    /// Its format.
    pub format: Format,
    /// How it is stored.
    pub kind: Kind,
    /// Size in bytes; `None`: the parent's.
    pub size: Option<u64>,
    /// Bytes of a block; `None`: the format's usual.
    pub block: Option<u32>,
    /// Size of a sector; `None`: the parent's, or 512.
    pub sector: Option<u32>,
    /// Of a fixed one: the host's space for all of it is taken at once, where the file system can do that.
    pub allocate: bool,
}

/// Makes a disk in a file that must not be there yet. Nothing is left of it if that fails.
///
/// # Errors
/// Wishes that contradict each other; those of the system and of the format.
pub fn create(path: &Path, new: &NewDisk) -> Result<()> {
    create_as(path, path, new, None)
}

/// The same, of a disk that is to have another name, and perhaps the identity (of a VHDX) that another has, being the
/// same disk.
pub(crate) fn create_as(path: &Path, name: &Path, new: &NewDisk, id: Option<[u8; 16]>) -> Result<()> {
    let parent = match &new.kind {
        Kind::Differencing(parent) => Some(Layer::open(parent, None, false)?),
        _ => None,
    };
    let (file, medium) = file::create(path)?;
    let file = Locked(file);
    let mut made = fill(name, &medium, new, parent, id);
    if new.allocate && new.kind == Kind::Fixed {
        made = made.and_then(|()| file::allocate(path, &file));
    }
    let made = made.and_then(|()| file::sync_folder(path));
    if made.is_err() {
        // It was ours, and is nothing.
        _ = std::fs::remove_file(path);
    }
    made
}

fn fill(
    path: &Path,
    medium: &dyn Medium,
    new: &NewDisk,
    mut parent: Option<Layer>,
    same: Option<[u8; 16]>,
) -> Result<()> {
    let contradiction = |what: &str| Err(DiskError::Contradiction(what.into()));
    let of_parent = parent.as_mut().map(|p| (p.any.image().size(), p.any.image().sector()));
    let Some(size) = new.size.or(of_parent.map(|p| p.0)) else {
        return contradiction("a new disk needs a size, or a parent that has one");
    };
    let sector = new.sector.or(of_parent.map(|p| p.1)).unwrap_or(512);
    if of_parent.is_some_and(|p| p.1 != sector) {
        return contradiction("a disk has sectors of the same size as its parent");
    }
    match new.format {
        Format::Qcow2 | Format::Vmdk => contradiction("qcow2 and VMDK disks are only read, to be converted"),
        Format::Raw if new.kind != Kind::Fixed => {
            contradiction("a raw disk is fixed: it has no room to say what was written, or of a parent")
        }
        Format::Raw | Format::Vhd if sector != 512 => {
            contradiction("only a VHDX has other sectors than of 512 bytes")
        }
        Format::Raw => {
            medium.set_len(size).and_then(|()| medium.flush()).map_err(DiskError::io("write", path))
        }
        Format::Vhd => {
            let kind = vhd_kind(path, new, parent.as_ref())?;
            let new = NewVhd { size, kind, id: file::random(), created: now() };
            new.create(medium).map_err(DiskError::image(path))
        }
        Format::Vhdx => {
            let (kind, id) = vhdx_kind(path, new, parent.as_ref())?;
            let id = same.map_or(id, Guid);
            let block = new.block.unwrap_or(vireo_vhdx::DEFAULT_BLOCK);
            let random = Guid(file::random());
            NewVhdx { size, kind, block, sector, physical_sector: 4096, id, random }
                .create(medium)
                .map_err(DiskError::image(path))
        }
    }
}

fn vhd_kind(path: &Path, new: &NewDisk, parent: Option<&Layer>) -> Result<vireo_vhd::Kind> {
    let block = new.block.unwrap_or(vireo_vhd::DEFAULT_BLOCK);
    Ok(match (&new.kind, parent) {
        (Kind::Fixed, _) => vireo_vhd::Kind::Fixed,
        (_, None) => vireo_vhd::Kind::Dynamic { block },
        (_, Some(Layer { path: at, any: Any::Vhd(image), .. })) => {
            let (relative, absolute) = links(path, at)?;
            let name = at.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let changed = std::fs::metadata(at).and_then(|m| m.modified()).map_or(0, seconds);
            let (relative, absolute) = (Some(relative), Some(absolute));
            let parent = vireo_vhd::ParentLink { id: image.footer().id, changed, name, relative, absolute };
            vireo_vhd::Kind::Differencing { block, parent }
        }
        (_, Some(other)) => return Err(other_format(other, Format::Vhd)),
    })
}

/// With the disk's identity, which is the parent's.
fn vhdx_kind(path: &Path, new: &NewDisk, parent: Option<&Layer>) -> Result<(vireo_vhdx::Kind, Guid)> {
    Ok(match (&new.kind, parent) {
        (Kind::Fixed, _) => (vireo_vhdx::Kind::Fixed, Guid(file::random())),
        (_, None) => (vireo_vhdx::Kind::Dynamic, Guid(file::random())),
        (_, Some(Layer { path: at, any: Any::Vhdx(image), .. })) => {
            let (relative, absolute) = links(path, at)?;
            let link = vireo_vhdx::ParentLink {
                linkage: image.data_write(),
                relative: Some(relative),
                absolute: Some(absolute),
                ..vireo_vhdx::ParentLink::default()
            };
            (vireo_vhdx::Kind::Differencing(link), image.metadata().id)
        }
        (_, Some(other)) => return Err(other_format(other, Format::Vhdx)),
    })
}

fn other_format(parent: &Layer, wanted: Format) -> DiskError {
    let what =
        format!("the parent {} is {}, the child was to be {wanted}", parent.path.display(), parent.format);
    DiskError::Contradiction(what)
}

/// The path of a parent from the child's folder, with backslashes as the formats have them, and from the root.
fn links(child: &Path, parent: &Path) -> Result<(String, String)> {
    let full = |p: &Path| p.canonicalize().map_err(DiskError::io("find", p));
    // The child itself may not be there yet.
    let folder = child.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."));
    let (folder, parent) = (full(folder)?, full(parent)?);
    let common = folder.components().zip(parent.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(common).map(|_| "..".to_owned());
    let down = parent.components().skip(common).map(|c| c.as_os_str().to_string_lossy().into_owned());
    let parts: Vec<String> = up.chain(down).collect();
    Ok((format!(".\\{}", parts.join("\\")), parent.to_string_lossy().into_owned()))
}

/// Seconds since the start of 2000, as VHD counts.
fn seconds(time: SystemTime) -> u32 {
    const START: Duration = Duration::from_secs(946_684_800);
    time.duration_since(SystemTime::UNIX_EPOCH + START).map_or(0, |d| d.as_secs() as u32)
}

fn now() -> u32 {
    seconds(SystemTime::now())
}
