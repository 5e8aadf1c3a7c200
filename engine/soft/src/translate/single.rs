//! Translations run one at a time, for [`crate::lockstep`]: none leads to another, and what the interpreter would do
//! in their place is known.

use iced_x86::{Instruction, Mnemonic as M};
use vireo_isa::{Class, Fp};

use super::emit::Emitter;
use super::thunks::T0;
use super::{Key, SharedCode};
use crate::cpu::{Cpu, Exec, Stop, regs};
use crate::exec::Uop;
use crate::mmu::View;

/// What is known of a translation's instructions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// It is one instruction that must not be executed twice.
    pub once: bool,
    /// The x87 unit or MMX registers are used.
    pub x87: bool,
    /// The arithmetic flags do not matter at its start.
    pub dead_flags: bool,
    /// Where an indirect jump or call to it goes instead of to its entry.
    arrival: usize,
    /// Bit `n`: instruction `n` is a jump to the translation's start, which stays within it.
    loops: u64,
}

/// A translation that can be run now.
#[derive(Clone, Copy)]
pub struct Single {
    /// What it is of.
    pub key: Key,
    /// What is known of it.
    pub facts: Facts,
    entry: usize,
    uops: *const [Uop],
}

impl Single {
    /// Its instructions.
    pub fn len(&self) -> usize {
        self.uops.len()
    }

    fn uops(&self) -> &[Uop] {
        // SAFETY: dropped translations, and their micro-operations, are freed only when others are made, by `Cpu::single`.
        unsafe { &*self.uops }
    }
}

/// Where the interpreter stops besides the places where the translation leaves.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// Nowhere.
    End,
    /// Before an instruction.
    Rip(u64),
    /// Before an instruction that is not the first.
    Later(u64),
}

impl Until {
    fn is_met(self, rip: u64, n: usize) -> bool {
        match self {
            Self::End => false,
            Self::Rip(at) => at == rip,
            Self::Later(at) => at == rip && n > 0,
        }
    }
}

/// Whether executing an instruction again does something else than executing it once: it reads time, chance or devices,
/// or changes what [`crate::lockstep`] does not put back.
fn is_once(i: &Instruction) -> bool {
    let d = vireo_isa::describe(i.code());
    let harmless = matches!(
        i.mnemonic(),
        M::Cli
            | M::Sti
            | M::Swapgs
            | M::Stac
            | M::Clac
            | M::Cpuid
            | M::Pushfq
            | M::Rdfsbase
            | M::Rdgsbase
            | M::Wrfsbase
            | M::Wrgsbase
            | M::Rdpid
            | M::Sgdt
            | M::Sidt
            | M::Str
            | M::Sldt
            | M::Smsw
            | M::Xgetbv
            | M::Ud0
            | M::Ud1
            | M::Ud2
    );
    match d.class {
        Class::Io => true,
        Class::System => !harmless,
        _ => matches!(i.mnemonic(), M::Rdrand | M::Rdseed | M::Pause),
    }
}

fn facts_of(instructions: &[Instruction]) -> Facts {
    let mut f = Facts { once: instructions.first().is_some_and(is_once), ..Facts::default() };
    for (n, i) in instructions.iter().enumerate() {
        let d = vireo_isa::describe(i.code());
        f.x87 |= !matches!(d.fp, Fp::None | Fp::Sse { .. } | Fp::Avx { .. }) || d.class == Class::FpState;
        let jumps = i.is_jcc_short_or_near() || i.is_jmp_short_or_near();
        // Counted from the block's start.
        f.loops |= u64::from(jumps && i.near_branch_target() == 0) << n;
    }
    f
}

impl SharedCode {
    /// Adds code that leaves with a RIP.
    fn arrival(&self, rip: u64) -> Option<usize> {
        self.add_bare(|base| {
            let mut e = Emitter::new();
            e.constant(T0, rip);
            e.jmp_address(self.thunks.arrived);
            e.finish(base).0
        })
    }
}

impl Cpu {
    /// The instructions at the start of the block at `key`, of no more than `most`.
    pub(crate) fn instructions_at(&mut self, key: &Key, most: usize) -> Option<Vec<Instruction>> {
        let block = self.stable_block(key.gpa, key.world.mode, most).ok()??;
        Some(self.instructions_of(key, &block))
    }

    /// The translation of the code at RIP, of no more than `most` instructions if it is made now. It ends before an
    /// instruction that must not be executed twice.
    pub(crate) fn single(&mut self, most: usize) -> Option<Single> {
        let (key, mapped) = self.translation_key()?;
        let mut made = None;
        if self.shared.code.shard(key.page()).get(&key).is_none() {
            let mut instructions = self.instructions_at(&key, most)?;
            if let Some(once @ 1..) = instructions.iter().position(is_once) {
                instructions.truncate(once);
            }
            instructions.truncate(if is_once(instructions.first()?) { 1 } else { usize::MAX });
            self.code.translator.most = instructions.len();
            let done = self.translate_here(&key, mapped);
            self.code.translator.most = usize::MAX;
            done?;
            made = Some(Facts { arrival: self.shared.code.arrival(key.rip)?, ..facts_of(&instructions) });
        }
        let (in_host, entry, uops, second, second_id) = {
            let shard = self.shared.code.shard(key.page());
            let t = shard.get(&key)?;
            (t.host_entry(), t.entry(), &raw const *t.origin.uops, t.pages[1], t.second_id)
        };
        if let Some(facts) = made {
            self.code.translator.facts.insert(entry, Facts { dead_flags: in_host == entry, ..facts });
        }
        let facts = *self.code.translator.facts.get(&entry)?;
        if let Some((page, _)) = second
            && Some(self.second_page_id(&key, page)?) != second_id
        {
            self.drop_single(&key);
            return None;
        }
        self.page_id(key.home(), mapped);
        let stamp = self.translation_stamp();
        self.gate.jump(key.view, key.rip, stamp);
        if self.lockstep.as_ref().is_some_and(|l| l.chains()) {
            return Some(Single { key, facts, entry, uops });
        }
        self.gate.know(key.view, key.rip, facts.arrival as *const u8);
        Some(Single { key, facts, entry, uops })
    }

    /// Runs a translation that [`Cpu::single`] just gave. `rounds`: budget for loops in it.
    pub(crate) fn run_single(&mut self, s: &Single, rounds: i32) -> Exec {
        self.gate.budget = rounds;
        self.run_translated(s.entry)
    }

    /// Whether a translation can be part of a run that is undone.
    pub(super) fn may_lead_to(&self, entry: usize) -> bool {
        self.lockstep.is_none() || self.code.translator.facts.get(&entry).is_some_and(|f| !f.once)
    }

    /// Has all translations be made anew, so that none leads to another.
    pub(crate) fn drop_singles(&mut self) {
        self.shared.code.clear();
        self.code.translator.facts.clear();
    }

    /// Has the translation at RIP be made anew.
    pub(crate) fn drop_single(&mut self, key: &Key) {
        self.shared.code.shard(key.page()).drop_translation(key);
    }

    /// What changes when a translation may no longer be run as it was given: code was overwritten or moved.
    pub(crate) fn code_stamp_of_all(&self) -> [u64; 3] {
        let of = |view| self.mmu.code_pages.generation(view);
        [of(View::Kernel), of(View::User), self.shared.code.epoch()]
    }

    /// Executes the instructions of a translation in the interpreter, with the same budget for loops.
    pub(crate) fn interpret_single(&mut self, s: &Single, rounds: i32, until: Until) -> Exec {
        let stamp = self.code_stamp_of_all();
        let mut rounds = rounds;
        loop {
            self.regs.set(regs::BLOCK_RIP, s.key.rip);
            let mut again = false;
            for (n, u) in s.uops().iter().enumerate() {
                let rip = self.instruction_rip(u);
                if until.is_met(rip, n) {
                    self.rip = rip;
                    return Ok(());
                }
                self.instructions += 1;
                match (u.run.get())(self, u) {
                    Ok(()) => self.rip = self.next_rip(u),
                    Err(Stop::EndBlock) => {
                        again = s.facts.loops >> n & 1 != 0 && self.rip == s.key.rip;
                        break;
                    }
                    Err(Stop::Fault) => {
                        self.instructions -= 1;
                        self.rip = rip;
                        return Err(Stop::Fault);
                    }
                    Err(stop) => return Err(stop),
                }
                if self.code_stamp_of_all() != stamp {
                    return Ok(());
                }
            }
            rounds -= i32::from(again);
            if !again || rounds < 0 {
                return Ok(());
            }
        }
    }
}

/// Code after a test's spoiling.
#[cfg(test)]
pub(super) fn spoiled(mut code: Vec<u8>, spoil: Option<fn(&mut [u8])>) -> Vec<u8> {
    spoil.into_iter().for_each(|spoil| spoil(&mut code));
    code
}
