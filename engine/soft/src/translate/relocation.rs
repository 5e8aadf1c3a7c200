//! What in the code of a translation depends on the linear address of the guest's code.
//!
//! The same physical page of a library is at another address in each process. A translation knows where its own address is in
//! it, so that it can be moved with its page instead of being made anew ([`super::placement`]).

use std::ops::Range;

use super::context::place;
use super::placement::Home;
use super::{Key, Translator, unlink};
use crate::cpu::Cpu;
use crate::mmu::View;

/// Code whose page is in this range has all addresses in fields of their full width, and so has what it reaches by a 32-bit
/// distance: only such code is moved.
const MOVABLE: Range<u64> = 8 << 30..(1 << 47) - (8 << 30);

/// Whether code at this linear address can be moved, and other code to it.
pub fn movable(linear: u64) -> bool {
    MOVABLE.contains(&linear)
}

/// How a field depends on the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// 8 bytes: an address.
    Address,
    /// 8 bytes: an address of a page, negated.
    Tag,
    /// 4 bytes: the offset in the vCPU of a field of the TLB entry of an address.
    TlbSlot,
    /// 4 bytes: the offset in the vCPU of the id of the page that an address is in.
    PageId,
    /// 4 bytes: the id of the code's own page.
    OwnId,
}

/// A field of a translation's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Offset in the code.
    pub at: u32,
    /// What it holds.
    pub kind: Kind,
}

/// A move by a multiple of the page size.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    /// What is added to addresses.
    pub by: u64,
    /// The page's id from now on.
    pub id: u32,
}

impl Kind {
    /// Size of the field in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Address | Self::Tag => 8,
            Self::TlbSlot | Self::PageId | Self::OwnId => 4,
        }
    }

    /// What the field holds after a move.
    pub fn moved(self, field: [u8; 8], m: Move) -> [u8; 8] {
        let v = u64::from_le_bytes(field);
        let offset = v as u32 as usize;
        match self {
            Self::Address => v.wrapping_add(m.by),
            Self::Tag => v.wrapping_sub(m.by),
            Self::TlbSlot => place::tlb_offset_moved(offset, m.by) as u64,
            Self::PageId => place::page_id_offset_moved(offset, m.by) as u64,
            Self::OwnId => u64::from(m.id),
        }
        .to_le_bytes()
    }
}

impl Translator {
    /// Moves a placement to where its page has this id. Nobody uses it where it is. Gives the id that it had.
    fn move_page(&mut self, from: Home, to: Home, id: u32) -> Option<u32> {
        let reaching = self.translations.reaching_into(from);
        reaching.iter().for_each(|k| self.drop_translation(k));
        let (old_id, staying, code) = self.translations.take(from, to)?;
        staying.into_values().for_each(|t| self.retire(t));
        let m = Move { by: to.linear.wrapping_sub(from.linear), id };
        for t in code.values() {
            let key = t.key();
            t.origin.key.set(Key { rip: key.rip.wrapping_add(m.by), ..key });
            if let Some(memory) = &mut self.memory {
                memory.relocate(t.entries[0], t.relocations.iter().flatten(), m);
            }
            // Jumps within the page go on being right; of those to other pages only the checks have moved.
            for n in t.exits.clone().filter(|n| !self.exits[*n].stays_in_page()) {
                unlink(&mut self.memory, &self.exits, n);
            }
        }
        self.translations.put(to, code);
        crate::host::serialize();
        Some(old_id)
    }
}

impl Cpu {
    /// Has a placement of a key's page moved to where the key is, if there is one with what is wanted that nobody uses.
    pub(super) fn move_here(&mut self, key: &Key, global: bool) -> Option<()> {
        // What lock step knows of translations has addresses in it.
        if self.lockstep.is_some() {
            return None;
        }
        let generation = self.mmu.code_pages.generation(View::User);
        let from = self.code.translator.translations.movable_to(key, generation)?;
        let id = self.page_id(key.home(), global);
        let old = self.code.translator.move_page(from, key.home(), id)?;
        self.mmu.code_pages.forget_id(View::User, from.linear, old);
        Some(())
    }
}

#[cfg(test)]
mod tests;
