//! The log (2.3): changed pages are written here first, so that a crash in the midst of writing them in their places is
//! made good at the next opening.

use std::collections::BTreeMap;

use vireo_vdisk::Medium;

use crate::bytes::{Fields, checksum, put, seal};
use crate::error::damaged;
use crate::header::Header;
use crate::pages::PAGE;
use crate::{Guid, MIB, Result, VhdxError};

const ENTRY: &[u8; 4] = b"loge";
const DATA: &[u8; 4] = b"desc";
const ZERO: &[u8; 4] = b"zero";
const PAYLOAD: &[u8; 4] = b"data";
/// Sizes of an entry's header and of a descriptor, in bytes.
const HEADER: usize = 64;
const DESCRIPTOR: usize = 32;
/// Most pages of one entry that we write: some 400 KiB, which any log has room for twice.
pub const MOST_PAGES: usize = 100;
/// Bytes that are looked at for entries, for each byte of the log: entries of several rounds may overlap.
const MOST_LOOKS: u64 = 64;
/// Entries that are tried as the last one: what is torn or old is among the highest numbers, if at all.
const MOST_ENDS: usize = 1000;
/// Most entries, and ranges of each, that are told of.
const MOST_TOLD: usize = 1000;
/// Length of a file that a log may speak of, in bytes: all blocks of the largest disk, and as much again.
const MOST_LENGTH: u64 = 2 * crate::MAX_SIZE;
/// Bytes that a replay may clear.
const MOST_ZEROS: u64 = 1 << 30;

/// Where the next entry goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Writer {
    /// From the log's start, in bytes.
    at: u64,
    number: u64,
}

impl Writer {
    /// Writes an entry of pages, at most [`MOST_PAGES`]; `end`: the file's length, which is durable.
    pub fn write(
        &mut self,
        medium: &dyn Medium,
        h: &Header,
        pages: &[(u64, &[u8; PAGE as usize])],
        end: u64,
    ) -> Result<()> {
        self.number += 1;
        let bytes = entry(h.log, self.number, self.at, pages, end);
        let (before, behind) = bytes.split_at(bytes.len().min((h.log_len - self.at) as usize));
        let parts = [(h.log_at + self.at, before), (h.log_at, behind)];
        for (at, bytes) in parts.into_iter().filter(|(_, b)| !b.is_empty()) {
            medium.write(at, bytes).map_err(VhdxError::io("write the log"))?;
        }
        self.at = (self.at + bytes.len() as u64) % h.log_len;
        Ok(())
    }
}

/// The bytes of an entry whose tail is itself.
fn entry(log: Guid, number: u64, at: u64, pages: &[(u64, &[u8; PAGE as usize])], end: u64) -> Vec<u8> {
    let front = (HEADER + DESCRIPTOR * pages.len()).next_multiple_of(PAGE as usize);
    let mut b = vec![0; front + pages.len() * PAGE as usize];
    let len = b.len() as u32;
    put(&mut b, 0, ENTRY);
    put(&mut b, 8, &len.to_le_bytes());
    put(&mut b, 12, &(at as u32).to_le_bytes());
    put(&mut b, 16, &number.to_le_bytes());
    put(&mut b, 24, &(pages.len() as u32).to_le_bytes());
    put(&mut b, 32, &log.0);
    put(&mut b, 48, &end.to_le_bytes());
    put(&mut b, 56, &end.to_le_bytes());
    for (n, (page, bytes)) in pages.iter().enumerate() {
        let (d, p) = (HEADER + n * DESCRIPTOR, front + n * PAGE as usize);
        put(&mut b, d, DATA);
        put(&mut b, d + 4, &bytes[4092..]);
        put(&mut b, d + 8, &bytes[..8]);
        put(&mut b, d + 16, &page.to_le_bytes());
        put(&mut b, d + 24, &number.to_le_bytes());
        put(&mut b, p, PAYLOAD);
        put(&mut b, p + 4, &((number >> 32) as u32).to_le_bytes());
        put(&mut b, p + 8, &bytes[8..4092]);
        put(&mut b, p + 4092, &(number as u32).to_le_bytes());
    }
    seal(&mut b, 4);
    b
}

/// Does what the log of an image says, durably.
pub fn replay(medium: &dyn Medium, h: &Header) -> Result<()> {
    let mut log = vec![0; h.log_len as usize];
    medium.read(h.log_at, &mut log).map_err(VhdxError::io("read the log"))?;
    let Some(sequence) = active(&log, h.log)? else { return Ok(()) };
    let Some(last) = sequence.last().map(|place| bytes(&log, *place)) else { return Ok(()) };
    let len = medium.len().map_err(VhdxError::io("find the end of the VHDX"))?;
    if len < last.u64(48) {
        return damaged(format!("it has {len} bytes, and its log says that it had {}", last.u64(48)));
    }
    if last.u64(56) > MOST_LENGTH {
        return damaged(format!("its log says that it has {} bytes", last.u64(56)));
    }
    if len < last.u64(56) {
        medium.set_len(last.u64(56)).map_err(VhdxError::io("extend the VHDX"))?;
    }
    let end = len.max(last.u64(56));
    let mut zeros = 0;
    for place in sequence {
        apply(medium, &bytes(&log, place), end, &mut zeros)?;
    }
    medium.flush().map_err(VhdxError::io("flush what the log said"))
}

/// Does what one entry says.
fn apply(medium: &dyn Medium, e: &[u8], end: u64, zeros: &mut u64) -> Result<()> {
    let number = e.u64(16);
    let count = e.u32(24) as usize;
    let mut payload = (HEADER + count * DESCRIPTOR).next_multiple_of(PAGE as usize);
    for n in 0..count {
        let d = &e[HEADER + n * DESCRIPTOR..][..DESCRIPTOR];
        let (at, is_data) = (d.u64(16), d[..4] == *DATA);
        let len = if is_data { PAGE } else { d.u64(8) };
        let inside = at >= MIB && at.checked_add(len).is_some_and(|to| to <= end);
        if !inside || !at.is_multiple_of(PAGE) || !len.is_multiple_of(PAGE) || d.u64(24) != number {
            return damaged(format!("its log writes {len} bytes at {at}"));
        }
        let wrote = VhdxError::io("do what the log says");
        if is_data {
            let p = &e[payload..][..PAGE as usize];
            let torn =
                p[..4] != *PAYLOAD || p.u32(4) != (number >> 32) as u32 || p.u32(4092) != number as u32;
            if torn {
                return damaged("a page of its log is torn");
            }
            let mut page = p.to_vec();
            put(&mut page, 0, &d[8..16]);
            put(&mut page, 4092, &d[4..8]);
            medium.write(at, &page).map_err(wrote)?;
            payload += PAGE as usize;
        } else {
            *zeros += len;
            if *zeros > MOST_ZEROS {
                return Err(VhdxError::Unsupported(format!("a log that clears {zeros} bytes")));
            }
            medium.punch(at, len).map_err(wrote)?;
        }
    }
    Ok(())
}

/// Where an entry is in the log, and its length. (Entries may overlap, so their bytes are not kept.)
type EntryPlace = (usize, usize);

/// The bytes of an entry, which may go on at the log's start.
fn bytes(log: &[u8], (at, len): EntryPlace) -> Vec<u8> {
    log[at..].iter().chain(log).take(len).copied().collect()
}

/// The entries that count, in order (2.3.3): the sequence that ends with the highest number, back to that entry's tail.
fn active(log: &[u8], id: Guid) -> Result<Option<Vec<EntryPlace>>> {
    let entries = whole(log, id)?;
    let mut ends: Vec<(u64, usize)> = entries.keys().map(|at| (log[*at..].u64(16), *at)).collect();
    ends.sort_unstable_by(|a, b| b.cmp(a));
    Ok(ends.into_iter().take(MOST_ENDS).find_map(|(_, end)| sequence(log, &entries, end)))
}

/// All entries that are whole: their lengths by where they are.
fn whole(log: &[u8], id: Guid) -> Result<BTreeMap<usize, usize>> {
    let mut entries = BTreeMap::new();
    let mut looks = 0;
    for at in (0..log.len()).step_by(PAGE as usize) {
        let Some(len) = claimed(log, at, id) else { continue };
        looks += len as u64;
        if looks > MOST_LOOKS * log.len() as u64 {
            return damaged("its log has too many entries that overlap");
        }
        let entry = bytes(log, (at, len));
        if entry.u32(4) == checksum(&entry, 4) && is_complete(&entry) {
            entries.insert(at, len);
        }
    }
    Ok(entries)
}

/// An entry, to be told of.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Where it is in the log, in bytes.
    pub at: u64,
    /// Its length, in bytes.
    pub len: u64,
    /// Where the oldest entry is that is needed with it.
    pub tail: u64,
    /// Its number.
    pub number: u64,
    /// The length that the file had, and then has, in bytes.
    pub flushed: u64,
    /// See above.
    pub last: u64,
    /// How many ranges of the file it changes.
    pub count: u64,
    /// The first of these: start, length, and whether it has data for them.
    pub ranges: Vec<(u64, u64, bool)>,
}

/// Entries of a log that are whole, and the numbers of those that a replay does. Of very many only some.
pub fn entries(medium: &dyn Medium, h: &Header) -> Result<(Vec<Entry>, Vec<u64>)> {
    if h.log == Guid::ZERO {
        return Ok((Vec::new(), Vec::new()));
    }
    let mut log = vec![0; h.log_len as usize];
    medium.read(h.log_at, &mut log).map_err(VhdxError::io("read the log"))?;
    let told = |(at, len): EntryPlace| {
        let e = bytes(&log, (at, len));
        let count = e.u32(24);
        let range = |n: usize| {
            let d = &e[HEADER + n * DESCRIPTOR..][..DESCRIPTOR];
            let is_data = d[..4] == *DATA;
            (d.u64(16), if is_data { PAGE } else { d.u64(8) }, is_data)
        };
        Entry {
            at: at as u64,
            len: len as u64,
            tail: e.u32(12).into(),
            number: e.u64(16),
            flushed: e.u64(48),
            last: e.u64(56),
            count: count.into(),
            ranges: (0..MOST_TOLD.min(count as usize)).map(range).collect(),
        }
    };
    let active = active(&log, h.log)?.unwrap_or_default();
    let active = active.into_iter().map(|(at, _)| log[at..].u64(16)).collect();
    Ok((whole(&log, h.log)?.into_iter().take(MOST_TOLD).map(told).collect(), active))
}

/// The length of the entry that seems to be at an offset.
fn claimed(log: &[u8], at: usize, id: Guid) -> Option<usize> {
    let b = &log[at..];
    let len = b.u32(8) as usize;
    let plausible = b[..4] == *ENTRY
        && Guid(b.array(32)) == id
        && len >= PAGE as usize
        && len <= log.len()
        && len.is_multiple_of(PAGE as usize)
        && (b.u32(12) as usize) < log.len()
        && b.u64(16) > 0;
    plausible.then_some(len)
}

/// Whether an entry has all its descriptors and pages.
fn is_complete(e: &[u8]) -> bool {
    let count = e.u32(24) as usize;
    let Some(front) = count.checked_mul(DESCRIPTOR).map(|n| (n + HEADER).next_multiple_of(PAGE as usize))
    else {
        return false;
    };
    if front > e.len() {
        return false;
    }
    let kinds = (0..count).map(|n| &e[HEADER + n * DESCRIPTOR..][..4]);
    let (mut pages, mut known) = (0, true);
    kinds.for_each(|k| {
        pages += usize::from(k == DATA);
        known &= k == DATA || k == ZERO;
    });
    known && front + pages * PAGE as usize <= e.len()
}

/// From the tail of the entry at `end` to it, if there is an unbroken row.
fn sequence(log: &[u8], entries: &BTreeMap<usize, usize>, end: usize) -> Option<Vec<EntryPlace>> {
    let mut at = log[end..].u32(12) as usize;
    let mut row: Vec<EntryPlace> = Vec::new();
    while row.len() <= entries.len() {
        let len = *entries.get(&at)?;
        let number = |at: usize| log[at..].u64(16);
        if row.last().is_some_and(|(before, _)| number(*before).wrapping_add(1) != number(at)) {
            return None;
        }
        row.push((at, len));
        if at == end {
            return Some(row);
        }
        at = (at + len) % log.len();
    }
    None
}
