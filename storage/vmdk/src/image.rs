//! An open image: its extents, one behind the other.

use std::io;

use vireo_vdisk::{Medium, check_range};

use crate::descriptor::{self, Storage};
use crate::error::damaged;
use crate::sparse::Sparse;
use crate::{DESCRIPTOR, Result, SPARSE, VmdkError};

const SECTOR: u64 = 512;

/// Opens a file by the name that a descriptor has for it, or refuses to.
pub type OpenExtent<'a> = &'a mut dyn FnMut(&str) -> io::Result<Box<dyn Medium>>;

enum Part {
    Sparse(Box<Sparse>),
    Flat(Box<dyn Medium>, u64),
    Zero,
}

/// An open image, to be read.
pub struct Vmdk {
    /// Where each part ends on the disk, in bytes.
    parts: Vec<(u64, Part)>,
}

/// What is at the start of a file.
fn is_sparse(medium: &dyn Medium) -> Result<bool> {
    let mut start = [0; 4];
    let len = medium.len().map_err(VmdkError::io("find the end of the VMDK"))?;
    if len < SECTOR {
        return Ok(false);
    }
    medium.read(0, &mut start).map_err(VmdkError::io("read the start of the VMDK"))?;
    Ok(start == *SPARSE)
}

fn read_descriptor(medium: &dyn Medium) -> Result<Vec<descriptor::Extent>> {
    let len = medium.len().map_err(VmdkError::io("find the end of the VMDK"))?;
    if len > descriptor::MOST {
        return Err(VmdkError::NotVmdk);
    }
    let mut bytes = vec![0; len as usize];
    medium.read(0, &mut bytes).map_err(VmdkError::io("read the descriptor"))?;
    descriptor::parse(&bytes)
}

/// The files that an image names as parts of its disk, and the disk's size in bytes, without opening any.
///
/// # Errors
/// It is none, or damaged; those of the medium.
pub fn extents_named(medium: &dyn Medium) -> Result<(Vec<String>, u64)> {
    let extents = read_descriptor(medium)?;
    let name = |e: &descriptor::Extent| match &e.storage {
        Storage::Sparse(name) | Storage::Flat(name, _) => Some(name.clone()),
        Storage::Zero => None,
    };
    let size = extents.iter().try_fold(0u64, |sum, e| sum.checked_add(e.len));
    let Some(size) = size else { return damaged("its disk is larger than can be") };
    Ok((extents.iter().filter_map(name).collect(), size))
}

impl Vmdk {
    /// Whether an image is one file that has all of its disk.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn is_one_file(medium: &dyn Medium) -> Result<bool> {
        is_sparse(medium)
    }

    /// Opens an image, with the files that it names.
    ///
    /// # Errors
    /// It is none, or damaged, or of an unknown kind; those of the media.
    pub fn open(medium: Box<dyn Medium>, open: OpenExtent<'_>) -> Result<Self> {
        if is_sparse(&*medium)? {
            let sparse = Sparse::open(medium)?;
            let text = sparse.descriptor()?;
            // That of an extent of several says nothing.
            if text.starts_with(DESCRIPTOR) {
                // That it has no parent.
                descriptor::parse(&text)?;
            }
            return Ok(Self { parts: vec![(sparse.size(), Part::Sparse(sparse.into()))] });
        }
        let mut parts: Vec<(u64, Part)> = Vec::new();
        for extent in read_descriptor(&*medium)? {
            let start = parts.last().map_or(0, |(end, _)| *end);
            let Some(end) = start.checked_add(extent.len) else {
                return damaged("its disk is larger than can be");
            };
            let mut file =
                |name: &String| open(name).map_err(|source| VmdkError::Extent { name: name.clone(), source });
            let part = match &extent.storage {
                Storage::Zero => Part::Zero,
                Storage::Flat(name, at) => Part::Flat(file(name)?, *at),
                Storage::Sparse(name) => Part::Sparse(Sparse::open(file(name)?)?.into()),
            };
            if let Part::Sparse(sparse) = &part
                && sparse.size() < extent.len
            {
                return damaged(format!("an extent of {} bytes has only {}", extent.len, sparse.size()));
            }
            parts.push((end, part));
        }
        if parts.last().is_none_or(|(end, _)| *end == 0) {
            return damaged("its disk has no bytes");
        }
        Ok(Self { parts })
    }

    /// Size of the disk, in bytes.
    pub fn size(&self) -> u64 {
        self.parts.last().map_or(0, |(end, _)| *end)
    }

    /// Size of a grain, if it has grains, in bytes.
    pub fn grain(&self) -> Option<u64> {
        self.parts.iter().find_map(|(_, part)| match part {
            Part::Sparse(sparse) => Some(sparse.grain()),
            _ => None,
        })
    }

    /// Reads a range of whole sectors. Whether all of it is known to be zero.
    ///
    /// # Errors
    /// The range is not on the disk; the image is damaged, or cannot be read.
    pub fn read(&mut self, at: u64, to: &mut [u8]) -> Result<bool> {
        check_range(at, to.len() as u64, self.size(), SECTOR)?;
        let (mut next, mut rest, mut zero) = (at, to, true);
        while !rest.is_empty() {
            let number = self.parts.partition_point(|(end, _)| *end <= next);
            let start = if number == 0 { 0 } else { self.parts[number - 1].0 };
            let (end, part) = &mut self.parts[number];
            let (within, left) = (next - start, *end - next);
            let most = match part {
                Part::Sparse(sparse) => left.min(sparse.grain() - within % sparse.grain()),
                _ => left,
            };
            let (piece, more) = rest.split_at_mut(most.min(rest.len() as u64) as usize);
            next += piece.len() as u64;
            zero &= match part {
                Part::Zero => {
                    piece.fill(0);
                    true
                }
                Part::Sparse(sparse) => sparse.read(within, piece)?,
                Part::Flat(medium, at) => {
                    let Some(from) = at.checked_add(within) else { return damaged("an extent has no end") };
                    medium.read(from, piece).map_err(VmdkError::io("read a flat extent"))?;
                    false
                }
            };
            rest = more;
        }
        Ok(zero)
    }
}
