//! The translator: blocks that run often become host code.
//!
//! # Conventions
//! - **Registers.** Guest RAX to R10, R12 and R13 are in the host's registers of the same name, RSP in R15; R11, R14 and
//!   R15 are in memory. Host R14 and R11 are scratch. Vector registers, MXCSR and the x87 unit are the guest's.
//! - **Flags.** The guest's arithmetic flags are in the host's, or, where those are needed for checks, in memory; the
//!   lowering knows where ([`lower::Place`]), saves them when they matter, and brings them back when they are read. Each
//!   translation has two entries, one for each place.
//! - **Memory.** Each access looks into the TLB of `mmu`; a miss has the interpreter execute the instruction, which fills
//!   the TLB and raises what is to be raised. So there is one piece of code for page walks, faults, devices, page crossings.
//! - **Control flow.** Direct branches jump through *slots* (data), linked when first used. Within a page they need no
//!   check; into another page they compare that page's id ([`crate::mmu::CodePages`]). Indirect jumps look into a table.
//!   Calls are host calls, so returns are foreseen by the host.
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
//! for a page fault in between, nor for an interrupt at the head of a loop; a debugger could see that in the frame of the
//! fault.
//!
//! # Who owns what
//! Each vCPU has translations of its own, as it has blocks of its own: nothing here is locked. They are kept by physical
//! page and linear address; a page that turns up at another address takes its translations along ([`placement`]).
//! Overwritten code is announced by the same protocol as for blocks ([`crate::mmu::watch`]). A dropped translation stays in
//! memory until all are dropped, which happens only outside translated code.

mod check;
mod context;
mod data;
mod emit;
mod flags;
mod flow;
mod group;
mod helpers;
mod lower;
mod memory;
mod placement;
mod relocation;
mod single;
mod site;
mod system;
mod thunks;
mod tools;

use std::cell::Cell;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::mem::offset_of;
use std::ops::Range;

use iced_x86::{Decoder, Instruction};

pub use context::Context;
use context::World;
use lower::{Lowered, Lowering, Source};
use memory::CodeMemory;
use placement::{Home, Placements};
use relocation::Relocation;
pub use single::{Facts, Single, Until};
use site::{Exit, Origin, Site};
use thunks::Thunks;
use tools::Tools;

use crate::code::{Map, StableBlock};
use crate::cpu::{Cpu, Exec};
use crate::mmu::View;

/// Times that a block is interpreted before it is translated.
pub const HOT: u32 = 24;

/// Loop heads, calls and indirect jumps between two looks at the time and at events: some ten microseconds.
const BUDGET: i32 = 3000;

/// Code memory of a partition, in bytes, and the least that a vCPU gets of it.
const MEMORY: usize = 96 << 20;
const LEAST_MEMORY: usize = 4 << 20;

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
struct Translation {
    /// Entries with flags in the host's register, and in memory.
    entries: [usize; 2],
    /// Page and granules that it was made from; a second page when the (only) instruction crosses a page border.
    pages: [Option<(u32, u64)>; 2],
    /// Exits that lead here, and some that have.
    linked: HashSet<usize>,
    /// Its own exits.
    exits: Range<usize>,
    /// Fields of the code that depend on its address. `None`: it cannot be moved.
    relocations: Option<Box<[Relocation]>>,
    /// Named by the code, as are the sites.
    origin: Box<Origin>,
    _sites: Box<[Site]>,
}

impl Translation {
    /// What it is of.
    fn key(&self) -> Key {
        self.origin.key.get()
    }

    /// Whether it was made from any of these granules.
    fn is_of(&self, page: u32, granules: u64) -> bool {
        self.pages.iter().flatten().any(|&(p, g)| p == page && g & granules != 0)
    }
}

/// Code of one translation, for exceptions in it.
struct Placed {
    start: usize,
    faults: Box<[[u32; 3]]>,
}

/// The translations of one vCPU.
#[derive(Default)]
pub struct Translator {
    /// Not to be used.
    off: bool,
    memory: Option<CodeMemory>,
    thunks: Thunks,
    translations: Placements,
    exits: Vec<Exit>,
    returns: Vec<*const Site>,
    placed: Vec<Placed>,
    /// Dropped translations whose code may still run.
    #[expect(clippy::vec_box, reason = "as they were in the map")]
    retired: Vec<Box<Translation>>,
    /// All code is to go, outside of translated code.
    emptied: bool,
    /// Grows when a translation was dropped.
    epoch: u64,
    tools: Tools,
    /// Most instructions of a translation.
    most: usize,
    /// What [`single`] knows of translations, by their entries.
    facts: Map<usize, Facts>,
    /// Spoils code, to see that it is found out.
    #[cfg(test)]
    pub spoil: Option<fn(&mut [u8])>,
    /// Translations made.
    pub built: u64,
}

// SAFETY: the pointers are to sites that the translations own, so they move with them.
unsafe impl Send for Translator {}

impl Translator {
    /// Without translations.
    pub fn new() -> Self {
        let wanted = |what: &str| std::env::var_os("VIREO_TRANSLATOR").is_some_and(|v| v == what);
        Self { off: wanted("off"), most: usize::MAX, ..Self::default() }
    }

    /// Has each translation be of one instruction.
    pub fn one_by_one(&mut self) {
        self.most = 1;
    }

    /// Drops translations of these granules of a page.
    pub fn invalidate(&mut self, page: u32, granules: u64) {
        let stale = self.translations.made_from(page, granules);
        stale.iter().for_each(|k| self.drop_translation(k));
    }

    /// Drops a translation, if it is there: nothing leads to it any more. What its code names stays, since it may run.
    fn drop_translation(&mut self, key: &Key) {
        if let Some(t) = self.translations.remove(key) {
            self.retire(t);
        }
    }

    /// Keeps a translation that was taken out.
    fn retire(&mut self, t: Box<Translation>) {
        for exit in &t.linked {
            unlink(&mut self.memory, &self.exits, *exit);
        }
        self.retired.push(t);
        self.epoch += 1;
    }

    /// Bytes of host code.
    pub fn code_bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, CodeMemory::used)
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.epoch += 1;
        self.retired.extend(self.translations.drain());
        self.emptied = true;
    }

    /// Drops everything, ids too: the caller forgets all pages.
    fn start_over(&mut self) {
        self.clear();
        self.translations.start_over();
    }

    /// Frees what [`Translator::clear`] dropped. No translated code runs, or is on the stack.
    fn empty(&mut self) {
        if std::mem::take(&mut self.emptied) {
            self.retired.clear();
            self.placed.clear();
            self.exits.clear();
            self.returns.clear();
            self.facts.clear();
            self.memory.iter_mut().for_each(CodeMemory::clear);
            crate::host::serialize();
        }
    }

    /// Makes room for one more translation. `avx`: the model has YMM registers.
    fn make_room(&mut self, vcpus: usize, avx: bool) -> Option<&mut CodeMemory> {
        if self.memory.is_none() {
            let size = (MEMORY / vcpus).clamp(LEAST_MEMORY, MEMORY / 2) & !0xffff;
            let Ok(mut memory) = CodeMemory::new(size) else {
                self.off = true;
                return None;
            };
            let mut e = emit::Emitter::new();
            let labels = thunks::build(&mut e, avx);
            let base = memory.next();
            let (code, places) = e.finish(base);
            self.thunks = labels.resolve(base, &places);
            memory.add(&code);
            memory.keep();
            self.memory = Some(memory);
        }
        let full = self.memory.as_ref().is_some_and(|m| m.room() < MOST_CODE || m.slots_left() < MOST_EXITS);
        if full {
            self.clear();
            self.empty();
        }
        self.memory.as_mut()
    }

    /// Keeps a new translation; there is room, and none of this key.
    fn add(&mut self, pages: [Option<(u32, u64)>; 2], origin: Box<Origin>, lowered: Lowered) {
        let Some(memory) = &mut self.memory else { return };
        let exits = self.exits.len()..self.exits.len() + lowered.exits.len();
        debug_assert!(lowered.code.len() <= MOST_CODE && lowered.exits.len() <= MOST_EXITS);
        memory.add(&lowered.code);
        lowered.exits.iter().for_each(|e| memory.add_slot(e.unlinked));
        self.exits.extend(lowered.exits);
        self.returns.extend(lowered.returns);
        let start = origin.start;
        self.placed.push(Placed { start, faults: lowered.faults.into() });
        self.built += 1;
        let entries = [start, start + lowered.memory_entry as usize];
        let translation = Translation {
            entries,
            pages,
            linked: HashSet::new(),
            exits,
            relocations: lowered.relocations,
            origin,
            _sites: lowered.sites,
        };
        self.translations.insert(Box::new(translation));
    }

    /// Where code goes on after a host exception at an address.
    fn after_exception(&self, at: usize) -> Option<usize> {
        let n = self.placed.partition_point(|p| p.start <= at).checked_sub(1)?;
        let p = self.placed.get(n)?;
        let offset = at - p.start;
        let fault = p.faults.iter().find(|f| (f[0] as usize..f[1] as usize).contains(&offset))?;
        Some(p.start + fault[2] as usize)
    }
}

/// Has an exit lead to [`helpers::link`] again.
fn unlink(memory: &mut Option<CodeMemory>, exits: &[Exit], exit: usize) {
    if let (Some(memory), Some(e)) = (memory, exits.get(exit)) {
        memory.set_slot(exit, e.unlinked, 0);
    }
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
    // SAFETY: the vCPU is borrowed by the code that was interrupted, which is not Rust; this only reads.
    unsafe { (*cpu).code.translator.after_exception(at) }
}

impl Cpu {
    /// What remembered translations are good for: the code's view has not changed its pages, and none was dropped.
    fn translation_stamp(&self) -> (u64, u64) {
        let world = self.world().bits();
        let epoch = self.code.translator.epoch << World::BITS;
        (self.mmu.code_pages.generation(self.code_view()), epoch | world)
    }

    /// The key of the code at RIP, if it can be fetched, and whether its page is global. What a fetch would raise is left
    /// to the interpreter.
    fn translation_key(&mut self) -> Option<(Key, bool)> {
        let view = self.mmu.view();
        let possible =
            World::translatable(self.mode) && view != View::UserAligned && !self.code.translator.off;
        if !possible || !Self::canonical(self.rip) {
            return None;
        }
        let gpa = self.fetch_address(self.rip).ok()?;
        let global = self.code_is_global(self.rip);
        Some((Key { gpa, rip: self.rip, world: self.world(), view }, global))
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
        let (key, global) = self.translation_key()?;
        if self.code.translator.translations.get(&key).is_none() {
            self.move_here(&key, global)?;
        }
        let t = self.code.translator.translations.get(&key)?;
        let (entry, second) = (t.entries[1], t.pages[1]);
        if !self.may_lead_to(entry) {
            return None;
        }
        if let Some((page, _)) = second {
            self.second_page_id(&key, page)?;
        }
        self.page_id(key.home(), global);
        self.gate.know(key.view, key.rip, entry as *const u8);
        Some(entry)
    }

    /// The id of a page that code is looked up in, which is known from now on.
    fn page_id(&mut self, home: Home, global: bool) -> u32 {
        let view = self.code_view();
        let id = self.code.translator.translations.id(home, self.mmu.code_pages.generation(view));
        self.mmu.code_pages.know(view, home.linear, id, global);
        id
    }

    /// The id of the page after that of a key, if that is the physical page given.
    fn second_page_id(&mut self, key: &Key, page: u32) -> Option<u32> {
        let next = key.next_page();
        if !Self::canonical(next) || self.fetch_address(next).ok()? >> 12 != u64::from(page) {
            return None;
        }
        let global = self.code_is_global(next);
        Some(self.page_id(key.next_home(page), global))
    }

    /// Runs translated code from an entry until something else is to be done.
    pub(crate) fn run_translated(&mut self, entry: usize) -> Exec {
        self.gate.end = Ok(());
        self.enter_world(self.world());
        // SAFETY: the thunk has this type. The vCPU is passed so that the compiler knows it changes.
        let enter: extern "sysv64" fn(usize, *mut Cpu) =
            unsafe { std::mem::transmute(self.code.translator.thunks.enter) };
        enter(entry, self);
        self.gate.end
    }

    /// Code of this world runs now.
    fn enter_world(&mut self, world: World) {
        self.gate.stack_world = world;
        self.gate.returned = self.code.translator.thunks.returned[usize::from(world.user())];
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

    fn exit_target(&self, exit: usize) -> u64 {
        self.code.translator.exits.get(exit).map_or(0, Exit::target)
    }

    fn exit_is_after_sti(&self, exit: usize) -> bool {
        self.code.translator.exits.get(exit).is_some_and(|e| e.after_sti)
    }

    fn exit_rechecks(&self, exit: usize) -> bool {
        self.code.translator.exits.get(exit).is_some_and(|e| e.recheck)
    }

    fn return_site(&self, number: u32) -> *const Site {
        self.code.translator.returns[number as usize]
    }

    /// Links an exit to the translation of the code at RIP, which is there.
    fn link_exit(&mut self, exit: usize) {
        let Some((key, global)) = self.translation_key() else { return };
        let id = self.page_id(key.home(), global);
        let translator = &mut self.code.translator;
        let (Some(t), Some(e)) = (translator.translations.get_mut(&key), translator.exits.get(exit)) else {
            return;
        };
        let Some(memory) = &mut translator.memory else { return };
        // Within a page jumps are not checked: it must still be the same one.
        if e.target() == key.rip && (!e.stays_in_page() || e.origin().key.get().home() == key.home()) {
            memory.set_slot(exit, t.entries[usize::from(e.flags_in_memory)], id);
            // Not for the first time, perhaps: a page that comes and goes has its exits linked again.
            t.linked.insert(exit);
        }
    }

    /// Translates the code at RIP. `None`: it cannot be, or not now.
    pub(crate) fn translate_here(&mut self) -> Option<()> {
        // Translations have ids in their code, and only new ones need new ids.
        if self.code.translator.translations.is_full() {
            self.code.translator.start_over();
            self.mmu.code_pages.forget_all();
        }
        self.code.translator.empty();
        let (key, global) = self.translation_key()?;
        let most = self.code.translator.most;
        self.mmu.ram.page(key.gpa)?;
        let StableBlock { uops, bytes, pages } = self.stable_block(key.gpa, key.world.mode, most).ok()??;
        let mut decoder = Decoder::with_ip(key.world.mode.bits(), &bytes, 0, self.shared.decoder_options);
        let instructions: Vec<Instruction> = uops.iter().map(|_| decoder.decode()).collect();
        let (vcpus, avx) = (self.shared.vcpus.len(), self.model.has(vireo_isa::Feature::Avx));
        let allowed: Vec<bool> = instructions
            .iter()
            .map(|i| !i.is_invalid() && self.model.has(vireo_isa::describe(i.code()).feature))
            .collect();
        self.code.translator.make_room(vcpus, avx)?;
        // One that is there has a second page that has moved.
        self.code.translator.drop_translation(&key);
        let page_id = self.page_id(key.home(), global);
        let second = match pages[1] {
            Some((page, _)) => Some(self.second_page_id(&key, page)?),
            None => None,
        };
        let translator = &mut self.code.translator;
        let memory = translator.memory.as_mut()?;
        let callee = instructions.last().and_then(flow::callee);
        let origin = Box::new(Origin { key: Cell::new(key), uops, callee, start: memory.next() });
        let source = Source {
            key: &key,
            page_id,
            second,
            instructions: &instructions,
            allowed: &allowed,
            origin: &origin,
        };
        let lowered = Lowering::lower(
            source,
            &translator.thunks,
            memory,
            translator.returns.len(),
            &mut translator.tools,
        );
        #[cfg(test)]
        let lowered = Lowered { code: single::spoiled(lowered.code, translator.spoil), ..lowered };
        translator.add(pages, origin, lowered);
        Some(())
    }

    /// Executes the instruction at RIP as translated code, if that can be done.
    pub(crate) fn step_translated(&mut self) -> Option<Exec> {
        if self.stepwise() || self.fetch_address(self.rip).is_err() {
            return None;
        }
        self.renew_budget();
        self.run_hot(true)
    }

    /// Runs the block at RIP as translated code, if it has been translated or now is.
    pub(crate) fn run_hot(&mut self, translate: bool) -> Option<Exec> {
        if let Some(entry) = self.find_translated() {
            return Some(self.run_translated(entry));
        }
        if !translate {
            return None;
        }
        self.translate_here()?;
        let entry = self.find_translated()?;
        Some(self.run_translated(entry))
    }
}
