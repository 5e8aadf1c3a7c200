//! Which pages code was looked up in since their translations were last dropped.
//!
//! Whoever remembers where the code at a virtual address is compares the *generation* of its view, which grows when a page
//! that code was looked up in may have moved, or the *id* of the page, which says what physical page is behind a virtual
//! one. Changes of data pages cost neither.

use super::View;

/// Entries of a view; a power of two.
pub const ENTRIES: usize = 4096;

/// Looked up, but not by an id.
const NO_ID: u32 = u32::MAX;

/// Code pages of one vCPU.
#[repr(C)]
pub struct CodePages {
    /// For each view (kernel, user) and entry: the id of the page looked up last, 0 for none.
    ids: [[u32; ENTRIES]; 2],
    generations: [u64; 2],
    /// How often all user pages were forgotten.
    times_user_forgotten: u64,
    /// Code was looked up in kernel pages that are not global.
    kernel_is_local: bool,
}

/// The entry of a linear address.
pub fn entry_of(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

fn index(view: View) -> usize {
    usize::from(view.is_user())
}

impl CodePages {
    /// Nothing looked up.
    pub fn new() -> Self {
        Self { ids: [[0; ENTRIES]; 2], generations: [1; 2], times_user_forgotten: 0, kernel_is_local: false }
    }

    /// Offset in this structure of the id of the page at `linear`.
    pub fn id_offset(view: View, linear: u64) -> usize {
        std::mem::offset_of!(CodePages, ids) + 4 * (index(view) * ENTRIES + entry_of(linear))
    }

    /// An offset that [`CodePages::id_offset`] gave for an address, for one that is so many bytes further: a multiple of the
    /// page size.
    pub fn id_offset_moved(offset: usize, by: u64) -> usize {
        let ids = offset - std::mem::offset_of!(CodePages, ids);
        let entry = ids / 4 % ENTRIES;
        offset - 4 * entry + 4 * entry_of(((entry as u64) << 12).wrapping_add(by))
    }

    /// Generation of a view.
    #[inline(always)]
    pub fn generation(&self, view: View) -> u64 {
        self.generations[index(view)]
    }

    /// How often all user pages were forgotten: an id is known no longer than until the next time.
    pub fn times_user_forgotten(&self) -> u64 {
        self.times_user_forgotten
    }

    /// Code at `linear` was looked up by its address; `global`: what its translation is.
    pub fn looked_up(&mut self, view: View, linear: u64, global: bool) {
        self.kernel_is_local |= !view.is_user() && !global;
        let id = &mut self.ids[index(view)][entry_of(linear)];
        if *id == 0 {
            *id = NO_ID;
        }
    }

    /// As [`CodePages::looked_up`], of a page with an id, which is not zero. It says which physical
    /// page, and which of the sets of translations that there have been of it.
    pub fn know(&mut self, view: View, linear: u64, id: u32, global: bool) {
        self.kernel_is_local |= !view.is_user() && !global;
        self.ids[index(view)][entry_of(linear)] = id;
    }

    /// Every page may have moved.
    pub fn forget_all(&mut self) {
        self.forget_view(0);
        self.forget_view(1);
    }

    /// Every page that is not global may have moved.
    pub fn forget_non_global(&mut self) {
        self.forget_view(1);
        if self.kernel_is_local {
            self.forget_view(0);
            self.kernel_is_local = false;
        }
    }

    fn forget_view(&mut self, view: usize) {
        self.ids[view].fill(0);
        self.generations[view] += 1;
        self.times_user_forgotten += u64::from(view == index(View::User));
    }

    /// One page may have moved.
    pub fn forget_page(&mut self, linear: u64) {
        for (ids, generation) in self.ids.iter_mut().zip(&mut self.generations) {
            let id = &mut ids[entry_of(linear)];
            if *id != 0 {
                *id = 0;
                *generation += 1;
            }
        }
    }
}
