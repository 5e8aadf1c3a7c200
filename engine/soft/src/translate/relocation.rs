//! What in the code of a translation depends on the linear address of the guest's code.
//!
//! The same physical page of a library is at another address in each process. A translation knows where its own address is in
//! it, so that it can be moved with its page instead of being made anew ([`super::placement`]).

use std::ops::Range;

use super::context::place;

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
    pub at: u16,
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

#[cfg(test)]
mod tests;
