//! An open image.

use vireo_vdisk::{Extent, Finding, Image, ImageError, Medium, Piece, Place, Space, check_range, pieces};

use crate::bytes::{Fields, put};
use crate::error::damaged;
use crate::header::{FILE, Header};
use crate::log::{self, MOST_PAGES, Writer};
use crate::metadata::{ItemPlaces, Metadata, ParentLink};
use crate::overlay::Overlay;
use crate::pages::{PAGE, Pages};
use crate::region::{Region, Regions};
use crate::table::{BadEntry, Block, Layout};
use crate::{Guid, MIB, Result, VhdxError};

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// To be read.
    Read,
    /// To be written, too. Takes a number of chance, unique in the world, for the identities that change.
    Write {
        /// See above.
        random: Guid,
    },
}

/// An open image. It is not for several threads at once; whoever owns it moves the payload.
///
/// To write: [`Vhdx::place`] says where the payload goes; when it is there, [`Vhdx::written`] makes it what is read,
/// and [`Vhdx::flush`] makes it last. [`Vhdx::close`] spares the next opening the replay of the log.
pub struct Vhdx<M> {
    medium: Overlay<M>,
    header: Header,
    regions: Regions,
    metadata: Metadata,
    items: ItemPlaces,
    layout: Layout,
    pages: Pages,
    writer: Writer,
    open: Open,
    /// The identities that tell of changes have changed.
    announced: bool,
    /// Of blocks that were given up.
    pub(crate) space: Space,
    /// Where new blocks go if there is no such space.
    end: u64,
}

impl<M: Medium> Vhdx<M> {
    /// Opens an image; first does what its log says, if it was not closed: in memory, if it is to be read only.
    ///
    /// # Errors
    /// It is none, or damaged, or has what is not known; those of the medium.
    pub fn open(medium: M, open: Open) -> Result<Self> {
        let mut start = [0; 8];
        let len = medium.len().map_err(VhdxError::io("find the end of the VHDX"))?;
        if len < MIB {
            return Err(VhdxError::NotVhdx);
        }
        medium.read(0, &mut start).map_err(VhdxError::io("read the start of the VHDX"))?;
        if start != *FILE {
            return Err(VhdxError::NotVhdx);
        }
        let mut header = Header::read(&medium)?;
        let mut medium = Overlay::new(medium);
        if header.log != Guid::ZERO {
            if open == Open::Read {
                medium.keep_changes().map_err(VhdxError::io("find the end of the VHDX"))?;
            }
            log::replay(&medium, &header)?;
            header.log = Guid::ZERO;
            if open != Open::Read {
                header.write(&medium)?;
            }
        }
        let regions = Regions::read(&medium)?;
        let (metadata, items) = Metadata::read(&medium, regions.metadata)?;
        let layout = Layout::of(&metadata);
        if layout.entries() * 8 > regions.table.len {
            return damaged(format!("its block table has no room for {} entries", layout.entries()));
        }
        let len = medium.len().map_err(VhdxError::io("find the end of the VHDX"))?;
        if regions.table.at + regions.table.len > len {
            return damaged("its block table does not lie in it");
        }
        let (pages, writer, space) = (Pages::default(), Writer::default(), Space::default());
        let end = len.next_multiple_of(MIB);
        Ok(Self {
            medium,
            header,
            regions,
            metadata,
            items,
            layout,
            pages,
            writer,
            open,
            announced: false,
            space,
            end,
        })
    }

    /// Size of the disk, in bytes.
    pub fn size(&self) -> u64 {
        self.metadata.size
    }

    /// What its metadata says.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The parent, of a differencing image.
    pub fn parent(&self) -> Option<&ParentLink> {
        self.metadata.parent.as_ref()
    }

    /// What a child names as its parent's linkage. It changes when the disk is written for the first time after an
    /// opening.
    pub fn data_write(&self) -> Guid {
        self.header.data_write
    }

    /// The same after that, if it is open to be written.
    pub fn next_data_write(&self) -> Option<Guid> {
        match self.open {
            Open::Write { random } => Some(random.derived(2)),
            Open::Read => None,
        }
    }

    /// Says anew who the parent of a differencing image is, durably: as a whole or, after a crash, not at all.
    ///
    /// # Errors
    /// It has none; there is no room for what it is to say; the image is read-only; those of the medium.
    pub fn relink(&mut self, link: ParentLink) -> Result<()> {
        let (Some(entry), Some(_)) = (self.items.parent_entry, self.parent()) else {
            return damaged("it has no parent, and was to get another");
        };
        self.announce_file()?;
        self.flush()?;
        let bytes = crate::metadata::locator(&link)?;
        let Region { at: region, len } = self.regions.metadata;
        // Behind all items, so that what is there stays until the entry leads here.
        let at = self.items.end.next_multiple_of(8);
        let end = at + bytes.len() as u64;
        let at = if end <= region + len { at } else { self.items.parent };
        if at == self.items.parent && bytes.len() as u64 > self.items.parent_len {
            return Err(VhdxError::LongLink(bytes.len()));
        }
        self.change_bytes(at, &bytes)?;
        let place = [((at - region) as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat();
        self.change_bytes(entry + 16, &place)?;
        self.flush()?;
        self.items.is_moved(at, bytes.len() as u64);
        self.metadata.parent = Some(link);
        Ok(())
    }

    /// What it is written on.
    pub fn medium(&self) -> &M {
        self.medium.base()
    }

    /// The same, with what its log says.
    pub(crate) fn replayed(&self) -> &Overlay<M> {
        &self.medium
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Behind all regions.
    pub(crate) fn regions_end(&self) -> u64 {
        self.regions().map(|r| r.at + r.len).into_iter().fold(MIB, u64::max)
    }

    pub(crate) fn regions(&self) -> [Region; 3] {
        let log = Region { at: self.header.log_at, len: self.header.log_len };
        [log, self.regions.table, self.regions.metadata]
    }

    pub(crate) fn check(&self, at: u64, len: u64) -> Result<()> {
        Ok(check_range(at, len, self.metadata.size, self.metadata.sector.into())?)
    }

    /// Where an entry of the table is.
    pub(crate) fn entry_at(&self, n: u64) -> u64 {
        self.regions.table.at + 8 * n
    }

    /// The page that an entry is in.
    pub(crate) fn entry_page(&mut self, n: u64) -> Result<&[u8; PAGE as usize]> {
        let at = self.entry_at(n);
        self.pages.get(&self.medium, at & !(PAGE - 1))
    }

    fn entry(&mut self, n: u64) -> Result<u64> {
        let at = self.entry_at(n);
        Ok(self.entry_page(n)?.u64((at % PAGE) as usize))
    }

    pub(crate) fn set_entry(&mut self, n: u64, entry: u64) -> Result<()> {
        self.change_bytes(self.entry_at(n), &entry.to_le_bytes())
    }

    /// Changes bytes, by way of the log.
    pub(crate) fn change_bytes(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        for piece in pieces(at, bytes.len() as u64, PAGE) {
            let page = self.pages.change(&self.medium, piece.block * PAGE)?;
            let from = (piece.block * PAGE + piece.range.start - at) as usize;
            put(page, piece.range.start as usize, &bytes[from..][..piece.bytes() as usize]);
        }
        Ok(())
    }

    /// Bytes that the block table has room for.
    pub(crate) fn table_len(&self) -> u64 {
        self.regions.table.len
    }

    /// Where the file says the disk's size.
    pub(crate) fn size_at(&self) -> u64 {
        self.items.size
    }

    pub(crate) fn is_resized(&mut self, size: u64, layout: Layout) {
        (self.metadata.size, self.layout) = (size, layout);
    }

    /// What the table says of a block.
    pub(crate) fn block(&mut self, n: u64) -> Result<Block> {
        let entry = self.entry(self.layout.of_block(n))?;
        let block =
            Block::of(entry).or_else(|BadEntry| damaged(format!("block {n} has the entry {entry:#x}")))?;
        if let Block::Here(at) | Block::PartlyHere(at) = block {
            self.check_place(at, self.layout.block)?;
        }
        match block {
            Block::PartlyHere(_) if self.metadata.parent.is_none() => {
                damaged(format!("block {n} is a parent's in part, and there is none"))
            }
            block => Ok(block),
        }
    }

    /// Where the bitmap with a block's sectors is.
    pub(crate) fn bitmap(&mut self, block: u64) -> Result<Option<u64>> {
        let entry = self.entry(self.layout.of_bitmap(block))?;
        let at = Block::bitmap_of(entry)
            .or_else(|BadEntry| damaged(format!("the bitmap of block {block} has the entry {entry:#x}")))?;
        if let Some(at) = at {
            self.check_place(at, MIB)?;
        }
        Ok(at)
    }

    /// Whether a part of the file can be a block's or a bitmap's.
    fn check_place(&self, at: u64, len: u64) -> Result<()> {
        let end = at.saturating_add(len);
        let apart = |r: Region| end <= r.at || at >= r.at + r.len;
        let fine = at >= MIB && self.regions().into_iter().all(apart);
        match fine && end <= self.end {
            true => Ok(()),
            false => damaged(format!("a block or bitmap is said to be at {at}")),
        }
    }

    /// Where the bytes of a range of the disk are: whole sectors.
    ///
    /// # Errors
    /// The range is not on the disk; the table is damaged, or cannot be read.
    pub fn resolve(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        self.check(at, len)?;
        let mut extents = Vec::new();
        for piece in pieces(at, len, self.layout.block) {
            let elsewhere = if self.metadata.parent.is_some() { Place::Parent } else { Place::Zero };
            let place = match self.block(piece.block)? {
                Block::NotHere => elsewhere,
                Block::Zero => Place::Zero,
                Block::Here(data) => {
                    self.medium.payload(data + piece.range.start, piece.bytes(), &mut extents)?;
                    continue;
                }
                Block::PartlyHere(data) => {
                    self.resolve_partly(&piece, data, &mut extents)?;
                    continue;
                }
            };
            Extent { len: piece.bytes(), place }.append_to(&mut extents);
        }
        Ok(extents)
    }

    /// Of a block whose bitmap says what is here.
    fn resolve_partly(&mut self, piece: &Piece, data: u64, extents: &mut Vec<Extent>) -> Result<()> {
        let Some(bitmap) = self.bitmap(piece.block)? else {
            return damaged(format!("block {} is here in part, without a bitmap", piece.block));
        };
        let sector = self.layout.sector;
        let first = self.layout.first_bit(piece.block);
        for n in piece.sectors(sector) {
            let (byte, bit) = bit(bitmap, first + n);
            let page = self.pages.get(&self.medium, byte & !(PAGE - 1))?;
            let here = page[(byte % PAGE) as usize] & bit != 0;
            if here {
                self.medium.payload(data + n * sector, sector, extents)?;
            } else {
                Extent { len: sector, place: Place::Parent }.append_to(extents);
            }
        }
        Ok(())
    }

    /// Where the payload of a range of the disk is to be written: whole sectors. Blocks that have no place get one.
    ///
    /// # Errors
    /// The range is not on the disk; the image is read-only, damaged, or cannot grow.
    pub fn place(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        self.check(at, len)?;
        self.announce()?;
        let mut extents = Vec::new();
        for piece in pieces(at, len, self.layout.block) {
            let data = match self.block(piece.block)? {
                Block::Here(data) | Block::PartlyHere(data) => data,
                Block::Zero => self.allocate(piece.block, true)?,
                Block::NotHere => self.allocate(piece.block, self.metadata.parent.is_none())?,
            };
            Extent { len: piece.bytes(), place: Place::Medium(data + piece.range.start) }
                .append_to(&mut extents);
        }
        Ok(extents)
    }

    /// The payload of a range is where [`Vhdx::place`] said: from now on it is read.
    ///
    /// # Errors
    /// The range is not on the disk; the table is damaged, or cannot be read.
    pub fn written(&mut self, at: u64, len: u64) -> Result<()> {
        self.check(at, len)?;
        for piece in pieces(at, len, self.layout.block) {
            let Block::PartlyHere(_) = self.block(piece.block)? else { continue };
            let Some(bitmap) = self.bitmap(piece.block)? else { continue };
            let first = self.layout.first_bit(piece.block);
            for n in piece.sectors(self.layout.sector) {
                let (byte, bit) = bit(bitmap, first + n);
                let at = byte & !(PAGE - 1);
                // A page in which nothing changes need not be written.
                if self.pages.get(&self.medium, at)?[(byte % PAGE) as usize] & bit == 0 {
                    self.pages.change(&self.medium, at)?[(byte % PAGE) as usize] |= bit;
                }
            }
        }
        Ok(())
    }

    /// Before the first change of the disk: others can tell by this that there was one (2.2.2).
    pub(crate) fn announce(&mut self) -> Result<()> {
        let Open::Write { random } = self.open else { return Err(VhdxError::ReadOnly) };
        if self.header.data_write != random.derived(2) {
            self.header.data_write = random.derived(2);
            self.announced = false;
        }
        self.announce_file()
    }

    /// Before the first change of the file.
    pub(crate) fn announce_file(&mut self) -> Result<()> {
        let Open::Write { random } = self.open else { return Err(VhdxError::ReadOnly) };
        if !self.announced {
            // A crash, or another program, may have left an end that no block begins at.
            self.extend(0)?;
            self.header.file_write = random.derived(1);
            self.header.write(&self.medium)?;
            self.announced = true;
        }
        Ok(())
    }

    /// Gives a block a place, where the file is zero.
    pub(crate) fn allocate(&mut self, block: u64, whole: bool) -> Result<u64> {
        if !whole && self.bitmap(block)?.is_none() {
            let at = self.extend(MIB)?;
            self.set_entry(self.layout.of_bitmap(block), Block::bitmap_entry(at))?;
        }
        let at = match self.space.take() {
            Some(at) => at,
            None => self.extend(self.layout.block)?,
        };
        self.set_entry(self.layout.of_block(block), Block::entry(at, whole))?;
        Ok(at)
    }

    pub(crate) fn extend(&mut self, by: u64) -> Result<u64> {
        let at = self.end;
        self.medium.set_len(at + by).map_err(VhdxError::io("extend the VHDX"))?;
        self.end = at + by;
        Ok(at)
    }

    /// Makes all that was written durable: the payload, then by way of the log what leads to it.
    ///
    /// # Errors
    /// Those of the medium: then nothing is known of what was written since the last flush that succeeded. What was to
    /// be written still is.
    pub fn flush(&mut self) -> Result<()> {
        // And what the last flush wrote in its place, which its entry in the log is no longer needed for then.
        let flush = |m: &Overlay<M>| m.flush().map_err(VhdxError::io("flush the VHDX"));
        flush(&self.medium)?;
        let dirty = self.pages.dirty();
        if dirty.is_empty() {
            return Ok(());
        }
        let Open::Write { random } = self.open else { return Err(VhdxError::ReadOnly) };
        if self.header.log == Guid::ZERO {
            // The number never comes again, so what an earlier session left in the log is not taken for this one's.
            self.header.log = random.derived(self.header.number << 2 | 3);
            self.header.write(&self.medium)?;
        }
        for (n, pages) in dirty.chunks(MOST_PAGES).enumerate() {
            if n > 0 {
                flush(&self.medium)?;
            }
            self.writer.write(&self.medium, &self.header, pages, self.end)?;
            flush(&self.medium)?;
            for (at, bytes) in pages {
                self.medium.write(*at, *bytes).map_err(VhdxError::io("write the block table or a bitmap"))?;
            }
        }
        self.pages.is_written();
        self.space.is_durable(&self.medium, self.layout.block);
        Ok(())
    }

    /// After a flush: nothing is left to the log.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if self.header.log != Guid::ZERO {
            self.medium.flush().map_err(VhdxError::io("flush the VHDX"))?;
            self.header.log = Guid::ZERO;
            self.header.write(&self.medium)?;
        }
        Ok(())
    }

    /// The file ends here from now on, durably.
    pub(crate) fn end_at(&mut self, end: u64) -> Result<()> {
        self.medium
            .set_len(end)
            .and_then(|()| self.medium.flush())
            .map_err(VhdxError::io("shorten the VHDX"))?;
        self.end = end;
        Ok(())
    }

    /// What is known of pages may not be so any more. All are written.
    pub(crate) fn forget_pages(&mut self) {
        self.pages = Pages::default();
    }

    /// Makes all durable, so that nothing is left to the log.
    ///
    /// # Errors
    /// As [`Vhdx::flush`].
    pub fn close(mut self) -> Result<M> {
        if self.open != Open::Read {
            self.flush()?;
        }
        self.settle()?;
        Ok(self.medium.into_base())
    }
}

impl<M: Medium> Image for Vhdx<M> {
    fn size(&self) -> u64 {
        Self::size(self)
    }
    fn sector(&self) -> u32 {
        self.metadata.sector
    }
    fn medium(&self) -> &dyn Medium {
        self.medium.base()
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

/// The byte and the bit of a bitmap at an offset: the first sector is the lowest bit of the first byte.
fn bit(bitmap: u64, n: u64) -> (u64, u8) {
    (bitmap + n / 8, 1 << (n % 8))
}
