//! Ranges that are to be zero, or are not needed any more.

use vireo_vdisk::{Extent, Medium, Piece, Place, pieces};

use crate::table::{Block, UNMAPPED, ZERO};
use crate::{Result, Vhdx};

impl<M: Medium> Vhdx<M> {
    /// A range of whole sectors is to read as zeros. Gives the extents of the medium that are to be zero for that,
    /// before [`Vhdx::written`].
    ///
    /// # Errors
    /// The range is not on the disk; the image is read-only, damaged, or cannot grow.
    pub fn zero(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        self.announce()?;
        self.clear(at, len)
    }

    /// The same, without telling others that the disk changes.
    pub(crate) fn clear(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        self.check(at, len)?;
        let mut extents = Vec::new();
        for piece in pieces(at, len, self.layout().block) {
            if self.can_go(&piece) {
                self.give_up(piece.block, ZERO)?;
                continue;
            }
            let data = match self.block(piece.block)? {
                Block::Here(data) | Block::PartlyHere(data) => data,
                Block::Zero => continue,
                Block::NotHere if self.parent().is_none() => continue,
                // Hides the parent.
                Block::NotHere => self.allocate(piece.block, false)?,
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
    /// The range is not on the disk; the image is read-only, or damaged.
    pub fn unmap(&mut self, at: u64, len: u64) -> Result<Vec<Extent>> {
        self.check(at, len)?;
        self.announce()?;
        let mut extents = Vec::new();
        for piece in pieces(at, len, self.layout().block) {
            if self.can_go(&piece) {
                self.give_up(piece.block, UNMAPPED)?;
                continue;
            }
            let start = piece.start(self.layout().block);
            Extent::append_placed(self.resolve(start, piece.bytes())?, &mut extents);
        }
        Ok(extents)
    }

    /// Whether a piece is a whole block, or all that the disk has of it, and blocks can be given up here.
    fn can_go(&self, piece: &Piece) -> bool {
        piece.is_whole(self.layout().block, self.size()) && !self.metadata().fixed
    }

    /// Gives up what a block has of the file; `state`: what its entry says then. It is zero whatever the parent has.
    fn give_up(&mut self, block: u64, state: u64) -> Result<()> {
        match self.block(block)? {
            Block::Zero => return Ok(()),
            Block::NotHere if self.parent().is_none() => return Ok(()),
            Block::NotHere => {}
            Block::Here(at) | Block::PartlyHere(at) => self.space.give_up(at),
        }
        self.set_entry(self.layout().of_block(block), state)
    }
}
