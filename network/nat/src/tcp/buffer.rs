//! Bytes on their way, in pieces that each have room for headers in front, so that a frame is made where its payload lies.

use std::collections::VecDeque;

/// Room in front of a piece's bytes: Ethernet, IPv6 and TCP without options take 74.
pub const HEADROOM: usize = 80;
/// The longest payload of a frame whose packet is of at most 65,535 bytes, all headers included.
pub const PAYLOAD_MAX: usize = 65_455;
/// Bytes that a piece may have: a segment is never longer, even where the MTU is as large as can be.
const PIECE: usize = 65_536;
/// Pieces that are kept for the next who needs one.
const KEPT: usize = 64;
/// Bytes that connections may hold beyond what each may have anyway.
const BUDGET: usize = 64 << 20;

/// What connections share of memory.
#[derive(Debug)]
pub struct Pool {
    pieces: Vec<Box<[u8]>>,
    left: usize,
}

impl Default for Pool {
    fn default() -> Self {
        Self { pieces: Vec::new(), left: BUDGET }
    }
}

impl Pool {
    fn piece(&mut self) -> Box<[u8]> {
        self.pieces.pop().unwrap_or_else(|| vec![0; HEADROOM + PIECE].into())
    }

    fn give_back(&mut self, piece: Box<[u8]>) {
        if self.pieces.len() < KEPT {
            self.pieces.push(piece);
        }
    }

    /// Takes bytes from the budget, if there are so many left.
    pub fn reserve(&mut self, bytes: usize) -> bool {
        let enough = self.left >= bytes;
        if enough {
            self.left -= bytes;
        }
        enough
    }

    /// Gives bytes of the budget back.
    pub fn release(&mut self, bytes: usize) {
        self.left += bytes;
    }
}

#[derive(Debug)]
struct Piece {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

/// Bytes in order.
#[derive(Debug, Default)]
pub struct Buffer {
    pieces: VecDeque<Piece>,
    length: usize,
}

impl Buffer {
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Room behind the last byte, at most up to `most` bytes of a piece. Whoever asks says by [`Self::filled`] how much of it was used.
    pub fn room(&mut self, pool: &mut Pool, most: usize) -> &mut [u8] {
        let end = HEADROOM + most.min(PIECE);
        if self.pieces.back().is_none_or(|p| p.end >= end) {
            self.pieces.push_back(Piece { bytes: pool.piece(), start: HEADROOM, end: HEADROOM });
        }
        match self.pieces.back_mut() {
            Some(piece) => &mut piece.bytes[piece.end..end],
            None => &mut [],
        }
    }

    /// Bytes were put where there was room.
    pub fn filled(&mut self, count: usize, pool: &mut Pool) {
        if let Some(piece) = self.pieces.back_mut() {
            piece.end += count;
            self.length += count;
        }
        if let Some(piece) = self.pieces.pop_back_if(|p| p.start == p.end) {
            pool.give_back(piece.bytes);
        }
    }

    /// Takes bytes from the front away, at most all.
    pub fn release(&mut self, count: usize, pool: &mut Pool) {
        let mut count = count.min(self.length);
        self.length -= count;
        while let Some(piece) = self.pieces.front_mut() {
            let here = count.min(piece.end - piece.start);
            piece.start += here;
            count -= here;
            if piece.start < piece.end {
                return;
            }
            if let Some(piece) = self.pieces.pop_front() {
                pool.give_back(piece.bytes);
            }
        }
    }

    /// Takes all away.
    pub fn clear(&mut self, pool: &mut Pool) {
        self.release(self.length, pool);
    }

    /// The first bytes, as many as lie together.
    pub fn first(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |p| &p.bytes[p.start..p.end])
    }

    fn find(&mut self, mut offset: usize) -> Option<(&mut Piece, usize)> {
        for piece in &mut self.pieces {
            let length = piece.end - piece.start;
            if offset < length {
                let at = piece.start + offset;
                return Some((piece, at));
            }
            offset -= length;
        }
        None
    }

    /// Bytes that lie together from `offset` on.
    pub fn together(&mut self, offset: usize) -> usize {
        self.find(offset).map_or(0, |(piece, at)| piece.end - at)
    }

    /// Lends `count` bytes that lie together, from `offset` on, with headers in front of them. What the headers lie on is there
    /// again afterwards.
    pub fn with_headers<R>(
        &mut self,
        offset: usize,
        count: usize,
        headers: &[u8],
        use_it: impl FnOnce(&mut [u8]) -> R,
    ) -> Option<R> {
        let (piece, at) = self.find(offset)?;
        let start = at.checked_sub(headers.len())?;
        let frame = piece.bytes.get_mut(start..at + count)?;
        let (front, _) = frame.split_at_mut(headers.len());
        let mut saved = [0; HEADROOM];
        let saved = saved.get_mut(..headers.len())?;
        saved.copy_from_slice(front);
        front.copy_from_slice(headers);
        let result = use_it(frame);
        frame[..headers.len()].copy_from_slice(saved);
        Some(result)
    }
}
