//! The translations of a partition, which its vCPUs share.
//!
//! # Who may change what
//! The translations of a page are changed under the lock of the page's [`Shard`]. Translated code runs without it, so what
//! code uses changes only in ways that a vCPU in the middle of it may or may not see:
//! - **Slots** are changed at once. Those of jumps within a page lead to code of the same placement, or to
//!   [`helpers::link`](super::helpers::link). Those of jumps to other pages may lead anywhere: the translation looks, at
//!   its *checked entry*, whether its page is where this vCPU wants to go, and goes to `link` with the exit if not.
//! - **A placement is moved** ([`super::relocation`]) while no vCPU has its page among the ids it knows, so none can pass that
//!   check. A vCPU that has read a slot just before and comes too late has its own exit to go on with.
//! - **Memory is used again** a segment at a time. The translations of the next one are dropped when one begins to fill, and
//!   it is reused once each vCPU has been outside translated code ([`SharedCode::enter`]) with the epoch that this began.
//!   Remembered entries are good for one epoch.
//!
//! A translation that was dropped stays in memory until then, as do its sites and exits: its code may still run. An exit that
//! leads to a translation is in that one's list, so that it leads there no longer once that one is dropped; only the return
//! addresses on a vCPU's own stack may. So after each helper that may have let the vCPU see a change of code, it goes on only if no
//! translation was dropped since it looked last ([`Cpu::translations_hold`](crate::cpu::Cpu)).
//!
//! Locks are taken in this order, and two shards never at once but to empty all: `building`, a shard, `crossing`, `segments`.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use vireo_core::EngineError;

use super::churn::{Churn, Made};
use super::emit::Emitter;
use super::filter::Filter;
use super::lower::Lowered;
use super::memory::{CodeMemory, SEGMENTS};
use super::placement::{Home, Placements, User, Users};
use super::relocation::Move;
use super::segments::{Emptied, Room, Segments, Wanted};
use super::site::{Exit, Origin, Site};
use super::thunks::{self, Thunks};
use super::{Key, MOST_CODE, Map, Translation};

/// Parts that are locked on their own: pages by their numbers.
const SHARDS: usize = 64;

/// Entries in lists of exits before they are swept, besides twice those that were left the last time.
const LINKS: usize = 1 << 16;

/// Times that a lock is tried before its holder is waited for.
const SPINS: usize = 100;

/// The translations of a partition.
pub struct SharedCode {
    /// Entries of the code that all share.
    pub thunks: Thunks,
    memory: CodeMemory,
    /// Grows when a translation was dropped.
    epoch: AtomicU64,
    /// Grows when granules of code lose their announcement: in any page, and in a shard's pages.
    invalidations: AtomicU64,
    shard_invalidations: [AtomicU64; SHARDS],
    /// Entries in lists of exits, at most, and how many call for a sweep.
    links: AtomicUsize,
    most_links: AtomicUsize,
    /// Grows when a placement was moved.
    moves: AtomicU64,
    /// Grows when ids of pages begin anew.
    era: AtomicU64,
    /// For each vCPU: the epoch when it began to run code, zero while it does not.
    entered: Box<[AtomicU64]>,
    users: Users,
    /// What certainly has no translation.
    filter: Filter,
    churn: Churn,
    /// Held by the vCPU that translates: nobody else uses up room.
    building: Mutex<()>,
    shards: Box<[Mutex<Placements>]>,
    /// Translations of an instruction that reaches into this page, from another.
    crossing: Mutex<Map<u32, Vec<Key>>>,
    emptied: Emptied,
    segments: Mutex<Segments>,
}

/// How often granules of code lost their announcement.
#[derive(Clone, Copy, Debug)]
pub struct Invalidations {
    /// In pages of the same shard.
    here: u64,
    anywhere: u64,
}

/// The translations that begin in some pages, locked. No guest memory is written while there is one.
pub struct Shard<'a> {
    code: &'a SharedCode,
    placements: MutexGuard<'a, Placements>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // It is mostly held for about a microsecond, and to sleep and be woken takes many.
    for _ in 0..SPINS {
        if let Ok(guard) = mutex.try_lock() {
            return guard;
        }
        std::hint::spin_loop();
    }
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedCode {
    /// For so many vCPUs, in `code` bytes of code and as many to describe it. `avx`: the model has YMM registers.
    pub fn new(vcpus: u32, code: usize, avx: bool) -> Result<Self, EngineError> {
        let code = code.max(SEGMENTS * 4 * MOST_CODE);
        let (mut memory, regions) = CodeMemory::new(code)?;
        let mut thunks = Thunks::default();
        memory.add_shared(|base| {
            let mut e = Emitter::new();
            let labels = thunks::build(&mut e, avx);
            let (code, places) = e.finish(base);
            thunks = labels.resolve(base, &places);
            code
        });
        Ok(Self {
            thunks,
            memory,
            epoch: AtomicU64::new(1),
            invalidations: AtomicU64::new(0),
            shard_invalidations: [const { AtomicU64::new(0) }; SHARDS],
            links: AtomicUsize::new(0),
            most_links: AtomicUsize::new(LINKS),
            moves: AtomicU64::new(0),
            era: AtomicU64::new(0),
            entered: (0..vcpus).map(|_| AtomicU64::new(0)).collect(),
            users: Users::new(vcpus),
            filter: Filter::new(),
            churn: Churn::new(),
            building: Mutex::new(()),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            crossing: Mutex::default(),
            emptied: Emptied::new(),
            segments: Mutex::new(Segments::new(regions, code)),
        })
    }

    /// Locks the translations that begin in a page.
    pub fn shard(&self, page: u32) -> Shard<'_> {
        Shard { code: self, placements: lock(&self.shards[page as usize % SHARDS]) }
    }

    fn segments(&self) -> MutexGuard<'_, Segments> {
        lock(&self.segments)
    }

    /// Leave to translate, unless somebody else does.
    pub fn try_build(&self) -> Option<MutexGuard<'_, ()>> {
        match self.building.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// False: there is certainly no translation of a key, whatever its address.
    pub fn may_have(&self, key: &Key) -> bool {
        self.filter.may_have(key)
    }

    /// Times that a block of a page is to be interpreted before it is translated.
    pub fn hot(&self, page: u32) -> u32 {
        self.churn.hot(page)
    }

    /// What remembered entries are good for.
    #[inline(always)]
    pub fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }

    /// Where [`SharedCode::epoch`] is, for translated code.
    pub fn epoch_place(&self) -> *const AtomicU64 {
        &raw const self.epoch
    }

    /// What the bytes of a translation that begins in a page are good for: compared before it is added.
    pub fn invalidations(&self, page: u32) -> Invalidations {
        let here = self.shard_invalidations[page as usize % SHARDS].load(SeqCst);
        Invalidations { here, anywhere: self.invalidations.load(SeqCst) }
    }

    /// Grows when ids of pages begin anew. To be looked at under a shard's lock.
    pub fn era(&self) -> u64 {
        self.era.load(SeqCst)
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

    /// Room for one more translation, for who has leave to make one. `None`: not yet, a vCPU is still in what is to be reused.
    pub fn room(&self) -> Option<Room> {
        // Ids are in the code, so only new code needs new ones.
        if self.users.is_full() {
            self.start_over();
        }
        let since = |epoch: u64| self.entered.iter().all(|e| !(1..epoch).contains(&e.load(SeqCst)));
        loop {
            let (wanted, garbage) = {
                let mut segments = self.segments();
                (segments.room(&self.memory, &self.emptied, since), segments.take_garbage())
            };
            drop(garbage);
            match wanted? {
                Wanted::Room(room) => return Some(room),
                Wanted::Empty(n) => self.empty(n..n + 1),
            }
        }
    }

    /// Room for one more translation, if it is there already.
    pub fn room_left(&self) -> Option<Room> {
        self.segments().room_left(&self.memory, &self.emptied)
    }

    /// Drops all translations of some segments, for who has leave to translate.
    fn empty(&self, segments: Range<usize>) {
        let is_here = |o: &Origin| segments.contains(&self.memory.segment_at(o.start));
        // From now on nobody notes that an exit of theirs leads somewhere.
        segments.clone().for_each(|n| self.emptied.set(n, u64::MAX));
        for page in 0..SHARDS {
            let mut shard = self.shard(page as u32);
            shard.placements.drop_empty();
            let here: Vec<Key> =
                shard.placements.all().filter(|t| is_here(&t.origin)).map(|t| t.key()).collect();
            here.iter().for_each(|k| shard.drop_translation(k));
            for t in shard.placements.all() {
                // Their code may still run, and would not hear that this is dropped.
                self.keep_links(t, |e| !is_here(e.origin()));
            }
        }
        let epoch = self.epoch.fetch_add(1, SeqCst) + 1;
        segments.for_each(|n| self.emptied.set(n, epoch));
    }

    /// Drops everything, and has ids begin anew.
    fn start_over(&self) {
        self.empty(0..SEGMENTS);
        let mut all: Vec<_> = self.shards.iter().map(lock).collect();
        all.iter_mut().for_each(|s| s.clear());
        self.users.start_over();
        self.era.fetch_add(1, SeqCst);
    }

    /// Drops everything.
    pub fn clear(&self) {
        let _building = lock(&self.building);
        if self.segments().is_empty() {
            return;
        }
        self.empty(0..SEGMENTS);
    }

    /// Granules lost their announcement: drops translations of them.
    pub fn invalidate(&self, page: u32, granules: u64) {
        self.invalidations.fetch_add(1, SeqCst);
        self.shard_invalidations[page as usize % SHARDS].fetch_add(1, SeqCst);
        let mut shard = self.shard(page);
        let stale = shard.placements.made_from(page, granules);
        let last = stale.iter().map(|k| shard.drop_overwritten(page, granules, k)).max();
        drop(shard);
        let crossing = lock(&self.crossing).get(&page).cloned().unwrap_or_default();
        let drop_there = |k: &Key| self.shard(k.page()).drop_overwritten(page, granules, k);
        if let Some(made) = crossing.iter().map(drop_there).max().max(last).flatten() {
            self.churn.overwritten(page, made);
        }
    }

    /// Has an exit, which is in a list of exits, lead to [`super::helpers::link`] again.
    fn unlink(&self, exit: *const Exit) {
        // SAFETY: lists of exits have none that was freed.
        let exit = unsafe { &*exit };
        self.memory.set_slot(exit.number, exit.unlinked);
    }

    /// Unlinks what leads to a translation, but for some exits.
    fn keep_links(&self, t: &mut Translation, keep: impl Fn(&Exit) -> bool) {
        t.linked.retain(|e| {
            // SAFETY: lists of exits have none that was freed.
            let kept = keep(unsafe { &**e });
            if !kept {
                self.unlink(*e);
            }
            kept
        });
    }

    /// Shortens the lists of exits if they have grown much: one that leads to several translations in turn is in the lists of
    /// all. No shard is locked.
    pub fn sweep_links(&self) {
        let links = self.links.load(Relaxed);
        // Who sweeps has taken the count away, so nobody else does meanwhile.
        if links < self.most_links.load(Relaxed)
            || self.links.compare_exchange(links, 0, Relaxed, Relaxed).is_err()
        {
            return;
        }
        let mut left = 0;
        for page in 0..SHARDS {
            let mut shard = self.shard(page as u32);
            for t in shard.placements.all() {
                t.sweep_links(|e| self.memory.slot(e.number));
                left += t.linked.len();
            }
        }
        self.links.fetch_add(left, Relaxed);
        self.most_links.store(2 * left + LINKS, Relaxed);
    }

    /// Adds code that is no translation's, whose address `emit` is given. `None`: no room now.
    pub fn add_bare(&self, emit: impl FnOnce(usize) -> Vec<u8>) -> Option<usize> {
        self.segments().add_bare(&self.memory, &self.emptied, emit)
    }

    /// A return site of a translation that runs.
    pub fn return_site(&self, number: u32) -> *const Site {
        self.segments().return_site(&self.memory, number)
    }

    /// Where code goes on after a host exception at an address. Called by the signal handler, on a thread that is in
    /// translated code, so it has no lock.
    pub fn after_exception(&self, at: usize) -> Option<usize> {
        self.segments().after_exception(&self.memory, at)
    }

    /// Bytes of host code, and about what is needed to describe it.
    pub fn bytes(&self) -> (usize, usize) {
        self.segments().bytes()
    }
}

impl Shard<'_> {
    /// The translation of a key.
    pub fn get(&self, key: &Key) -> Option<&Translation> {
        self.placements.get(key)
    }

    /// [`SharedCode::era`] and [`SharedCode::moves`].
    pub fn era_and_moves(&self) -> (u64, u64) {
        (self.code.era(), self.code.moves.load(SeqCst))
    }

    /// The id of a page, if it has one.
    pub fn id_of(&self, home: Home) -> Option<u32> {
        self.placements.id_of(home)
    }

    /// The id of a page that a vCPU is about to know.
    pub fn id(&mut self, home: Home, user: User) -> u32 {
        self.placements.id(home, user, &self.code.users)
    }

    /// Whether what a key is of has been translated for another address.
    pub fn has_elsewhere(&self, key: &Key) -> bool {
        self.placements.has_elsewhere(key)
    }

    /// Drops a translation, if it is there: nothing leads to it any more. What its code names stays, since it may run.
    pub fn drop_translation(&mut self, key: &Key) {
        if let Some(t) = self.placements.remove(key) {
            self.retire(t);
        }
    }

    /// Drops a translation, if it is there and was made from any of these granules; when it was made.
    fn drop_overwritten(&mut self, page: u32, granules: u64, key: &Key) -> Option<Made> {
        let made = self.get(key).filter(|t| t.is_of(page, granules))?.made;
        self.drop_translation(key);
        Some(made)
    }

    /// Keeps a translation that was taken out.
    fn retire(&mut self, mut t: Box<Translation>) {
        std::mem::take(&mut t.linked).into_iter().for_each(|e| self.code.unlink(e));
        self.forget_crossing(&t.key(), &t.pages);
        self.code.filter.remove(&t.key());
        self.code.segments().retire(&self.code.memory, t);
        self.code.epoch.fetch_add(1, SeqCst);
    }

    /// A translation is no longer there, if it was.
    fn forget_crossing(&self, key: &Key, pages: &[Option<(u32, u64)>; 2]) {
        let Some((second, _)) = pages[1] else { return };
        let mut crossing = lock(&self.code.crossing);
        let keys = crossing.entry(second).or_default();
        // One: meanwhile another of the key may have been made.
        if let Some(n) = keys.iter().position(|k| k == key) {
            keys.swap_remove(n);
        }
        if keys.is_empty() {
            crossing.remove(&second);
        }
    }

    /// Keeps a new translation, in the room that was given to who has leave to make it; there is none of this key. `None`:
    /// granules lost their announcement since there had been so many `invalidations`.
    pub fn add(
        &mut self,
        invalidations: Invalidations,
        pages: [Option<(u32, u64)>; 2],
        second_id: Option<u32>,
        origin: Box<Origin>,
        lowered: Lowered,
    ) -> Option<()> {
        let key = origin.key();
        if let Some((second, _)) = pages[1] {
            lock(&self.code.crossing).entry(second).or_default().push(key);
        }
        let now = self.code.invalidations(key.page());
        // Whoever counts one later finds it in the list, or here.
        if now.here != invalidations.here || pages[1].is_some() && now.anywhere != invalidations.anywhere {
            self.forget_crossing(&key, &pages);
            return None;
        }
        let t = self.code.segments().add(&self.code.memory, pages, second_id, origin, lowered);
        self.placements.insert(t);
        self.code.filter.add(&key);
        Some(())
    }

    /// Links an exit of code that runs to the translation of a key.
    pub fn link(&mut self, e: &Exit, key: &Key) {
        let gone = self.code.emptied.is(self.code.memory.segment_at(e.origin().start));
        let id = self.placements.id_of(key.home());
        let Some(t) = self.placements.get_mut(key) else { return };
        let near = e.stays_in_page();
        // Within a page jumps are not checked, so it must be the same placement: who is in one that was dropped does not count as
        // a user of another that has come in its place.
        if gone || e.target() != key.rip || near && Some(e.origin().page_id()) != id {
            return;
        }
        t.note_link(e);
        self.code.links.fetch_add(1, Relaxed);
        let to = match (near, e.flags_in_memory) {
            (false, _) => t.checked_entry(),
            (true, false) => t.host_entry(),
            (true, true) => t.entry(),
        };
        self.code.memory.set_slot(e.number, to);
    }

    /// Has a placement of the key's page elsewhere moved to where the key is, if there is one with what is wanted that
    /// nobody uses.
    pub fn move_here(&mut self, key: &Key, user: User) -> Option<()> {
        let to = key.home();
        let from = self.placements.movable_to(key, user, &self.code.users)?;
        // A new id in any case: nobody may know it already who is about to enter what is moved.
        self.placements.forget(to);
        let id = self.id(to, user);
        let (staying, mut code) = self.placements.take(from)?;
        staying.into_values().for_each(|t| self.retire(t));
        let m = Move { by: to.linear.wrapping_sub(from.linear), id };
        // All that leads here from other pages first, and only then the code: see above.
        for t in code.values_mut() {
            self.unlink_from_elsewhere(t);
        }
        for t in code.values() {
            t.origin.move_to(t.origin.rip().wrapping_add(m.by), id);
            // SAFETY: nobody knows the page where it was, so nobody is in its code, and this shard is locked.
            unsafe { self.code.memory.relocate(t.origin.start, t.relocations.iter().flatten(), m) };
        }
        self.placements.put(to, code);
        self.code.moves.fetch_add(1, SeqCst);
        Some(())
    }

    /// Unlinks what leads from other pages to a translation, and its own ways to other pages. Jumps within the page go on
    /// being right.
    fn unlink_from_elsewhere(&self, t: &mut Translation) {
        t.exits.iter().filter(|e| !e.stays_in_page()).for_each(|e| self.code.unlink(e));
        self.code.keep_links(t, Exit::stays_in_page);
    }
}

#[cfg(test)]
mod races;
#[cfg(test)]
mod tests;
