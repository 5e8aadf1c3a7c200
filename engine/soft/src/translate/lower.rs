//! Emits the code of one translation.

use iced_x86::Instruction;
use vireo_isa::flag;

use super::Key;
use super::context::place;
use super::emit::{Alu, Emitter, Host, Label, Mem, Part, cc};
use super::group::{self, Group, Member};
use super::relocation::{Kind, Relocation, movable};
use super::segments::Room;
use super::site::{Exit, Origin, Site};
use super::thunks::{self, IN_HOST, IN_MEMORY, T0, Thunks};
use super::tools::Tools;
use super::{data, flags, flow, string, system};
use crate::mmu::View;

/// Where the arithmetic flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the host's flags register.
    Host,
    /// In memory.
    Memory,
    /// In both.
    Both,
}

/// Why no code was emitted for an instruction: the interpreter is to execute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsupported;

/// A site of the translation under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiteId(usize);

/// What is translated.
pub struct Source<'a> {
    /// Where from, for whom.
    pub key: &'a Key,
    /// Id of its page.
    pub page_id: u32,
    /// Id of the next page, if the instruction reaches into it.
    pub second: Option<u32>,
    /// The instructions; counted from the block's start.
    pub instructions: &'a [Instruction],
    /// Whether the CPU model has each.
    pub allowed: &'a [bool],
    /// The same, for the interpreter, and what else sites and exits name. Stays where it is.
    pub origin: &'a Origin,
}

/// A finished translation.
pub struct Lowered {
    /// The code, for the address it was emitted for.
    pub code: Vec<u8>,
    /// Offsets of the entries with flags in the host's register, and in memory; the checked entry's is 0.
    pub host_entry: u32,
    /// See above.
    pub memory_entry: u32,
    /// Sites that the code names.
    pub sites: Box<[Site]>,
    /// Return sites among them, in order.
    pub returns: Vec<*const Site>,
    /// Ways out, which the code names too.
    pub exits: Box<[Exit]>,
    /// Ranges of code (start, end) that can raise host exceptions, and where to go on then.
    pub faults: Vec<[u32; 3]>,
    /// What depends on its address. `None`: it cannot be moved.
    pub relocations: Option<Box<[Relocation]>>,
}

/// Code under construction.
pub struct Lowering<'a> {
    /// The code.
    pub e: Emitter,
    /// What it is of.
    pub source: Source<'a>,
    /// Shared code.
    pub thunks: &'a Thunks,
    /// Where the flags are now.
    pub flags: Place,
    /// View of data accesses now.
    pub view: View,
    /// The group of accesses under way.
    pub group: Option<Group>,
    /// Start of the code.
    pub start: Label,
    /// What instructions are taken apart and put together with.
    pub tools: &'a mut Tools,
    /// What [`group`] knows of each instruction, once it was asked.
    pub members: Vec<Option<Option<Member>>>,
    room: Room,
    live: Vec<u32>,
    sites: Vec<(Site, Option<Label>, Option<Label>)>,
    /// Where the code has the address of a site or of an exit: just before these labels.
    named: Vec<(Label, SiteId)>,
    named_exits: Vec<(Label, usize)>,
    returns: Vec<SiteId>,
    /// With the code that links it, if it has any of its own.
    exits: Vec<(Exit, Option<Label>)>,
    faults: Vec<[Label; 3]>,
    /// Ranges that end with the instruction.
    pub open_faults: Vec<(Label, Label)>,
    memory_entry: Label,
    /// Where fields end that depend on the address, less so many bytes.
    moving: Option<Vec<(Label, u32, Kind)>>,
}

impl<'a> Lowering<'a> {
    /// Translates, for where there is room.
    pub fn lower(source: Source<'a>, thunks: &'a Thunks, room: Room, tools: &'a mut Tools) -> Lowered {
        let mut e = Emitter::new();
        let source_len = source.instructions.len();
        let (start, memory_entry) = (e.label(), e.label());
        let (world, view) = (source.key.world, source.key.view);
        let exact = |n: usize| {
            let i = &source.instructions[n];
            !source.allowed[n]
                || flow::is_branch(i)
                || system::needs_flags(i)
                || !(data::is_data(i, world)
                    || data::is_stack(i, world)
                    || system::is_system(i, world)
                    || string::is_string(i, world))
        };
        let live = flags::live_before(source.instructions, exact);
        let mut l = Self {
            e,
            source,
            thunks,
            flags: Place::Host,
            view,
            group: None,
            start,
            tools,
            members: vec![None; source_len],
            room,
            live,
            sites: Vec::with_capacity(32),
            named: Vec::with_capacity(32),
            named_exits: Vec::new(),
            returns: Vec::new(),
            exits: Vec::new(),
            faults: Vec::new(),
            open_faults: Vec::new(),
            memory_entry,
            moving: None,
        };
        if movable(l.source.key.rip) && l.source.second.is_none() {
            l.moving = Some(Vec::with_capacity(32));
        }
        l.entry();
        l.second_page();
        for n in 0..l.source.instructions.len() {
            l.instruction(n);
        }
        let end = l.next_rip(l.source.instructions.len() - 1);
        l.exit(end);
        let sti = l.source.instructions.last().is_some_and(|i| i.mnemonic() == iced_x86::Mnemonic::Sti);
        if let Some((exit, _)) = l.exits.last_mut() {
            exit.after_sti = sti;
        }
        l.finish()
    }

    /// The entries. That of jumps from other pages, first, looks whether this is the page that the vCPU wants; if not, it
    /// goes to where the jump would if it led nowhere yet, with the exit in T0.
    fn entry(&mut self) {
        let (id, page) = (self.source.page_id, place::page_id(self.view, self.source.key.rip));
        self.e.cmp32_imm32(page, id);
        self.moves(Kind::OwnId, 0);
        self.moves(Kind::PageId, 4);
        self.e.jcc_address(cc::NE, self.thunks.link[IN_MEMORY]);
        self.e.bind(self.memory_entry);
        // If nobody looks at them, the entries are the same.
        if self.live[0] != 0 {
            thunks::restore_flags(&mut self.e);
        }
        self.e.bind(self.start);
    }

    /// Looks whether the next page is still what it was, if the instruction reaches into it: it is looked up anew if not.
    fn second_page(&mut self) {
        let Some(id) = self.source.second else { return };
        let rip = self.source.key.rip;
        self.clobber(self.live[0]);
        let (_, stub) = self.new_exit(rip, true);
        if let Some((exit, _)) = self.exits.last_mut() {
            exit.recheck = true;
        }
        let next = self.source.key.next_page();
        self.e.cmp32_imm32(place::page_id(self.view, next), id);
        self.e.jcc(cc::NE, stub);
    }

    fn instruction(&mut self, n: usize) {
        let i = self.source.instructions[n];
        if self.group.is_none() && self.source.allowed[n] {
            group::open(self, n);
        }
        let done = match flow::is_branch(&i) {
            _ if !self.source.allowed[n] => Err(Unsupported),
            true => flow::branch(self, n, &i),
            false if data::is_stack(&i, self.source.key.world) => data::stack(self, n, &i),
            false if data::is_data(&i, self.source.key.world) => data::data(self, n, &i),
            false if system::is_system(&i, self.source.key.world) => system::system(self, n, &i),
            false if string::is_string(&i, self.source.key.world) => string::string(self, n, &i),
            false => Err(Unsupported),
        };
        if done == Err(Unsupported) {
            debug_assert!(self.group.is_none(), "a group has only what can be emitted");
            self.interpret(n);
        }
        group::close(self, n);
        if !self.open_faults.is_empty() {
            let to = self.e.here();
            self.faults.extend(self.open_faults.drain(..).map(|(from, slow)| [from, to, slow]));
        }
    }

    fn finish(self) -> Lowered {
        let base = self.room.code;
        let (mut code, places) = self.e.finish(base);
        let at = |l: Label| Emitter::place(&places, l);
        let placed = self
            .sites
            .into_iter()
            .map(|(site, resume, again)| site.placed(resume.map_or(0, at), again.map_or(0, at)));
        let sites: Box<[Site]> = placed.collect();
        let placed = self.exits.into_iter().map(|(exit, stub)| match stub {
            Some(stub) => Exit { unlinked: base + at(stub) as usize, ..exit },
            None => exit,
        });
        let exits: Box<[Exit]> = placed.collect();
        let named = self.named.iter().map(|(label, id)| (*label, &raw const sites[id.0] as u64));
        let named_exits = self.named_exits.iter().map(|(label, n)| (*label, &raw const exits[*n] as u64));
        for (label, address) in named.chain(named_exits) {
            let end = at(label) as usize;
            code[end - 8..end].copy_from_slice(&address.to_le_bytes());
        }
        let relocation = |&(end, back, kind): &(Label, u32, Kind)| Relocation {
            at: (at(end) - back - kind.size() as u32) as u16,
            kind,
        };
        Lowered {
            relocations: self.moving.map(|fields| fields.iter().map(relocation).collect()),
            host_entry: at(self.start),
            memory_entry: at(self.memory_entry),
            returns: self.returns.iter().map(|id| &raw const sites[id.0]).collect(),
            sites,
            exits,
            faults: self.faults.iter().map(|f| f.map(at)).collect(),
            code,
        }
    }

    /// Address of the instruction after instruction `n`.
    pub fn next_rip(&self, n: usize) -> u64 {
        let next = self.source.key.rip.wrapping_add(u64::from(self.source.origin.uops[n].next));
        self.source.key.world.mode.mask_ip(next)
    }

    /// Flags that matter before instruction `n`; behind the last, for `n` one more.
    pub fn live(&self, n: usize) -> u32 {
        self.live[n]
    }

    /// The host's flags are about to be overwritten; `live`: those that matter are not lost.
    pub fn clobber(&mut self, live: u32) {
        if live != 0 {
            if self.flags == Place::Host {
                thunks::save_flags(&mut self.e);
            }
            self.flags = Place::Memory;
        }
    }

    /// The host's flags are about to be used.
    pub fn need_flags(&mut self) {
        if self.flags == Place::Memory {
            thunks::restore_flags(&mut self.e);
            self.flags = Place::Both;
        }
    }

    /// Puts the flags into both places, if any of them matters.
    pub fn flags_everywhere(&mut self, live: u32) {
        match self.flags {
            Place::Host if live != 0 => thunks::save_flags(&mut self.e),
            Place::Memory => thunks::restore_flags(&mut self.e),
            _ => {}
        }
    }

    /// A field that ended so many bytes ago depends on the code's address.
    pub fn moves(&mut self, kind: Kind, back: u32) {
        if let Some(fields) = &mut self.moving {
            fields.push((self.e.here(), back, kind));
        }
    }

    /// The code depends on its address in a way that has no name.
    pub fn stays(&mut self) {
        self.moving = None;
    }

    /// A site of instruction `n`.
    pub fn site(&mut self, n: usize, size: u16, resume: Option<Label>, again: Option<Label>) -> SiteId {
        let site = Site::new(self.source.origin, n, self.view, size);
        self.sites.push((site, resume, again));
        SiteId(self.sites.len() - 1)
    }

    /// A return site; gives its number.
    pub fn return_site(&mut self, site: SiteId) -> u32 {
        self.returns.push(site);
        self.room.first_return + self.returns.len() as u32 - 1
    }

    /// Emits, in the cold part, a call of a thunk with a site, and gives its label.
    pub fn cold_call(&mut self, site: SiteId, thunk: usize) -> Label {
        let hot = self.e.switch(Part::Cold);
        let label = self.e.here();
        self.go_with_site(site, thunk);
        self.e.switch(hot);
        label
    }

    /// Goes to a thunk with a site, whose address is not known yet.
    pub fn go_with_site(&mut self, site: SiteId, thunk: usize) {
        self.e.constant(T0, u64::MAX >> 1);
        let behind = self.e.here();
        self.named.push((behind, site));
        self.e.jmp_address(thunk);
    }

    /// Loads the address of an exit, which is not known yet, to T0.
    fn name_exit(&mut self, n: usize) {
        self.e.constant(T0, u64::MAX >> 1);
        let behind = self.e.here();
        self.named_exits.push((behind, n));
    }

    /// Goes to a thunk with an exit.
    fn go_with_exit(&mut self, n: usize, thunk: usize) {
        self.name_exit(n);
        self.e.jmp_address(thunk);
    }

    /// Which thunk of a pair fits where the flags are.
    pub fn by_flags(&self, pair: [usize; 2]) -> usize {
        pair[if self.flags == Place::Memory { IN_MEMORY } else { IN_HOST }]
    }

    /// Has the interpreter execute instruction `n`.
    fn interpret(&mut self, n: usize) {
        let resume = self.e.label();
        let site = self.site(n, 0, Some(resume), None);
        let thunk = self.by_flags(self.thunks.instruction);
        self.go_with_site(site, thunk);
        self.e.bind(resume);
        self.flags = Place::Both;
    }

    /// Code between two labels can raise host exceptions: the interpreter then executes instruction `n`, and code goes on
    /// at `resume`.
    pub fn may_fault(&mut self, n: usize, from: Label, to: Label, resume: Label, thunk: usize) {
        let site = self.site(n, 0, Some(resume), None);
        let stub = self.cold_call(site, thunk);
        self.faults.push([from, to, stub]);
    }

    /// A new exit to `target`, whose address the code that it leads to while it is not linked has in T0.
    fn add_exit(&mut self, target: u64, memory: bool, stub: Option<Label>) -> usize {
        let exit = Exit {
            origin: self.source.origin,
            number: self.room.first_exit + self.exits.len() as u32,
            distance: target.wrapping_sub(self.source.key.rip),
            unlinked: self.thunks.link[usize::from(memory)],
            flags_in_memory: memory,
            recheck: false,
            after_sti: false,
        };
        self.exits.push((exit, stub));
        self.exits.len() - 1
    }

    /// A new exit to `target` within the page, with the label of the code that links it. `memory`: that is where the flags
    /// are then.
    fn new_exit(&mut self, target: u64, memory: bool) -> (usize, Label) {
        let hot = self.e.switch(Part::Cold);
        let stub = self.e.here();
        let exit = self.add_exit(target, memory, Some(stub));
        self.go_with_exit(exit, self.thunks.link[usize::from(memory)]);
        self.e.switch(hot);
        (exit, stub)
    }

    /// Prepares an exit to `target`: afterwards only the jump or call through the slot is missing, whose address it
    /// gives. With `poll`, counts the budget, and leaves when it is used up.
    pub fn prepare_exit(&mut self, target: u64, poll: bool) -> usize {
        let other_page = target >> 12 != self.source.key.rip >> 12;
        if other_page || poll {
            self.clobber(flag::STATUS);
        }
        let memory = self.flags == Place::Memory;
        let exit = match other_page {
            true => self.add_exit(target, memory, None),
            false => self.new_exit(target, memory).0,
        };
        if poll {
            self.poll_exit(exit);
        }
        if other_page {
            self.name_exit(exit);
        }
        self.slot(exit)
    }

    /// Address of an exit's slot.
    fn slot(&self, exit: usize) -> usize {
        self.room.first_slot + 8 * exit
    }

    /// Counts the budget; leaves at an exit when it is used up.
    fn poll_exit(&mut self, exit: usize) {
        let hot = self.e.switch(Part::Cold);
        let leave = self.e.here();
        self.go_with_exit(exit, self.thunks.leave);
        self.e.switch(hot);
        self.poll(leave);
    }

    /// Counts the budget; jumps when it is used up.
    pub fn poll(&mut self, used_up: Label) {
        self.e.alu32_imm(Alu::Sub, place::budget(), 1);
        self.e.jcc(cc::S, used_up);
    }

    /// Goes to the code at `target`.
    pub fn exit(&mut self, target: u64) {
        // Behind the end of the address space comes its start.
        let slot = self.prepare_exit(target, target <= self.source.key.rip);
        self.jump_through(slot);
    }

    /// Goes to the code at `target` in this page, if the page is still what it was.
    pub fn exit_checked(&mut self, target: u64) {
        let (view, id) = (self.view, self.source.page_id);
        if target >> 12 != self.source.key.rip >> 12 {
            return self.exit(target);
        }
        let (exit, stub) = self.new_exit(target, true);
        self.e.cmp32_imm32(place::page_id(view, target), id);
        self.moves(Kind::OwnId, 0);
        self.moves(Kind::PageId, 4);
        self.e.jcc(cc::NE, stub);
        self.jump_through(self.slot(exit));
    }

    /// `jmp [slot]`.
    pub fn jump_through(&mut self, slot: usize) {
        self.e.relative_to(&[0xff, 0x25], slot);
    }

    /// `call [slot]`.
    pub fn call_through(&mut self, slot: usize) {
        self.e.relative_to(&[0xff, 0x15], slot);
    }

    /// Back to the start of this translation, which is at `target`: counts the budget first.
    pub fn loop_back(&mut self, target: u64) {
        let live = self.live[0];
        self.clobber(live);
        let (exit, _) = self.new_exit(target, true);
        self.poll_exit(exit);
        let to = if self.flags == Place::Memory { self.memory_entry } else { self.start };
        self.e.jmp(to);
    }

    /// Size of addresses and of stack items, in bytes.
    pub fn word(&self) -> u32 {
        self.source.key.world.word()
    }

    /// `lea` with the size of addresses.
    pub fn lea(&mut self, to: Host, from: Mem) {
        if self.word() == 8 { self.e.lea(to, from) } else { self.e.lea32(to, from) }
    }

    /// `mov` of an address's size from memory or a register.
    pub fn load(&mut self, to: Host, from: impl Into<super::emit::Rm>) {
        if self.word() == 8 { self.e.load(to, from) } else { self.e.load32(to, from) }
    }

    /// `mov` of an address's size to memory.
    pub fn store(&mut self, to: Mem, from: Host) {
        if self.word() == 8 { self.e.store(to, from) } else { self.e.store32(to, from) }
    }

    /// Adds to the stack pointer.
    pub fn move_stack(&mut self, by: i32) {
        self.lea(Host::R15, Mem::at(Host::R15, by));
    }

    /// Loads a general register of the guest into a host register, if it is not in one.
    pub fn read_gpr(&mut self, gpr: u8, spare: Host) -> Host {
        thunks::host(gpr).unwrap_or_else(|| {
            self.e.load(spare, place::gpr(gpr));
            spare
        })
    }
}
