//! Pages of the block table and of bitmaps, in memory: read once, changed here, written by the log.

use std::collections::HashMap;

use vireo_vdisk::Medium;

use crate::{Result, VhdxError};

/// Size of a page, which is what the log writes, in bytes.
pub const PAGE: u64 = 4096;
/// Pages that are kept though nothing in them is to be written.
const KEPT: usize = 4096;

/// A page.
struct Page {
    bytes: Box<[u8; PAGE as usize]>,
    dirty: bool,
}

/// See the [module](self).
#[derive(Default)]
pub struct Pages(HashMap<u64, Page>);

impl Pages {
    fn page(&mut self, medium: &dyn Medium, at: u64) -> Result<&mut Page> {
        if self.0.len() >= KEPT && !self.0.contains_key(&at) {
            self.0.retain(|_, p| p.dirty);
        }
        match self.0.entry(at) {
            std::collections::hash_map::Entry::Occupied(known) => Ok(known.into_mut()),
            std::collections::hash_map::Entry::Vacant(new) => {
                let mut bytes = Box::new([0; PAGE as usize]);
                medium.read(at, &mut *bytes).map_err(VhdxError::io("read the block table or a bitmap"))?;
                Ok(new.insert(Page { bytes, dirty: false }))
            }
        }
    }

    /// The page at an offset, a multiple of [`PAGE`].
    pub fn get(&mut self, medium: &dyn Medium, at: u64) -> Result<&[u8; PAGE as usize]> {
        Ok(&self.page(medium, at)?.bytes)
    }

    /// The same, to be changed.
    pub fn change(&mut self, medium: &dyn Medium, at: u64) -> Result<&mut [u8; PAGE as usize]> {
        let page = self.page(medium, at)?;
        page.dirty = true;
        Ok(&mut page.bytes)
    }

    /// Pages that are to be written, by their offsets.
    pub fn dirty(&self) -> Vec<(u64, &[u8; PAGE as usize])> {
        let mut pages: Vec<_> =
            self.0.iter().filter(|(_, p)| p.dirty).map(|(at, p)| (*at, &*p.bytes)).collect();
        pages.sort_unstable_by_key(|(at, _)| *at);
        pages
    }

    /// They are written.
    pub fn is_written(&mut self) {
        self.0.values_mut().for_each(|p| p.dirty = false);
    }
}
