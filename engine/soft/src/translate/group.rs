//! Groups: accesses near each other, by the same registers, that one look into the TLB serves.
//!
//! Between the first and the last of them T0 keeps the host address, and T1 that of the attention byte if any of them
//! writes; or, if none writes and the address is but a register and a displacement, T1 what is to be added to it. Whatever
//! leads out of the middle to the interpreter overwrites both, so the rest of the group is then executed one instruction after
//! the other, by the interpreter or with a look for each operand: that is the *chain*.

use iced_x86::{Instruction, InstructionInfoFactory, OpAccess, OpKind, Register};

use super::check::{Address, Reach};
use super::data;
use super::emit::{Host, Label, Part};
use super::lower::{Lowering, Place};
use super::thunks::{self, IN_MEMORY, T0};

/// Size of a vector.
const VECTOR: u32 = 16;

/// Most bytes from the first to the last: the more, the more often a page's end is among them.
const SPAN: i64 = 128;

/// A group under way.
pub struct Group {
    start: usize,
    /// Its last instruction.
    end: usize,
    /// Lowest displacement: T0 has the host address of what is there, if it has.
    low: i64,
    reach: Reach,
    /// For each instruction, where the chain takes over before it; and what is behind the group.
    chain: Vec<Label>,
    /// The chain looks for each operand by itself: vectors are moved at any alignment, and so over page ends.
    wide: bool,
    /// Where the flags were when it began.
    flags: Place,
}

/// What a group would be.
struct Plan {
    end: usize,
    low: i64,
    high: i64,
    members: usize,
    writes: bool,
    /// It has a vector.
    wide: bool,
}

/// Begins a group with instruction `n`, if it is worth one.
pub fn open(l: &mut Lowering, n: usize) {
    let Some(plan) = plan(l, n).filter(|p| p.members > 1) else { return };
    let i = l.source.instructions[n];
    let chain: Vec<Label> = (n..=plan.end + 1).map(|_| l.e.label()).collect();
    l.clobber(l.live(n));
    let flags = l.flags;
    let base_only = data::has_base_only(l, &i);
    let address = if base_only && plan.low == 0 {
        Address::In(Host(i.memory_base().number() as u8))
    } else {
        let (mem, _) = data::offset(l, &i);
        l.e.lea(T0, mem.displaced(plan.low as i32));
        Address::Dynamic
    };
    let checked = l.check(address, (plan.high - plan.low) as u32, plan.writes, chain[0]);
    let reach = if !plan.writes && base_only { Reach::Base } else { Reach::Host };
    l.reach(checked, reach);
    if plan.writes {
        l.attention(checked);
    }
    l.group = Some(Group { start: n, end: plan.end, low: plan.low, reach, chain, wide: plan.wide, flags });
}

/// Ends the group if `n` is its last instruction: emits its chain.
pub fn close(l: &mut Lowering, n: usize) {
    let Some(group) = l.group.take_if(|g| g.end == n) else { return };
    if group.wide {
        go_singly(l, &group)
    } else {
        interpret(l, &group)
    }
    l.e.bind(group.chain[group.chain.len() - 1]);
}

/// A chain of the interpreter.
fn interpret(l: &mut Lowering, group: &Group) {
    let hot = l.e.switch(Part::Cold);
    for (at, k) in (group.start..=group.end).enumerate() {
        let site = l.site(k, 0, Some(group.chain[at + 1]), None);
        l.e.bind(group.chain[at]);
        l.go_with_site(site, l.thunks.instruction[IN_MEMORY]);
    }
    l.e.switch(hot);
}

/// A chain of the same instructions, each with a look of its own.
fn go_singly(l: &mut Lowering, group: &Group) {
    let (hot, flags) = (l.e.switch(Part::Aside), l.flags);
    l.flags = group.flags;
    for (at, k) in (group.start..=group.end).enumerate() {
        // From the interpreter it comes here with flags in both places.
        l.e.bind(group.chain[at]);
        let i = l.source.instructions[k];
        data::data(l, k, &i).expect("a group has only what can be emitted");
    }
    // Wherever they are where it goes on.
    l.flags_everywhere(l.live(group.end + 1));
    l.e.jmp(group.chain[group.chain.len() - 1]);
    l.e.switch(hot);
    l.flags = flags;
}

impl Group {
    /// Where code goes on after the interpreter executed instruction `n`.
    pub fn after(&self, n: usize) -> Label {
        self.chain[n + 1 - self.start]
    }

    /// How its members are reached.
    pub fn reach(&self) -> Reach {
        self.reach
    }

    /// Displacement from T0 of the operand of an instruction.
    pub fn displacement(&self, i: &Instruction) -> i64 {
        i.memory_displacement64() as i64 - self.low
    }
}

/// The longest group that begins with instruction `n`.
fn plan(l: &mut Lowering, n: usize) -> Option<Plan> {
    let first = l.source.instructions[n];
    if l.word() != 8 || !addresses(&first) || !data::is_general(l, &first) {
        return None;
    }
    let mut plan = Plan { end: n, low: i64::MAX, high: i64::MIN, members: 0, writes: false, wide: false };
    for k in n..l.source.instructions.len() {
        let i = l.source.instructions[k];
        let Some(m) = member(l, k) else { break };
        if m.size != 0 {
            let at = i.memory_displacement64() as i64;
            let (low, high) = (plan.low.min(at), plan.high.max(at + i64::from(m.size)));
            if !same_place(&first, &i) || high - low > SPAN {
                break;
            }
            (plan.low, plan.high, plan.end) = (low, high, k);
            plan.members += 1;
            plan.writes |= m.writes;
            plan.wide |= m.size >= VECTOR;
        }
        if m.changes & registers_of(&first) != 0 {
            break;
        }
    }
    (plan.members > 0).then_some(plan)
}

/// Whether the registers of an address are in host registers, and nothing else is in it.
fn addresses(i: &Instruction) -> bool {
    let fine = |r: Register| {
        r == Register::None || r.size() == 8 && thunks::host(r.number() as u8) == Some(Host(r.number() as u8))
    };
    (0..i.op_count()).any(|op| i.op_kind(op) == OpKind::Memory)
        && i.memory_base() != Register::RIP
        && !data::is_segmented(i)
        && fine(i.memory_base())
        && fine(i.memory_index())
}

fn same_place(a: &Instruction, b: &Instruction) -> bool {
    addresses(b)
        && a.memory_base() == b.memory_base()
        && a.memory_index() == b.memory_index()
        && (a.memory_index() == Register::None || a.memory_index_scale() == b.memory_index_scale())
}

/// An instruction that may be in a group.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Size of its memory operand, 0 if it has none.
    size: u32,
    /// The operand is written.
    writes: bool,
    /// General registers that it changes, a bit each.
    changes: u32,
}

/// What instruction `k` would be in a group: one that is re-emitted, and needs no scratch register.
fn member(l: &mut Lowering, k: usize) -> Option<Member> {
    if let Some(known) = l.members[k] {
        return known;
    }
    let m = find_member(l, k);
    l.members[k] = Some(m);
    m
}

fn find_member(l: &mut Lowering, k: usize) -> Option<Member> {
    let (i, world) = (l.source.instructions[k], l.source.key.world);
    if !l.source.allowed[k] || !data::is_data(&i, world) || data::is_stack(&i, world) {
        return None;
    }
    let o = data::operands(&mut l.tools.info, &i).ok()?;
    let usable =
        o.spilled.is_empty() && !i.has_lock_prefix() && !data::is_bit_string(&i) && !data::is_moffs(&i);
    if !usable || reads_spilled(&i) || !data::encodes(l, &i, &o) {
        return None;
    }
    Some(Member { size: o.size, writes: o.writes, changes: changed_registers(&mut l.tools.info, &i) })
}

/// Whether an address (of LEA, for one) has a register in it that lives in memory.
fn reads_spilled(i: &Instruction) -> bool {
    let spilled = |r: Register| r.is_gpr() && thunks::host(r.full_register().number() as u8).is_none();
    spilled(i.memory_base()) || spilled(i.memory_index())
}

/// General registers that an instruction changes, a bit each.
fn changed_registers(factory: &mut InstructionInfoFactory, i: &Instruction) -> u32 {
    let writes = |a: OpAccess| {
        !matches!(a, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess)
    };
    let used = factory.info(i).used_registers();
    used.iter().filter(|u| writes(u.access())).fold(0, |all, u| all | bit(u.register()))
}

/// General registers of an address, a bit each.
fn registers_of(address: &Instruction) -> u32 {
    bit(address.memory_base()) | bit(address.memory_index())
}

fn bit(r: Register) -> u32 {
    if r.is_gpr() { 1 << r.full_register().number() } else { 0 }
}
