//! Guest memory that a compared run wrote: put back for the second run, compared after it.
//!
//! Each of its writes is told of ([`TELL`]), and a *twin* of the page has what was there
//! before the first run. In the second run the same pages have no attention, so that translated code takes the way it usually
//! takes; pages that the first run did not write still have it.

use std::collections::hash_map::Entry;

use crate::code::Map;
use crate::mmu::Mmu;
use crate::mmu::watch::TELL;

/// Bytes of a page.
pub const SIZE: usize = 4096;

type Page = [u8; SIZE];

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writer {
    /// Anybody, and nothing is compared.
    Any,
    /// The run that is undone.
    First,
    /// The other's.
    Second,
}

/// A byte that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Differs {
    /// Guest-physical address.
    pub gpa: u64,
    /// Before, after the first run, after the second.
    pub bytes: [u8; 3],
}

/// The twins, and what was written.
pub struct Pages {
    twins: Map<u32, Box<Page>>,
    writer: Writer,
    /// Pages whose twins are out of date. Nobody tells of their writes.
    stale: Vec<u32>,
    /// Pages, offsets and lengths that the first run wrote.
    written: Vec<(u32, u32, u32)>,
    /// What the first run left in the pages that it wrote.
    results: Vec<(u32, Box<Page>)>,
    /// Pages that only the second run wrote.
    extra: Vec<u32>,
    spare: Vec<Box<Page>>,
}

/// Copies between guest memory, on which others may race, and the engine's.
fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    // SAFETY: callers give `bytes` of mapped guest memory within a page, and as many of a `Page`. Guests race on theirs, so
    // this is not a Rust memory access. The direction flag is clear.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") bytes => _, inout("rsi") from => _, inout("rdi") to => _,
            options(nostack, preserves_flags));
    }
}

fn host(mmu: &Mmu, page: u32) -> Option<*mut u8> {
    mmu.ram.page(u64::from(page) << 12).map(|p| p.host)
}

fn read(mmu: &Mmu, page: u32, to: &mut Page) {
    if let Some(from) = host(mmu, page) {
        copy(from, to.as_mut_ptr(), SIZE);
    }
}

impl Pages {
    /// Nothing known.
    pub fn new() -> Self {
        Self {
            twins: Map::default(),
            writer: Writer::Any,
            stale: Vec::new(),
            written: Vec::new(),
            results: Vec::new(),
            extra: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// After a write by the vCPU to a page that has attention.
    pub fn wrote(&mut self, mmu: &Mmu, page: u32, offset: u32, len: u32) {
        let told = mmu.watch.attention(page) & TELL != 0;
        match self.writer {
            Writer::Any if told => {
                mmu.watch.tell(page, false);
                self.stale.push(page);
            }
            Writer::First => self.written.push((page, offset, len.min(SIZE as u32 - offset))),
            Writer::Second if told => self.extra.push(page),
            Writer::Any | Writer::Second => {}
        }
    }

    /// The first run is about to begin. `others`: pages that devices wrote to.
    pub fn begin(&mut self, mmu: &Mmu, others: Vec<u32>) {
        self.stale.extend(others);
        while let Some(page) = self.stale.pop() {
            mmu.watch.tell(page, true);
            let twin = self.twins.entry(page).or_insert_with(|| Box::new([0; SIZE]));
            read(mmu, page, twin);
        }
        self.writer = Writer::First;
    }

    /// The first run stands.
    pub fn accept(&mut self, mmu: &Mmu) {
        self.writer = Writer::Any;
        for (page, ..) in self.written.drain(..) {
            mmu.watch.tell(page, false);
            self.stale.push(page);
        }
    }

    /// Devices wrote to these.
    pub fn outdated(&mut self, pages: Vec<u32>) {
        self.stale.extend(pages);
    }

    /// Whether it is known what was in all pages that the first run wrote.
    pub fn can_undo(&self) -> bool {
        self.written.iter().all(|(page, ..)| self.twins.contains_key(page))
    }

    /// Undoes what the first run wrote; the second is about to begin.
    pub fn undo(&mut self, mmu: &Mmu) {
        for n in 0..self.written.len() {
            let (page, offset, len) = self.written[n];
            let (Some(ram), Some(twin)) = (host(mmu, page), self.twins.get(&page)) else { continue };
            if !self.results.iter().any(|r| r.0 == page) {
                let mut result = self.spare.pop().unwrap_or_else(|| Box::new([0; SIZE]));
                read(mmu, page, &mut result);
                self.results.push((page, result));
                mmu.watch.tell(page, false);
            }
            let at = offset as usize;
            copy(twin[at..].as_ptr(), ram.wrapping_add(at), len as usize);
        }
        self.written.clear();
        self.writer = Writer::Second;
    }

    /// What the two runs left different.
    pub fn compare(&mut self, mmu: &Mmu) -> Vec<Differs> {
        let mut differs = Vec::new();
        let mut now = self.spare.pop().unwrap_or_else(|| Box::new([0; SIZE]));
        for (page, result) in &self.results {
            read(mmu, *page, &mut now);
            if now != *result {
                differs.extend(differences(*page, &self.twins, result, &now));
            }
        }
        for page in &self.extra {
            read(mmu, *page, &mut now);
            match self.twins.get(page) {
                Some(twin) if *twin == now => {}
                Some(twin) => differs.extend(differences(*page, &self.twins, twin, &now)),
                // What was there is not known, but it was written.
                None => differs.push(Differs { gpa: u64::from(*page) << 12, bytes: [0; 3] }),
            }
        }
        self.spare.push(now);
        differs
    }

    /// The second run stands, and left the same as the first.
    pub fn commit(&mut self, mmu: &Mmu) {
        self.writer = Writer::Any;
        while let Some((page, result)) = self.results.pop() {
            mmu.watch.tell(page, true);
            let Entry::Occupied(mut twin) = self.twins.entry(page) else { continue };
            self.spare.push(twin.insert(result));
        }
        self.extra.clear();
    }

    /// Undoes the second run too; not if devices wrote to (`others`) what it wrote to. Whether it was undone.
    pub fn roll_back(&mut self, mmu: &Mmu, others: &[u32]) -> bool {
        self.writer = Writer::Any;
        let mut pages = std::mem::take(&mut self.extra);
        for (page, result) in self.results.drain(..) {
            self.spare.push(result);
            pages.push(page);
        }
        let undo = !pages.iter().any(|p| others.contains(p));
        for &page in &pages {
            mmu.watch.tell(page, true);
            if let (Some(ram), Some(twin), true) = (host(mmu, page), self.twins.get(&page), undo) {
                copy(twin.as_ptr(), ram, SIZE);
            }
        }
        if !undo {
            self.stale.extend(pages);
        }
        self.stale.extend(others);
        undo
    }

    /// A page whose content is not what the writes told of left there, though nothing else wrote.
    pub fn verify(&self, mmu: &Mmu) -> Option<u32> {
        let mut now = Box::new([0; SIZE]);
        let mut wrong = self.twins.iter().filter(|(page, twin)| {
            read(mmu, **page, &mut now);
            now != **twin && !self.stale.contains(page)
        });
        wrong.next().map(|(page, _)| *page)
    }

    /// RAM is another.
    pub fn forget(&mut self) {
        self.twins.clear();
        self.stale.clear();
    }
}

fn differences(page: u32, twins: &Map<u32, Box<Page>>, result: &Page, now: &Page) -> Vec<Differs> {
    let before = twins.get(&page).map_or([0; SIZE], |t| **t);
    (0..SIZE)
        .filter(|&i| result[i] != now[i])
        .map(|i| Differs { gpa: u64::from(page) << 12 | i as u64, bytes: [before[i], result[i], now[i]] })
        .collect()
}
