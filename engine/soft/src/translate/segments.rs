//! The memory of code by segments, each with what describes the code in it: filled one after the other, used again one
//! after the other.

use std::sync::atomic::{AtomicU64, Ordering::*};

use super::churn::Made;
use super::lower::Lowered;
use super::memory::{CodeMemory, Region, SEGMENTS};
use super::site::{Origin, Site};
use super::{MOST_CODE, MOST_EXITS, Translation};

/// Room for code that is no translation's, which there is after each translation.
const MOST_BARE: usize = 64;

/// See above.
pub struct Segments {
    all: Vec<Segment>,
    current: usize,
    /// Bound of [`Segment::described`].
    most_described: usize,
    /// To be freed, but not under a lock.
    garbage: Retired,
}

/// Translations that were dropped.
type Retired = Vec<Box<Translation>>;

/// A part of the memory.
struct Segment {
    region: Region,
    returns: Vec<*const Site>,
    /// By address.
    placed: Vec<Placed>,
    /// Dropped translations whose code may still run.
    retired: Retired,
    /// About what the descriptions take, in bytes.
    described: usize,
}

/// Code of one translation, for exceptions in it.
struct Placed {
    origin: *const Origin,
    faults: Box<[[u16; 3]]>,
}

/// Where the next translation goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// What is to be done before there is room.
pub enum Wanted {
    /// Nothing.
    Room(Room),
    /// The translations of this segment are to be dropped, in good time.
    Empty(usize),
}

/// For each segment, the epoch with which all its translations had been dropped; zero: they were not.
pub struct Emptied([AtomicU64; SEGMENTS]);

impl Emptied {
    /// None.
    pub fn new() -> Self {
        Self([const { AtomicU64::new(0) }; SEGMENTS])
    }

    /// Whether nothing may lead to a segment any more, nor is to be noted that it leads anywhere.
    pub fn is(&self, segment: usize) -> bool {
        self.0[segment].load(SeqCst) != 0
    }

    /// All is dropped, and this epoch began then.
    pub fn set(&self, segment: usize, epoch: u64) {
        self.0[segment].store(epoch, SeqCst);
    }
}

// SAFETY: the pointers are to what translations own, which are freed together with their segment.
unsafe impl Send for Segments {}

impl Placed {
    /// Whose code it is.
    fn origin(&self) -> &Origin {
        // SAFETY: translations are freed together with this.
        unsafe { &*self.origin }
    }
}

impl Segment {
    fn new(region: Region) -> Self {
        Self { region, returns: Vec::new(), placed: Vec::new(), retired: Vec::new(), described: 0 }
    }

    fn has_room(&self, most_described: usize) -> bool {
        self.described < most_described
            && self.region.has_room(MOST_CODE + MOST_BARE, MOST_EXITS)
            && self.returns.len() + MOST_EXITS < self.region.slots()
    }

    /// Empties it; what was dropped, and is to be freed. No vCPU is in it.
    fn reuse(&mut self) -> Retired {
        self.region.clear();
        self.returns.clear();
        self.placed.clear();
        self.described = 0;
        std::mem::take(&mut self.retired)
    }
}

impl Segments {
    /// Of these regions, with so many bytes for descriptions.
    pub fn new(regions: Vec<Region>, most_described: usize) -> Self {
        let all = regions.into_iter().map(Segment::new).collect();
        Self { all, current: 0, most_described: most_described / SEGMENTS, garbage: Vec::new() }
    }

    /// Whether there is no code at all.
    pub fn is_empty(&self) -> bool {
        self.all.iter().all(|s| s.region.used() == 0)
    }

    /// Room for one more translation, or what to do first. `None`: not yet. `since`: whether no vCPU has been in code since
    /// before an epoch.
    pub fn room(
        &mut self,
        memory: &CodeMemory,
        emptied: &Emptied,
        since: impl Fn(u64) -> bool,
    ) -> Option<Wanted> {
        if let Some(room) = self.room_left(memory, emptied) {
            return Some(Wanted::Room(room));
        }
        let next = match emptied.is(self.current) {
            true => self.current,
            false => (self.current + 1) % SEGMENTS,
        };
        let segment = &mut self.all[next];
        let epoch = emptied.0[next].load(SeqCst);
        if epoch == 0 && !segment.placed.is_empty() {
            return Some(Wanted::Empty(next));
        }
        if epoch != 0 {
            if !since(epoch) {
                return None;
            }
            self.garbage = segment.reuse();
            crate::host::serialize();
            emptied.set(next, 0);
        }
        self.current = next;
        let after = (next + 1) % SEGMENTS;
        if !self.all[after].placed.is_empty() && !emptied.is(after) {
            return Some(Wanted::Empty(after));
        }
        self.room_left(memory, emptied).map(Wanted::Room)
    }

    /// What is to be freed once there is no lock.
    pub fn take_garbage(&mut self) -> Retired {
        std::mem::take(&mut self.garbage)
    }

    /// Room for one more translation, if there is.
    pub fn room_left(&self, memory: &CodeMemory, emptied: &Emptied) -> Option<Room> {
        let segment = &self.all[self.current];
        let first = (self.current * memory.slots()) as u32;
        (segment.has_room(self.most_described) && !emptied.is(self.current)).then(|| Room {
            code: memory.next(&segment.region),
            first_exit: first + segment.region.slots_used() as u32,
            first_slot: memory.next_slot(&segment.region),
            first_return: first + segment.returns.len() as u32,
        })
    }

    /// Puts code into the room that was given; the translation that it is of.
    pub fn add(
        &mut self,
        memory: &CodeMemory,
        pages: [Option<(u32, u64)>; 2],
        second_id: Option<u32>,
        origin: Box<Origin>,
        lowered: Lowered,
    ) -> Box<Translation> {
        debug_assert!(lowered.code.len() <= MOST_CODE && lowered.exits.len() <= MOST_EXITS);
        let segment = &mut self.all[self.current];
        memory.add(&mut segment.region, &lowered.code);
        for exit in &lowered.exits {
            memory.add_slot(&mut segment.region, exit.unlinked);
        }
        segment.returns.extend(lowered.returns);
        let faults = lowered.faults.iter().map(|f| f.map(|at| at as u16)).collect();
        segment.placed.push(Placed { origin: &raw const *origin, faults });
        let translation = Translation {
            host_entry: lowered.host_entry as u16,
            memory_entry: lowered.memory_entry as u16,
            pages,
            second_id,
            made: Made::now(),
            linked: Vec::new(),
            exits: lowered.exits,
            relocations: lowered.relocations,
            origin,
            sites: lowered.sites,
        };
        segment.described += translation.footprint();
        Box::new(translation)
    }

    /// Adds code that is no translation's, whose address `emit` is given. `None`: no room now; there is after a translation.
    pub fn add_bare(
        &mut self,
        memory: &CodeMemory,
        emptied: &Emptied,
        emit: impl FnOnce(usize) -> Vec<u8>,
    ) -> Option<usize> {
        let region = &mut self.all[self.current].region;
        if emptied.is(self.current) || !region.has_room(MOST_BARE, 0) {
            return None;
        }
        let at = memory.next(region);
        memory.add(region, &emit(at));
        Some(at)
    }

    /// Keeps a translation that was dropped.
    pub fn retire(&mut self, memory: &CodeMemory, t: Box<Translation>) {
        let segment = memory.segment_at(t.origin.start);
        self.all[segment].retired.push(t);
    }

    /// A return site of a translation that runs.
    pub fn return_site(&self, memory: &CodeMemory, number: u32) -> *const Site {
        let slots = memory.slots();
        self.all[number as usize / slots].returns[number as usize % slots]
    }

    /// Where code goes on after a host exception at an address.
    pub fn after_exception(&self, memory: &CodeMemory, at: usize) -> Option<usize> {
        let placed = &self.all.get(memory.segment_at(at))?.placed;
        let n = placed.partition_point(|p| p.origin().start <= at).checked_sub(1)?;
        let p = placed.get(n)?;
        let start = p.origin().start;
        let within = |f: &&[u16; 3]| (usize::from(f[0])..usize::from(f[1])).contains(&(at - start));
        Some(start + usize::from(p.faults.iter().find(within)?[2]))
    }

    /// Bytes of host code, and about what is needed to describe it.
    pub fn bytes(&self) -> (usize, usize) {
        let of = |f: fn(&Segment) -> usize| self.all.iter().map(f).sum();
        (of(|s| s.region.used()), of(|s| s.described))
    }
}
