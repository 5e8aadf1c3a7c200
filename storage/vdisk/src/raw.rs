//! A disk without a format: what it is written on is what is on it.

use std::io;

use crate::{Compact, Extent, Finding, Image, ImageError, Medium, Move, Place, SECTOR, check_range};

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

    fn check_size(&self, size: u64, wrong: bool) -> Result<(), ImageError> {
        match size == 0 || !size.is_multiple_of(SECTOR) || wrong {
            true => Err(ImageError::new(format!("a raw disk of {} bytes cannot have {size}", self.size))),
            false => Ok(()),
        }
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
    fn zero(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        self.resolve(at, len)
    }
    fn unmap(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        self.resolve(at, len)
    }
    fn grow(&mut self, size: u64) -> Result<(), ImageError> {
        self.check_size(size, size < self.size)?;
        let len = self.medium.len().map_err(ImageError::new)?;
        // Bytes behind the last whole sector are not of the disk.
        self.medium.punch(self.size, len - self.size).map_err(ImageError::new)?;
        if len < size {
            self.medium.set_len(size).map_err(ImageError::new)?;
        }
        self.flush()?;
        self.size = size;
        Ok(())
    }
    fn shrink(&mut self, size: u64) -> Result<(), ImageError> {
        self.check_size(size, size > self.size)?;
        self.medium.set_len(size).map_err(ImageError::new)?;
        self.flush()?;
        self.size = size;
        Ok(())
    }
    fn flush(&mut self) -> Result<(), ImageError> {
        self.medium.flush().map_err(ImageError::new)
    }
    fn examine(&mut self) -> Result<Vec<Finding>, ImageError> {
        Ok(Vec::new())
    }
}

impl<M: Medium> Compact for Raw<M> {
    fn deallocate(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError> {
        self.resolve(at, len)
    }
    fn moves(&mut self) -> Result<Vec<Move>, ImageError> {
        Ok(Vec::new())
    }
    fn moved(&mut self, _: &Move) -> Result<(), ImageError> {
        Ok(())
    }
    fn cut(&mut self) -> Result<(), ImageError> {
        self.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::ForgetfulMedium;
    use crate::trial::{Act, Random, Trial};

    #[test]
    fn a_raw_disk_is_what_was_written() {
        let open = |medium| -> Box<dyn Compact> { Box::new(Raw::open(medium).expect("it opens")) };
        let trial = Trial { new: vec![0; 8192], fresh: 0, open: &open };
        let write = |sector, byte| Act::Write { sector, count: 4, byte };
        let acts = [
            write(1, 5),
            Act::Flush,
            Act::Zero { sector: 2, count: 2 },
            write(8, 6),
            Act::Unmap { sector: 9, count: 2 },
            Act::Reopen,
            write(3, 7),
            Act::Grow { by: 5 },
            Act::Flush,
            Act::Shrink { by: 9 },
            Act::Grow { by: 1 },
        ];
        trial.keeps(&acts);
        (0..50).for_each(|seed| trial.survives(&acts, Random(seed)));
        let mut raw = Raw::open(ForgetfulMedium::new(vec![0; 1000])).unwrap();
        assert_eq!(raw.size(), 512);
        assert!(raw.zero(0, 1024).is_err() && raw.unmap(256, 256).is_err());
    }
}
