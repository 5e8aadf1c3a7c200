//! What every format is.

use std::error::Error;

use crate::{Extent, Finding, Medium};

/// Why an image cannot do what was asked: an error of its format.
#[derive(Debug)]
pub struct ImageError(Box<dyn Error + Send + Sync>);

impl ImageError {
    /// One of a format's.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(error.into())
    }
}

impl std::fmt::Display for ImageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for ImageError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// An open image of a disk. It moves no payload: it says where that is, and where it goes. Whoever owns it moves the
/// payload, and calls in this order to write: [`Image::place`], then, when the payload is there, [`Image::written`]; to
/// clear: [`Image::zero`], then, when what that gave is zero, [`Image::written`]; and [`Image::flush`] to make all that
/// was done durable. While a range is cleared or unmapped nothing of it may be read or written: its place may be given
/// to another.
///
/// Ranges are in bytes, of whole sectors, and on the disk; others are refused.
pub trait Image: Send {
    /// Size of the disk, in bytes.
    fn size(&self) -> u64;

    /// Size of a sector, in bytes.
    fn sector(&self) -> u32;

    /// What it is written on.
    fn medium(&self) -> &dyn Medium;

    /// Where the bytes of a range are.
    ///
    /// # Errors
    /// The format's.
    fn resolve(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError>;

    /// Where the payload of a range is to be written: extents of the medium.
    ///
    /// # Errors
    /// The format's.
    fn place(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError>;

    /// The payload of a range is where it was said to go: from now on it is read.
    ///
    /// # Errors
    /// The format's.
    fn written(&mut self, at: u64, len: u64) -> Result<(), ImageError>;

    /// A range is to read as zeros. Gives the extents of the medium that are to be zero ([`Medium::punch`]) for that;
    /// the rest of it is already. What is no longer needed of the medium is given back, and used for other things,
    /// after the next flush.
    ///
    /// # Errors
    /// The format's.
    fn zero(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError>;

    /// A range is not needed any more: each of its sectors reads as it did, or as zeros. Gives the extents of the
    /// medium that may be made zero ([`Medium::punch`]), to give back their space. What is no longer needed of the
    /// medium as a whole is given back, and used for other things, after the next flush.
    ///
    /// # Errors
    /// The format's.
    fn unmap(&mut self, at: u64, len: u64) -> Result<Vec<Extent>, ImageError>;

    /// Makes the disk larger, durably. What is new is zero, or the parent's.
    ///
    /// # Errors
    /// The format's: then the disk has its size, or after a failure of the medium perhaps the new one when it is opened
    /// next.
    fn grow(&mut self, size: u64) -> Result<(), ImageError>;

    /// Makes the disk smaller, durably. What is beyond is lost.
    ///
    /// # Errors
    /// As [`Image::grow`]; and it has a parent.
    fn shrink(&mut self, size: u64) -> Result<(), ImageError>;

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// The format's; then nothing is known of what was written since the last flush that succeeded.
    fn flush(&mut self) -> Result<(), ImageError>;

    /// Looks for what is wrong.
    ///
    /// # Errors
    /// The format's: it cannot be read.
    fn examine(&mut self) -> Result<Vec<Finding>, ImageError>;
}
