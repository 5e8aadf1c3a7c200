//! The software TLB.

use std::sync::Arc;

use vireo_core::PageRange;
use vireo_core::state::{ControlRegisters, cr0, cr4};

use super::code_pages::{CodePages, Mapped, large_page};
use super::spaces::{Kept, Spaces};
use super::{RamMap, watch::Watch};

/// Who is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum View {
    /// CPL 0 to 2 (with SMAP on: EFLAGS.AC clear), and implicit accesses of the processor (descriptor tables, TSS).
    Kernel,
    /// CPL 3.
    User,
    /// CPL 0 to 2 with SMAP on and EFLAGS.AC set: may touch user pages.
    KernelAc,
    /// CPL 3 with alignment checks on (CR0.AM and EFLAGS.AC): never filled, so that each access is checked.
    UserAligned,
}

impl View {
    const ALL: [Self; 4] = [Self::Kernel, Self::User, Self::KernelAc, Self::UserAligned];

    /// Whether accesses are user-mode accesses.
    pub fn is_user(self) -> bool {
        matches!(self, Self::User | Self::UserAligned)
    }
}

/// One cached translation of a 4 KiB page. A tag is *minus* the page's linear address where the access is allowed without
/// further work: then `linear + tag` is the offset in the page. Elsewhere it is [`Entry::none`]. Translated code reads
/// these fields at fixed offsets.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Entry {
    /// For data reads.
    pub read: u64,
    /// For data writes (the D bit is set in the guest's table).
    pub write: u64,
    /// For instruction fetch.
    pub exec: u64,
    /// Host address of the page.
    pub host: *mut u8,
    /// What to add to a linear address in the page for its host address.
    pub addend: u64,
    /// The attention byte of the page, to be looked at after a write.
    pub attention: *const u8,
    /// Guest-physical page number.
    pub page: u32,
    /// How the page is mapped: INVLPG of any part of a large page drops all parts.
    pub mapped: Mapped,
}

impl Entry {
    /// A tag that no address looked up in entry `slot` hits: that of a page which would be in another entry.
    pub const fn none(slot: usize) -> u64 {
        (((slot ^ (ENTRIES / 2)) << 12) as u64).wrapping_neg()
    }
    /// An empty entry for `slot`.
    const fn empty(slot: usize) -> Self {
        let none = Self::none(slot);
        Self {
            read: none,
            write: none,
            exec: none,
            host: std::ptr::null_mut(),
            addend: 0,
            attention: std::ptr::null(),
            page: 0,
            mapped: Mapped { global: false, shift: 12 },
        }
    }

    /// Whether `size` bytes at `linear` lie in the page whose tag is given.
    #[inline(always)]
    pub fn hits(tag: u64, linear: u64, size: u32) -> bool {
        linear.wrapping_add(tag) <= u64::from(4096 - size)
    }

    /// Linear address of its page, if any access hits.
    fn linear(&self, slot: usize) -> Option<u64> {
        let tags = [self.read, self.write, self.exec];
        tags.into_iter().find(|t| *t != Self::none(slot)).map(u64::wrapping_neg)
    }

    /// All of the page that it is of, which may be a large one, if any access hits.
    fn whole_page(&self, slot: usize) -> Option<PageRange> {
        self.linear(slot).map(|linear| large_page(linear, self.mapped.shift))
    }

    /// Whether any access to the page at `linear` hits.
    fn holds(&self, linear: u64) -> bool {
        let tag = (linear & !0xfff).wrapping_neg();
        self.read == tag || self.write == tag || self.exec == tag
    }
}

/// Entries per view; a power of two.
pub const ENTRIES: usize = 1024;

/// The entry of a linear address.
#[inline(always)]
pub fn slot_of(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

/// What translated code knows of the page that the stack pointer is in: tag (reads and writes are allowed), host address,
/// attention byte, as in [`Entry`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct StackPage {
    /// Minus the linear address.
    pub tag: u64,
    /// See [`Entry::host`].
    pub host: *mut u8,
    /// See [`Entry::attention`].
    pub attention: *const u8,
}

impl StackPage {
    /// Longest access that is looked up here, in bytes.
    pub const MOST: u32 = 16;

    /// No page. Any tag is some address's: this one's is not canonical on the guest's side, and leads to one that is not
    /// canonical on the host's, where an access raises an exception that has it made in the interpreter.
    const NONE: Self =
        Self { tag: 1 << 63, host: std::ptr::without_provenance_mut(1 << 63), attention: std::ptr::null() };
}

/// Which entries are in use, so that a flush costs as much as was filled.
#[derive(Default)]
struct Used {
    slots: [u64; ENTRIES / 64],
    /// Between which pages those are that are large.
    large: Option<PageRange>,
}

impl Used {
    fn set(&mut self, slot: usize, linear: u64, shift: u8) {
        self.slots[slot / 64] |= 1 << (slot % 64);
        if shift > 12 {
            let whole = large_page(linear, shift);
            self.large = Some(self.large.map_or(whole, |l| l.cover(whole)));
        }
    }
    fn has(&self, slot: usize) -> bool {
        self.slots[slot / 64] >> (slot % 64) & 1 != 0
    }
    /// Whether one of these pages may be part of a large one that is in use.
    fn has_large(&self, pages: &PageRange) -> bool {
        self.large.is_some_and(|l| l.meets(pages))
    }
    /// Calls `f` for each, and forgets them.
    fn drain(&mut self, mut f: impl FnMut(usize)) {
        for (i, word) in self.slots.iter_mut().enumerate() {
            while *word != 0 {
                f(i * 64 + word.trailing_zeros() as usize);
                *word &= *word - 1;
            }
        }
        self.large = None;
    }
}

/// What a flush of one view's table needs to know.
#[derive(Default)]
struct Filled {
    global: Used,
    other: Used,
}

/// The entries of one view; [`Mmu`] has one for each, one after the other.
pub type Table = [Entry; ENTRIES];

/// The TLB of one vCPU.
#[repr(C)]
pub struct Mmu {
    /// One table for each [`View`].
    pub tables: [Table; 4],
    /// The stack's page in each [`View`].
    pub stack: [StackPage; 4],
    /// Which code pages are where; translated code compares them.
    pub code_pages: CodePages,
    filled: [Filled; 4],
    /// Other address spaces; empty without PCIDs.
    spaces: Spaces,
    view: View,
    /// RAM as this vCPU sees it.
    pub ram: Arc<RamMap>,
    /// Attention bytes, code granules and dirty log, shared by the partition.
    pub watch: Arc<Watch>,
    /// PAE page-directory pointers, loaded with CR3 in legacy PAE mode (SDM vol. 3A, 4.4.1).
    pub pdpte: [u64; 4],
    /// Linear address of the last page fault; goes to CR2 at its delivery.
    pub fault_address: u64,
    /// Entries that were replaced (view, slot, what was there), if somebody is going to put them back.
    pub replaced: Option<Vec<(usize, usize, Entry)>>,
    /// Entries filled.
    pub fills: u64,
    /// Flushes of more than a page.
    pub flushes: u64,
}

impl Mmu {
    /// Offset of the view of explicit data accesses in this structure, for translated code.
    pub const VIEW_OFFSET: usize = std::mem::offset_of!(Mmu, view);

    /// An empty TLB.
    pub fn new(ram: Arc<RamMap>, watch: Arc<Watch>) -> Self {
        Self {
            tables: [std::array::from_fn(Entry::empty); 4],
            stack: [StackPage::NONE; 4],
            code_pages: CodePages::new(),
            filled: Default::default(),
            spaces: Spaces::default(),
            view: View::Kernel,
            ram,
            watch,
            pdpte: [0; 4],
            fault_address: 0,
            replaced: None,
            fills: 0,
            flushes: 0,
        }
    }

    /// The entry a linear address may be in.
    #[inline(always)]
    pub fn entry(&self, view: View, linear: u64) -> &Entry {
        &self.tables[view as usize][slot_of(linear)]
    }

    /// The view of explicit data accesses now.
    #[inline(always)]
    pub fn view(&self) -> View {
        self.view
    }

    /// Chooses the view after a change of CPL, AC, CR0 or CR4.
    pub fn select_view(&mut self, cpl: u8, ac: bool, ctl: &ControlRegisters) {
        self.view = match (cpl, ac) {
            (3, true) if ctl.cr0 & cr0::AM != 0 => View::UserAligned,
            (3, _) => View::User,
            (_, true) if ctl.cr4 & cr4::SMAP != 0 => View::KernelAc,
            _ => View::Kernel,
        };
    }

    /// Puts in a translation, keeping rights already there for the same page.
    pub fn fill(&mut self, view: View, linear: u64, new: Entry) {
        if view == View::UserAligned {
            return;
        }
        let slot = slot_of(linear);
        self.note(view, linear, &new);
        let old = &mut self.tables[view as usize][slot];
        let same = old.holds(linear) && old.host == new.host && old.page == new.page;
        if let Some(replaced) = &mut self.replaced {
            replaced.push((view as usize, slot, *old));
        }
        let keep = |o: u64, n: u64| if same && n == Entry::none(slot) { o } else { n };
        *old = Entry {
            read: keep(old.read, new.read),
            write: keep(old.write, new.write),
            exec: keep(old.exec, new.exec),
            ..new
        };
        self.fills += 1;
    }

    /// Notes for flushes that a translation is there.
    fn note(&mut self, view: View, linear: u64, e: &Entry) {
        let filled = &mut self.filled[view as usize];
        let used = if e.mapped.global { &mut filled.global } else { &mut filled.other };
        used.set(slot_of(linear), linear, e.mapped.shift);
    }

    /// Has translated code know the page at `linear` as that of the stack, if it may be read and written. Whether it then
    /// knows `size` bytes there.
    pub fn know_stack(&mut self, view: View, linear: u64, size: u32) -> bool {
        let e = *self.entry(view, linear);
        if Entry::hits(e.read, linear, 1) && Entry::hits(e.write, linear, 1) {
            self.stack[view as usize] = StackPage { tag: e.write, host: e.host, attention: e.attention };
            return Entry::hits(e.write, linear, size);
        }
        false
    }

    fn clear(&mut self, view: usize) {
        self.stack[view] = StackPage::NONE;
        let (table, filled) = (&mut self.tables[view], &mut self.filled[view]);
        filled.global.drain(|slot| table[slot] = Entry::empty(slot));
        filled.other.drain(|slot| table[slot] = Entry::empty(slot));
    }

    /// From the address space of one PCID to that of another, of which what was kept is used again.
    pub fn switch_space(&mut self, from: u16, to: u16) {
        let mut left = Vec::new();
        for ((view, table), filled) in View::ALL.into_iter().zip(&mut self.tables).zip(&mut self.filled) {
            filled.other.drain(|slot| {
                let e = &mut table[slot];
                if let Some(linear) = e.linear(slot).filter(|_| !e.mapped.global) {
                    left.push(Kept { view, linear, entry: *e });
                    *e = Entry::empty(slot);
                }
            });
        }
        let back = self.spaces.take(to);
        self.spaces.keep(from, left);
        for Kept { view, linear, entry } in back {
            let slot = slot_of(linear);
            // Global pages stay where they are.
            if self.tables[view as usize][slot].linear(slot).is_none() {
                self.note(view, linear, &entry);
                self.tables[view as usize][slot] = entry;
            }
        }
        self.stack = [StackPage::NONE; 4];
        self.code_pages.forget_non_global();
    }

    /// Drops what is kept of another address space than the one in use.
    pub fn forget_space(&mut self, pcid: u16) {
        self.spaces.forget(pcid);
    }

    /// Drops what is kept of all other address spaces.
    pub fn forget_other_spaces(&mut self) {
        self.spaces.clear();
    }

    /// Drops everything, of all address spaces (CR0.PG, CR4.PGE and the like, RAM changes).
    pub fn flush_all(&mut self) {
        self.spaces.clear();
        (0..self.tables.len()).for_each(|view| self.clear(view));
        self.code_pages.forget_all();
        self.flushes += 1;
    }

    /// Drops all but global translations of the address space in use (CR3 write).
    pub fn flush_non_global(&mut self) {
        self.stack = [StackPage::NONE; 4];
        for (table, filled) in self.tables.iter_mut().zip(&mut self.filled) {
            filled.other.drain(|slot| {
                // A global page may have taken the entry since.
                if !table[slot].mapped.global {
                    table[slot] = Entry::empty(slot);
                }
            });
        }
        self.code_pages.forget_non_global();
        self.flushes += 1;
    }

    /// Drops the translations of one 4 KiB page in every view (a page fault).
    pub fn forget_page(&mut self, linear: u64) {
        self.stack = [StackPage::NONE; 4];
        let slot = slot_of(linear);
        let mut code = false;
        let entries = self.tables.iter_mut().map(|t| &mut t[slot]).enumerate();
        for (view, e) in entries.filter(|(_, e)| e.holds(linear)) {
            code |= e.exec != Entry::none(slot);
            if let Some(replaced) = &mut self.replaced {
                replaced.push((view, slot, *e));
            }
            *e = Entry::empty(slot);
        }
        if code {
            self.code_pages.forget_pages(PageRange::at(linear));
        }
    }

    /// Drops the translations of pages, and with each that of the whole of a large page that it is part of (INVLPG).
    pub fn flush_pages(&mut self, pages: PageRange) {
        self.stack = [StackPage::NONE; 4];
        for (table, filled) in self.tables.iter_mut().zip(&mut self.filled) {
            // Parts of a large page are anywhere.
            let large = filled.global.has_large(&pages) || filled.other.has_large(&pages);
            let slots = if large { ENTRIES as u64 } else { pages.count().min(ENTRIES as u64) };
            for n in 0..slots {
                let slot = slot_of(pages.first().wrapping_add(n << 12));
                let e = &mut table[slot];
                if (filled.global.has(slot) || filled.other.has(slot))
                    && e.whole_page(slot).is_some_and(|whole| whole.meets(&pages))
                {
                    *e = Entry::empty(slot);
                }
            }
        }
        self.code_pages.forget_pages(pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAP: u64 = 0x7f00_0000_0000;
    const DIRECT: u64 = 0xffff_8880_0000_0000;
    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const STACKS: u64 = 0xffff_c900_0000_0000;

    /// A TLB with translations of pages at these addresses, of sizes that are powers of two, in the kernel's view.
    fn tlb(pages: &[(u64, u8)]) -> Box<Mmu> {
        let watch = Arc::new(Watch::new(1 << 20).expect("Linux has membarrier(2)"));
        let mut mmu = Box::new(Mmu::new(Arc::default(), watch));
        for &(linear, shift) in pages {
            let (slot, tag) = (slot_of(linear), (linear & !0xfff).wrapping_neg());
            let mapped = Mapped { global: true, shift };
            let e = Entry { read: tag, write: tag, exec: tag, mapped, ..Entry::empty(slot) };
            mmu.fill(View::Kernel, linear, e);
        }
        mmu
    }

    fn kept<const N: usize>(mmu: &Mmu, pages: [u64; N]) -> [bool; N] {
        pages.map(|linear| mmu.entry(View::Kernel, linear).holds(linear))
    }

    #[test]
    fn a_range_goes_and_nothing_else() {
        let pages = [HEAP, HEAP + 0x5000, HEAP + (600 << 12), DIRECT + 0x1000, STACKS + 0x2000];
        for (range, expected) in [
            (PageRange::at(HEAP + 0x5000), [true, false, true, true, true]),
            (PageRange::between(HEAP + 0x1000, HEAP + 0x5000), [true, false, true, true, true]),
            (PageRange::between(HEAP, HEAP + (600 << 12)), [false, false, false, true, true]),
            // More pages than there are slots.
            (PageRange::between(0, 1 << 47), [false, false, false, true, true]),
            (PageRange::between(1 << 63, u64::MAX), [true, true, true, false, false]),
            (PageRange::between(0, u64::MAX), [false; 5]),
        ] {
            let mut mmu = tlb(&pages.map(|at| (at, 12)));
            mmu.flush_pages(range);
            assert_eq!(kept(&mmu, pages), expected, "{range:x?}");
        }
    }

    #[test]
    fn of_large_pages_only_those_go_that_are_met() {
        let pages =
            [DIRECT, DIRECT + 0x1000, DIRECT + 0x20_2000, TEXT + 0x3000, TEXT + 0x4000, STACKS + 0x5000];
        let sizes = [21, 21, 21, 30, 30, 12];
        for (at, expected) in [
            (DIRECT + 0x1f_f000, [false, false, true, true, true, true]),
            (TEXT & !0x3fff_ffff, [true, true, true, false, false, true]),
            // Between the large ones.
            (STACKS, [true; 6]),
            (STACKS + 0x5000, [true, true, true, true, true, false]),
        ] {
            let mut mmu = tlb(&std::array::from_fn::<_, 6, _>(|n| (pages[n], sizes[n])));
            mmu.flush_pages(PageRange::at(at));
            assert_eq!(kept(&mmu, pages), expected, "{at:#x}");
        }
    }
}
