//! What a reader gets of a difference: the code, the state before it, what differs, and the first instruction after which
//! it does.

use std::fmt::Write;

use iced_x86::{Formatter, Instruction, NasmFormatter};

use super::{Difference, Differs, Outcome};
use crate::cpu::{Cpu, Exec};
use crate::translate::Single;

/// Bytes of memory that are listed.
const MOST_BYTES: usize = 64;

/// Blocks of a chain that are listed.
const MOST_BLOCKS: usize = 40;

impl Cpu {
    /// Writes to standard error how two runs of a translation differ. The state is that before them.
    pub(super) fn report(&mut self, single: &Single, found: &Difference) {
        let code = self.instructions_at(&single.key, single.len()).unwrap_or_default();
        let mut text = String::from("lock step: interpreter and translator differ\n\nthe block:\n");
        text += &list_code(&code, single.key.rip);
        text += "\nthe state before it:\n";
        text += &found.before.list();
        text += &describe(found);
        match self.shrink(single) {
            Some((n, smaller)) => {
                let rip = single.key.rip;
                _ = writeln!(text, "\nthey differ once the first {n} of {} are translated:", single.len());
                text += &list_code(&code[n.saturating_sub(1)..n.min(code.len())], rip);
                text += &describe(&smaller);
            }
            None => text += "\nno shorter part of it shows a difference\n",
        }
        eprint!("{text}");
        let counts = self.with_lockstep(|l, _| l.counts);
        eprintln!("{counts}");
    }

    /// As [`Cpu::report`], for a chain of translations. If a single one of them shows a difference, that is reported; unless
    /// the state is no longer that before them (`undone`).
    pub(super) fn report_chain(&mut self, found: &Difference, undone: bool) {
        let mut text = String::from("lock step: interpreter and translator differ\n\n");
        text += "the state before it:\n";
        text += &found.before.list();
        text += &describe(found);
        if !undone {
            _ = writeln!(
                text,
                "once more it had effects that cannot be undone\nblocks on the way: {:x?}",
                found.trail
            );
            return eprint!("{text}");
        }
        text += "\nblocks on the way:\n";
        self.drop_singles();
        self.with_lockstep(|l, _| l.chains = false);
        eprint!("{text}");
        let mut listed = Vec::new();
        for _ in &found.trail {
            let Some(single) = self.single(usize::MAX).filter(|s| !s.facts.once) else { break };
            let rip = single.key.rip;
            if !listed.contains(&rip) && listed.len() < MOST_BLOCKS {
                let code = self.instructions_at(&single.key, single.len()).unwrap_or_default();
                eprintln!("{}", list_code(&code, rip));
                listed.push(rip);
            }
            match self.compare(&single, 0) {
                Outcome::Done(Ok(())) | Outcome::Stands(Ok(())) => {}
                Outcome::Done(Err(_)) | Outcome::Stands(Err(_)) | Outcome::Beside(_) => break,
                Outcome::Differs(d) => return self.report(&single, &d),
            }
        }
        let counts = self.with_lockstep(|l, _| l.counts);
        eprintln!("no single translation shows a difference\n{counts}");
    }

    /// The fewest first instructions of a translation that differ, and how.
    pub(super) fn shrink(&mut self, single: &Single) -> Option<(usize, Box<Difference>)> {
        self.with_lockstep(|l, _| l.trial = true);
        let rip = self.rip;
        let found = (1..single.len()).find_map(|n| {
            self.drop_single(&single.key);
            let part = self.single(n).filter(|_| self.rip == rip)?;
            match self.compare(&part, 0) {
                Outcome::Differs(d) => Some((n, d)),
                Outcome::Done(_) | Outcome::Stands(_) | Outcome::Beside(_) => None,
            }
        });
        self.with_lockstep(|l, _| l.trial = false);
        self.drop_single(&single.key);
        found
    }
}

/// A line for each instruction; they were decoded for address 0.
fn list_code(code: &[Instruction], rip: u64) -> String {
    let mut formatter = NasmFormatter::new();
    let mut text = String::new();
    for i in code {
        let mut i = *i;
        let at = rip.wrapping_add(i.ip());
        if i.is_jcc_short_or_near() || i.is_jmp_short_or_near() || i.is_call_near() {
            i.set_near_branch64(rip.wrapping_add(i.near_branch64()));
        }
        if i.is_ip_rel_memory_operand() {
            i.set_memory_displacement64(rip.wrapping_add(i.memory_displacement64()));
        }
        let mut line = String::new();
        formatter.format(&i, &mut line);
        _ = writeln!(text, "  {at:#018x}  {line}");
    }
    text
}

fn describe(d: &Difference) -> String {
    let mut text = String::from("what differs:\n");
    let end = |e: &Exec| e.map_or_else(|stop| format!("{stop:?}"), |()| "done".into());
    let [a, b] = &d.ends;
    if a != b {
        _ = writeln!(text, "  ended    interpreter {}, translator {}", end(a), end(b));
    }
    for line in &d.registers {
        _ = writeln!(text, "  {line}");
    }
    for Differs { gpa, bytes: [before, a, b] } in d.memory.iter().take(MOST_BYTES) {
        _ = writeln!(
            text,
            "  physical {gpa:#x}: interpreter {a:#04x}, translator {b:#04x} (before: {before:#04x})"
        );
    }
    if d.memory.len() > MOST_BYTES {
        _ = writeln!(text, "  and {} bytes more", d.memory.len() - MOST_BYTES);
    }
    text
}
