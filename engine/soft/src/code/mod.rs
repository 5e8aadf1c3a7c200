//! Blocks of decoded instructions: found by virtual address, kept by guest-physical address, dropped when their bytes
//! change.
//!
//! Each vCPU has blocks of its own, so nothing here is shared or locked; what is shared is the announcement of which
//! granules hold decoded code ([`crate::mmu::watch`]).

mod build;

pub(crate) use build::StableBlock;

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::cpu::mode::Mode;
use crate::cpu::{Cpu, Exec, Stop};
use crate::exec::Uop;
use crate::mmu::{Access, Entry, Mapped, View};
use crate::translate::Translator;

/// Where a block is from and what its bytes meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    gpa: u64,
    mode: Mode,
}

/// Instructions that run one after the other unless a branch is taken.
pub struct Block {
    /// The instructions.
    pub uops: Box<[Uop]>,
    key: Key,
    /// Page and granules of the bytes; a second page when the (only) instruction crosses a page border.
    pages: [Option<(u32, u64)>; 2],
    /// Times it was interpreted, and how many make it worth a translation.
    runs: Cell<u32>,
    hot: u32,
}

impl Block {
    fn new(uops: Box<[Uop]>, key: Key, pages: [Option<(u32, u64)>; 2], hot: u32) -> Self {
        Self { uops, key, pages, runs: Cell::new(0), hot }
    }

    /// Counts a run. `None`: there is nothing to look at.
    #[inline(always)]
    fn count_run(&self) -> Option<Look> {
        let runs = self.runs.get();
        self.runs.set(runs.saturating_add(1));
        if runs < self.hot {
            return None;
        }
        // One that cannot be translated now is tried again after as many runs.
        if runs.is_multiple_of(self.hot) {
            return Some(Look::Translate);
        }
        runs.is_multiple_of(LOOK).then_some(Look::Find)
    }
}

/// What to do about a block that runs often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// See whether there is a translation.
    Find,
    /// Make one if there is none.
    Translate,
}

/// A recent lookup by virtual address.
#[derive(Clone, Copy)]
struct Recent {
    /// Linear address.
    at: u64,
    stamp: u64,
    mode: u16,
    block: *const Block,
}

const RECENT: usize = 4096;

/// How the code at an address is there.
enum Found {
    /// As a block.
    Block(*const Block),
    /// As a translation, with this entry.
    Translation(usize),
}

/// Runs of a hot block that could not be translated between two looks whether another vCPU could.
const LOOK: u32 = 4;

/// The least memory for decoded code that a vCPU gets, in bytes. When it has used up what it has, it forgets all, and how hot
/// it was.
const LEAST_MEMORY: usize = 2 << 20;

/// What a block takes: its micro-operations, itself, and its entries in the two maps.
fn footprint(block: &Block) -> usize {
    size_of_val(&*block.uops) + size_of::<Block>() + 4 * size_of::<Key>()
}

/// The multiplicative hash of integers; keys come from the guest, but a guest can only slow itself.
#[derive(Default)]
pub(crate) struct IntHasher(u64);
impl Hasher for IntHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u8(&mut self, v: u8) {
        self.write_u64(u64::from(v));
    }
    fn write_u32(&mut self, v: u32) {
        self.write_u64(u64::from(v));
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0.rotate_left(5) ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
pub(crate) type Map<K, V> = HashMap<K, V, BuildHasherDefault<IntHasher>>;

/// The decoded code of one vCPU.
pub struct CodeCache {
    blocks: Map<Key, Box<Block>>,
    by_page: Map<u32, Vec<Key>>,
    recent: Box<[Recent; RECENT]>,
    /// Grows when a block was dropped; part of the stamp of recent lookups.
    generation: u64,
    /// Dropped blocks that may still be running; freed between blocks.
    #[expect(clippy::vec_box, reason = "a running block must not move")]
    dropped: Vec<Box<Block>>,
    /// The block that runs now.
    current: *const Block,
    /// Sum of the blocks' footprints, and its bound.
    bytes: usize,
    most_bytes: usize,
    /// Address of a block that is worth a translation, though only its first instruction is run, by itself.
    wanted: Option<u64>,
    /// Where blocks are put together; empty otherwise.
    scratch: Vec<Uop>,
    /// Blocks built, for statistics.
    pub built: u64,
    /// What became host code.
    pub translator: Translator,
}

// SAFETY: the raw pointers point into boxes that the cache itself owns, so they move between threads with it.
unsafe impl Send for CodeCache {}

impl CodeCache {
    /// An empty cache that takes about so many bytes.
    pub fn new(bytes: usize) -> Self {
        let empty = Recent { at: 0, stamp: 0, mode: 0, block: std::ptr::null() };
        let Ok(recent) = vec![empty; RECENT].into_boxed_slice().try_into() else {
            unreachable!("the vector has RECENT entries")
        };
        Self {
            blocks: Map::default(),
            by_page: Map::default(),
            recent,
            generation: 1,
            dropped: Vec::new(),
            current: std::ptr::null(),
            bytes: 0,
            most_bytes: bytes.max(LEAST_MEMORY),
            wanted: None,
            scratch: Vec::new(),
            built: 0,
            translator: Translator::new(),
        }
    }

    /// Drops blocks decoded from these granules of a page. A running block among them ends after its current instruction.
    pub fn invalidate(&mut self, page: u32, granules: u64) {
        let Some(mut keys) = self.by_page.remove(&page) else { return };
        let hit = |b: &Block| b.pages.iter().flatten().any(|&(p, g)| p == page && g & granules != 0);
        let stale: Vec<Key> = keys.extract_if(.., |k| self.blocks.get(k).is_none_or(|b| hit(b))).collect();
        if !keys.is_empty() {
            self.by_page.insert(page, keys);
        }
        for key in stale {
            self.remove(key);
        }
    }

    /// Has every block looked up, and its limits checked, anew.
    pub fn forget_recent(&mut self) {
        self.generation += 1;
    }

    /// Drops all blocks.
    pub fn clear(&mut self) {
        self.generation += 1;
        for (_, b) in self.blocks.drain() {
            retire(&mut self.dropped, self.current, b);
        }
        self.by_page.clear();
        self.bytes = 0;
    }

    fn remove(&mut self, key: Key) {
        let Some(block) = self.blocks.remove(&key) else { return };
        self.generation += 1;
        self.bytes -= footprint(&block);
        for (page, _) in block.pages.iter().flatten() {
            if let Some(keys) = self.by_page.get_mut(page) {
                keys.retain(|k| *k != key);
                if keys.is_empty() {
                    self.by_page.remove(page);
                }
            }
        }
        retire(&mut self.dropped, self.current, block);
    }

    fn insert(&mut self, block: Box<Block>) -> *const Block {
        if self.bytes > self.most_bytes {
            self.clear();
        }
        // One over a page border whose second page moved is built anew: the old one goes with its entries in `by_page`.
        self.remove(block.key);
        self.built += 1;
        self.bytes += footprint(&block);
        for (page, _) in block.pages.iter().flatten() {
            self.by_page.entry(*page).or_default().push(block.key);
        }
        let at: *const Block = &*block;
        self.blocks.insert(block.key, block);
        at
    }
}

/// Keeps a dropped block until it is certain not to run, and cuts it short if it runs now.
#[expect(clippy::vec_box, reason = "a running block must not move")]
fn retire(dropped: &mut Vec<Box<Block>>, current: *const Block, block: Box<Block>) {
    if std::ptr::eq(&*block, current) {
        block.uops.iter().for_each(|u| u.run.set(stale));
    }
    dropped.push(block);
}

/// Stands in for every instruction of a block that was dropped while it ran: ends it before that instruction.
fn stale(cpu: &mut Cpu, u: &Uop) -> Exec {
    cpu.rip = cpu.instruction_rip(u);
    // Not counted as an instruction of its own: the run loop adds one.
    cpu.instructions = cpu.instructions.wrapping_sub(1);
    Err(Stop::EndBlock)
}

impl Cpu {
    /// The view of instruction fetches.
    #[inline(always)]
    pub(crate) fn code_view(&self) -> View {
        if self.cpl == 3 { View::User } else { View::Kernel }
    }

    /// How the code at a linear address is mapped, which has been fetched. Of what no TLB entry tells, the worst.
    pub(crate) fn code_mapped(&self, linear: u64) -> Mapped {
        let e = self.mmu.entry(self.code_view(), linear);
        if Entry::hits(e.exec, linear, 1) { e.mapped } else { Mapped { global: false, shift: 30 } }
    }

    /// Changes when a block found by its address may no longer be there.
    #[inline(always)]
    fn code_stamp(&self) -> u64 {
        self.mmu.code_pages.generation(self.code_view()) + self.code.generation
    }

    /// The block at RIP, if it was looked up recently.
    #[inline(always)]
    fn recent_block(&mut self) -> Option<*const Block> {
        let stamp = self.code_stamp();
        let at = self.rip.wrapping_add(self.code_base);
        let r = &self.code.recent[(at ^ at >> 12) as usize % RECENT];
        (r.at == at && r.stamp == stamp && r.mode == self.recent_mode()).then_some(r.block)
    }

    #[inline(always)]
    fn recent_mode(&self) -> u16 {
        u16::from(self.mode.0) | u16::from(self.cpl == 3) << 8
    }

    /// The block at RIP; unless `single`, its translation if there is no block: what has been translated needs none.
    #[cold]
    #[inline(never)]
    fn find_block(&mut self, single: bool) -> Exec<Found> {
        let rip = self.rip;
        let limit = u64::from(self.code_limit);
        if if self.mode.is64() { !Self::canonical(rip) } else { rip > limit } {
            return Err(self.gp(0));
        }
        let gpa = self.fetch_address(rip)?;
        let key = Key { gpa, mode: self.mode };
        let block = match self.code.blocks.get(&key) {
            Some(b) if b.pages[1].is_none() => &**b as *const Block,
            // A block over a page border is only good while the second page is where it was.
            Some(b) => {
                let (second, at) = (b.pages[1].map(|p| p.0), &**b as *const Block);
                let page = self.fetch_second_page(gpa)? >> 12;
                if second == Some(page as u32) { at } else { self.build(key)? }
            }
            None => match if single { None } else { self.hot_entry(false) } {
                Some(entry) => return Ok(Found::Translation(entry)),
                None => self.build(key)?,
            },
        };
        // SAFETY: the cache owns the block, and dropped blocks are freed only at the start of `run_block`.
        let (uops, crosses) = unsafe { (&(*block).uops, (*block).pages[1].is_some()) };
        let end = |u: Option<&Uop>| rip + u.map_or(0, |u| u64::from(u.next));
        if self.code_limit != u32::MAX && end(uops.last()) > limit + 1 {
            // Part of it lies beyond the segment: one instruction, and a fresh look at the next.
            return Err(if end(uops.first()) > limit + 1 { self.gp(0) } else { self.run_one_of(block) });
        }
        let stamp = self.code_stamp();
        // A block over a page border is looked up each time, because its second page may move alone.
        if !crosses {
            let (view, at, mode) = (self.code_view(), rip.wrapping_add(self.code_base), self.recent_mode());
            let linear = self.code_linear(rip);
            self.mmu.code_pages.looked_up(view, linear, self.code_mapped(linear));
            self.code.recent[(at ^ at >> 12) as usize % RECENT] = Recent { at, stamp, mode, block };
        }
        Ok(Found::Block(block))
    }

    /// Linear address of the code at a RIP.
    fn code_linear(&self, rip: u64) -> u64 {
        self.mode.mask_ip(self.code_base.wrapping_add(rip))
    }

    /// Guest-physical address of the code at a RIP, with fetch rights checked.
    pub(crate) fn fetch_address(&mut self, rip: u64) -> Exec<u64> {
        let (view, linear) = (self.code_view(), self.code_linear(rip));
        let e = self.mmu.entry(view, linear);
        if Entry::hits(e.exec, linear, 1) {
            return Ok(u64::from(e.page) << 12 | linear & 0xfff);
        }
        self.translate(view, linear, Access::Exec)
    }

    /// Guest-physical address of the page after that of the code at RIP, which is at `gpa`, with fetch rights checked.
    pub(crate) fn fetch_second_page(&mut self, gpa: u64) -> Exec<u64> {
        let next = self.mode.mask_ip(self.rip.wrapping_add(0x1000 - (gpa & 0xfff)));
        if self.mode.is64() && !Self::canonical(next) {
            return Err(self.gp(0));
        }
        self.fetch_address(next)
    }

    /// Runs one block (or with `single`, one instruction) from RIP. On return RIP is exact; `Ok` and `EndBlock` are both
    /// given as `Ok`.
    #[inline(always)]
    pub fn run_block(&mut self, single: bool) -> Exec {
        if !self.code.dropped.is_empty() {
            self.code.dropped.clear();
        }
        self.regs.set(crate::cpu::regs::BLOCK_RIP, self.rip);
        let block = match self.recent_block() {
            Some(block) => block,
            None => match self.find_block(single) {
                Ok(Found::Block(block)) => block,
                Ok(Found::Translation(entry)) => return self.run_translated(entry),
                Err(Stop::EndBlock) => return Ok(()),
                Err(stop) => return Err(stop),
            },
        };
        self.code.current = block;
        // SAFETY: the cache owns the block; dropped blocks are kept until the next call of this function, and no other
        // is running.
        let block = unsafe { &*block };
        match (block.count_run(), single) {
            (Some(Look::Translate), true) => self.code.wanted = Some(self.rip),
            (Some(look), false) => {
                if let Some(entry) = self.hot_entry(look == Look::Translate) {
                    self.code.remove(block.key);
                    return self.run_translated(entry);
                }
            }
            _ => {}
        }
        let uops = if single { &block.uops[..1] } else { &block.uops[..] };
        for (n, u) in uops.iter().enumerate() {
            if let Err(stop) = (u.run.get())(self, u) {
                // Wraps: `stale` may have taken one from zero.
                self.instructions = self.instructions.wrapping_add(n as u64 + 1);
                return self.stopped(u, stop);
            }
        }
        self.instructions += uops.len() as u64;
        let done = uops.last().map_or(0, |u| u64::from(u.next));
        self.rip = self.mode.mask_ip(self.regs.block_rip().wrapping_add(done));
        Ok(())
    }

    /// Translates the code at RIP, if it was run often: instruction by instruction, as after STI, and is about to be again.
    pub(crate) fn translate_if_wanted(&mut self) {
        if self.code.wanted == Some(self.rip) {
            self.code.wanted = None;
            self.hot_entry(true);
        }
    }

    /// Runs the first instruction of a block that is not to be run whole; `EndBlock` when all went well.
    #[cold]
    fn run_one_of(&mut self, block: *const Block) -> Stop {
        self.code.current = block;
        // SAFETY: as in `run_block`, which is the caller's caller.
        let u = unsafe { &(*block).uops[0] };
        self.instructions += 1;
        match (u.run.get())(self, u) {
            Ok(()) => self.rip = self.next_rip(u),
            Err(stop) => {
                if let Err(stop) = self.stopped(u, stop) {
                    return stop;
                }
            }
        }
        Stop::EndBlock
    }

    #[inline(always)]
    fn stopped(&mut self, u: &Uop, stop: Stop) -> Exec {
        match stop {
            Stop::EndBlock => Ok(()),
            Stop::Fault => {
                self.instructions -= 1;
                self.rip = self.instruction_rip(u);
                Err(Stop::Fault)
            }
            other => Err(other),
        }
    }
}
