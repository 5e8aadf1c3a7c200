//! The descriptor ("The Descriptor File"): text that says which extents a disk has.

use crate::error::damaged;
use crate::{DESCRIPTOR, Result, VmdkError};

/// Longest descriptor that is read, in bytes.
pub const MOST: u64 = 1 << 20;
/// Most extents of a disk.
const MOST_EXTENTS: usize = 4096;
/// What a disk without a parent has for the parent's identity.
const NO_PARENT: &str = "ffffffff";

/// What an extent is stored in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// A sparse extent's file.
    Sparse(String),
    /// A file that has all of it, from an offset on, in bytes.
    Flat(String, u64),
    /// Nothing: it is zero.
    Zero,
}

/// An extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its length, in bytes.
    pub len: u64,
    /// What it is stored in.
    pub storage: Storage,
}

/// The extents that a descriptor lists, one behind the other.
pub fn parse(bytes: &[u8]) -> Result<Vec<Extent>> {
    if !bytes.starts_with(DESCRIPTOR) {
        return Err(VmdkError::NotVmdk);
    }
    let text = String::from_utf8_lossy(bytes);
    let mut extents = Vec::new();
    for line in text.split(['\n', '\r', '\0']).map(str::trim) {
        let value = |name: &str| line.strip_prefix(name)?.trim_start().strip_prefix('=').map(str::trim);
        if value("parentCID").is_some_and(|id| !id.eq_ignore_ascii_case(NO_PARENT)) {
            return Err(VmdkError::Unsupported("a parent".into()));
        }
        let access = line.split_whitespace().next().unwrap_or("");
        if !["RW", "RDONLY", "NOACCESS"].contains(&access) {
            continue;
        }
        extents.push(extent(line)?);
        if extents.len() > MOST_EXTENTS {
            return Err(VmdkError::Unsupported(format!("more than {MOST_EXTENTS} extents")));
        }
    }
    Ok(extents)
}

/// `RW 4192256 SPARSE "disk-s001.vmdk"`, `RW 2048 FLAT "disk-flat.vmdk" 0`, `RW 63 ZERO`.
fn extent(line: &str) -> Result<Extent> {
    let bad = || damaged(format!("its descriptor has the extent '{line}'"));
    let mut words = line.split_whitespace().skip(1);
    let bytes = |text: &str| text.parse::<u64>().ok().and_then(|sectors| sectors.checked_mul(512));
    let (Some(len), Some(kind)) = (words.next().and_then(bytes), words.next()) else { return bad() };
    let name = || line.split_once('"')?.1.rsplit_once('"');
    let storage = match (kind, name()) {
        ("ZERO", _) => Storage::Zero,
        ("SPARSE", Some((name, _))) => Storage::Sparse(name.into()),
        ("FLAT", Some((name, rest))) => {
            let at = rest.trim();
            match bytes(if at.is_empty() { "0" } else { at }) {
                Some(at) => Storage::Flat(name.into(), at),
                None => return bad(),
            }
        }
        ("SPARSE" | "FLAT", None) => return bad(),
        _ => return Err(VmdkError::Unsupported(format!("an extent of type {kind}"))),
    };
    Ok(Extent { len, storage })
}
