//! Which pages code was looked up in since their translations were last dropped.
//!
//! Whoever remembers where the code at a virtual address is compares the *generation* of its view, which grows when a page
//! that code was looked up in may have moved, or the *id* of the page, which says what physical page is behind a virtual
//! one. Changes of data pages cost neither.

use std::collections::HashMap;

use super::View;

/// Entries of a view; a power of two.
pub const ENTRIES: usize = 4096;

/// Pairs of virtual and physical page that have an id; then all ids are given anew.
const MAX_IDS: usize = 1 << 16;

/// Looked up, but not by an id.
const NO_ID: u32 = u32::MAX;

/// Code pages of one vCPU.
#[repr(C)]
pub struct CodePages {
    /// For each view (kernel, user) and entry: the id of the page looked up last, 0 for none.
    ids: [[u32; ENTRIES]; 2],
    generations: [u64; 2],
    /// Code was looked up in kernel pages that are not global.
    kernel_is_local: bool,
    by_page: HashMap<(u64, u32), u32>,
    next: u32,
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
        Self {
            ids: [[0; ENTRIES]; 2],
            generations: [1; 2],
            kernel_is_local: false,
            by_page: HashMap::new(),
            next: 1,
        }
    }

    /// Offset in this structure of the id of the page at `linear`.
    pub fn id_offset(view: View, linear: u64) -> usize {
        std::mem::offset_of!(CodePages, ids) + 4 * (index(view) * ENTRIES + entry_of(linear))
    }

    /// Generation of a view.
    #[inline(always)]
    pub fn generation(&self, view: View) -> u64 {
        self.generations[index(view)]
    }

    /// Code at `linear` was looked up by its address; `global`: what its translation is.
    pub fn looked_up(&mut self, view: View, linear: u64, global: bool) {
        self.kernel_is_local |= !view.is_user() && !global;
        let id = &mut self.ids[index(view)][entry_of(linear)];
        if *id == 0 {
            *id = NO_ID;
        }
    }

    /// As [`CodePages::looked_up`]; gives the page's id, never zero. `page`: the physical page it is in now.
    pub fn id(&mut self, view: View, linear: u64, page: u32, global: bool) -> u32 {
        let next = &mut self.next;
        let id = *self.by_page.entry((linear >> 12, page)).or_insert_with(|| {
            // After 2^32 ids, one new page in each microsecond for more than an hour, the counter starts anew.
            *next = if *next >= NO_ID - 1 { 1 } else { *next + 1 };
            *next
        });
        self.kernel_is_local |= !view.is_user() && !global;
        self.ids[index(view)][entry_of(linear)] = id;
        id
    }

    /// Enough pages have an id: whoever remembers ids is to forget them, and all else about code, and call
    /// [`CodePages::start_over`].
    pub fn is_full(&self) -> bool {
        self.by_page.len() >= MAX_IDS
    }

    /// Gives all ids anew. None is given twice, so nobody takes another page for his.
    pub fn start_over(&mut self) {
        self.by_page.clear();
        self.forget_all();
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
