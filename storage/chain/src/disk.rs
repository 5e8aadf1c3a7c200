//! An open disk: an image, and its parents below it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use vireo_vdisk::{Compact, Extent, FileMedium, Image, Place, Raw};
use vireo_vhd::Vhd;
use vireo_vhdx::{Guid, Open, Vhdx};

use crate::file::{self, Locked};
use crate::{DiskError, Format, Result};

/// Most images on one another.
pub(crate) const MOST_LAYERS: usize = 64;

/// An open image of any format.
#[expect(clippy::large_enum_variant, reason = "a disk has few of them")]
pub(crate) enum Any {
    Raw(Raw<FileMedium>),
    Vhd(Vhd<FileMedium>),
    Vhdx(Vhdx<FileMedium>),
}

impl Any {
    pub(crate) fn compact(&mut self) -> &mut dyn Compact {
        match self {
            Self::Raw(i) => i,
            Self::Vhd(i) => i,
            Self::Vhdx(i) => i,
        }
    }

    pub(crate) fn image(&mut self) -> &mut dyn Image {
        match self {
            Self::Raw(i) => i,
            Self::Vhd(i) => i,
            Self::Vhdx(i) => i,
        }
    }

    /// Where the parent of an image in this file is said to be, in the order in which to look.
    pub(crate) fn parent_paths(&self, path: &Path) -> Option<Vec<PathBuf>> {
        let (relative, absolute) = match self {
            Self::Raw(_) => return None,
            Self::Vhd(i) => i.parent().map(|p| (p.relative.clone(), p.absolute.clone()))?,
            Self::Vhdx(i) => i.parent().map(|p| (p.relative.clone(), p.absolute.clone()))?,
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let relative = relative.map(|p| folder.join(p.replace('\\', "/").trim_start_matches("./")));
        // A path of another system's is none here.
        let absolute = absolute.map(PathBuf::from).filter(|p| p.is_absolute());
        Some(relative.into_iter().chain(absolute).collect())
    }
}

/// One image of a disk.
pub(crate) struct Layer {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    pub(crate) any: Any,
    /// What the image's medium is.
    pub(crate) file: Locked,
    /// Of the file: no other has both.
    pub(crate) identity: (u64, u64),
}

impl Layer {
    pub(crate) fn open(path: &Path, format: Option<Format>, writable: bool) -> Result<Self> {
        let (file, medium) = file::open(path, writable)?;
        let format = Format::of(path, &medium, format)?;
        let meta = file.metadata().map_err(DiskError::io("look at", path))?;
        let any = match format {
            Format::Raw => Any::Raw(Raw::open(medium).map_err(DiskError::io("open", path))?),
            Format::Vhd => Any::Vhd(Vhd::open(medium, writable).map_err(DiskError::image(path))?),
            Format::Vhdx => {
                let open = if writable { Open::Write { random: Guid(file::random()) } } else { Open::Read };
                Any::Vhdx(Vhdx::open(medium, open).map_err(DiskError::image(path))?)
            }
            Format::Qcow2 | Format::Vmdk => {
                return Err(DiskError::Foreign { path: path.to_path_buf(), format });
            }
        };
        let file = Locked(file);
        Ok(Self { path: path.to_path_buf(), format, any, file, identity: (meta.dev(), meta.ino()) })
    }

    /// Where its parent is said to be, in the order in which to look.
    pub(crate) fn parent_paths(&self) -> Option<Vec<PathBuf>> {
        self.any.parent_paths(&self.path)
    }

    /// Bytes of a block, if it has blocks.
    pub(crate) fn block(&self) -> Option<u32> {
        match &self.any {
            Any::Raw(_) => None,
            Any::Vhd(i) => i.block(),
            Any::Vhdx(i) => Some(i.metadata().block),
        }
    }

    /// Whether all of it has a place.
    pub(crate) fn is_fixed(&self) -> bool {
        match &self.any {
            Any::Raw(_) => true,
            Any::Vhd(i) => i.block().is_none(),
            Any::Vhdx(i) => i.metadata().fixed,
        }
    }

    /// Whether both are the same file.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Writes a range of whole sectors.
    pub(crate) fn write(&mut self, at: u64, from: &[u8]) -> Result<()> {
        let image = self.any.image();
        let mut rest = from;
        for e in image.place(at, from.len() as u64).map_err(DiskError::image(&self.path))? {
            let Place::Medium(at) = e.place else { unreachable!("what is written goes to the medium") };
            let (part, more) = rest.split_at(e.len as usize);
            image.medium().write(at, part).map_err(DiskError::io("write", &self.path))?;
            rest = more;
        }
        image.written(at, from.len() as u64).map_err(DiskError::image(&self.path))
    }

    /// Makes a range of whole sectors zero.
    pub(crate) fn zero(&mut self, at: u64, len: u64) -> Result<()> {
        let image = self.any.image();
        for e in image.zero(at, len).map_err(DiskError::image(&self.path))? {
            let Place::Medium(at) = e.place else { unreachable!("what is cleared is in the medium") };
            image.medium().punch(at, e.len).map_err(DiskError::io("clear", &self.path))?;
        }
        image.written(at, len).map_err(DiskError::image(&self.path))
    }

    /// Makes all durable, and leaves the image as one that was closed.
    pub(crate) fn close(self) -> Result<()> {
        match self.any {
            Any::Raw(mut i) => i.flush().map_err(DiskError::image(&self.path)),
            Any::Vhd(mut i) => i.flush().map_err(DiskError::image(&self.path)),
            Any::Vhdx(i) => i.close().map(drop).map_err(DiskError::image(&self.path)),
        }
    }
}

/// A disk: an image with all its parents.
pub struct Disk {
    /// The image first, its base last.
    pub(crate) layers: Vec<Layer>,
    pub(crate) size: u64,
}

impl Disk {
    /// Opens a disk. Its parents are read only.
    ///
    /// # Errors
    /// Those of the system; images that are none, damaged, or in use; parents that are missing or others.
    pub fn open(path: &Path, format: Option<Format>, writable: bool) -> Result<Self> {
        let mut top = Layer::open(path, format, writable)?;
        let size = top.any.image().size();
        let mut layers = vec![top];
        while let Some(paths) = layers[layers.len() - 1].parent_paths() {
            let parent = Self::open_parent(&layers[layers.len() - 1], &paths, false)?;
            let again = layers.iter().any(|l| l.is_same(&parent));
            if again || layers.len() == MOST_LAYERS {
                return Err(DiskError::TooDeep { path: path.to_path_buf() });
            }
            layers.push(parent);
        }
        Ok(Self { layers, size })
    }

    /// Opens the parent of an image, which is said to be at one of these paths.
    pub(crate) fn open_parent(child: &Layer, paths: &[PathBuf], writable: bool) -> Result<Layer> {
        let Some(found) = paths.iter().find(|p| p.exists()) else {
            let tried: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            return Err(DiskError::NoParent { path: child.path.clone(), tried: tried.join(", ") });
        };
        // Its format is the child's, whatever it is named.
        let parent = Layer::open(found, Some(child.format), writable)?;
        match child.any.is_made_on(&parent.any) {
            true => Ok(parent),
            false => Err(DiskError::WrongParent { parent: parent.path, child: child.path.clone() }),
        }
    }

    /// Its size, in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Size of a sector, in bytes.
    pub fn sector(&mut self) -> u32 {
        self.layers[0].any.image().sector()
    }

    /// The extents of a range, each with the number of the layer it is in: none of them is a parent's.
    pub(crate) fn resolve(
        &mut self,
        layer: usize,
        at: u64,
        len: u64,
        found: &mut Vec<(usize, Extent)>,
    ) -> Result<()> {
        let Some(this) = self.layers.get_mut(layer) else {
            found.push((0, Extent { len, place: Place::Zero }));
            return Ok(());
        };
        let image = this.any.image();
        // A parent may be shorter than its child.
        let here = len.min(image.size().saturating_sub(at));
        let extents = match here {
            0 => Vec::new(),
            _ => image.resolve(at, here).map_err(DiskError::image(&this.path))?,
        };
        let mut next = at;
        for e in extents {
            match e.place {
                Place::Parent => self.resolve(layer + 1, next, e.len, found)?,
                _ => found.push((layer, e)),
            }
            next += e.len;
        }
        if here < len {
            found.push((0, Extent { len: len - here, place: Place::Zero }));
        }
        Ok(())
    }

    /// Reads a range of whole sectors. Whether all of it is known to be zero.
    ///
    /// # Errors
    /// The range is not on the disk; those of the images.
    pub fn read(&mut self, at: u64, to: &mut [u8]) -> Result<bool> {
        let mut extents = Vec::new();
        self.resolve(0, at, to.len() as u64, &mut extents)?;
        let mut rest = to;
        let mut zero = true;
        for (layer, e) in extents {
            let (part, more) = rest.split_at_mut(e.len as usize);
            match e.place {
                Place::Medium(at) => {
                    let layer = &mut self.layers[layer];
                    layer.any.image().medium().read(at, part).map_err(DiskError::io("read", &layer.path))?;
                    zero = false;
                }
                _ => part.fill(0),
            }
            rest = more;
        }
        Ok(zero)
    }

    /// Writes a range of whole sectors.
    ///
    /// # Errors
    /// The range is not on the disk, or that is read-only; those of the image.
    pub fn write(&mut self, at: u64, from: &[u8]) -> Result<()> {
        self.layers[0].write(at, from)
    }

    /// Makes a range of whole sectors zero.
    ///
    /// # Errors
    /// As [`Disk::write`].
    pub fn zero(&mut self, at: u64, len: u64) -> Result<()> {
        self.layers[0].zero(at, len)
    }

    /// Makes all durable, and leaves the image as one that was closed.
    ///
    /// # Errors
    /// Those of the image.
    pub fn close(mut self) -> Result<()> {
        self.layers.remove(0).close()
    }
}
