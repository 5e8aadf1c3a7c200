//! Frames for guests.

use std::collections::VecDeque;

use vireo_frame::{Ability, Checksum, Frame, Full, Intent, Segmentation, Sum, Traffic};

/// Where frames for guests go.
pub trait Output {
    /// What may be left to be done.
    fn ability(&self) -> Ability;
    /// Gives it a frame.
    ///
    /// # Errors
    /// There is no room for it now.
    fn put(&mut self, frame: &Frame<'_>) -> Result<(), Full>;
}

/// Frames that wait, and their bytes, at most.
const FRAMES: usize = 512;
const BYTES: usize = 1 << 20;

/// A frame, and where in it the sum of a pseudo header is that waits to become a checksum: start of what is summed, and offset.
#[derive(Clone, Debug)]
pub struct Outgoing {
    pub bytes: Vec<u8>,
    pub sum: Option<(usize, usize)>,
}

/// Frames that nobody sends again: they wait here for room, and are lost where there are too many.
#[derive(Debug, Default)]
pub struct Outbox {
    frames: VecDeque<Outgoing>,
    bytes: usize,
    /// Frames that were lost.
    pub lost: u64,
}

impl Outbox {
    /// Adds one.
    pub fn add(&mut self, bytes: Vec<u8>, sum: Option<(usize, usize)>) {
        if self.is_full() {
            self.lost += 1;
            return;
        }
        self.bytes += bytes.len();
        self.frames.push_back(Outgoing { bytes, sum });
    }

    /// Whether the next one would be lost.
    pub fn is_full(&self) -> bool {
        self.frames.len() >= FRAMES || self.bytes >= BYTES
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
    }

    /// Puts what waits; says how many bytes went.
    ///
    /// # Errors
    /// There is no room for all of it.
    pub fn put(&mut self, out: &mut dyn Output, sent: &mut Traffic) -> Result<(), Full> {
        while let Some(frame) = self.frames.front_mut() {
            let length = frame.bytes.len();
            put(out, &mut frame.bytes, frame.sum, None)?;
            sent.add(length);
            self.bytes -= length;
            self.frames.pop_front();
        }
        Ok(())
    }
}

/// Puts a frame, with its checksum made if the other side does not.
///
/// # Errors
/// There is no room for it.
pub fn put(
    out: &mut dyn Output,
    bytes: &mut [u8],
    sum: Option<(usize, usize)>,
    segmentation: Option<Segmentation>,
) -> Result<(), Full> {
    let checksum = match sum {
        Some((start, offset)) if out.ability().checksum || segmentation.is_some() => {
            Checksum::Wanted { start: start as u16, offset: offset as u16 }
        }
        Some((start, offset)) => {
            let before = bytes.get(start + offset..).and_then(|b| b.first_chunk::<2>()).copied();
            fill(bytes, start, offset);
            let put = whole(out, bytes, Intent { checksum: Checksum::Good, ..Intent::default() });
            // As it was: it may be put again.
            if let (Err(Full), Some(before)) = (put, before) {
                bytes[start + offset..][..2].copy_from_slice(&before);
            }
            return put;
        }
        None => Checksum::Good,
    };
    whole(out, bytes, Intent { checksum, segmentation, tag: None })
}

fn whole(out: &mut dyn Output, bytes: &[u8], intent: Intent) -> Result<(), Full> {
    let frame = Frame::new(bytes, &[], intent);
    debug_assert!(frame.is_ok(), "{frame:?} {intent:?}");
    frame.map_or(Ok(()), |frame| out.put(&frame))
}

/// Puts the checksum where it belongs. Zero is written as all ones, which is the same sum: UDP takes zero for none (RFC 768).
pub fn fill(bytes: &mut [u8], start: usize, offset: usize) {
    let sum = match Sum::default().over(&bytes[start..]).finish() {
        0 => 0xffff,
        sum => sum,
    };
    bytes[start + offset..][..2].copy_from_slice(&sum.to_be_bytes());
}
