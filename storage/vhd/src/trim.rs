//! Ranges that are to be zero, or are not needed any more.

use vireo_vdisk::{Extent, Medium, Piece, Place, pieces};

use crate::create::NOWHERE;
use crate::{Result, Vhd};

impl<M: Medium> Vhd<M> {
    /// A range of whole sectors is to read as zeros. Gives the extents of the medium that are to be zero for that,
    /// before [`Vhd::written`].
    ///
    /// # Errors
    /// The range is not on the disk; the image is read-only, or cannot grow.
    pub fn zero(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        self.check_change(at, len)?;
        let Some(block) = self.block() else { return self.resolve(at, len) };
        let mut extents = Vec::new();
        for piece in pieces(at, len, block.into()) {
            if self.can_go(&piece) {
                self.give_up(piece.block as u32);
                continue;
            }
            let data = match self.data_of(piece.block as u32) {
                Some(data) => data,
                None if self.parent().is_none() => continue,
                // Hides the parent.
                None => self.allocate(piece.block as u32)?,
            };
            let place = Place::Medium(data + piece.range.start);
            Extent { len: piece.bytes(), place }.append_to(&mut extents);
        }
        Ok(extents)
    }

    /// A range of whole sectors is not needed any more: each reads as it did, or as zeros. Gives the extents of the
    /// medium that may be made zero.
    ///
    /// # Errors
    /// The range is not on the disk; the image is read-only; a bitmap cannot be read.
    pub fn unmap(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        self.check_change(at, len)?;
        let Some(block) = self.block() else { return self.resolve(at, len) };
        let mut extents = Vec::new();
        for piece in pieces(at, len, block.into()) {
            if self.can_go(&piece) {
                self.give_up(piece.block as u32);
                continue;
            }
            Extent::append_placed(self.resolve(piece.start(block.into()), piece.bytes())?, &mut extents);
        }
        Ok(extents)
    }

    /// Whether a piece is a whole block, or all that the disk has of it, and blocks can be given up here. A block of a
    /// child that has no place is its parent's.
    fn can_go(&self, piece: &Piece) -> bool {
        self.block().is_some_and(|block| piece.is_whole(block.into(), self.size())) && self.parent().is_none()
    }

    /// Gives up what a block has of the file.
    pub(crate) fn give_up(&mut self, block: u32) {
        let Some(sparse) = &mut self.sparse else { return };
        let entry = std::mem::replace(&mut sparse.table[block as usize], NOWHERE);
        if entry != NOWHERE {
            sparse.space.give_up(u64::from(entry) * vireo_vdisk::SECTOR);
            sparse.changed.insert(block);
            sparse.bitmaps.remove(&block);
        }
    }
}
