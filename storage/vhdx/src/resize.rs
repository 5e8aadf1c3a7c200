//! Disks that become larger or smaller.

use vireo_vdisk::Medium;

use crate::bytes::Fields;
use crate::create::MAX_SIZE;
use crate::pages::PAGE;
use crate::table::{Block, Layout, NOT_HERE};
use crate::{Metadata, Result, Vhdx, VhdxError};

impl<M: Medium> Vhdx<M> {
    /// Makes the disk larger, durably. What is new is zero, or the parent's. If it fails, or a crash comes between, the
    /// disk has its size or the new one.
    ///
    /// # Errors
    /// The size is not possible, or less than the disk's, or the block table has no room for it; the image is
    /// read-only; those of the medium.
    pub fn grow(&mut self, size: u64) -> Result<()> {
        let new = self.layout_with(size)?;
        if size < self.size() {
            return Err(VhdxError::BadSize { size, sector: self.metadata().sector });
        }
        if new.entries() * 8 > self.table_len() {
            return Err(VhdxError::FullTable { size });
        }
        self.announce()?;
        self.clear_tail()?;
        self.clear_entries(&new)?;
        if self.metadata().fixed {
            for block in self.layout().blocks()..new.blocks() {
                let at = self.extend(new.block)?;
                self.set_entry(new.of_block(block), Block::entry(at, true))?;
            }
        }
        // The entries first: they count once the size is there.
        self.flush()?;
        self.set_size(size, new)
    }

    /// Makes the disk smaller, durably. What is beyond is lost. Its blocks are given up, but the file stays as long as
    /// it is.
    ///
    /// # Errors
    /// The size is not possible, or more than the disk's; it has a parent, whose data would come back when it grows;
    /// the image is read-only; those of the medium.
    pub fn shrink(&mut self, size: u64) -> Result<()> {
        let new = self.layout_with(size)?;
        if size > self.size() {
            return Err(VhdxError::BadSize { size, sector: self.metadata().sector });
        }
        if self.parent().is_some() {
            return Err(VhdxError::Unsupported("a parent, so that a smaller size".into()));
        }
        self.announce()?;
        let old = self.layout();
        for block in new.blocks()..old.blocks() {
            if let Block::Here(at) | Block::PartlyHere(at) = self.block(block)? {
                self.space.give_up(at);
            }
            self.set_entry(old.of_block(block), NOT_HERE)?;
        }
        self.set_size(size, new)
    }

    fn layout_with(&self, size: u64) -> Result<Layout> {
        let sector = self.metadata().sector;
        if size == 0 || !size.is_multiple_of(sector.into()) || size > MAX_SIZE {
            return Err(VhdxError::BadSize { size, sector });
        }
        Ok(Layout::of(&Metadata { size, ..self.metadata().clone() }))
    }

    /// What the last block has behind the disk's end is nobody's yet.
    fn clear_tail(&mut self) -> Result<()> {
        let layout = self.layout();
        let used = self.size() % layout.block;
        match self.block(layout.blocks() - 1)? {
            Block::Here(at) | Block::PartlyHere(at) if used > 0 => self
                .replayed()
                .punch(at + used, layout.block - used)
                .map_err(VhdxError::io("clear what is behind the disk's end")),
            _ => Ok(()),
        }
    }

    /// Entries that did not count until now may be anything.
    fn clear_entries(&mut self, new: &Layout) -> Result<()> {
        let old = self.layout();
        let kept = old.of_bitmap(old.blocks() - 1);
        let mut n = old.of_block(old.blocks());
        while n < new.entries() {
            let first = self.entry_at(n) % PAGE;
            let end = new.entries().min(n + (PAGE - first) / 8);
            let page = self.entry_page(n)?;
            let is_set = |e: &u64| page.u64((first + (e - n) * 8) as usize) != NOT_HERE;
            let set: Vec<u64> = (n..end).filter(|e| *e != kept).filter(is_set).collect();
            set.into_iter().try_for_each(|e| self.set_entry(e, NOT_HERE))?;
            n = end;
        }
        Ok(())
    }

    fn set_size(&mut self, size: u64, layout: Layout) -> Result<()> {
        self.change_bytes(self.size_at(), &size.to_le_bytes())?;
        self.flush()?;
        self.is_resized(size, layout);
        Ok(())
    }
}
