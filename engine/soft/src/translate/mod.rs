//! The translator: blocks that run often become host code.
//!
//! # Conventions
//! - **Registers.** Guest RAX to R10, R12 and R13 are in the host's registers of the same name, RSP in R15; R11, R14 and
//!   R15 are in memory. Host R14 and R11 are scratch. Vector registers, MXCSR and the x87 unit are the guest's.
//! - **Flags.** The guest's arithmetic flags are in the host's, or, where those are needed for checks, in memory; the
//!   lowering knows where ([`lower::Place`]), saves them when they matter, and brings them back when they are read. Each
//!   translation has an entry for each place.
//! - **Memory.** Each access looks into the TLB of `mmu`; a miss has the interpreter execute the instruction, which fills
//!   the TLB and raises what is to be raised. So there is one piece of code for page walks, faults, devices, page crossings.
//! - **Control flow.** Direct branches jump through *slots* (data), linked when first used. Within a page they need no
//!   check; those into another page lead to an entry that compares that page's id ([`crate::mmu::CodePages`]). Indirect
//!   jumps look into a table. Calls are host calls, so returns are foreseen by the host.
//! - **Everything rare** is left to the interpreter, instruction by instruction, from within the translation.
//!
//! # Why the check looks as it does
//! Measured on compiled code before the conventions were settled: `make bench-tlb`; all figures, what they are worth and
//! how they were taken are in `bench/tlb-check/README.md`. Time of programs with checks as a multiple of that without
//! (mean, integer and SSE), and cycles per link of a pointer chase (TCG's code: 24.7):
//!
//! | design | integer | SSE | chase |
//! |---|---|---|---|
//! | flags saved lazily where live, groups, known stack page | 2.16 | 3.66 | 25.6 |
//! | no groups | 2.23 | 3.91 | 21.2 |
//! | neither groups nor stack page | 2.26 | 3.92 | 21.2 |
//! | `lahf`, `seto` and back around each check where flags are live | 2.43 | 3.75 | |
//! | the same around each check | 4.61 | 14.30 | |
//! | flag-free (PEXT, JRCXZ; a third scratch register) | 2.81 | 5.67 | 20.4 |
//! | this one: the first, and an addend (host minus guest address) for reads by a register | 2.11 | 3.68 | 19.5 |
//! | the same, tables below 2 GiB instead of through GS | 2.01 | 3.59 | 17.5 |
//!
//! So flags are saved lazily, and checks may overwrite them; and a dependent load does not wait for the tag
//! ([`lower::Reach`]). Next would be tables below 2 GiB; and where the last read of a group overwrites the group's base, as
//! in a chase, to issue it first.
//!
//! # Exactness
//! An instruction changes guest state only after its last possible fault, and faults are raised by the interpreter with all
//! state in its place. One thing is not exact: arithmetic flags that the next instructions overwrite unseen are not kept
//! for a page fault in between, nor for an interrupt at the head of a loop or within a repeated string instruction; a debugger could see that in the frame of the
//! fault.
//!
//! # Who owns what
//! The vCPUs of a partition share their translations ([`store`]), which are kept by physical page and linear address; a page
//! that turns up at another address takes its translations along ([`placement`]). Each vCPU has blocks of its own, counts how
//! often it ran them, and has tables of its own of what it looked up. Whoever overwrites code ([`crate::mmu::watch`]) drops
//! what was translated from it before anybody hears of it.

mod check;
mod churn;
mod context;
mod data;
mod emit;
mod filter;
mod flags;
mod flow;
mod group;
mod helpers;
mod lower;
mod memory;
mod placement;
mod relocation;
mod segments;
mod single;
mod site;
mod store;
mod string;
mod system;
mod thunks;
mod tools;

use std::hash::{Hash, Hasher};
use std::mem::offset_of;
use std::sync::Arc;

use iced_x86::{Decoder, Instruction};

use churn::Made;
pub use context::Context;
use context::World;
#[cfg(test)]
use lower::Lowered;
use lower::{Lowering, Source};
use placement::{Home, User};
use relocation::Relocation;
pub use single::{Facts, Single, Until};
use site::{Exit, Origin, Site};
use store::Shard;
pub use store::SharedCode;
use tools::Tools;

use crate::code::{Map, StableBlock};
use crate::cpu::{Cpu, Exec};
use crate::mmu::{CodePages, Mapped, View};

/// Loop heads, calls and indirect jumps between two looks at the time and at events: some ten microseconds.
const BUDGET: i32 = 3000;

/// Room that any translation finds enough.
const MOST_CODE: usize = 64 << 10;
const MOST_EXITS: usize = 256;

/// What a translation is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Guest-physical and virtual address.
    pub gpa: u64,
    /// See above.
    pub rip: u64,
    /// Who executes it, how.
    pub world: World,
    /// View of its data accesses.
    pub view: View,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.gpa);
        state.write_u64(self.rip);
        state.write_u64(self.world.bits() << 8 | self.view as u64);
    }
}

impl Key {
    /// Address of the page after that of the code.
    fn next_page(&self) -> u64 {
        self.world.mode.mask_ip((self.rip | 0xfff).wrapping_add(1))
    }
}

/// A translation.
pub(crate) struct Translation {
    /// Offsets of the entries with flags in the host's register, and in memory. The checked entry is at the start.
    host_entry: u16,
    memory_entry: u16,
    /// Page and granules that it was made from; a second page when the (only) instruction crosses a page border.
    pages: [Option<(u32, u64)>; 2],
    /// Exits that lead here, and some that have.
    linked: Vec<*const Exit>,
    /// Id of the second page.
    second_id: Option<u32>,
    made: Made,
    /// Fields of the code that depend on its address. `None`: it cannot be moved.
    relocations: Option<Box<[Relocation]>>,
    /// Named by the code, as are sites and exits.
    origin: Box<Origin>,
    exits: Box<[Exit]>,
    sites: Box<[Site]>,
}

impl Translation {
    /// What it is of.
    fn key(&self) -> Key {
        self.origin.key()
    }

    /// The entry that looks whether the vCPU wants this page, with flags in memory and an exit in T0.
    fn checked_entry(&self) -> usize {
        self.origin.start
    }

    /// The entry with flags in the host's register.
    fn host_entry(&self) -> usize {
        self.origin.start + usize::from(self.host_entry)
    }

    /// The entry with flags in memory.
    fn entry(&self) -> usize {
        self.origin.start + usize::from(self.memory_entry)
    }

    /// Whether it was made from any of these granules.
    fn is_of(&self, page: u32, granules: u64) -> bool {
        self.pages.iter().flatten().any(|&(p, g)| p == page && g & granules != 0)
    }

    /// An exit leads here now.
    fn note_link(&mut self, exit: *const Exit) {
        // Not for the first time, perhaps: a page that comes and goes has its exits linked again.
        if self.linked.len() == self.linked.capacity() {
            self.linked.sort_unstable();
            self.linked.dedup();
            self.linked.reserve(self.linked.len());
        }
        if self.linked.last() != Some(&exit) {
            self.linked.push(exit);
        }
    }

    /// Forgets exits whose slots, which `slot` reads, lead elsewhere by now.
    fn sweep_links(&mut self, slot: impl Fn(&Exit) -> usize) {
        let entries = [self.checked_entry(), self.host_entry(), self.entry()];
        self.linked.sort_unstable();
        self.linked.dedup();
        // SAFETY: lists of exits have none that was freed.
        self.linked.retain(|e| entries.contains(&slot(unsafe { &**e })));
        self.linked.shrink_to_fit();
    }

    /// About what it takes besides its code, in bytes.
    fn footprint(&self) -> usize {
        /// Boxes' headers and padding, places in maps.
        const ALLOCATOR: usize = 160;
        let relocations = self.relocations.as_deref().map_or(0, size_of_val);
        let own = size_of::<Self>()
            + size_of::<Origin>()
            + self.exits.len() * (size_of::<Exit>() + size_of::<*const Exit>());
        own + size_of_val(&*self.origin.uops) + size_of_val(&*self.sites) + relocations + ALLOCATOR
    }
}

// SAFETY: the pointers are to exits of translations of the same store, which has none in its lists that was freed.
unsafe impl Send for Translation {}

/// What a vCPU has of its own to translate with.
#[derive(Default)]
pub struct Translator {
    /// Not to be used.
    off: bool,
    tools: Tools,
    /// Most instructions of a translation.
    most: usize,
    /// What [`single`] knows of translations, by their entries.
    facts: Map<usize, Facts>,
    /// [`SharedCode::moves`] and [`SharedCode::era`] when code was looked up last.
    moves: u64,
    era: u64,
    /// Spoils code, to see that it is found out.
    #[cfg(test)]
    pub spoil: Option<fn(&mut [u8])>,
    /// Translations made.
    pub built: u64,
}

impl Translator {
    /// Nothing made yet.
    pub fn new() -> Self {
        let wanted = |what: &str| std::env::var_os("VIREO_TRANSLATOR").is_some_and(|v| v == what);
        Self { off: wanted("off"), most: usize::MAX, ..Self::default() }
    }

    /// Has each translation be of one instruction.
    pub fn one_by_one(&mut self) {
        self.most = 1;
    }

    /// The id of a page that code is looked up in, which the vCPU knows from now on.
    fn know(&mut self, shard: &mut Shard<'_>, pages: &mut CodePages, at: Seen, vcpu: u32) -> u32 {
        let (era, moves) = shard.era_and_moves();
        if self.era != era {
            self.era = era;
            pages.forget_all();
        }
        if self.moves != moves {
            self.moves = moves;
            crate::host::serialize();
        }
        let id = shard.id(at.home, User { vcpu, times: pages.times_user_forgotten() });
        let view = if at.home.user { View::User } else { View::Kernel };
        pages.know(view, at.home.linear, id, at.mapped);
        id
    }
}

/// A page that code was found in.
#[derive(Clone, Copy)]
struct Seen {
    home: Home,
    mapped: Mapped,
}

/// Whether the host has BMI2.
fn has_bmi2() -> bool {
    std::arch::is_x86_feature_detected!("bmi2")
}

/// Where translated code goes on after a host exception at `at`: called by the signal handler, on the vCPU's thread, while
/// translated code runs there.
pub fn after_exception(at: usize) -> Option<usize> {
    let cpu: *const Cpu;
    // SAFETY: translated code runs with the GS base at its vCPU, whose first thing in `gate` is a pointer to itself.
    unsafe {
        std::arch::asm!("mov {c}, gs:[{o}]", c = out(reg) cpu, o = const offset_of!(Cpu, gate),
            options(nostack, readonly, preserves_flags));
    }
    // SAFETY: the vCPU is borrowed by the code that was interrupted, which is not Rust; this only reads what it shares.
    let shared = unsafe { &(*cpu).shared };
    shared.code.after_exception(at)
}

impl Cpu {
    /// What remembered translations are good for: the code's view has not changed its pages, and none was dropped.
    fn translation_stamp(&self) -> (u64, u64) {
        let world = self.world().bits();
        let epoch = self.shared.code.epoch() << World::BITS;
        (self.mmu.code_pages.generation(self.code_view()), epoch | world)
    }

    /// Whether what this vCPU remembers of translations still holds, and so what it runs: no translation was dropped, whoever
    /// did it, since it looked last.
    fn translations_hold(&self) -> bool {
        self.gate.is_good_for(self.code_view(), self.translation_stamp())
    }

    /// The key of the code at RIP, if it can be fetched, and how its page is mapped. What a fetch would raise is left
    /// to the interpreter.
    fn translation_key(&mut self) -> Option<(Key, Mapped)> {
        let view = self.mmu.view();
        let possible =
            World::translatable(self.mode) && view != View::UserAligned && !self.code.translator.off;
        if !possible || !Self::canonical(self.rip) {
            return None;
        }
        let gpa = self.fetch_address(self.rip).ok()?;
        let mapped = self.code_mapped(self.rip);
        Some((Key { gpa, rip: self.rip, world: self.world(), view }, mapped))
    }

    /// The translation of the code at RIP, if the jump table knows it: the address to go to with flags in memory.
    #[inline]
    pub(crate) fn known_translation(&mut self) -> Option<usize> {
        let (view, stamp) = (self.mmu.view(), self.translation_stamp());
        if !World::translatable(self.mode) || view == View::UserAligned {
            return None;
        }
        self.gate.jump(view, self.rip, stamp).map(|entry| entry as usize)
    }

    /// As [`Cpu::known_translation`], if there is one at all.
    pub(crate) fn find_translated(&mut self) -> Option<usize> {
        if let Some(entry) = self.known_translation() {
            return Some(entry);
        }
        let (key, mapped) = self.translation_key()?;
        self.find_translation(&key, mapped)
    }

    /// The translation of a key, which is that of the code at RIP: the address to go to with flags in memory.
    fn find_translation(&mut self, key: &Key, mapped: Mapped) -> Option<usize> {
        if !self.shared.code.may_have(key) {
            return None;
        }
        let mut shard = self.shared.code.shard(key.page());
        // What lock step knows of translations has addresses in it.
        if shard.get(key).is_none() && self.lockstep.is_none() {
            let times = self.mmu.code_pages.times_user_forgotten();
            shard.move_here(key, User { vcpu: self.index, times });
        }
        let t = shard.get(key)?;
        let (entry, second, second_id) = (t.entry(), t.pages[1], t.second_id);
        if !self.may_lead_to(entry) {
            return None;
        }
        let seen = Seen { home: key.home(), mapped };
        self.code.translator.know(&mut shard, &mut self.mmu.code_pages, seen, self.index);
        drop(shard);
        if let Some((page, _)) = second
            && Some(self.second_page_id(key, page)?) != second_id
        {
            // The page was forgotten meanwhile.
            self.shared.code.shard(key.page()).drop_translation(key);
            return None;
        }
        self.gate.know(key.view, key.rip, entry as *const u8);
        Some(entry)
    }

    /// The id of a page that code is looked up in, which is known from now on.
    fn page_id(&mut self, home: Home, mapped: Mapped) -> u32 {
        let mut shard = self.shared.code.shard(home.page);
        let seen = Seen { home, mapped };
        self.code.translator.know(&mut shard, &mut self.mmu.code_pages, seen, self.index)
    }

    /// The id of the page after that of a key, if that is the physical page given.
    fn second_page_id(&mut self, key: &Key, page: u32) -> Option<u32> {
        let next = key.next_page();
        if !Self::canonical(next) || self.fetch_address(next).ok()? >> 12 != u64::from(page) {
            return None;
        }
        let mapped = self.code_mapped(next);
        Some(self.page_id(key.next_home(page), mapped))
    }

    /// Runs translated code from an entry until something else is to be done.
    pub(crate) fn run_translated(&mut self, entry: usize) -> Exec {
        self.gate.end = Ok(());
        self.enter_world(self.world());
        // SAFETY: the thunk has this type. The vCPU is passed so that the compiler knows it changes.
        let enter: extern "sysv64" fn(usize, *mut Cpu) =
            unsafe { std::mem::transmute(self.shared.code.thunks.enter) };
        enter(entry, self);
        self.gate.end
    }

    /// Code of this world runs now.
    fn enter_world(&mut self, world: World) {
        self.gate.stack_world = world;
        self.gate.returned = self.shared.code.thunks.returned[usize::from(world.user())];
    }

    /// The budget of translated code is renewed. No translated code runs.
    pub(crate) fn renew_budget(&mut self) {
        self.gate.budget = BUDGET;
        self.time_changed();
    }

    /// The guest's clock or this vCPU's adjustment of it changed.
    pub(crate) fn time_changed(&mut self) {
        self.gate.tsc_offset = self.tsc_adjust.wrapping_sub(self.shared.clock.offset());
    }

    /// Translated code wants the run loop to look at time and events.
    pub(crate) fn budget_is_used_up(&self) -> bool {
        self.gate.budget < 0
    }

    /// Links an exit to the translation of the code at RIP, which is there.
    fn link_exit(&mut self, exit: &Exit) {
        let Some((key, _)) = self.translation_key() else { return };
        self.shared.code.shard(key.page()).link(exit, &key);
        self.shared.code.sweep_links();
    }

    /// The instructions of the block at a key.
    fn instructions_of(&self, key: &Key, block: &StableBlock) -> Vec<Instruction> {
        let options = self.shared.decoder_options;
        let mut decoder = Decoder::with_ip(key.world.mode.bits(), &block.bytes, 0, options);
        block.uops.iter().map(|_| decoder.decode()).collect()
    }

    /// Translates the code at RIP, of which this is the key. `None`: it cannot be, or not now. No translated code runs, or is on
    /// the stack; what the vCPU remembers must be compared with the epoch anew before any does ([`SharedCode::enter`]).
    fn translate_here(&mut self, key: &Key, mapped: Mapped) -> Option<()> {
        self.shared.code.enter(self.index);
        let most = self.code.translator.most;
        self.mmu.ram.page(key.gpa)?;
        let before = self.shared.code.invalidations(key.page());
        let block = self.stable_block(key.gpa, key.world.mode, most).ok()??;
        let instructions = self.instructions_of(key, &block);
        let StableBlock { uops, pages, .. } = block;
        let allowed: Vec<bool> = instructions.iter().map(|i| self.has_instruction(i)).collect();
        let second = match pages[1] {
            Some((page, _)) => Some(self.second_page_id(key, page)?),
            None => None,
        };
        // Another vCPU that translates now is not waited for.
        let shared = Arc::clone(&self.shared);
        let shared = &shared.code;
        let _building = shared.try_build()?;
        let room = shared.room()?;
        let Some(page_id) = self.id_to_translate_for(key, mapped, &pages)? else { return Some(()) };
        let translator = &mut self.code.translator;
        let callee = instructions.last().and_then(flow::callee);
        let origin = Box::new(Origin::new(*key, page_id, uops, callee, room.code));
        let source =
            Source { key, page_id, second, instructions: &instructions, allowed: &allowed, origin: &origin };
        let lowered = Lowering::lower(source, &shared.thunks, room, &mut translator.tools);
        #[cfg(test)]
        let lowered = Lowered { code: single::spoiled(lowered.code, translator.spoil), ..lowered };
        let mut shard = shared.shard(key.page());
        debug_assert_eq!(shared.room_left(), Some(room), "only who builds uses up room");
        // The placement may have been forgotten meanwhile, as one without translations.
        if shard.id_of(key.home()) != Some(page_id) {
            return None;
        }
        translator.built += 1;
        shard.add(before, pages, second, origin, lowered)
    }

    /// The id of a key's page, known from now on, for a translation of the key. `Some(None)`: another vCPU was faster; `None`: not
    /// now.
    fn id_to_translate_for(
        &mut self,
        key: &Key,
        mapped: Mapped,
        pages: &[Option<(u32, u64)>; 2],
    ) -> Option<Option<u32>> {
        let mut shard = self.shared.code.shard(key.page());
        match shard.get(key) {
            Some(t) if t.pages == *pages => return Some(None),
            // Its second page has moved.
            Some(_) => shard.drop_translation(key),
            None => {}
        }
        let translator = &mut self.code.translator;
        // The second page's id may be of another era.
        if pages[1].is_some() && self.shared.code.era() != translator.era {
            return None;
        }
        let seen = Seen { home: key.home(), mapped };
        Some(Some(translator.know(&mut shard, &mut self.mmu.code_pages, seen, self.index)))
    }

    /// Executes the instruction at RIP as translated code, if that can be done.
    pub(crate) fn step_translated(&mut self) -> Option<Exec> {
        if self.stepwise() || self.fetch_address(self.rip).is_err() {
            return None;
        }
        self.renew_budget();
        self.run_hot()
    }

    /// The translation of the code at RIP: where to go with flags in memory. It is made if there is none, but the code is
    /// hot: so the caller says, or it has been translated for another address.
    pub(crate) fn hot_entry(&mut self, hot: bool) -> Option<usize> {
        if let Some(entry) = self.known_translation() {
            return Some(entry);
        }
        let (key, mapped) = self.translation_key()?;
        if let Some(entry) = self.find_translation(&key, mapped) {
            return Some(entry);
        }
        let code = &self.shared.code;
        let wanted = hot || code.may_have(&key) && code.shard(key.page()).has_elsewhere(&key);
        if !wanted {
            return None;
        }
        self.translate_here(&key, mapped)?;
        // It said that this vCPU is outside, so what that remembers is to be compared with the epoch since.
        let stamp = self.translation_stamp();
        self.gate.jump(key.view, key.rip, stamp);
        self.find_translation(&key, mapped)
    }

    /// Runs the code at RIP as translated code, if it can be.
    pub(crate) fn run_hot(&mut self) -> Option<Exec> {
        let entry = self.hot_entry(true)?;
        Some(self.run_translated(entry))
    }
}
