//! What translated code reaches through the GS base: fields of [`Cpu`] at fixed offsets.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::emit::{Host, Mem};
use crate::cpu::mode::Mode;
use crate::cpu::{Cpu, Exec};
use crate::mmu::{CodePages, Entry, Places, StackPage, View};

/// Entries of a jump table; a power of two.
pub const JUMPS: usize = 4096;

/// Where the code at an address was translated to.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Jump {
    /// Address of the guest's code.
    pub rip: u64,
    /// Its translation; takes the flags from memory.
    pub entry: *const u8,
}

impl Jump {
    /// An empty entry: holds an address that would be in another one.
    const fn empty(slot: usize) -> Self {
        Self { rip: (slot ^ 1) as u64, entry: std::ptr::null() }
    }

    /// The entry of an address. Translated code computes the same.
    pub fn slot(rip: u64) -> usize {
        (rip ^ rip >> 12) as usize % JUMPS
    }
}

/// What all translations that call each other, and what is on the stack of return addresses, have in common.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct World {
    /// Code size, stack size.
    pub mode: Mode,
    /// Privilege level.
    pub cpl: u8,
    /// SSE instructions raise neither #UD nor #NM.
    pub sse: bool,
    /// VEX encodings on vector registers raise neither #UD nor #NM.
    pub avx: bool,
    /// SMAP is on.
    pub smap: bool,
    /// RDTSC does not fault.
    pub tsc: bool,
    /// Accesses by FS (bit 0) and GS (bit 1) need no check but that of their page.
    pub segments: u8,
}

impl World {
    /// Whether code of this world is translated: 64-bit code, and 32-bit code with flat segments.
    pub fn translatable(mode: Mode) -> bool {
        mode.is64() || mode.bits() == 32 && mode.flat() && mode.stack_mask() == u64::from(u32::MAX)
    }
    /// Size of addresses, and of what calls push, in bytes: 4 or 8.
    pub fn word(self) -> u32 {
        if self.mode.is64() { 8 } else { 4 }
    }
    /// All of it in few bits.
    pub fn bits(self) -> u64 {
        let flags = u64::from(self.sse) | u64::from(self.smap) << 1 | u64::from(self.tsc) << 2;
        flags
            | u64::from(self.cpl & 3) << 3
            | u64::from(self.mode.0) << 5
            | u64::from(self.segments & 3) << 13
            | u64::from(self.avx) << 15
    }
    /// How many bits [`World::bits`] has.
    pub const BITS: u32 = 16;
    /// Instruction fetches are a user's.
    pub fn user(self) -> bool {
        self.cpl == 3
    }
}

/// State of the translator that its code uses. All else it uses is in other fields of [`Cpu`].
#[repr(C, align(64))]
pub struct Context {
    /// The vCPU.
    cpu: *mut Cpu,
    /// Loop heads, calls and indirect jumps until the run loop looks at events again.
    pub budget: i32,
    /// Which return instruction was executed last, an index of a site, if it went to the lookup.
    pub return_site: u32,
    /// Stack pointer to leave with: callee-saved registers are there.
    pub base: u64,
    /// Stack pointer of the translated code that called a helper.
    pub stack: u64,
    /// Where returns go that the stack of return addresses does not foresee: [`super::thunks::Thunks::returned`].
    pub returned: usize,
    /// The guest's time-stamp counter less the host's.
    pub tsc_offset: u64,
    /// Spare places. 0 and 1: what a store wrote to and its attention byte, for [`super::thunks::Thunks::wrote`]; before that
    /// the limit and address of an access to the stack, or 1 the attention byte until the store. 2: a value or an addend of
    /// the instruction under way, in the end how much it wrote. 3: what a call by memory or register calls. 4: a site.
    pub spare: [u64; 5],
    /// Where a store looks that met attention; then this vCPU's requests, and the translations' epoch.
    pub watched: Places,
    pub requests: *const AtomicU32,
    pub epoch: *const AtomicU64,
    /// How the last run ended.
    pub end: Exec,
    /// The world of the return addresses on the stack.
    pub stack_world: World,
    /// Jump tables of the views Kernel, User, KernelAc.
    jumps: [[Jump; JUMPS]; 3],
    used: [Vec<u16>; 3],
    /// What the tables of kernel and user are good for: generation of the code's view, and the translations' epoch.
    stamps: [(u64, u64); 2],
}

// SAFETY: the pointers are to the vCPU itself, with which they move, and to code that lives as long as the partition and is
// not used again before this vCPU has looked.
unsafe impl Send for Context {}

impl Context {
    /// Nothing known.
    pub fn new() -> Self {
        Self {
            cpu: std::ptr::null_mut(),
            budget: 0,
            return_site: 0,
            base: 0,
            stack: 0,
            returned: 0,
            tsc_offset: 0,
            spare: [0; 5],
            watched: Places::NONE,
            requests: std::ptr::null(),
            epoch: std::ptr::null(),
            end: Ok(()),
            stack_world: World::default(),
            jumps: [std::array::from_fn(Jump::empty); 3],
            used: Default::default(),
            stamps: [(0, 0); 2],
        }
    }

    /// Whether what the tables of a view know is good for this.
    pub fn is_good_for(&self, view: View, stamp: (u64, u64)) -> bool {
        self.stamps[usize::from(view.is_user())] == stamp
    }

    /// The translation of the code at `rip`, if the table knows; `stamp` is what it has to be good for.
    pub fn jump(&mut self, view: View, rip: u64, stamp: (u64, u64)) -> Option<*const u8> {
        let known = &mut self.stamps[usize::from(view.is_user())];
        if *known != stamp {
            *known = stamp;
            self.forget_jumps(view.is_user());
            return None;
        }
        let jump = &self.jumps[view as usize][Jump::slot(rip)];
        (jump.rip == rip).then_some(jump.entry)
    }

    /// Has the tables of the user, or those of the kernel, know nothing. The kernel's are between STAC and CLAC without a
    /// look at their stamp, so they go together.
    #[cold]
    fn forget_jumps(&mut self, user: bool) {
        let views: &[View] = if user { &[View::User] } else { &[View::Kernel, View::KernelAc] };
        for view in views.iter().map(|v| *v as usize) {
            let table = &mut self.jumps[view];
            self.used[view].drain(..).for_each(|s| table[s as usize] = Jump::empty(s as usize));
        }
    }

    /// Has the table know a translation. [`Context::jump`] was just asked for it.
    pub fn know(&mut self, view: View, rip: u64, entry: *const u8) {
        let slot = Jump::slot(rip);
        let jump = &mut self.jumps[view as usize][slot];
        if jump.entry.is_null() {
            self.used[view as usize].push(slot as u16);
        }
        *jump = Jump { rip, entry };
    }

    /// Has the table forget what it knows of an address.
    pub fn forget(&mut self, view: View, rip: u64) {
        let slot = Jump::slot(rip);
        let jump = &mut self.jumps[view as usize][slot];
        if jump.rip == rip {
            // Only the address: an entry that is not null is in the list of those used, and shall be once.
            jump.rip = Jump::empty(slot).rip;
        }
    }
}

impl Cpu {
    /// Makes this vCPU the one that translated code on this thread works on.
    pub(crate) fn take_thread(&mut self) {
        const ARCH_SET_GS: libc::c_int = 0x1001;
        self.gate.cpu = self;
        self.gate.watched = self.mmu.watch.places();
        self.gate.requests = &raw const self.shared.vcpus[self.index as usize].requests;
        self.gate.epoch = self.shared.code.epoch_place();
        // SAFETY: no other code of the process uses GS on x86-64 Linux; the base is only a number until then.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, self as *mut Cpu) };
    }

    /// See [`World::segments`].
    #[inline]
    fn unchecked_segments(&self) -> u8 {
        use crate::cpu::seg;
        if self.mode.is64() {
            return 3;
        }
        let flat = |n: u8| {
            let s = &self.seg[usize::from(n)];
            u8::from(s.limit == u32::MAX && s.usable() && s.attributes & 0x9e == 0x92)
        };
        flat(seg::FS) | flat(seg::GS) << 1
    }

    /// The world of the code at RIP.
    pub(super) fn world(&self) -> World {
        use vireo_core::state::{cr0, cr4};
        let sse = self.ctl.cr0 & (cr0::EM | cr0::TS) == 0 && self.ctl.cr4 & cr4::OSFXSR != 0;
        World {
            mode: self.mode,
            cpl: self.cpl,
            sse,
            avx: self.ctl.cr0 & cr0::TS == 0 && self.ctl.cr4 & cr4::OSXSAVE != 0 && self.avx_enabled(),
            smap: self.ctl.cr4 & cr4::SMAP != 0,
            tsc: self.cpl == 0 || self.ctl.cr4 & cr4::TSD == 0,
            segments: self.unchecked_segments(),
        }
    }
}

/// A field of the vCPU at an offset.
fn at(offset: usize) -> Mem {
    Mem::vcpu(offset as i32)
}

/// Places in the vCPU.
pub mod place {
    use super::*;

    /// General register `n` of the guest.
    pub fn gpr(n: u8) -> Mem {
        at(offset_of!(Cpu, regs) + 8 * usize::from(n))
    }
    /// The arithmetic flags: 16 bits as AX holds them after `lahf; seto al`.
    pub fn flags() -> Mem {
        at(offset_of!(Cpu, flags))
    }
    /// Vector register `n`.
    pub fn vector(n: u8) -> Mem {
        use crate::host::FpuState;
        at(offset_of!(Cpu, fpu) + FpuState::OFFSETS[0] + FpuState::STRIDE * usize::from(n))
    }
    /// MXCSR of the guest.
    pub fn mxcsr() -> Mem {
        at(offset_of!(Cpu, fpu) + crate::host::FpuState::OFFSETS[1])
    }
    /// MXCSR of Rust code.
    pub fn host_mxcsr() -> Mem {
        at(offset_of!(Cpu, fpu) + crate::host::FpuState::OFFSETS[2])
    }
    /// Base of segment register `n`.
    pub fn segment_base(n: u8) -> Mem {
        use vireo_core::state::Segment;
        at(offset_of!(Cpu, seg) + size_of::<Segment>() * usize::from(n) + offset_of!(Segment, base))
    }
    /// The pointer to the vCPU.
    pub fn cpu() -> Mem {
        at(offset_of!(Cpu, gate.cpu))
    }
    /// See [`Context::budget`].
    pub fn budget() -> Mem {
        at(offset_of!(Cpu, gate.budget))
    }
    /// See [`Context::return_site`].
    pub fn return_site() -> Mem {
        at(offset_of!(Cpu, gate.return_site))
    }
    /// Selector of segment register `n`.
    pub fn selector(n: u8) -> Mem {
        use vireo_core::state::Segment;
        at(offset_of!(Cpu, seg) + size_of::<Segment>() * usize::from(n) + offset_of!(Segment, selector))
    }
    /// See [`Context::tsc_offset`].
    pub fn tsc_offset() -> Mem {
        at(offset_of!(Cpu, gate.tsc_offset))
    }
    /// See [`Context::base`].
    pub fn base() -> Mem {
        at(offset_of!(Cpu, gate.base))
    }
    /// See [`Context::stack`].
    pub fn stack() -> Mem {
        at(offset_of!(Cpu, gate.stack))
    }
    /// Where a store looks that met attention.
    pub fn watched_attention() -> Mem {
        at(offset_of!(Cpu, gate.watched.attention))
    }
    /// See above.
    pub fn watched_granules() -> Mem {
        at(offset_of!(Cpu, gate.watched.granules))
    }
    /// See above.
    pub fn watched_notices() -> Mem {
        at(offset_of!(Cpu, gate.watched.notices))
    }
    /// See above.
    pub fn requests() -> Mem {
        at(offset_of!(Cpu, gate.requests))
    }
    /// See above.
    pub fn epoch() -> Mem {
        at(offset_of!(Cpu, gate.epoch))
    }
    /// The epoch that the tables of a view (of a user, or not) are good for, above [`World::BITS`].
    pub fn stamped_epoch(user: bool) -> Mem {
        let stamp = size_of::<(u64, u64)>() * usize::from(user) + offset_of!((u64, u64), 1);
        at(offset_of!(Cpu, gate.stamps) + stamp)
    }
    /// RFLAGS but for the arithmetic flags.
    pub fn eflags() -> Mem {
        at(offset_of!(Cpu, eflags))
    }
    /// CR4.
    pub fn cr4() -> Mem {
        at(offset_of!(Cpu, ctl.cr4))
    }
    /// Spare place 0 to 4.
    pub fn spare(n: usize) -> Mem {
        at(offset_of!(Cpu, gate.spare) + 8 * n)
    }
    /// Id of the code page at `linear`.
    pub fn page_id(view: View, linear: u64) -> Mem {
        at(offset_of!(Cpu, mmu.code_pages) + CodePages::id_offset(view, linear))
    }
    /// An offset of [`page_id`] for an address that is so many bytes further.
    pub fn page_id_offset_moved(offset: usize, by: u64) -> usize {
        let pages = offset_of!(Cpu, mmu.code_pages);
        pages + CodePages::id_offset_moved(offset - pages, by)
    }
    /// See [`Context::returned`].
    pub fn returned() -> Mem {
        at(offset_of!(Cpu, gate.returned))
    }
    /// A field of an entry of a view's jump table; `offset`: register that holds the entry's.
    pub fn jump(view: View, offset: Host, field: usize) -> Mem {
        at(offset_of!(Cpu, gate.jumps) + size_of::<[Jump; JUMPS]>() * view as usize + field)
            .indexed(offset, 0)
    }

    /// A field of a view's page of the stack.
    pub fn stack_page(view: View, field: Tlb) -> Mem {
        let field = match field {
            Tlb::Read | Tlb::Write => offset_of!(StackPage, tag),
            Tlb::Addend => unreachable!("the stack is reached by its host address"),
            Tlb::Host => offset_of!(StackPage, host),
            Tlb::Attention => offset_of!(StackPage, attention),
        };
        at(offset_of!(Cpu, mmu.stack) + size_of::<StackPage>() * view as usize + field)
    }

    /// Field of a TLB entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Tlb {
        /// [`Entry::read`].
        Read,
        /// [`Entry::write`].
        Write,
        /// [`Entry::host`].
        Host,
        /// [`Entry::addend`].
        Addend,
        /// [`Entry::attention`].
        Attention,
    }

    /// Offset of a field in a view's TLB entry `slot`.
    pub fn tlb_offset(view: View, slot: usize, field: Tlb) -> usize {
        let field = match field {
            Tlb::Read => offset_of!(Entry, read),
            Tlb::Write => offset_of!(Entry, write),
            Tlb::Host => offset_of!(Entry, host),
            Tlb::Addend => offset_of!(Entry, addend),
            Tlb::Attention => offset_of!(Entry, attention),
        };
        offset_of!(Cpu, mmu.tables)
            + size_of::<crate::mmu::Table>() * view as usize
            + size_of::<Entry>() * slot
            + field
    }
    /// An offset that [`tlb_offset`] gave for the slot of an address, for one that is so many bytes further: a multiple of
    /// the page size.
    pub fn tlb_offset_moved(offset: usize, by: u64) -> usize {
        let entry = offset - offset_of!(Cpu, mmu.tables);
        let slot = entry / size_of::<Entry>() % crate::mmu::ENTRIES;
        let moved = crate::mmu::slot_of(((slot as u64) << 12).wrapping_add(by));
        offset - slot * size_of::<Entry>() + moved * size_of::<Entry>()
    }
    /// The field, the entry's offset being in a register.
    pub fn tlb(view: View, offset: Host, field: Tlb) -> Mem {
        at(tlb_offset(view, 0, field)).indexed(offset, 0)
    }
    /// The field of a known entry.
    pub fn tlb_slot(view: View, slot: usize, field: Tlb) -> Mem {
        at(tlb_offset(view, slot, field))
    }
}
