//! Whether a disk is sound.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vireo_vdisk::Finding;

use crate::disk::Layer;
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
    let found = layer.any.image().examine().map_err(DiskError::image(&layer.path))?;
    let harmful = found.iter().any(Finding::is_harmful);
    Ok(Report { path: layer.path.clone(), findings: found.iter().map(Finding::to_string).collect(), harmful })
}
