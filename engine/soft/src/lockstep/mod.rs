//! Interpreter and translator in lock step: each translation is run by both from the same state, and what they leave
//! must be the same.
//!
//! For one vCPU; every block is translated when it is first met. `VIREO_TRANSLATOR` says what is compared:
//! - `lockstep`: single translations, which do not lead to each other ([`crate::translate`], `single`). A run that both can
//!   do is done by the interpreter, undone (registers, memory, TLB), done by the translator and compared: registers, flags,
//!   XMM, MXCSR, x87, how it ended, and all of each page that either wrote.
//! - `lockstep-chains`: translations that lead to each other as they always do (slots, jump tables, return addresses on the
//!   host's stack), the translator first; see [`chain`].
//!
//! `:N` after either compares one of N runs. What differs three times is reported, made as small as possible, and ends the
//! process. Where the first run had effects that cannot be undone, it stands, and is counted.
//!
//! What this cannot see: instructions that must not be executed twice ([`Counts::once`]), and how translated code meets
//! what other threads do.

mod chain;
mod pages;
mod registers;
mod report;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use crate::cpu::{Cpu, Exec};
use crate::mmu::{Entry, Mmu, StackPage};
use crate::partition::Shared;
use crate::translate::{Single, Until};

use pages::{Differs, Pages};
use registers::Registers;

/// Runs between two checks that no write went unnoticed.
const VERIFY: u64 = 1 << 22;

/// Times that a difference must show: what devices do in between shows once.
const TRIES: u32 = 3;

/// Within this a device tells of what it wrote, also if its thread was put aside in between.
const NOTICE: Duration = Duration::from_millis(100);

/// What became of runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Done by both, and the same.
    pub compared: u64,
    /// Not chosen (one of N).
    pub unchosen: u64,
    /// Single instructions that must not be done twice.
    pub once: u64,
    /// Instructions of code that is not translated.
    pub untranslated: u64,
    /// A device was accessed.
    pub device: u64,
    /// Code was overwritten, or moved.
    pub code: u64,
    /// First write to a page: what was there is not known.
    pub first: u64,
    /// Blocks that the interpreter executed in runs of chains.
    pub followed: u64,
    /// Differed, and not again or for good, while a device wrote to memory.
    pub beside: u64,
    /// Differed, and not again, without that.
    pub unstable: u64,
}

/// State of the comparison.
pub struct Lockstep {
    one_of: u64,
    left: u64,
    random: u64,
    pages: Pages,
    /// Translations lead to each other.
    chains: bool,
    /// TLB entries that the first run replaced.
    replaced: Vec<(usize, usize, Entry)>,
    /// Runs are undone whatever they show.
    trial: bool,
    /// A device or the local APIC was accessed.
    device: bool,
    counts: Counts,
}

/// Two runs that differ.
pub struct Difference {
    before: Registers,
    /// Blocks that the interpreter executed.
    trail: Vec<u64>,
    /// A line for each register.
    registers: Vec<String>,
    memory: Vec<Differs>,
    ends: [Exec; 2],
    /// A device wrote to memory meanwhile.
    beside: bool,
}

/// What became of a comparison.
enum Outcome {
    /// The same: it ended so.
    Done(Exec),
    /// What the first run did cannot be undone, and stands: it ended so.
    Stands(Exec),
    /// They differ, and a device wrote to what the second run wrote to: it stands, as it cannot be undone, and ended so.
    Beside(Exec),
    /// As before the runs.
    Differs(Box<Difference>),
}

/// Whether the first run can be undone; how it ended.
enum Undo {
    Possible(Exec),
    Impossible(Exec),
}

impl Default for Undo {
    fn default() -> Self {
        Self::Impossible(Ok(()))
    }
}

impl Lockstep {
    /// If the environment asks for it.
    pub fn wanted(shared: &Arc<Shared>) -> Option<Box<Self>> {
        let value = std::env::var("VIREO_TRANSLATOR").ok()?;
        let mode = value.strip_prefix("lockstep")?;
        let (chains, n) = mode.strip_prefix("-chains").map_or((false, mode), |n| (true, n));
        if shared.vcpus.len() > 1 {
            eprintln!("lock step: only with one vCPU");
            return None;
        }
        let one_of = n.strip_prefix(':').and_then(|n| n.parse().ok()).unwrap_or(1);
        Some(Box::new(Self::new(shared, chains, one_of)))
    }

    /// Compares one of so many runs, of single translations or of chains.
    pub fn new(shared: &Shared, chains: bool, one_of: u64) -> Self {
        shared.tell_written();
        shared.watch.tell_all();
        Self {
            one_of: one_of.max(1),
            left: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            pages: Pages::new(),
            chains,
            replaced: Vec::new(),
            trial: false,
            device: false,
            counts: Counts::default(),
        }
    }

    /// Whether translations lead to each other.
    pub fn chains(&self) -> bool {
        self.chains
    }

    /// The vCPU wrote to a page that has attention.
    pub fn wrote(&mut self, mmu: &Mmu, page: u32, offset: u32, len: u32) {
        self.pages.wrote(mmu, page, offset, len);
    }

    /// The vCPU accesses something that is not RAM.
    pub fn touched_device(&mut self) {
        self.device = true;
    }

    /// RAM is another.
    pub fn forget_memory(&mut self, mmu: &Mmu) {
        self.pages.forget();
        mmu.watch.tell_all();
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    /// Whether this run is one of those to compare.
    fn chooses(&mut self) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return false;
        }
        self.left = if self.one_of == 1 { 0 } else { self.next_random() % (2 * self.one_of - 1) };
        true
    }
}

impl Cpu {
    /// Runs what is at RIP: a translation, by both if it can be, else an instruction.
    pub(crate) fn run_in_lockstep(&mut self) -> Exec {
        let single = self.single(usize::MAX);
        let Some(l) = &mut self.lockstep else { return Ok(()) };
        let Some(single) = single else {
            l.counts.untranslated += 1;
            return self.run_block(true);
        };
        if single.facts.once {
            l.counts.once += 1;
            return self.interpret_single(&single, 0, Until::End);
        }
        if !l.chooses() {
            l.counts.unchosen += 1;
            let rounds = 100;
            return self.run_single(&single, rounds);
        }
        if l.counts.compared % VERIFY == VERIFY - 1 {
            self.verify_memory();
        }
        self.run_both(&single)
    }

    /// Runs a translation by both, and ends the process if that shows a difference.
    fn run_both(&mut self, single: &Single) -> Exec {
        let (chains, random) = self.with_lockstep(|l, _| (l.chains, (l.next_random() >> 40) as u32));
        let mut last: Option<Box<Difference>> = None;
        let (mut undone, mut beside) = (true, false);
        for _ in 0..TRIES {
            match if chains { self.compare_chain(single, random) } else { self.compare(single, random) } {
                Outcome::Done(end) => {
                    match last {
                        Some(_) if beside => self.with_lockstep(|l, _| l.counts.beside += 1),
                        Some(d) => {
                            let at = single.key.rip;
                            eprintln!(
                                "lock step: differed once, at {at:#x}: {:?} {:x?}",
                                d.registers, d.memory
                            );
                            self.with_lockstep(|l, _| l.counts.unstable += 1);
                        }
                        None => {}
                    }
                    return end;
                }
                Outcome::Stands(end) if last.is_none() => return end,
                // What a device wrote may well lead another way.
                Outcome::Stands(end) if beside => {
                    self.with_lockstep(|l, _| l.counts.beside += 1);
                    return end;
                }
                Outcome::Beside(end) => {
                    self.with_lockstep(|l, _| l.counts.beside += 1);
                    return end;
                }
                // It went another way, perhaps because it went wrong again.
                Outcome::Stands(_) => {
                    undone = false;
                    break;
                }
                Outcome::Differs(difference) => {
                    beside |= difference.beside | self.heard_of_others();
                    last = Some(difference);
                }
            }
        }
        match last {
            Some(d) if chains || !undone => self.report_chain(&d, undone),
            Some(d) => self.report(single, &d),
            None => {}
        }
        std::process::exit(1)
    }

    /// Gives devices time to tell of what they wrote; whether one did.
    fn heard_of_others(&mut self) -> bool {
        std::thread::sleep(NOTICE);
        let others = self.shared.take_written();
        let heard = !others.is_empty();
        self.with_lockstep(|l, _| l.pages.outdated(others));
        heard
    }

    /// Runs a translation by the interpreter, then by the translator, and compares.
    fn compare(&mut self, single: &Single, random: u32) -> Outcome {
        let rounds = 1 + (random % 3) as i32;
        let (outcome, rip) = self.compare_until(single, rounds, Until::End);
        match outcome {
            // Perhaps they did not come equally far: what ended the translation early (code that moved, another world) is no
            // reason for the interpreter to stop.
            Outcome::Differs(d) if d.ends == [Ok(()); 2] => {
                match self.compare_until(single, rounds, Until::Rip(rip)).0 {
                    Outcome::Differs(_) => Outcome::Differs(d),
                    done => done,
                }
            }
            outcome => outcome,
        }
    }

    /// As [`Cpu::compare`]; also gives the RIP that the translator came to.
    fn compare_until(&mut self, single: &Single, rounds: i32, until: Until) -> (Outcome, u64) {
        let others = self.shared.take_written();
        self.with_lockstep(|l, mmu| l.pages.begin(mmu, others));
        let (x87, stack) = (single.facts.x87, self.mmu.stack);
        let before = Registers::of(self, x87);
        let run = |cpu: &mut Self| cpu.interpret_single(single, rounds, until);
        let first_end = match self.run_undoably(run) {
            Undo::Possible(end) => end,
            Undo::Impossible(end) => return (Outcome::Stands(end), self.rip),
        };
        let first = Registers::of(self, x87);
        self.with_lockstep(|l, mmu| l.pages.undo(mmu));
        before.put_back(self);
        self.mmu.stack = stack;
        let exits = self.exits.get();
        let second_end = self.run_single(single, rounds);
        let mut second = Registers::of(self, x87);
        let rip = second.rip;
        if first_end == second_end {
            let dead_flags = single.facts.dead_flags && rip == single.key.rip;
            first.allow(&mut second, first_end, self.interrupt_waits, dead_flags);
        }
        let memory = self.with_lockstep(|l, mmu| l.pages.compare(mmu));
        let same =
            first == second && first_end == second_end && memory.is_empty() && self.exits.get() == exits;
        let trial = self.with_lockstep(|l, _| l.trial);
        if same && !trial {
            self.with_lockstep(|l, mmu| {
                l.pages.commit(mmu);
                l.counts.compared += 1;
            });
            // Exact at faults too.
            self.flags = first.flags;
            return (Outcome::Done(second_end), rip);
        }
        let others = self.shared.take_written();
        if !self.roll_back(&others, &before, stack) {
            return (Outcome::Beside(second_end), rip);
        }
        if same {
            return (Outcome::Done(second_end), rip);
        }
        let registers = first.differences(&second);
        let (ends, beside) = ([first_end, second_end], !others.is_empty());
        (
            Outcome::Differs(Box::new(Difference {
                before,
                trail: Vec::new(),
                registers,
                memory,
                ends,
                beside,
            })),
            rip,
        )
    }

    /// Undoes the second run, unless devices (`others`) wrote to what it wrote to. Whether it did.
    fn roll_back(&mut self, others: &[u32], before: &Registers, stack: [StackPage; 4]) -> bool {
        let undone = self.with_lockstep(|l, mmu| l.pages.roll_back(mmu, others));
        if undone {
            before.put_back(self);
            self.mmu.stack = stack;
        }
        undone
    }

    /// The first run. The TLB is what it was if the run can be undone.
    fn run_undoably(&mut self, run: impl FnOnce(&mut Self) -> Exec) -> Undo {
        let unchanged = |cpu: &Self| (cpu.code_stamp_of_all(), cpu.exits.get());
        let (before, flushes) = (unchanged(self), self.mmu.flushes);
        let replaced = self.with_lockstep(|l, _| {
            l.device = false;
            std::mem::take(&mut l.replaced)
        });
        self.mmu.replaced = Some(replaced);
        let end = run(self);
        let mut replaced = self.mmu.replaced.take().unwrap_or_default();
        let (moved, exits) = (self.code_stamp_of_all() != before.0, self.exits.get() != before.1);
        // Entries that were flushed meanwhile must not come back.
        if self.mmu.flushes == flushes {
            for (view, slot, entry) in replaced.drain(..).rev() {
                self.mmu.tables[view][slot] = entry;
            }
        }
        replaced.clear();
        self.with_lockstep(|l, mmu| {
            l.replaced = replaced;
            let (device, first) = (l.device || exits, !l.pages.can_undo());
            l.counts.device += u64::from(device);
            l.counts.code += u64::from(!device && moved);
            l.counts.first += u64::from(!device && !moved && first);
            if device || moved || first {
                l.pages.accept(mmu);
                return Undo::Impossible(end);
            }
            Undo::Possible(end)
        })
    }

    /// Looks whether all writes were told of.
    fn verify_memory(&mut self) {
        let others = self.shared.take_written();
        let wrong = self.with_lockstep(|l, mmu| {
            l.pages.begin(mmu, others);
            l.pages.verify(mmu)
        });
        // What a device wrote to it is told of only afterwards.
        let others = self.shared.take_written();
        if let Some(page) = wrong.filter(|page| !others.contains(page)) {
            eprintln!("lock step: page {page:#x} was written, but nobody looked at its attention byte");
            std::process::exit(1);
        }
        self.with_lockstep(|l, mmu| {
            l.pages.begin(mmu, others);
            l.pages.accept(mmu);
        });
    }

    fn with_lockstep<R: Default>(&mut self, f: impl FnOnce(&mut Lockstep, &Mmu) -> R) -> R {
        self.lockstep.as_mut().map(|l| f(l, &self.mmu)).unwrap_or_default()
    }
}

impl Drop for Lockstep {
    fn drop(&mut self) {
        eprintln!("{}", self.counts);
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "lock step: {} compared{}; {} not chosen; by one only: {} not repeatable, {} not translated, {} device, \
             {} code changed, {} first write to page; {} differed beside a device's write, {} differed once",
            self.compared,
            if self.followed > 0 { format!(" (of {} blocks)", self.followed) } else { String::new() },
            self.unchosen,
            self.once,
            self.untranslated,
            self.device,
            self.code,
            self.first,
            self.beside,
            self.unstable
        )
    }
}
