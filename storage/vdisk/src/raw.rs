//! A disk without a format: what it is written on is what is on it.

use std::io;

use crate::{Extent, Image, ImageError, Medium, Place, SECTOR};

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
        let inside = at.checked_add(len).is_some_and(|end| end <= self.size);
        match inside && at.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR) {
            true => Ok(()),
            false => Err(ImageError::new(format!(
                "{len} bytes at {at} are no sectors of a disk of {} bytes",
                self.size
            ))),
        }
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
}
