//! What helpers know about the place that calls them.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

use super::Key;
use super::context::World;
use crate::exec::Uop;
use crate::mmu::View;

/// What a call calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    /// The code so far from the start of the block.
    Away(u64),
    /// The code whose address is in the fourth spare place while the call is under way.
    Spare,
}

/// What the sites of one translation have in common.
pub struct Origin {
    /// What the translation is of, but for the address, which changes when its page is moved.
    key: Key,
    /// See above. Changes only while no vCPU is in the translation.
    rip: AtomicU64,
    /// Id of the placement that it was made for, or moved to.
    page_id: AtomicU32,
    /// The instructions, for the interpreter.
    pub uops: Box<[Uop]>,
    /// What its last instruction calls, if that is a call.
    pub callee: Option<Callee>,
    /// Where its code is.
    pub start: usize,
}

impl Origin {
    /// Of a translation of `uops` whose code is at `start`, in a placement with this id.
    pub fn new(key: Key, page_id: u32, uops: Box<[Uop]>, callee: Option<Callee>, start: usize) -> Self {
        let (rip, page_id) = (AtomicU64::new(key.rip), AtomicU32::new(page_id));
        Self { key, rip, page_id, uops, callee, start }
    }

    /// What the translation is of.
    pub fn key(&self) -> Key {
        Key { rip: self.rip(), ..self.key }
    }

    /// The translation has been moved, to a placement with this id.
    pub fn move_to(&self, rip: u64, page_id: u32) {
        self.rip.store(rip, Relaxed);
        self.page_id.store(page_id, Relaxed);
    }

    /// Id of the placement that it is in, or was in.
    pub fn page_id(&self) -> u32 {
        self.page_id.load(Relaxed)
    }

    /// The address so far from the start of the block.
    pub fn at(&self, distance: u64) -> u64 {
        self.world().mode.mask_ip(self.rip().wrapping_add(distance))
    }

    /// Where the block starts.
    pub fn rip(&self) -> u64 {
        self.rip.load(Relaxed)
    }

    /// What the translation is good for.
    pub fn world(&self) -> World {
        self.key.world
    }
}

/// One instruction in one translation. Small: there are several for each hundred bytes of code.
pub struct Site {
    origin: *const Origin,
    /// Offsets in the code.
    resume: u16,
    again: u16,
    /// Size of its store in bytes, or of what a return takes from the stack besides the return address.
    size: u16,
    /// Which instruction it is.
    n: u8,
    /// View of data accesses before it.
    pub view: View,
}

impl Site {
    /// Where translated code finds its fields, and where the code starts of its origin.
    pub const SIZE: i32 = offset_of!(Self, size) as i32;
    /// See above.
    pub const RESUME: i32 = offset_of!(Self, resume) as i32;
    /// See above.
    pub const ORIGIN: i32 = offset_of!(Self, origin) as i32;
    /// See above.
    pub const START: i32 = offset_of!(Origin, start) as i32;

    /// A site of instruction `n`. The origin stays where it is and lives as long.
    pub fn new(origin: &Origin, n: usize, view: View, size: u16) -> Self {
        let n = u8::try_from(n).expect("a block has at most 48 instructions");
        Self { origin, resume: 0, again: 0, size, n, view }
    }

    /// With where to go on after the instruction, and where to try it again, as offsets in the code.
    pub fn placed(self, resume: u32, again: u32) -> Self {
        let offset = |at| u16::try_from(at).expect("a translation is at most 64 KiB long");
        Self { resume: offset(resume), again: offset(again), ..self }
    }

    /// Size of its store in bytes (0: known when it is executed), or of what a return takes from the stack besides the return
    /// address.
    pub fn size(&self) -> u32 {
        u32::from(self.size)
    }

    /// What its translation is of.
    pub fn origin(&self) -> &Origin {
        // SAFETY: the translation owns both.
        unsafe { &*self.origin }
    }

    /// The instruction, for the interpreter.
    pub fn uop(&self) -> &Uop {
        &self.origin().uops[usize::from(self.n)]
    }

    /// Where to go on after the instruction.
    pub fn resume(&self) -> usize {
        self.origin().start + usize::from(self.resume)
    }

    /// Where to try it again.
    pub fn again(&self) -> usize {
        self.origin().start + usize::from(self.again)
    }

    /// What it calls, if it is a call: it pushes.
    pub fn calls(&self) -> Option<Callee> {
        let origin = self.origin();
        origin.callee.filter(|_| usize::from(self.n) + 1 == origin.uops.len())
    }
}

/// A direct way out of a translation: a jump through a slot that leads to the next translation, or to
/// [`helpers::link`](super::helpers::link).
pub struct Exit {
    /// Whose it is.
    pub origin: *const Origin,
    /// Number of its slot.
    pub number: u32,
    /// How far from the start of the block it leads.
    pub distance: u64,
    /// Where the slot leads while the next translation is not known.
    pub unlinked: usize,
    /// The flags are in memory.
    pub flags_in_memory: bool,
    /// It leads back to its own translation, whose second page is to be looked up anew.
    pub recheck: bool,
    /// It comes after STI: no interrupt may come before the instruction it leads to.
    pub after_sti: bool,
}

impl Exit {
    /// What its translation is of.
    pub fn origin(&self) -> &Origin {
        // SAFETY: translations are freed together with their exits.
        unsafe { &*self.origin }
    }

    /// The guest's address.
    pub fn target(&self) -> u64 {
        self.origin().at(self.distance)
    }

    /// Whether it leads to the page that its translation starts in.
    pub fn stays_in_page(&self) -> bool {
        self.target() >> 12 == self.origin().rip() >> 12
    }
}
