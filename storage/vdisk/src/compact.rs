//! Images that take no more of their medium than they need: their last blocks move to where nothing is, and the end is
//! cut off. A crash at any point leaves an image with the same disk.

use std::collections::HashMap;
use std::ops::Range;

use crate::{Image, ImageError};

/// Bytes that are moved between two flushes, at least.
const BATCH: u64 = 256 << 20;
/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;

/// A part of the medium whose bytes move to another place of it, where nothing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// What it is; its format knows.
    pub id: u64,
    /// Where it is, in bytes.
    pub from: u64,
    /// Where it goes, in bytes.
    pub to: u64,
    /// Its length, in bytes.
    pub len: u64,
}

/// What a format can do to take less of its medium. Nobody else reads or writes the image meanwhile.
pub trait Compact: Image {
    /// A range reads as zeros, and the parent's data is not seen there: what it takes is given back, and nothing else
    /// changes. Gives the extents of the medium that may be made zero ([`crate::Medium::punch`]) in addition.
    ///
    /// # Errors
    /// The format's.
    fn deallocate(&mut self, at: u64, len: u64) -> Result<Vec<crate::Extent>, ImageError>;

    /// Flushes, and says what is to move. Places that something moves away from are not among those that something
    /// moves to.
    ///
    /// # Errors
    /// The format's.
    fn moves(&mut self) -> Result<Vec<Move>, ImageError>;

    /// The bytes of a part are in their new place: from now on they are read there, and after the next flush they can
    /// go from the old one.
    ///
    /// # Errors
    /// The format's.
    fn moved(&mut self, part: &Move) -> Result<(), ImageError>;

    /// Cuts off, durably, what is behind the last part, and clears what is between parts.
    ///
    /// # Errors
    /// The format's.
    fn cut(&mut self) -> Result<(), ImageError>;
}

/// Moves what can be moved, and cuts off the end. `progress(done, all)`, in bytes that are moved, is asked now and then
/// whether to go on. Whether it was.
///
/// # Errors
/// The format's, and those of the medium.
pub fn compact(
    image: &mut dyn Compact,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<bool, ImageError> {
    loop {
        let moves = image.moves()?;
        if moves.is_empty() {
            return image.cut().map(|()| true);
        }
        let all = moves.iter().map(|m| m.len).sum();
        let (mut done, mut flushed) = (0, 0);
        for part in &moves {
            if !progress(done, all) {
                return image.flush().map(|()| false);
            }
            copy(image, part)?;
            image.moved(part)?;
            done += part.len;
            if done - flushed >= BATCH {
                image.flush()?;
                flushed = done;
            }
        }
        image.flush()?;
    }
}

fn copy(image: &mut dyn Compact, part: &Move) -> Result<(), ImageError> {
    let mut buffer = vec![0; PIECE.min(part.len) as usize];
    for done in (0..part.len).step_by(PIECE as usize) {
        let piece = &mut buffer[..PIECE.min(part.len - done) as usize];
        let medium = image.medium();
        medium
            .read(part.from + done, piece)
            .and_then(|()| medium.write(part.to + done, piece))
            .map_err(ImageError::new)?;
    }
    Ok(())
}

/// A part of a medium that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Where it is, in bytes.
    pub at: u64,
    /// Its length, in bytes.
    pub len: u64,
    /// What its format knows it by, if it can be moved.
    pub id: Option<u64>,
}

/// What is between the parts of a medium that are used. `None`: two overlap, of which at least one is a block's or the
/// like. Sorts them.
pub fn gaps(used: &mut [Used]) -> Option<Vec<Range<u64>>> {
    used.sort_unstable_by_key(|u| (u.at, u.len));
    let mut gaps = Vec::new();
    let (mut end, mut movable) = (0, false);
    for u in used {
        if u.at < end && (movable || u.id.is_some()) {
            return None;
        }
        if u.at > end {
            gaps.push(end..u.at);
        }
        if u.at + u.len > end {
            (end, movable) = (u.at + u.len, u.id.is_some());
        }
    }
    Some(gaps)
}

/// What is to move, the last first, each to the first gap before it that has room. `align` gives where in a gap
/// something may begin, from an offset on.
pub fn plan(used: &[Used], mut gaps: Vec<Range<u64>>, align: impl Fn(u64) -> u64) -> Vec<Move> {
    let mut moves = Vec::new();
    // For each length the first gap that may have room.
    let mut first: HashMap<u64, usize> = HashMap::new();
    for part in used.iter().rev() {
        let Used { at, len, id: Some(id) } = *part else { continue };
        let next = first.entry(len).or_default();
        while gaps.get(*next).is_some_and(|gap| align(gap.start) + len > gap.end) {
            *next += 1;
        }
        let Some(gap) = gaps.get_mut(*next).filter(|gap| gap.start < at) else { continue };
        let to = align(gap.start);
        gap.start = to + len;
        moves.push(Move { id, from: at, to, len });
    }
    moves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(parts: &[(u64, u64, u64)]) -> Vec<Used> {
        // What has no number stays.
        parts.iter().map(|&(at, len, id)| Used { at, len, id: Some(id).filter(|id| *id > 0) }).collect()
    }

    #[test]
    fn the_last_move_into_the_first_gaps() {
        let mut parts = used(&[(60, 10, 3), (0, 10, 0), (20, 10, 1), (50, 10, 2), (35, 5, 4)]);
        let found = gaps(&mut parts).expect("nothing overlaps");
        assert_eq!(found, [10..20, 30..35, 40..50]);
        let moves: Vec<_> = plan(&parts, found.clone(), |at| at).iter().map(|m| (m.id, m.to)).collect();
        assert_eq!(moves, [(3, 10), (2, 40), (4, 30)]);
        let aligned: Vec<_> = plan(&parts, found, |at| at + 1).iter().map(|m| (m.id, m.to)).collect();
        assert_eq!(aligned, [(4, 11)], "no gap has room for ten and one");
        assert_eq!(gaps(&mut used(&[(0, 10, 1), (9, 10, 2)])), None);
        assert_eq!(gaps(&mut used(&[(0, 10, 0), (9, 10, 0)])), Some(vec![]));
        assert_eq!(gaps(&mut used(&[(0, 30, 1), (9, 10, 0)])), None);
    }
}
