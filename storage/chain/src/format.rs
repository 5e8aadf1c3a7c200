//! Which format a file is of.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use vireo_vdisk::Medium;

use crate::{DiskError, Result};

/// A format of disk images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// None.
    Raw,
    /// VHD.
    Vhd,
    /// VHDX.
    Vhdx,
    /// qcow2, QEMU's: only read, to be converted.
    Qcow2,
    /// VMDK, VMware's: only read, to be converted.
    Vmdk,
}

impl Format {
    /// What a file's name says. `None`: nothing.
    pub fn of_name(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "vhd" | "avhd" => Some(Self::Vhd),
            "vhdx" | "avhdx" => Some(Self::Vhdx),
            "qcow2" => Some(Self::Qcow2),
            "vmdk" => Some(Self::Vmdk),
            _ => None,
        }
    }

    /// What a file's content looks like.
    fn of_content(path: &Path, medium: &dyn Medium) -> Result<Self> {
        let read = |at, to: &mut [u8]| medium.read(at, to).map_err(DiskError::io("read", path));
        let len = medium.len().map_err(DiskError::io("find the end of", path))?;
        let mut cookie = [0; 8];
        if len >= 8 {
            read(0, &mut cookie)?;
        }
        if cookie == *b"vhdxfile" {
            return Ok(Self::Vhdx);
        }
        if cookie[..4] == *b"QFI\xfb" {
            return Ok(Self::Qcow2);
        }
        if cookie[..4] == *vireo_vmdk::SPARSE || cookie == vireo_vmdk::DESCRIPTOR[..8] {
            return Ok(Self::Vmdk);
        }
        // At the start is the copy of a footer, which may be all that is left; at the end 512 or 511 bytes of it.
        let mut found = cookie == *b"conectix";
        for at in [len.checked_sub(512), len.checked_sub(511)].into_iter().flatten() {
            read(at, &mut cookie)?;
            found |= cookie == *b"conectix";
        }
        Ok(if found { Self::Vhd } else { Self::Raw })
    }

    /// The format of a file: `wanted`, or what its content is, if its name does not say otherwise. A file that is named
    /// like no image and looks like none is raw.
    ///
    /// # Errors
    /// Name and content do not agree.
    pub(crate) fn of(path: &Path, medium: &dyn Medium, wanted: Option<Self>) -> Result<Self> {
        if let Some(format) = wanted {
            return Ok(format);
        }
        let content = Self::of_content(path, medium)?;
        match Self::of_name(path) {
            Some(named) if named == content => Ok(named),
            Some(named) => Err(DiskError::NotAsNamed { path: path.to_path_buf(), named, content }),
            None if content == Self::Raw => Ok(content),
            None => Err(DiskError::Ambiguous { path: path.to_path_buf(), content }),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        })
    }
}

impl FromStr for Format {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "raw" => Ok(Self::Raw),
            "vhd" => Ok(Self::Vhd),
            "vhdx" => Ok(Self::Vhdx),
            "qcow2" => Ok(Self::Qcow2),
            "vmdk" => Ok(Self::Vmdk),
            other => Err(format!(
                "'{other}' is no format: there are raw, vhd, vhdx, and to be read qcow2 and vmdk"
            )),
        }
    }
}
