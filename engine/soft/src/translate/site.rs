//! What helpers know about the place that calls them.

use std::cell::Cell;

use super::context::World;
use crate::exec::Uop;
use crate::mmu::View;

/// What a call calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Callee {
    /// The code at an address.
    At(u64),
    /// The code whose address is in the last spare place while the call is under way.
    Spare,
}

/// One instruction in one translation.
pub struct Site {
    /// The instruction, for the interpreter.
    pub uop: *const Uop,
    /// Where its block starts.
    pub rip: u64,
    /// What its translation is good for.
    pub world: World,
    /// View of data accesses before it.
    pub view: View,
    /// Where to go on after the instruction.
    pub resume: Cell<usize>,
    /// Where to try it again.
    pub again: Cell<usize>,
    /// Size of its store in bytes, or of what a return takes from the stack.
    pub size: u32,
    /// It is a call: it pushes.
    pub calls: Option<Callee>,
}

/// A direct way out of a translation: a jump through a slot that leads to the next translation, or to
/// [`helpers::link`](super::helpers::link).
pub struct Exit {
    /// The guest's address.
    pub target: u64,
    /// Where the slot leads while the next translation is not known.
    pub unlinked: usize,
    /// The flags are in memory.
    pub flags_in_memory: bool,
    /// It leads back to its own translation, whose second page is to be looked up anew.
    pub recheck: bool,
    /// It comes after STI: no interrupt may come before the instruction it leads to.
    pub after_sti: bool,
}

/// The sites of a translation. Boxed, because code names them while their list still grows.
pub type Sites = Vec<Box<Site>>;
