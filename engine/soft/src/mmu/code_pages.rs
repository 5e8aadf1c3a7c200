//! Which pages code was looked up in since their translations were last dropped.
//!
//! Whoever remembers where the code at a virtual address is compares the *generation* of its view, which grows when a page
//! that code was looked up in may have moved, or the *id* of the page, which says what physical page is behind a virtual
//! one. Changes of data pages cost neither.

use vireo_core::PageRange;

use super::View;

/// Entries of a view; a power of two.
pub const ENTRIES: usize = 4096;

/// Looked up, but not by an id.
const NO_ID: u32 = u32::MAX;

/// How the page table maps a page of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// It stays where it is over CR3 writes.
    pub global: bool,
    /// Size of the page that it is part of, as a power of two.
    pub shift: u8,
}

/// Code pages of one vCPU.
#[repr(C)]
pub struct CodePages {
    /// For each view (kernel, user) and entry: the id of the page looked up last, 0 for none.
    ids: [[u32; ENTRIES]; 2],
    /// Where the id is not 0: between which pages those are that were looked up, by what [`above_entry`] gives.
    bounds: [Box<[(u32, u32)]>; 2],
    /// Between which pages of each view large ones were looked up.
    large: [Option<PageRange>; 2],
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

/// What of a canonical linear address is above that which says its entry.
fn above_entry(linear: u64) -> u32 {
    (linear as i64 >> 24) as u32
}

/// The address of a page from that and its entry.
fn page_address(above: u32, entry: usize) -> u64 {
    (i64::from(above as i32) << 24) as u64 | (entry as u64) << 12
}

/// All of the page of this size that an address is in.
pub fn large_page(linear: u64, shift: u8) -> PageRange {
    let offset = (1 << shift) - 1;
    PageRange::between(linear & !offset, linear | offset)
}

fn index(view: View) -> usize {
    usize::from(view.is_user())
}

impl CodePages {
    /// Nothing looked up.
    pub fn new() -> Self {
        Self {
            ids: [[0; ENTRIES]; 2],
            bounds: std::array::from_fn(|_| vec![(0, 0); ENTRIES].into_boxed_slice()),
            large: [None; 2],
            generations: [1; 2],
            times_user_forgotten: 0,
            kernel_is_local: false,
        }
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

    /// Code at `linear` was looked up by its address.
    pub fn looked_up(&mut self, view: View, linear: u64, mapped: Mapped) {
        let id = self.ids[index(view)][entry_of(linear)];
        self.know(view, linear, if id == 0 { NO_ID } else { id }, mapped);
    }

    /// As [`CodePages::looked_up`], of a page with an id, which is not zero. It says which physical
    /// page, and which of the sets of translations that there have been of it.
    pub fn know(&mut self, view: View, linear: u64, id: u32, mapped: Mapped) {
        self.kernel_is_local |= !view.is_user() && !mapped.global;
        let (view, entry, above) = (index(view), entry_of(linear), above_entry(linear));
        let before = std::mem::replace(&mut self.ids[view][entry], id);
        let bounds = &mut self.bounds[view][entry];
        *bounds = match *bounds {
            (low, high) if before != 0 => (low.min(above), high.max(above)),
            _ => (above, above),
        };
        if mapped.shift > 12 {
            let whole = large_page(linear, mapped.shift);
            self.large[view] = Some(self.large[view].map_or(whole, |l| l.cover(whole)));
        }
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
        self.large[view] = None;
        self.generations[view] += 1;
        self.times_user_forgotten += u64::from(view == index(View::User));
    }

    /// These pages may have moved, and with each the whole of a large page that it is part of.
    pub fn forget_pages(&mut self, pages: PageRange) {
        for view in 0..self.ids.len() {
            if self.large[view].is_some_and(|l| l.meets(&pages)) {
                self.forget_view(view);
                continue;
            }
            let mut met = false;
            for n in 0..pages.count().min(ENTRIES as u64) {
                let entry = entry_of(pages.first().wrapping_add(n << 12));
                let (low, high) = self.bounds[view][entry];
                let id = &mut self.ids[view][entry];
                if *id != 0
                    && page_address(low, entry) <= pages.last()
                    && page_address(high, entry) >= pages.first()
                {
                    *id = 0;
                    met = true;
                }
            }
            self.generations[view] += u64::from(met);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Mapped = Mapped { global: true, shift: 12 };
    /// Pages behind one entry, of user space and the kernel.
    const USER: u64 = 0x7f00_0012_3000;
    const KERNEL: u64 = 0xffff_ffff_8112_3000;

    /// Has pages forgotten; whether that changes the generation of the kernel's view, and the user's.
    fn forgets(p: &mut CodePages, pages: PageRange) -> [bool; 2] {
        let of = |p: &CodePages| [View::Kernel, View::User].map(|v| p.generation(v));
        let before = of(p);
        p.forget_pages(pages);
        [0, 1].map(|v| of(p)[v] != before[v])
    }

    #[test]
    fn data_behind_the_entries_of_code_cost_nothing() {
        assert_eq!(entry_of(USER), entry_of(KERNEL));
        let mut p = CodePages::new();
        p.know(View::Kernel, KERNEL, 5, SMALL);
        p.looked_up(View::User, USER, SMALL);
        let near = 1 << 24;
        assert_eq!(forgets(&mut p, PageRange::at(USER + near)), [false; 2]);
        assert_eq!(forgets(&mut p, PageRange::between(0, USER - 1)), [false; 2]);
        assert_eq!(forgets(&mut p, PageRange::between(USER + 0x1000, KERNEL - 1)), [false; 2]);
        assert_eq!(forgets(&mut p, PageRange::between(KERNEL + 0x1000, u64::MAX)), [false; 2]);
        assert_eq!(forgets(&mut p, PageRange::between(0, 1 << 47)), [false, true]);
        assert_eq!(forgets(&mut p, PageRange::at(KERNEL)), [true, false]);
        assert_eq!(forgets(&mut p, PageRange::between(0, u64::MAX)), [false; 2], "nothing is left");
    }

    #[test]
    fn of_pages_behind_one_entry_each_is_found() {
        let others = [KERNEL - (3 << 24), KERNEL, KERNEL + (2 << 24)];
        for at in others {
            let mut p = CodePages::new();
            others.iter().for_each(|o| p.looked_up(View::Kernel, *o, SMALL));
            assert_eq!(forgets(&mut p, PageRange::at(USER)), [false; 2]);
            assert_eq!(forgets(&mut p, PageRange::at(at)), [true, false]);
        }
    }

    #[test]
    fn a_large_page_goes_whole() {
        let mut p = CodePages::new();
        p.know(View::Kernel, KERNEL, 5, Mapped { global: true, shift: 21 });
        p.know(View::Kernel, KERNEL - (1 << 30), 6, SMALL);
        assert_eq!(forgets(&mut p, PageRange::at(KERNEL - (1 << 21))), [false; 2]);
        assert_eq!(forgets(&mut p, PageRange::at(KERNEL | 0x1f_f000)), [true, false]);
        assert_eq!(forgets(&mut p, PageRange::at(KERNEL | 0x1f_f000)), [false; 2], "it is known no more");
    }
}
