//! Images that take no more of their file than they need.

use std::ops::Range;

use vireo_vdisk::{Compact, Extent, ImageError, Medium, Move, SECTOR, Used, gaps, plan};

use crate::bitmap::Bitmap;
use crate::create::{NOWHERE, next_block};
use crate::{Result, Vhd, VhdError, header};

impl<M: Medium> Vhd<M> {
    /// The parts of the file of a sparse image that are used, but for the footer at the end.
    pub(crate) fn used(&self) -> Vec<Used> {
        let Some(sparse) = self.sparse() else { return Vec::new() };
        let header = self.footer().header_at.unwrap_or(0) + header::SIZE as u64;
        let table = (4 * sparse.table.len() as u64).next_multiple_of(SECTOR);
        let fixed = [
            (0, SECTOR),
            (header - header::SIZE as u64, header::SIZE as u64),
            (sparse.header.table_at, table),
        ];
        let fixed = fixed.into_iter().chain(sparse.header.locators.iter().copied());
        let fixed = fixed.map(|(at, len)| Used { at, len, id: None });
        let len = Bitmap::size(sparse.header.block) + u64::from(sparse.header.block);
        let blocks = (0..).zip(&sparse.table).filter(|(_, e)| **e != NOWHERE);
        fixed.chain(blocks.map(|(n, e)| Used { at: u64::from(*e) * SECTOR, len, id: Some(n) })).collect()
    }

    fn gaps(&self) -> Result<(Vec<Used>, Vec<Range<u64>>)> {
        let mut used = self.used();
        match gaps(&mut used) {
            Some(gaps) => Ok((used, gaps)),
            None => Err(VhdError::Damaged("two of its blocks overlap".into())),
        }
    }

    fn plan_moves(&mut self) -> Result<Vec<Move>> {
        self.check_change(0, 0)?;
        self.flush()?;
        let Some(block) = self.block() else { return Ok(Vec::new()) };
        let (used, gaps) = self.gaps()?;
        Ok(plan(&used, gaps, |at| next_block(at, block)))
    }

    fn is_moved(&mut self, part: &Move) {
        let Some(sparse) = &mut self.sparse else { return };
        let block = part.id as u32;
        sparse.table[block as usize] = (part.to / SECTOR) as u32;
        sparse.changed.insert(block);
        sparse.bitmaps.remove(&block);
    }

    fn cut_end(&mut self) -> Result<()> {
        self.check_change(0, 0)?;
        self.flush()?;
        if self.sparse().is_none() {
            return Ok(());
        }
        let (used, gaps) = self.gaps()?;
        for gap in gaps {
            self.medium()
                .punch(gap.start, gap.end - gap.start)
                .map_err(VhdError::io("clear what is not used"))?;
        }
        let end = used.iter().map(|u| u.at + u.len).max().unwrap_or(0);
        self.put(end, &self.footer().bytes())?;
        self.sync()?;
        self.set_len(end + SECTOR)?;
        if let Some(sparse) = &mut self.sparse {
            sparse.end = end;
            sparse.space.forget();
        }
        self.sync()
    }
}

impl<M: Medium> Compact for Vhd<M> {
    fn deallocate(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        match self.parent() {
            // A block without a place is the parent's.
            Some(_) => self.unmap(at, len),
            None => self.zero(at, len),
        }
        .map_err(ImageError::new)
    }
    fn moves(&mut self) -> Result<Vec<Move>, ImageError> {
        self.plan_moves().map_err(ImageError::new)
    }
    fn moved(&mut self, part: &Move) -> Result<(), ImageError> {
        self.is_moved(part);
        Ok(())
    }
    fn cut(&mut self) -> Result<(), ImageError> {
        self.cut_end().map_err(ImageError::new)
    }
}
