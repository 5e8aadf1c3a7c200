//! Which guest pages hold decoded code, and which the dirty log has not seen written yet.
//!
//! # Protocol
//! A store is followed by one plain load of the page's attention byte. To make that enough across CPUs, whoever *sets*
//! a bit issues a process-wide memory barrier (membarrier(2)) before relying on it: after the barrier each earlier
//! store is visible to the setter, and each later store sees the bit.
//! - Code: a vCPU sets the granule bits and [`CODE`] before it reads the bytes it decodes. A later writer finds
//!   the granules, takes their announcement away and has every vCPU drop the blocks decoded from them. A second writer
//!   that finds no announcement waits until no such notice is on its way, then takes the ones for itself: its own
//!   blocks must be gone before its next instruction.
//!   Translated code looks after a write beside code by itself (`wrote_beside_code` in `translate/thunks.rs`): the same
//!   questions in the same order.
//! - Dirty log: the harvester takes the bitmap, sets [`CLEAN`] again, barrier, then reads page contents. A later writer
//!   finds `CLEAN` and marks the page for the next round.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*, fence};

use vireo_core::{DirtyBitmap, EngineError, dirty::PAGE};

/// Attention bit: code was decoded from the page at some time.
pub const CODE: u8 = 1;
/// Attention bit: the dirty log is on and has not recorded the page since the last harvest.
pub const CLEAN: u8 = 2;
/// Attention bit: [`crate::lockstep`] wants to know of writes to the page.
pub const TELL: u8 = 4;
/// Attention bit: every processor sees [`CODE`].
const SEEN: u8 = 8;

/// Bytes one granule bit stands for: 64 granules make a page.
const GRANULE: u32 = 64;

/// Per-page attention of a partition.
pub struct Watch {
    attention: Box<[AtomicU8]>,
    granules: Box<[AtomicU64]>,
    /// Notices of overwritten code on their way to vCPUs.
    notices: AtomicU32,
    dirty: DirtyBitmap,
}

/// Where translated code looks after a write for itself.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    /// The attention byte of the first page.
    pub attention: *const AtomicU8,
    /// The granules of the first page.
    pub granules: *const AtomicU64,
    /// How many notices are on their way.
    pub notices: *const AtomicU32,
}

impl Places {
    /// The attention of a page of which nothing else is asked than whether a write hit announced granules.
    pub const ONLY_CODE: u8 = CODE | SEEN;
    /// As in [`granule_mask`].
    pub const GRANULE: u32 = GRANULE;

    /// No places.
    pub const NONE: Self =
        Self { attention: std::ptr::null(), granules: std::ptr::null(), notices: std::ptr::null() };
}

/// What a write met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// No code was ever decoded from the page.
    Data,
    /// The page has code, and nobody has announced any in the bytes written.
    BesideCode,
    /// Announced code in these granules. They are no longer announced.
    Code(u64),
}

/// The granules that `len` bytes at `offset` in a page touch; bytes beyond the page are left out.
pub fn granule_mask(offset: u32, len: u32) -> u64 {
    let first = (offset / GRANULE).min(63);
    let last = (offset.saturating_add(len.max(1) - 1) / GRANULE).min(63);
    (u64::MAX >> (63 - (last - first))) << first
}

impl Watch {
    /// For RAM below `limit` bytes of guest-physical address. Fails on a kernel without membarrier(2), which Linux has
    /// since 4.14.
    pub fn new(limit: u64) -> Result<Self, EngineError> {
        let pages = limit.div_ceil(PAGE) as usize;
        register_barrier()?;
        Ok(Self {
            attention: (0..pages).map(|_| AtomicU8::new(0)).collect(),
            granules: (0..pages).map(|_| AtomicU64::new(0)).collect(),
            notices: AtomicU32::new(0),
            dirty: DirtyBitmap::new(limit),
        })
    }

    /// The attention byte of a page, to be looked at after a store.
    #[inline(always)]
    pub fn attention(&self, page: u32) -> u8 {
        self.attention.get(page as usize).map_or(0, |a| a.load(Relaxed))
    }

    /// Where the attention byte of a page is, for translated code. One that is always clear for a page without.
    pub fn attention_of(&self, page: u32) -> *const u8 {
        static NEVER: AtomicU8 = AtomicU8::new(0);
        std::ptr::from_ref(self.attention.get(page as usize).unwrap_or(&NEVER)).cast()
    }

    /// See [`Places`]. They are good as long as this is.
    pub fn places(&self) -> Places {
        Places {
            attention: self.attention.as_ptr(),
            granules: self.granules.as_ptr(),
            notices: std::ptr::from_ref(&self.notices),
        }
    }

    /// The page whose attention byte is at `at`.
    pub fn page_of_attention(&self, at: *const u8) -> u32 {
        at.addr().wrapping_sub(self.attention.as_ptr().addr()) as u32
    }

    /// Announces that code will be decoded from these granules; to be called before the bytes are read.
    pub fn before_decode(&self, page: u32, granules: u64) {
        let (Some(g), Some(a)) = (self.granules.get(page as usize), self.attention.get(page as usize)) else {
            return;
        };
        g.fetch_or(granules, SeqCst);
        // Whoever finds another's barrier under way needs one too.
        if a.load(SeqCst) & SEEN == 0 {
            a.fetch_or(CODE, SeqCst);
            barrier();
            a.fetch_or(SEEN, SeqCst);
        }
    }

    /// Looks after a write that found attention: marks the dirty log; has `tell` drop the blocks, on every vCPU, that
    /// were decoded from the code granules hit, if any. What others tell of such granules has reached its vCPUs by the end.
    pub fn after_write(&self, page: u32, offset: u32, len: u32, tell: impl FnOnce(u64)) -> Written {
        let (Some(g), Some(a)) = (self.granules.get(page as usize), self.attention.get(page as usize)) else {
            return Written::Data;
        };
        let seen = a.load(Relaxed);
        if seen & CLEAN != 0 {
            a.fetch_and(!CLEAN, AcqRel);
            self.dirty.mark(u64::from(page) * PAGE, 1);
        }
        if seen & CODE == 0 {
            return Written::Data;
        }
        fence(SeqCst);
        let mask = granule_mask(offset, len);
        let mut hit = 0;
        if g.load(SeqCst) & mask != 0 {
            self.notices.fetch_add(1, SeqCst);
            hit = g.fetch_and(!mask, SeqCst) & mask;
            if hit != 0 {
                tell(hit);
            }
            self.notices.fetch_sub(1, SeqCst);
        }
        // Somebody else may have written here just before, and be about to tell of it.
        self.wait_for_notices();
        if hit == 0 { Written::BesideCode } else { Written::Code(hit) }
    }

    /// Waits until every notice of a change that was seen to be under way has reached its vCPUs.
    fn wait_for_notices(&self) {
        // A notice takes well under a microsecond, unless its thread was put aside in the middle.
        while self.notices.load(SeqCst) != 0 {
            std::thread::yield_now();
        }
    }

    /// Has writes to all pages be told of.
    pub fn tell_all(&self) {
        self.attention.iter().for_each(|a| _ = a.fetch_or(TELL, Relaxed));
        barrier();
    }

    /// Whether writes of the only vCPU to a page are told of.
    pub fn tell(&self, page: u32, whether: bool) {
        if let Some(a) = self.attention.get(page as usize) {
            _ = if whether { a.fetch_or(TELL, Relaxed) } else { a.fetch_and(!TELL, Relaxed) };
        }
    }

    /// Turns the dirty log on, all pages clean.
    pub fn dirty_start(&self) {
        self.dirty.start();
        self.attention.iter().for_each(|a| _ = a.fetch_or(CLEAN, Relaxed));
        barrier();
    }

    /// Pages written since the last harvest.
    pub fn dirty_harvest(&self) -> Vec<u64> {
        let bits = self.dirty.harvest();
        for gpa in vireo_core::dirty::pages(&bits) {
            if let Some(a) = self.attention.get((gpa / PAGE) as usize) {
                a.fetch_or(CLEAN, AcqRel);
            }
        }
        barrier();
        bits
    }

    /// Puts harvested bits back.
    pub fn dirty_put_back(&self, bits: &[u64]) {
        self.dirty.put_back(bits);
    }

    /// Turns the dirty log off.
    pub fn dirty_stop(&self) {
        self.dirty.stop();
        self.attention.iter().for_each(|a| _ = a.fetch_and(!CLEAN, Relaxed));
    }
}

/// membarrier(2) commands (linux/membarrier.h).
const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;

fn membarrier(command: libc::c_int) -> bool {
    // SAFETY: the call takes no pointers and only orders memory.
    unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
}

fn register_barrier() -> Result<(), EngineError> {
    if membarrier(REGISTER_PRIVATE_EXPEDITED) {
        return Ok(());
    }
    Err(EngineError::Unsupported {
        engine: "soft",
        what: "order writes of its vCPUs",
        reason: format!("membarrier(2) failed: {}", std::io::Error::last_os_error()),
    })
}

/// A full memory barrier on every running thread of the process.
fn barrier() {
    fence(SeqCst);
    // Registered by every `Watch`, it can fail only for want of memory (a mask of processors).
    while !membarrier(PRIVATE_EXPEDITED) {
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_cover_exactly_the_bytes() {
        assert_eq!(granule_mask(0, 1), 1);
        assert_eq!(granule_mask(63, 2), 3);
        assert_eq!(granule_mask(4095, 8), 1 << 63);
        assert_eq!(granule_mask(0, 4096), u64::MAX);
    }

    #[test]
    fn a_write_to_decoded_bytes_is_reported_once() {
        let w = Watch::new(1 << 20).unwrap();
        w.before_decode(3, granule_mask(100, 10));
        assert_eq!(w.attention(3), CODE | SEEN);
        let mut told = Vec::new();
        assert_eq!(w.after_write(3, 0, 8, |g| told.push(g)), Written::BesideCode);
        assert_eq!(w.after_write(3, 96, 8, |g| told.push(g)), Written::Code(0b10));
        assert_eq!(w.after_write(3, 96, 8, |g| told.push(g)), Written::BesideCode);
        assert_eq!(w.after_write(4, 96, 8, |g| told.push(g)), Written::Data);
        assert_eq!(told, [0b10]);
    }

    #[test]
    fn the_dirty_log_sees_the_first_write_of_each_round() {
        let w = Watch::new(1 << 20).unwrap();
        w.dirty_start();
        assert_ne!(w.attention(7), 0);
        w.after_write(7, 0, 1, |_| unreachable!("no code was announced"));
        assert_eq!(w.attention(7), 0);
        assert_eq!(vireo_core::dirty::pages(&w.dirty_harvest()).collect::<Vec<_>>(), [0x7000]);
        assert_ne!(w.attention(7), 0);
        w.dirty_stop();
        assert_eq!(w.attention(7), 0);
    }
}
