//! The software TLB.

use std::sync::Arc;

use vireo_core::state::{ControlRegisters, cr0, cr4};

use super::{RamMap, watch::Watch};

/// Who is asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Whether accesses are user-mode accesses.
    pub fn is_user(self) -> bool {
        matches!(self, Self::User | Self::UserAligned)
    }
}

/// One cached translation of a 4 KiB page. A tag equals the page's linear address where the access is allowed
/// without further work, [`Entry::NONE`] otherwise.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Entry {
    /// For data reads.
    pub read: u64,
    /// For data writes (the D bit is set in the guest's table).
    pub write: u64,
    /// For instruction fetch.
    pub exec: u64,
    /// Host address minus linear address.
    pub addend: usize,
    /// Guest-physical page number; index of the attention byte.
    pub page: u32,
    /// Whether the page is global (kept over CR3 writes).
    pub global: bool,
    /// Whether it is part of a large page (INVLPG of any part drops all parts).
    pub large: bool,
}

impl Entry {
    /// A tag that no page-aligned address equals.
    pub const NONE: u64 = 1;
    /// An empty entry.
    pub const EMPTY: Self = Self {
        read: Self::NONE,
        write: Self::NONE,
        exec: Self::NONE,
        addend: 0,
        page: 0,
        global: false,
        large: false,
    };

    /// Whether any access to the page at `linear` hits.
    fn holds(&self, linear: u64) -> bool {
        let tag = linear & !0xfff;
        self.read == tag || self.write == tag || self.exec == tag
    }
}

/// Offset bits within the largest page (1 GiB).
const LARGE: u64 = (1 << 30) - 1;

/// Entries per view; a power of two.
pub const ENTRIES: usize = 1024;

/// One direct-mapped table, with what a flush needs to know to be cheap.
struct Table {
    entries: Box<[Entry; ENTRIES]>,
    /// Whether anything was filled since the last whole flush.
    used: bool,
    /// Bounds of the linear addresses of which parts of large pages may be in it.
    large: Option<(u64, u64)>,
}

impl Table {
    fn new() -> Self {
        let Ok(entries) = vec![Entry::EMPTY; ENTRIES].into_boxed_slice().try_into() else {
            unreachable!("the vector has ENTRIES entries")
        };
        Self { entries, used: false, large: None }
    }
    fn clear(&mut self) {
        if self.used {
            self.entries.fill(Entry::EMPTY);
            (self.used, self.large) = (false, None);
        }
    }
    fn clear_non_global(&mut self) {
        if self.used {
            self.entries.iter_mut().filter(|e| !e.global).for_each(|e| *e = Entry::EMPTY);
        }
    }
}

/// The TLB of one vCPU.
pub struct Mmu {
    tables: [Table; 4],
    view: View,
    /// RAM as this vCPU sees it.
    pub ram: Arc<RamMap>,
    /// Attention bytes, code granules and dirty log, shared by the partition.
    pub watch: Arc<Watch>,
    /// PAE page-directory pointers, loaded with CR3 in legacy PAE mode (SDM vol. 3A, 4.4.1).
    pub pdpte: [u64; 4],
    /// Linear address of the last page fault; goes to CR2 at its delivery.
    pub fault_address: u64,
    /// Grows whenever code may have moved: cached lookups by virtual address compare it.
    pub exec_generation: u64,
    /// Entries filled.
    pub fills: u64,
    /// Flushes of more than a page.
    pub flushes: u64,
}

impl Mmu {
    /// An empty TLB.
    pub fn new(ram: Arc<RamMap>, watch: Arc<Watch>) -> Self {
        Self {
            tables: std::array::from_fn(|_| Table::new()),
            view: View::Kernel,
            ram,
            watch,
            pdpte: [0; 4],
            fault_address: 0,
            exec_generation: 1,
            fills: 0,
            flushes: 0,
        }
    }

    /// The entry a linear address may be in.
    #[inline(always)]
    pub fn entry(&self, view: View, linear: u64) -> &Entry {
        &self.tables[view as usize].entries[(linear >> 12) as usize % ENTRIES]
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
        let table = &mut self.tables[view as usize];
        table.used = true;
        if new.large {
            let (low, high) = table.large.unwrap_or((linear, linear));
            table.large = Some((low.min(linear), high.max(linear)));
        }
        let old = &mut table.entries[(linear >> 12) as usize % ENTRIES];
        let same = old.holds(linear) && old.addend == new.addend && old.page == new.page;
        let keep = |o: u64, n: u64| if same && n == Entry::NONE { o } else { n };
        *old = Entry {
            read: keep(old.read, new.read),
            write: keep(old.write, new.write),
            exec: keep(old.exec, new.exec),
            ..new
        };
        self.fills += 1;
    }

    /// Drops everything (CR0.PG, CR4.PGE and the like, RAM changes).
    pub fn flush_all(&mut self) {
        self.tables.iter_mut().for_each(Table::clear);
        self.exec_generation += 1;
        self.flushes += 1;
    }

    /// Drops all but global translations (CR3 write).
    pub fn flush_non_global(&mut self) {
        self.tables.iter_mut().for_each(Table::clear_non_global);
        self.exec_generation += 1;
        self.flushes += 1;
    }

    /// Drops the translations of one 4 KiB page in every view (a page fault).
    pub fn forget_page(&mut self, linear: u64) {
        for t in self.tables.iter_mut().filter(|t| t.used) {
            let e = &mut t.entries[(linear >> 12) as usize % ENTRIES];
            if e.holds(linear) {
                if e.exec != Entry::NONE {
                    self.exec_generation += 1;
                }
                *e = Entry::EMPTY;
            }
        }
    }

    /// Drops the translation of one page (INVLPG); where it may be part of a cached large page, everything of that
    /// view's table.
    pub fn flush_page(&mut self, linear: u64) {
        for t in &mut self.tables {
            if t.large.is_some_and(|(low, high)| (low & !LARGE..=high | LARGE).contains(&linear)) {
                t.clear();
            } else if t.used {
                let e = &mut t.entries[(linear >> 12) as usize % ENTRIES];
                if e.holds(linear) {
                    *e = Entry::EMPTY;
                }
            }
        }
        self.exec_generation += 1;
    }
}
