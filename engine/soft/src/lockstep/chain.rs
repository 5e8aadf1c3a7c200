//! Chains of translations against the interpreter.
//!
//! Only the translator knows where it will leave a chain. So it runs first, with a small budget, and is undone; then
//! the interpreter runs until it is where the translator was, with the same state. Where it never is, they differ.

use super::registers::Registers;
use super::{Difference, Differs, Outcome, Undo};
use crate::cpu::{Cpu, Exec, Stop};
use crate::translate::{Single, Until};

/// Blocks in which the interpreter must come to where the translator was. A chain has a budget of [`BUDGET`] calls and
/// jumps back, and few other blocks between them.
const MOST: usize = 4096;

/// Largest budget of a chain.
const BUDGET: u32 = 40;

/// The interpreter did not come to where the translator was.
struct Lost {
    met: Option<Met>,
    /// How the interpreter ended, if what it did stands.
    end: Exec,
}

/// How the interpreter was when it looked most like the translator.
struct Met {
    here: Registers,
    memory: Vec<Differs>,
    end: Exec,
}

impl Cpu {
    /// Runs a chain of translations, then the interpreter, and compares.
    pub(super) fn compare_chain(&mut self, single: &Single, random: u32) -> Outcome {
        let others = self.shared.take_written();
        self.with_lockstep(|l, mmu| l.pages.begin(mmu, others));
        let budget = (random % BUDGET) as i32;
        let stack = self.mmu.stack;
        let before = Registers::of(self, true);
        let end = match self.run_undoably(|cpu| cpu.run_single(single, budget)) {
            Undo::Possible(end) => end,
            Undo::Impossible(end) => return Outcome::Stands(end),
        };
        let there = Registers::of(self, true);
        self.with_lockstep(|l, mmu| l.pages.undo(mmu));
        before.put_back(self);
        self.mmu.stack = stack;
        let mut trail = Vec::new();
        let followed = self.follow(&there, end, &mut trail);
        let others = self.shared.take_written();
        let Err(Lost { met, end: now }) = followed else {
            self.with_lockstep(|l, mmu| {
                l.pages.commit(mmu);
                l.counts.compared += 1;
                l.counts.followed += trail.len() as u64;
                l.pages.outdated(others);
            });
            return Outcome::Done(end);
        };
        if !self.roll_back(&others, &before, stack) {
            return Outcome::Beside(now);
        }
        let registers = match &met {
            Some(met) => met.here.differences(&there),
            None => vec!["the interpreter does not come to where the translator left".into()],
        };
        let (memory, other) = met.map_or((Vec::new(), Ok(())), |met| (met.memory, met.end));
        let (ends, beside) = ([other, end], !others.is_empty());
        Outcome::Differs(Box::new(Difference { before, trail, registers, memory, ends, beside }))
    }

    /// Has the interpreter run until it is where the translator was and ended. `Err`: it does not come there.
    #[expect(clippy::result_large_err, reason = "it happens once, and ends the run")]
    fn follow(&mut self, there: &Registers, end: Exec, trail: &mut Vec<u64>) -> Result<(), Lost> {
        let mut met = None;
        let mut best = 0;
        while trail.len() < MOST {
            let single = self.single(usize::MAX);
            let alike = there.alike(self).filter(|_| end.is_ok());
            if let Some(n) = alike.filter(|n| *n == 16 || *n > best) {
                let dead_flags = single.as_ref().is_some_and(|s| s.facts.dead_flags);
                let Some(differs) = self.differs(there, end, dead_flags) else { return Ok(()) };
                (met, best) = (Some(differs), n);
            }
            let Some(single) = single.filter(|s| !s.facts.once) else { break };
            trail.push(single.key.rip);
            let now = self.interpret_single(&single, 0, Until::Later(there.rip));
            if now.is_err() {
                let differs = self.differs(there, now, false);
                match now {
                    _ if differs.is_none() && now == end => return Ok(()),
                    // An event cut a string instruction short, or would have.
                    Err(Stop::Yield) => {}
                    _ => return Err(Lost { met: differs, end: now }),
                }
            }
        }
        Err(Lost { met, end: Ok(()) })
    }

    /// What differs between here, where the interpreter ended so, and where the translator was.
    fn differs(&mut self, there: &Registers, end: Exec, dead_flags: bool) -> Option<Met> {
        let (here, mut there) = (Registers::of(self, true), there.clone());
        here.allow(&mut there, end, self.interrupt_waits, dead_flags);
        let memory = self.with_lockstep(|l, mmu| l.pages.compare(mmu));
        (here != there || !memory.is_empty()).then_some(Met { here, memory, end })
    }
}
