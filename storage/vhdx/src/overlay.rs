//! What the log of an image says, kept in memory: for an image that may only be read.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vireo_vdisk::{Extent, Medium, Place};

use crate::pages::PAGE;
use crate::{Result, VhdxError};

/// Most ranges that may be cleared: each read looks at all of them.
const MOST_CLEARED: usize = 4096;

/// A medium. Once it is told to keep changes, they stay in memory, and are seen here alone.
pub struct Overlay<M> {
    base: M,
    changes: Option<Mutex<Changes>>,
}

struct Changes {
    /// Length in bytes, of the medium and as it is here.
    base: u64,
    len: u64,
    /// Ranges that were cleared; pages that were written, before or since, count more.
    cleared: Vec<Range<u64>>,
    pages: BTreeMap<u64, Box<[u8]>>,
}

impl<M: Medium> Overlay<M> {
    /// One that keeps nothing.
    pub fn new(base: M) -> Self {
        Self { base, changes: None }
    }

    /// From now on changes stay in memory.
    pub fn keep_changes(&mut self) -> io::Result<()> {
        let len = self.base.len()?;
        let changes = Changes { base: len, len, cleared: Vec::new(), pages: BTreeMap::new() };
        self.changes = Some(Mutex::new(changes));
        Ok(())
    }

    /// Whether changes stay in memory.
    pub fn keeps_changes(&self) -> bool {
        self.changes.is_some()
    }

    /// The medium below.
    pub fn base(&self) -> &M {
        &self.base
    }

    /// The same.
    pub fn into_base(self) -> M {
        self.base
    }

    fn changes(&self) -> Option<MutexGuard<'_, Changes>> {
        Some(self.changes.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Appends where payload at an offset is, for who reads it from the medium below.
    ///
    /// # Errors
    /// It is only in memory.
    pub fn payload(&self, at: u64, len: u64, found: &mut Vec<Extent>) -> Result<()> {
        let Some(changes) = self.changes() else {
            Extent { len, place: Place::Medium(at) }.append_to(found);
            return Ok(());
        };
        let end = at + len;
        if changes.pages.range(at / PAGE * PAGE..end).next().is_some() {
            let what = "payload in its log: it has to be opened to be written once";
            return Err(VhdxError::Unsupported(what.into()));
        }
        let mut at = at;
        while at < end {
            let cleared = changes.cleared.iter().find(|r| r.contains(&at));
            let next = changes.cleared.iter().map(|r| r.start).filter(|start| *start > at);
            let (place, to) = match cleared {
                Some(range) => (Place::Zero, range.end),
                None if at >= changes.base => (Place::Zero, end),
                None => (Place::Medium(at), next.min().unwrap_or(end).min(changes.base)),
            };
            let to = to.min(end);
            Extent { len: to - at, place }.append_to(found);
            at = to;
        }
        Ok(())
    }
}

impl Changes {
    fn apply_to(&self, at: u64, to: &mut [u8]) {
        let end = at + to.len() as u64;
        let part = |from: u64, until: u64| {
            let (from, until) = (from.clamp(at, end), until.clamp(at, end));
            (from - at) as usize..(until - at) as usize
        };
        for range in &self.cleared {
            to[part(range.start, range.end)].fill(0);
        }
        for (start, page) in self.pages.range(at / PAGE * PAGE..end) {
            let here = part(*start, start + PAGE);
            let skipped = at.saturating_sub(*start) as usize;
            let len = here.len();
            to[here].copy_from_slice(&page[skipped..skipped + len]);
        }
    }
}

impl<M: Medium> Medium for Overlay<M> {
    fn len(&self) -> io::Result<u64> {
        match self.changes() {
            Some(changes) => Ok(changes.len),
            None => self.base.len(),
        }
    }
    fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let Some(changes) = self.changes() else { return self.base.read(at, to) };
        if at.checked_add(to.len() as u64).is_none_or(|end| end > changes.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = changes.base.saturating_sub(at).min(to.len() as u64) as usize;
        self.base.read(at, &mut to[..there])?;
        to[there..].fill(0);
        changes.apply_to(at, to);
        Ok(())
    }
    /// Of whole pages, if changes are kept.
    fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        let Some(mut changes) = self.changes() else { return self.base.write(at, from) };
        if !at.is_multiple_of(PAGE) || !(from.len() as u64).is_multiple_of(PAGE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        for (page, bytes) in (at..).step_by(PAGE as usize).zip(from.chunks(PAGE as usize)) {
            changes.pages.insert(page, bytes.into());
        }
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let Some(mut changes) = self.changes() else { return self.base.set_len(len) };
        changes.len = len;
        Ok(())
    }
    /// Of whole pages, if changes are kept.
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let Some(mut changes) = self.changes() else { return self.base.punch(at, len) };
        if !at.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) || changes.cleared.len() == MOST_CLEARED {
            return Err(io::ErrorKind::Unsupported.into());
        }
        changes.pages.retain(|page, _| *page < at || *page >= at + len);
        changes.cleared.push(at..at + len);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        if self.keeps_changes() { Ok(()) } else { self.base.flush() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_vdisk::crash::ForgetfulMedium;

    #[test]
    fn changes_are_seen_and_stay_in_memory() {
        let base = ForgetfulMedium::new(vec![1; 6 * 4096]);
        let mut over = Overlay::new(base.clone());
        over.keep_changes().unwrap();
        over.set_len(8 * 4096).unwrap();
        over.write(4096, &[2; 8192]).unwrap();
        over.punch(8192, 8192).unwrap();
        let mut bytes = vec![9; 8 * 4096 - 1024];
        over.read(1024, &mut bytes).unwrap();
        let of = |page: usize, byte: u8| vec![byte; page * 4096];
        assert_eq!(bytes, [&of(1, 1)[1024..], &of(1, 2), &of(2, 0), &of(2, 1), &of(2, 0)].concat());
        assert!(over.read(8 * 4096 - 1, &mut [0; 2]).is_err() && over.read(u64::MAX, &mut [0; 2]).is_err());
        assert_eq!(base.contents(), of(6, 1));
        // Payload.
        let mut found = Vec::new();
        over.payload(2 * 4096, 6 * 4096, &mut found).unwrap();
        let expected = [(8192, Place::Zero), (8192, Place::Medium(4 * 4096)), (8192, Place::Zero)];
        assert_eq!(found, expected.map(|(len, place)| Extent { len, place }));
        assert!(over.payload(4096 + 512, 512, &mut found).is_err());
    }
}
