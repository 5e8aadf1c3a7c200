//! A disk without a format: what it is written on is what is on it.

use std::io;

use crate::{Extent, Finding, Image, ImageError, Medium, Place, SECTOR, check_range};

/// See the [module](self).
pub struct Raw<M> {
    medium: M,
    size: u64,
}

impl<M: Medium> Raw<M> {
    /// All whole sectors of a medium.
    ///
    /// # Errors
    /// Those of the medium.
    pub fn open(medium: M) -> io::Result<Self> {
        let size = medium.len()? / SECTOR * SECTOR;
        Ok(Self { medium, size })
    }

    fn check(&self, at: u64, len: u64) -> Result<(), ImageError> {
        check_range(at, len, self.size, SECTOR).map_err(ImageError::new)
    }
}

impl<M: Medium> Image for Raw<M> {
    fn size(&self) -> u64 {
        self.size
    }
    fn sector(&self) -> u32 {
        SECTOR as u32
    }
    fn medium(&self) -> &dyn Medium {
        &self.medium
    }
    fn resolve(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        self.check(at, len)?;
        Ok(if len == 0 { Vec::new() } else { vec![Extent { len, place: Place::Medium(at) }] })
    }
    fn place(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        self.resolve(at, len)
    }
    fn written(&mut self, at: u64, len: u64) -> Result<(), ImageError> {
        self.check(at, len)
    }
    fn flush(&mut self) -> Result<(), ImageError> {
        self.medium.flush().map_err(ImageError::new)
    }
    fn examine(&mut self) -> Result<Vec<Finding>, ImageError> {
        Ok(Vec::new())
    }
}
