//! What the structures of an image say.

use std::path::Path;

use vireo_vdisk::Fact;

use crate::{DiskError, Format, Result, file};

/// Tells what an image's structures say, right or wrong; `table`: where each block is as well.
///
/// # Errors
/// Those of the system; it is no image with structures, or in use.
pub fn dump(path: &Path, format: Option<Format>, table: bool) -> Result<Fact> {
    let (_file, medium) = file::open(path, false)?;
    match Format::of(path, &medium, format)? {
        Format::Raw => {
            let what = format!("{} is a raw disk: it has nothing but its content", path.display());
            Err(DiskError::Contradiction(what))
        }
        Format::Vhd => vireo_vhd::dump(&medium, table).map_err(DiskError::image(path)),
        format @ (Format::Qcow2 | Format::Vmdk) => {
            Err(DiskError::Foreign { path: path.to_path_buf(), format })
        }
        Format::Vhdx => vireo_vhdx::dump(&medium, table).map_err(DiskError::image(path)),
    }
}
