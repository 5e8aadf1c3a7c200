//! Whether a disk is sound.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::disk::{Any, Layer};
use crate::{Disk, DiskError, Format, Result};

/// What was found in one image.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Report {
    /// The image.
    pub path: PathBuf,
    /// What is wrong with it, or left over in it.
    pub findings: Vec<String>,
    /// Whether data is lost, or will be by the next write.
    pub harmful: bool,
}

/// Checks an image and its parents, which are only read.
///
/// # Errors
/// As [`Disk::open`].
pub fn check(path: &Path, format: Option<Format>) -> Result<Vec<Report>> {
    let mut disk = Disk::open(path, format, false)?;
    disk.layers.iter_mut().map(report).collect()
}

fn report(layer: &mut Layer) -> Result<Report> {
    let (findings, harmful) = match &mut layer.any {
        Any::Raw(_) => (Vec::new(), false),
        Any::Vhd(i) => {
            let found = i.examine().map_err(DiskError::image(&layer.path))?;
            (
                found.iter().map(ToString::to_string).collect(),
                found.iter().any(vireo_vhd::Finding::is_harmful),
            )
        }
        Any::Vhdx(i) => {
            let found = i.examine().map_err(DiskError::image(&layer.path))?;
            (
                found.iter().map(ToString::to_string).collect(),
                found.iter().any(vireo_vhdx::Finding::is_harmful),
            )
        }
    };
    Ok(Report { path: layer.path.clone(), findings, harmful })
}
