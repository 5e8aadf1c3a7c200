//! Images that take no more of their file than they need.

use vireo_vdisk::{Compact, Extent, ImageError, Medium, Move, Used, gaps, plan};

use crate::error::damaged;
use crate::table::Block;
use crate::{MIB, Result, Vhdx, VhdxError};

/// In the number of a part: it is the bitmap of the chunk that the block begins.
const BITMAP: u64 = 1 << 63;

impl<M: Medium> Vhdx<M> {
    /// The parts of the file that are used.
    pub(crate) fn used(&mut self) -> Result<Vec<Used>> {
        let mut used = vec![Used { at: 0, len: MIB, id: None }];
        used.extend(self.regions().map(|r| Used { at: r.at, len: r.len, id: None }));
        let layout = self.layout();
        for n in 0..layout.blocks() {
            if let Block::Here(at) | Block::PartlyHere(at) = self.block(n)? {
                used.push(Used { at, len: layout.block, id: Some(n) });
            }
            if layout.first_bit(n) == 0 && self.parent().is_some() {
                let bitmap = self.bitmap(n)?;
                used.extend(bitmap.map(|at| Used { at, len: MIB, id: Some(n | BITMAP) }));
            }
        }
        Ok(used)
    }

    fn gaps(&mut self) -> Result<(Vec<Used>, Vec<std::ops::Range<u64>>)> {
        let mut used = self.used()?;
        match gaps(&mut used) {
            Some(gaps) => Ok((used, gaps)),
            None => damaged("two of its blocks overlap"),
        }
    }

    fn plan_moves(&mut self) -> Result<Vec<Move>> {
        self.announce_file()?;
        self.flush()?;
        self.forget_pages();
        let (used, gaps) = self.gaps()?;
        Ok(plan(&used, gaps, |at| at))
    }

    fn is_moved(&mut self, part: &Move) -> Result<()> {
        let n = part.id & !BITMAP;
        let layout = self.layout();
        if part.id & BITMAP != 0 {
            return self.set_entry(layout.of_bitmap(n), Block::bitmap_entry(part.to));
        }
        let whole = matches!(self.block(n)?, Block::Here(_));
        self.set_entry(layout.of_block(n), Block::entry(part.to, whole))
    }

    fn cut_end(&mut self) -> Result<()> {
        self.announce_file()?;
        self.flush()?;
        // An entry of the log says how long the file is at least.
        self.settle()?;
        self.forget_pages();
        self.space.forget();
        let (used, gaps) = self.gaps()?;
        for gap in gaps {
            self.replayed()
                .punch(gap.start, gap.end - gap.start)
                .map_err(VhdxError::io("clear what is not used"))?;
        }
        self.end_at(used.iter().map(|u| u.at + u.len).max().unwrap_or(MIB))
    }
}

impl<M: Medium> Compact for Vhdx<M> {
    fn deallocate(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        self.announce_file().and_then(|()| self.clear(at, len)).map_err(ImageError::new)
    }
    fn moves(&mut self) -> Result<Vec<Move>, ImageError> {
        self.plan_moves().map_err(ImageError::new)
    }
    fn moved(&mut self, part: &Move) -> Result<(), ImageError> {
        self.is_moved(part).map_err(ImageError::new)
    }
    fn cut(&mut self) -> Result<(), ImageError> {
        self.cut_end().map_err(ImageError::new)
    }
}
