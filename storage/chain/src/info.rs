//! What a disk is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::disk::{Any, Layer};
use crate::{DiskError, Format, Result, foreign};

/// What one image says of itself.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Info {
    /// The image.
    pub path: PathBuf,
    /// raw, vhd, vhdx, qcow2 or vmdk.
    pub format: String,
    /// fixed, dynamic or differencing.
    pub kind: &'static str,
    /// Size of the disk, in bytes.
    pub size: u64,
    /// What it takes on the host, in bytes.
    pub allocated: u64,
    /// Size of a sector, in bytes.
    pub sector: u32,
    /// Bytes of a block.
    pub block: Option<u32>,
    /// The image's identity (VHD) or the disk's (VHDX).
    pub id: Option<String>,
    /// Where its parent is, as far as it is found.
    pub parent: Option<PathBuf>,
}

/// Describes an image. Its parent need not be there.
///
/// # Errors
/// Those of the system; an image that is none, damaged, or in use.
pub fn info(path: &Path, format: Option<Format>) -> Result<Info> {
    let allocated = std::fs::metadata(path).map_err(DiskError::io("look at", path))?.blocks() * 512;
    if let Some(info) = foreign::info(path, format, allocated)? {
        return Ok(info);
    }
    let mut layer = Layer::open(path, format, false)?;
    let (size, sector) = (layer.any.image().size(), layer.any.image().sector());
    let (kind, block, id) = match &layer.any {
        Any::Raw(_) => ("fixed", None, None),
        Any::Vhd(i) => {
            let kind = match i.footer().disk_type {
                vireo_vhd::DiskType::Fixed => "fixed",
                vireo_vhd::DiskType::Dynamic => "dynamic",
                vireo_vhd::DiskType::Differencing => "differencing",
            };
            let id: String = i.footer().id.iter().map(|b| format!("{b:02x}")).collect();
            (kind, i.block(), Some(id))
        }
        Any::Vhdx(i) => {
            let m = i.metadata();
            let kind = match (&m.parent, m.fixed) {
                (Some(_), _) => "differencing",
                (None, true) => "fixed",
                (None, false) => "dynamic",
            };
            (kind, Some(m.block), Some(m.id.to_string()))
        }
    };
    let parent = layer.parent_paths().and_then(|paths| {
        let found = paths.iter().find(|p| p.exists()).or(paths.first());
        found.cloned()
    });
    let format = layer.format.to_string();
    Ok(Info { path: path.to_path_buf(), format, kind, size, allocated, sector, block, id, parent })
}
