//! Translations of address spaces that are not in use, by process-context identifier (SDM vol. 3A, 4.10.1).
//!
//! The tables of the TLB hold one address space at a time, so that a hit needs no check of whose it is. A change of space
//! takes the entries of the old one out, and puts those of the new one back: a copy instead of a page walk for each.

use super::tlb::{Entry, View};

/// Spaces that are kept; of more, those not used for longest are forgotten. (Linux uses six.)
const MOST: usize = 8;

/// A translation that was taken out.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// Table it was in.
    pub view: View,
    /// Page-aligned linear address.
    pub linear: u64,
    /// What was there.
    pub entry: Entry,
}

struct Space {
    pcid: u16,
    entries: Vec<Kept>,
}

/// Spaces that are not in use, the one left last at the end.
#[derive(Default)]
pub struct Spaces(Vec<Space>);

impl Spaces {
    /// Keeps what was taken out for a space.
    pub fn keep(&mut self, pcid: u16, entries: Vec<Kept>) {
        self.forget(pcid);
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push(Space { pcid, entries });
    }

    /// Takes what is kept of a space.
    pub fn take(&mut self, pcid: u16) -> Vec<Kept> {
        let at = self.0.iter().position(|s| s.pcid == pcid);
        at.map_or(Vec::new(), |at| self.0.remove(at).entries)
    }

    /// Forgets one space.
    pub fn forget(&mut self, pcid: u16) {
        self.0.retain(|s| s.pcid != pcid);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}
