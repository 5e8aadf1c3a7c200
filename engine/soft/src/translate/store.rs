//! The translations of a partition, which its vCPUs share, and the memory that they are in.
//!
//! # Who may change what
//! Everything is changed under one lock. Translated code runs without it, so what code uses changes only in ways that a
//! vCPU in the middle of it may or may not see:
//! - **Slots** are changed at once. Those of jumps within a page lead to the code that is meant, or to
//!   [`helpers::link`](super::helpers::link). Those of jumps to other pages may lead anywhere: the translation looks, at
//!   its *checked entry*, whether its page is where this vCPU wants to go, and goes to `link` with the exit's number if not.
//! - **A placement is moved** ([`super::relocation`]) while no vCPU has its page among the ids it knows, so none can pass that
//!   check. A vCPU that has read a slot just before and comes too late has the number of its own exit to go on with.
//! - **Memory is used again** a segment at a time. The translations of the next one are dropped when one begins to fill, and
//!   it is reused once each vCPU has been outside translated code ([`SharedCode::enter`]) with the epoch that this began.
//!   Remembered entries are good for one epoch.
//!
//! A translation that was dropped stays in memory until then, as do its sites: its code may still run.

use std::sync::atomic::{AtomicU64, Ordering::*};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vireo_core::EngineError;

use super::emit::Emitter;
use super::lower::Lowered;
use super::memory::{CodeMemory, Region, SEGMENTS};
use super::placement::{Home, Placements, User};
use super::relocation::Move;
use super::site::{Exit, Origin, Site};
use super::thunks::{self, Thunks};
use super::{Key, MOST_CODE, MOST_EXITS, Translation};

/// The translations of a partition.
pub struct SharedCode {
    /// Entries of the code that all share.
    pub thunks: Thunks,
    /// Grows when a translation was dropped.
    epoch: Arc<AtomicU64>,
    /// Grows when granules of code lose their announcement.
    invalidations: AtomicU64,
    /// For each vCPU: the epoch when it began to run code, zero while it does not.
    entered: Box<[AtomicU64]>,
    store: Mutex<Store>,
}

/// What is locked.
pub struct Store {
    memory: CodeMemory,
    segments: Vec<Segment>,
    current: usize,
    /// Bound of [`Segment::described`].
    most_described: usize,
    placements: Placements,
    epoch: Arc<AtomicU64>,
    /// Grows when a placement was moved.
    pub moves: u64,
    /// Grows when ids of pages begin anew.
    pub era: u64,
}

/// A part of the memory, with what describes the code in it.
struct Segment {
    region: Region,
    exits: Vec<Exit>,
    returns: Vec<*const Site>,
    /// By address.
    placed: Vec<Placed>,
    /// Dropped translations whose code may still run.
    #[expect(clippy::vec_box, reason = "as they were in the map")]
    retired: Vec<Box<Translation>>,
    /// About what the descriptions take, in bytes.
    described: usize,
    /// The epoch with which all its translations had been dropped, if they were.
    emptied: Option<u64>,
}

/// Code of one translation, for exceptions in it.
struct Placed {
    origin: *const Origin,
    faults: Box<[[u16; 3]]>,
}

/// Where the next translation goes.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Address of its code.
    pub code: usize,
    /// Number of its first exit, and the address of that one's slot; others follow.
    pub first_exit: u32,
    /// See above.
    pub first_slot: usize,
    /// Number of its first return site.
    pub first_return: u32,
}

// SAFETY: the pointers are to boxes that the store itself owns, or keeps as long as what has the pointers.
unsafe impl Send for Store {}

impl SharedCode {
    /// For so many vCPUs, in `code` bytes of code and as many to describe it. `avx`: the model has YMM registers.
    pub fn new(vcpus: u32, code: usize, avx: bool) -> Result<Self, EngineError> {
        let (mut memory, regions) = CodeMemory::new(code.max(SEGMENTS * 4 * MOST_CODE))?;
        let mut thunks = Thunks::default();
        memory.add_shared(|base| {
            let mut e = Emitter::new();
            let labels = thunks::build(&mut e, avx);
            let (code, places) = e.finish(base);
            thunks = labels.resolve(base, &places);
            code
        });
        let epoch = Arc::new(AtomicU64::new(1));
        let store = Store {
            memory,
            segments: regions.into_iter().map(Segment::new).collect(),
            current: 0,
            most_described: code / SEGMENTS,
            placements: Placements::new(vcpus),
            epoch: Arc::clone(&epoch),
            moves: 0,
            era: 0,
        };
        Ok(Self {
            thunks,
            epoch,
            invalidations: AtomicU64::new(0),
            entered: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            store: Mutex::new(store),
        })
    }

    /// The store, for a moment in which no guest memory is written.
    pub fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What remembered entries are good for.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }

    /// What a translation's bytes are good for: to be compared under the lock before it is added.
    pub fn invalidations(&self) -> u64 {
        self.invalidations.load(SeqCst)
    }

    /// A vCPU, which is not in translated code now, may run it from now on. What it remembers it compares with the epoch
    /// after this.
    #[inline]
    pub fn enter(&self, vcpu: u32) {
        self.entered[vcpu as usize].store(self.epoch(), SeqCst);
    }

    /// A vCPU runs no translated code until it enters again.
    #[inline]
    pub fn leave(&self, vcpu: u32) {
        self.entered[vcpu as usize].store(0, Release);
    }

    /// Room for one more translation. `None`: not yet, a vCPU is still in what is to be reused.
    pub fn room(&self, store: &mut Store) -> Option<Room> {
        let since = |epoch: u64| self.entered.iter().all(|e| !(1..epoch).contains(&e.load(SeqCst)));
        store.room(since)
    }

    /// Granules lost their announcement: drops translations of them.
    pub fn invalidate(&self, page: u32, granules: u64) {
        let mut store = self.lock();
        self.invalidations.fetch_add(1, SeqCst);
        let stale = store.placements.made_from(page, granules);
        stale.iter().for_each(|k| store.drop_translation(k));
    }

    /// Drops everything.
    pub fn clear(&self) {
        let mut store = self.lock();
        (0..SEGMENTS).for_each(|n| store.empty(n));
    }

    /// A way out of a translation that runs.
    pub fn exit(&self, number: usize) -> Exit {
        *self.lock().exit(number).expect("a number in code that runs is of an exit")
    }

    /// A return site of a translation that runs.
    pub fn return_site(&self, number: u32) -> *const Site {
        let store = self.lock();
        let slots = store.memory.slots();
        store.segments[number as usize / slots].returns[number as usize % slots]
    }

    /// Where code goes on after a host exception at an address. Called by the signal handler, on a thread that is in
    /// translated code, so it does not have the lock.
    pub fn after_exception(&self, at: usize) -> Option<usize> {
        let store = self.lock();
        let segment = store.segments.get(store.memory.segment_at(at))?;
        let n = segment.placed.partition_point(|p| p.origin().start <= at).checked_sub(1)?;
        let p = segment.placed.get(n)?;
        let start = p.origin().start;
        let fault =
            p.faults.iter().find(|f| (usize::from(f[0])..usize::from(f[1])).contains(&(at - start)))?;
        Some(start + usize::from(fault[2]))
    }

    /// Bytes of host code.
    pub fn bytes(&self) -> usize {
        self.lock().segments.iter().map(|s| s.region.used()).sum()
    }
}

impl Placed {
    fn origin(&self) -> &Origin {
        // SAFETY: translations are freed together with this.
        unsafe { &*self.origin }
    }
}

impl Segment {
    fn new(region: Region) -> Self {
        Self {
            region,
            exits: Vec::new(),
            returns: Vec::new(),
            placed: Vec::new(),
            retired: Vec::new(),
            described: 0,
            emptied: None,
        }
    }

    fn has_room(&self, most_described: usize) -> bool {
        self.emptied.is_none()
            && self.described < most_described
            && self.region.has_room(MOST_CODE, MOST_EXITS)
            && self.returns.len() + MOST_EXITS < self.region.slots()
    }

    /// Frees what was dropped. No vCPU is in it.
    fn reuse(&mut self) {
        self.region.clear();
        self.exits.clear();
        self.returns.clear();
        self.placed.clear();
        self.retired.clear();
        self.described = 0;
        self.emptied = None;
    }
}

impl Store {
    /// The translation of a key.
    pub fn get(&self, key: &Key) -> Option<&Translation> {
        self.placements.get(key)
    }

    /// The id of a page that a vCPU is about to know.
    pub fn id(&mut self, home: Home, user: User) -> u32 {
        self.placements.id(home, user)
    }

    /// Drops a translation, if it is there: nothing leads to it any more. What its code names stays, since it may run.
    pub fn drop_translation(&mut self, key: &Key) {
        if let Some(t) = self.placements.remove(key) {
            self.retire(t);
        }
    }

    /// Keeps a translation that was taken out.
    fn retire(&mut self, t: Box<Translation>) {
        t.linked.iter().for_each(|exit| self.unlink(*exit));
        let segment = self.memory.segment_at(t.origin.start);
        self.segments[segment].retired.push(t);
        self.epoch.fetch_add(1, SeqCst);
    }

    /// Drops all translations of a segment.
    fn empty(&mut self, n: usize) {
        let placed = std::mem::take(&mut self.segments[n].placed);
        for p in &placed {
            let key = p.origin().key();
            if self.get(&key).is_some_and(|t| std::ptr::eq(&*t.origin, p.origin)) {
                self.drop_translation(&key);
            }
        }
        let segment = &mut self.segments[n];
        // Exceptions in it find their place until it is reused.
        segment.placed = placed;
        if segment.emptied.is_none() {
            segment.emptied = Some(self.epoch.fetch_add(1, SeqCst) + 1);
        }
    }

    /// See [`SharedCode::room`]. `since`: whether no vCPU has been in code since before an epoch.
    fn room(&mut self, since: impl Fn(u64) -> bool) -> Option<Room> {
        // Ids are in the code, so only new code needs new ones.
        if self.placements.is_full() {
            (0..SEGMENTS).for_each(|n| self.empty(n));
            self.placements.start_over();
            self.era += 1;
        }
        if !self.segments[self.current].has_room(self.most_described) {
            let next = match self.segments[self.current].emptied {
                Some(_) => self.current,
                None => (self.current + 1) % SEGMENTS,
            };
            let segment = &mut self.segments[next];
            if let Some(epoch) = segment.emptied {
                if !since(epoch) {
                    return None;
                }
                segment.reuse();
                crate::host::serialize();
            }
            self.current = next;
            let after = (next + 1) % SEGMENTS;
            if !self.segments[after].placed.is_empty() {
                self.empty(after);
            }
        }
        let segment = &self.segments[self.current];
        let first = (self.current * self.memory.slots()) as u32;
        Some(Room {
            code: self.memory.next(&segment.region),
            first_exit: first + segment.exits.len() as u32,
            first_slot: self.memory.next_slot(&segment.region),
            first_return: first + segment.returns.len() as u32,
        })
    }

    /// Keeps a new translation, in the room that was just given; there is none of this key.
    pub fn add(&mut self, pages: [Option<(u32, u64)>; 2], origin: Box<Origin>, lowered: Lowered) {
        let segment = &mut self.segments[self.current];
        debug_assert!(lowered.code.len() <= MOST_CODE && lowered.exits.len() <= MOST_EXITS);
        let first = (self.current * self.memory.slots() + segment.exits.len()) as u32;
        let exits = first..first + lowered.exits.len() as u32;
        self.memory.add(&mut segment.region, &lowered.code);
        for exit in lowered.exits {
            self.memory.add_slot(&mut segment.region, exit.unlinked);
            segment.exits.push(exit);
        }
        segment.returns.extend(lowered.returns);
        let faults = lowered.faults.iter().map(|f| f.map(|at| at as u16)).collect();
        segment.placed.push(Placed { origin: &raw const *origin, faults });
        let translation = Translation {
            host_entry: lowered.host_entry as u16,
            memory_entry: lowered.memory_entry as u16,
            pages,
            linked: Vec::new(),
            exits,
            relocations: lowered.relocations,
            origin,
            sites: lowered.sites,
        };
        segment.described += translation.footprint();
        self.placements.insert(Box::new(translation));
    }

    /// Adds code that is no translation's, whose address `emit` is given. `None`: no room now.
    pub fn add_bare(&mut self, emit: impl FnOnce(usize) -> Vec<u8>) -> Option<usize> {
        let segment = &mut self.segments[self.current];
        segment.has_room(self.most_described).then(|| {
            let at = self.memory.next(&segment.region);
            self.memory.add(&mut segment.region, &emit(at));
            at
        })
    }

    fn exit(&self, number: usize) -> Option<&Exit> {
        let slots = self.memory.slots();
        self.segments.get(number / slots)?.exits.get(number % slots)
    }

    fn set_slot(&mut self, number: usize, to: usize) {
        let slots = self.memory.slots();
        self.memory.set_slot(&self.segments[number / slots].region, number % slots, to);
    }

    /// Has an exit lead to [`super::helpers::link`] again.
    fn unlink(&mut self, number: u32) {
        // One that is in a list and no more may be gone, or another by now: then it is only linked again.
        if let Some(to) = self.exit(number as usize).map(|e| e.unlinked) {
            self.set_slot(number as usize, to);
        }
    }

    /// Links an exit to the translation of a key.
    pub fn link(&mut self, number: usize, key: &Key) {
        let (Some(e), Some(t)) = (self.exit(number).copied(), self.placements.get_mut(key)) else { return };
        let near = e.stays_in_page();
        // Within a page jumps are not checked: it must still be the same one.
        if e.target() != key.rip || near && e.origin().key().home() != key.home() {
            return;
        }
        t.note_link(number as u32);
        let to = match (near, e.flags_in_memory) {
            (false, _) => t.checked_entry(),
            (true, false) => t.host_entry(),
            (true, true) => t.entry(),
        };
        self.set_slot(number, to);
    }

    /// Has a placement of the key's page elsewhere moved to where the key is, if there is one with what is wanted that
    /// nobody uses.
    pub fn move_here(&mut self, key: &Key, user: User) -> Option<()> {
        let to = key.home();
        let from = self.placements.movable_to(key, user)?;
        let reaching = self.placements.reaching_into(from);
        reaching.iter().for_each(|k| self.drop_translation(k));
        let id = self.placements.id(to, user);
        let (staying, code) = self.placements.take(from, to)?;
        staying.into_values().for_each(|t| self.retire(t));
        let m = Move { by: to.linear.wrapping_sub(from.linear), id };
        let mut code = code;
        // All that leads here from other pages first, and only then the code: see above.
        for t in code.values_mut() {
            self.unlink_from_elsewhere(t);
        }
        for t in code.values() {
            t.origin.move_to(t.origin.rip().wrapping_add(m.by));
            self.memory.relocate(t.origin.start, t.relocations.iter().flatten(), m);
        }
        self.placements.put(to, code);
        self.moves += 1;
        Some(())
    }

    /// Unlinks what leads from other pages to a translation, and its own ways to other pages. Jumps within the page go on
    /// being right.
    fn unlink_from_elsewhere(&mut self, t: &mut Translation) {
        let own: Vec<u32> = t.exits.clone().filter(|n| self.leaves_page(*n)).collect();
        let (away, near): (Vec<u32>, Vec<u32>) = t.linked.iter().partition(|n| self.leaves_page(**n));
        t.linked = near;
        own.into_iter().chain(away).for_each(|n| self.unlink(n));
    }

    fn leaves_page(&self, exit: u32) -> bool {
        self.exit(exit as usize).is_some_and(|e| !e.stays_in_page())
    }
}
