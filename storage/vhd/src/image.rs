//! An open image.

use std::collections::{BTreeSet, HashMap};

use vireo_vdisk::{Extent, Finding, Image, ImageError, Medium, Place, SECTOR, Space, check_range, pieces};

use crate::bitmap::Bitmap;
use crate::create::{BLOCKS, MAX_SIZE, NOWHERE, blocks, next_block};
use crate::footer::{self, DiskType, Footer};
use crate::header::{Header, ParentLink};
use crate::{Result, VhdError};

/// Bitmaps that are kept though nothing in them is to be written.
const BITMAPS: usize = 4096;

/// An open image. It is not for several threads at once; whoever owns it moves the payload.
///
/// To write: [`Vhd::place`] says where the payload goes; when it is there, [`Vhd::written`] makes it what is read, and
/// [`Vhd::flush`] makes it last.
pub struct Vhd<M> {
    pub(crate) medium: M,
    pub(crate) footer: Footer,
    pub(crate) sparse: Option<Sparse>,
    pub(crate) writable: bool,
}

/// What a dynamic or differencing image has.
pub(crate) struct Sparse {
    pub(crate) header: Header,
    /// For each block the sector where its bitmap begins, or [`NOWHERE`].
    pub(crate) table: Vec<u32>,
    pub(crate) bitmaps: HashMap<u32, Bitmap>,
    /// Entries of the table that are to be written.
    pub(crate) changed: BTreeSet<u32>,
    /// Of blocks that were given up, with their bitmaps.
    pub(crate) space: Space,
    /// Where the footer is, and blocks go next.
    pub(crate) end: u64,
}

impl<M: Medium> Vhd<M> {
    /// Opens an image.
    ///
    /// # Errors
    /// It is none, or damaged, or of an unknown kind; those of the medium.
    pub fn open(medium: M, writable: bool) -> Result<Self> {
        let (footer, at) = find_footer(&medium)?;
        if footer.size == 0 || !footer.size.is_multiple_of(SECTOR) || footer.size > MAX_SIZE {
            return Err(VhdError::Damaged(format!("its footer says {} bytes", footer.size)));
        }
        let sparse = match footer.disk_type {
            DiskType::Fixed if at.is_none_or(|at| at < footer.size) => {
                return Err(VhdError::Damaged(format!(
                    "it ends before the {} bytes of its disk",
                    footer.size
                )));
            }
            DiskType::Fixed => None,
            _ => Some(Sparse::read(&medium, &footer, at)?),
        };
        let vhd = Self { medium, footer, sparse, writable };
        if writable && at.is_none() {
            // A crash took it.
            vhd.write_footer()?;
        }
        Ok(vhd)
    }

    /// Size of the disk, in bytes.
    pub fn size(&self) -> u64 {
        self.footer.size
    }

    /// What its footer says.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// The parent, of a differencing image.
    pub fn parent(&self) -> Option<&ParentLink> {
        self.sparse.as_ref()?.header.parent.as_ref()
    }

    /// Bytes of a block, of a sparse image.
    pub fn block(&self) -> Option<u32> {
        Some(self.sparse.as_ref()?.header.block)
    }

    /// What it is written on.
    pub fn medium(&self) -> &M {
        &self.medium
    }

    pub(crate) fn sparse(&self) -> Option<&Sparse> {
        self.sparse.as_ref()
    }

    fn check(&self, at: u64, len: u64) -> Result<()> {
        Ok(check_range(at, len, self.footer.size, SECTOR)?)
    }

    /// Whether a range may be changed.
    pub(crate) fn check_change(&self, at: u64, len: u64) -> Result<()> {
        self.check(at, len)?;
        if self.writable { Ok(()) } else { Err(VhdError::ReadOnly) }
    }

    /// Where the data of a block of a sparse image begins, if it has a place.
    pub(crate) fn data_of(&self, block: u32) -> Option<u64> {
        self.sparse.as_ref()?.data_of(block)
    }

    /// Where the bytes of a range of the disk are: whole sectors.
    ///
    /// # Errors
    /// The range is not on the disk; a bitmap cannot be read.
    pub fn resolve(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        self.check(at, len)?;
        let mut extents = Vec::new();
        let Some(sparse) = &mut self.sparse else {
            if len > 0 {
                extents.push(Extent { len, place: Place::Medium(at) });
            }
            return Ok(extents);
        };
        let elsewhere = if sparse.header.parent.is_some() { Place::Parent } else { Place::Zero };
        for piece in pieces(at, len, sparse.header.block.into()) {
            let Some(data) = sparse.data_of(piece.block as u32) else {
                Extent { len: piece.bytes(), place: elsewhere }.append_to(&mut extents);
                continue;
            };
            let bitmap = sparse.bitmap(&self.medium, piece.block as u32)?;
            for sector in piece.sectors(SECTOR) {
                let place =
                    if bitmap.has(sector) { Place::Medium(data + sector * SECTOR) } else { elsewhere };
                Extent { len: SECTOR, place }.append_to(&mut extents);
            }
        }
        Ok(extents)
    }

    /// Where the payload of a range of the disk is to be written: whole sectors. Blocks that have no place get one.
    ///
    /// # Errors
    /// The range is not on the disk; the image is read-only, or cannot grow.
    pub fn place(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        self.check_change(at, len)?;
        let mut extents = Vec::new();
        let Some(block) = self.block() else { return self.resolve(at, len) };
        for piece in pieces(at, len, block.into()) {
            let data = match self.data_of(piece.block as u32) {
                Some(data) => data,
                None => self.allocate(piece.block as u32)?,
            };
            Extent { len: piece.bytes(), place: Place::Medium(data + piece.range.start) }
                .append_to(&mut extents);
        }
        Ok(extents)
    }

    /// The payload of a range is where [`Vhd::place`] said: from now on it is read.
    ///
    /// # Errors
    /// The range is not on the disk; a bitmap cannot be read.
    pub fn written(&mut self, at: u64, len: u64) -> Result<()> {
        self.check(at, len)?;
        let Some(sparse) = &mut self.sparse else { return Ok(()) };
        for piece in pieces(at, len, sparse.header.block.into()) {
            // Of what was cleared a block may have no place.
            if sparse.data_of(piece.block as u32).is_some() {
                sparse.bitmap(&self.medium, piece.block as u32)?.add(piece.sectors(SECTOR));
            }
        }
        Ok(())
    }

    /// Makes all that was written durable: the payload first, then what leads to it.
    ///
    /// # Errors
    /// Those of the medium: then nothing is known of what was written since the last flush that succeeded. What was to
    /// be written still is.
    pub fn flush(&mut self) -> Result<()> {
        let flush = || self.medium.flush().map_err(VhdError::io("flush the VHD"));
        flush()?;
        let Some(sparse) = &mut self.sparse else { return Ok(()) };
        if !sparse.is_dirty() {
            return Ok(());
        }
        sparse.write(&self.medium)?;
        flush()?;
        sparse.is_written();
        let block = Bitmap::size(sparse.header.block) + u64::from(sparse.header.block);
        sparse.space.is_durable(&self.medium, block);
        Ok(())
    }

    /// Gives a block a place, where the file is zero.
    pub(crate) fn allocate(&mut self, block: u32) -> Result<u64> {
        let Some(sparse) = &mut self.sparse else { unreachable!("a fixed image has no blocks") };
        let size = sparse.header.block;
        let at = match sparse.space.take() {
            Some(at) => at,
            None => sparse.extend(&self.medium, &self.footer)?,
        };
        // Of a dynamic image all sectors are here at once, being zero: so nothing is to be noted when they are written.
        let mut bitmap = Bitmap::empty(size);
        if sparse.header.parent.is_none() {
            bitmap.bytes.fill(0xff);
        }
        self.medium.write(at, &bitmap.bytes).map_err(VhdError::io("write a new block"))?;
        sparse.table[block as usize] = (at / SECTOR) as u32;
        sparse.changed.insert(block);
        sparse.bitmaps.insert(block, bitmap);
        Ok(at + Bitmap::size(size))
    }

    fn write_footer(&self) -> Result<()> {
        let at = self.sparse.as_ref().map_or(self.footer.size, |s| s.end);
        self.medium.write(at, &self.footer.bytes()).map_err(VhdError::io("write the footer"))
    }
}

impl<M: Medium> Image for Vhd<M> {
    fn size(&self) -> u64 {
        Self::size(self)
    }
    fn sector(&self) -> u32 {
        512
    }
    fn medium(&self) -> &dyn Medium {
        &self.medium
    }
    fn resolve(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        Self::resolve(self, at, len).map_err(ImageError::new)
    }
    fn place(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        Self::place(self, at, len).map_err(ImageError::new)
    }
    fn written(&mut self, at: u64, len: u64) -> Result<(), ImageError> {
        Self::written(self, at, len).map_err(ImageError::new)
    }
    fn zero(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        Self::zero(self, at, len).map_err(ImageError::new)
    }
    fn unmap(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        Self::unmap(self, at, len).map_err(ImageError::new)
    }
    fn grow(&mut self, size: u64) -> Result<(), ImageError> {
        Self::grow(self, size).map_err(ImageError::new)
    }
    fn shrink(&mut self, size: u64) -> Result<(), ImageError> {
        Self::shrink(self, size).map_err(ImageError::new)
    }
    fn flush(&mut self) -> Result<(), ImageError> {
        Self::flush(self).map_err(ImageError::new)
    }
    fn examine(&mut self) -> Result<Vec<Finding>, ImageError> {
        Self::examine(self).map_err(ImageError::new)
    }
}

/// The footer, and where it is, if it is at the end.
pub(crate) fn find_footer(medium: &dyn Medium) -> Result<(Footer, Option<u64>)> {
    let len = medium.len().map_err(VhdError::io("find the end of the VHD"))?;
    let mut bytes = [0; footer::SIZE];
    // Old images end with 511 bytes of it.
    for size in [footer::SIZE as u64, footer::SIZE as u64 - 1] {
        let Some(at) = len.checked_sub(size) else { return Err(VhdError::NotVhd) };
        bytes.fill(0);
        medium.read(at, &mut bytes[..size as usize]).map_err(VhdError::io("read the footer"))?;
        if let Some(footer) = Footer::parse(&bytes)? {
            return Ok((footer, Some(at)));
        }
    }
    medium.read(0, &mut bytes).map_err(VhdError::io("read the copy of the footer"))?;
    match Footer::parse(&bytes)? {
        Some(footer) if footer.disk_type != DiskType::Fixed => Ok((footer, None)),
        _ => Err(VhdError::NotVhd),
    }
}

impl Sparse {
    fn read(medium: &dyn Medium, footer: &Footer, footer_at: Option<u64>) -> Result<Self> {
        let damaged = |what: String| Err(VhdError::Damaged(what));
        let differencing = footer.disk_type == DiskType::Differencing;
        let Some(header_at) = footer.header_at else { return damaged("it has no header".into()) };
        let header = Header::read(medium, header_at, differencing)?;
        if !BLOCKS.contains(&header.block) || !header.block.is_power_of_two() {
            return Err(VhdError::Unsupported(format!("blocks of {} bytes", header.block)));
        }
        let needed = u64::from(blocks(footer.size, header.block)?);
        if u64::from(header.entries) < needed {
            return damaged(format!("its table has {} entries for {needed} blocks", header.entries));
        }
        let len = medium.len().map_err(VhdError::io("find the end of the VHD"))?;
        if header.table_at.checked_add(4 * needed).is_none_or(|end| end > len) {
            return damaged("its block table does not lie in it".into());
        }
        let mut bytes = vec![0; 4 * needed as usize];
        medium.read(header.table_at, &mut bytes).map_err(VhdError::io("read the block table"))?;
        let table: Vec<u32> = bytes.as_chunks().0.iter().map(|b| u32::from_be_bytes(*b)).collect();
        let size = Bitmap::size(header.block) + u64::from(header.block);
        let end =
            table.iter().filter(|e| **e != NOWHERE).map(|e| u64::from(*e) * SECTOR + size).max().unwrap_or(0);
        if end > footer_at.unwrap_or(len) {
            return damaged("a block reaches beyond its end".into());
        }
        let end = footer_at.unwrap_or(len.next_multiple_of(SECTOR));
        Ok(Self {
            header,
            table,
            bitmaps: HashMap::new(),
            changed: BTreeSet::new(),
            space: Space::default(),
            end,
        })
    }

    /// Makes room for a block at the end.
    fn extend(&mut self, medium: &dyn Medium, footer: &Footer) -> Result<u64> {
        let size = self.header.block;
        let at = next_block(self.end, size);
        u32::try_from(at / SECTOR).ok().filter(|e| *e != NOWHERE).ok_or(VhdError::Full)?;
        let end = at + Bitmap::size(size) + u64::from(size);
        // What lies behind the footer is zero; where that was the bitmap comes, if not behind it.
        medium.set_len(end).map_err(VhdError::io("extend the VHD"))?;
        medium.write(end, &footer.bytes()).map_err(VhdError::io("write the footer"))?;
        self.end = end;
        Ok(at)
    }

    /// Where the data of a block begins.
    fn data_of(&self, block: u32) -> Option<u64> {
        let entry = self.table[block as usize];
        (entry != NOWHERE).then(|| u64::from(entry) * SECTOR + Bitmap::size(self.header.block))
    }

    /// The bitmap of a block that has a place.
    fn bitmap(&mut self, medium: &dyn Medium, block: u32) -> Result<&mut Bitmap> {
        if self.bitmaps.len() >= BITMAPS && !self.bitmaps.contains_key(&block) {
            self.bitmaps.retain(|_, b| b.dirty);
        }
        let at = u64::from(self.table[block as usize]) * SECTOR;
        match self.bitmaps.entry(block) {
            std::collections::hash_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::hash_map::Entry::Vacant(new) => {
                let mut bitmap = Bitmap::empty(self.header.block);
                medium.read(at, &mut bitmap.bytes).map_err(VhdError::io("read a block's bitmap"))?;
                Ok(new.insert(bitmap))
            }
        }
    }

    fn is_dirty(&self) -> bool {
        !self.changed.is_empty() || self.bitmaps.values().any(|b| b.dirty)
    }

    /// Writes the entries and bitmaps that have changed.
    fn write(&self, medium: &dyn Medium) -> Result<()> {
        for block in &self.changed {
            let entry = self.table[*block as usize];
            let at = self.header.table_at + 4 * u64::from(*block);
            medium.write(at, &entry.to_be_bytes()).map_err(VhdError::io("write the block table"))?;
        }
        for (block, bitmap) in self.bitmaps.iter().filter(|(_, b)| b.dirty) {
            let at = u64::from(self.table[*block as usize]) * SECTOR;
            medium.write(at, &bitmap.bytes).map_err(VhdError::io("write a block's bitmap"))?;
        }
        Ok(())
    }

    fn is_written(&mut self) {
        self.changed.clear();
        self.bitmaps.values_mut().for_each(|b| b.dirty = false);
    }
}
