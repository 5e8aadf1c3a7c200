//! Rust code that translated code calls, each by a thunk that has put the guest's state into [`Cpu`]. Each says where to
//! go on.

use super::context::World;
use super::site::{Callee, Exit, Site};
use crate::cpu::{Cpu, Exec, Shadow, Stop, regs, seg};

/// Where translated code goes on.
#[repr(C)]
pub struct Go {
    /// Address of code; zero: out, to the caller of [`Cpu::run_translated`].
    entry: usize,
    /// The host's stack pointer.
    stack: u64,
}

impl Cpu {
    /// Goes on at an address of the same translation.
    fn go_on(&self, entry: usize) -> Go {
        Go { entry, stack: self.gate.stack }
    }

    /// Leaves translated code.
    fn go_out(&mut self, why: Exec) -> Go {
        self.gate.end = why;
        Go { entry: 0, stack: 0 }
    }

    /// Goes on with the code at RIP, if nothing else is to be done and it is translated.
    fn go_to_rip(&mut self) -> Go {
        // The way may be part of a loop that has no other count: of interpreted branches, for one.
        self.gate.budget -= 1;
        let busy = self.gate.budget < 0
            || self.lockstep.as_ref().is_some_and(|l| !l.chains())
            || self.shadow != Shadow::None
            || self.events_wanted()
            || self.interrupt_due()
            || self.stepwise();
        match if busy { None } else { self.find_translated() } {
            Some(entry) => Go { entry, stack: self.stack_for(self.world()) },
            None => self.go_out(Ok(())),
        }
    }

    /// The stack for code of a world: return addresses of another are of no use there.
    pub(super) fn stack_for(&mut self, world: World) -> u64 {
        if self.gate.stack_world == world {
            return self.gate.stack;
        }
        self.enter_world(world);
        self.gate.base - 8
    }

    /// Whether a translation may go on after a helper that may have changed anything, or called somebody who did.
    fn still_good(&self, site: &Site) -> bool {
        self.translations_hold()
            && self.world() == site.origin().world()
            && self.mmu.view() == site.view
            && self.shadow == Shadow::None
            && !self.stepwise()
            // A serializing instruction shows code that other processors changed before; and devices may be slow. In lock
            // step it comes as far as the interpreter does, whoever kicks it meanwhile: runs are short there.
            && (!self.events_wanted() || self.lockstep.is_some())
    }
}

/// Executes the instruction of a site in the interpreter.
pub extern "sysv64" fn instruction(cpu: &mut Cpu, site: *const Site) -> Go {
    // SAFETY: sites and exits live until no code that names them runs any more.
    let site = unsafe { &*site };
    run_instruction(cpu, site)
}

fn run_instruction(cpu: &mut Cpu, site: &Site) -> Go {
    let u = site.uop();
    cpu.regs.set(regs::BLOCK_RIP, site.origin().rip());
    cpu.instructions += 1;
    match (u.run.get())(cpu, u) {
        Ok(()) if cpu.still_good(site) => cpu.go_on(site.resume()),
        Ok(()) => {
            cpu.rip = cpu.next_rip(u);
            cpu.go_to_rip()
        }
        Err(Stop::EndBlock) => cpu.go_to_rip(),
        Err(Stop::Fault) => {
            cpu.instructions -= 1;
            cpu.rip = cpu.instruction_rip(u);
            cpu.go_out(Err(Stop::Fault))
        }
        Err(stop) => cpu.go_out(Err(stop)),
    }
}

/// Finds the translation behind an exit, and links the exit to it.
pub extern "sysv64" fn link(cpu: &mut Cpu, exit: *const Exit) -> Go {
    // SAFETY: as in `instruction`.
    let exit = unsafe { &*exit };
    cpu.rip = exit.target();
    if exit.recheck {
        cpu.gate.forget(cpu.mmu.view(), cpu.rip);
        return cpu.go_to_rip();
    }
    let go = cpu.go_to_rip();
    if go.entry != 0 && go.stack == cpu.gate.stack {
        cpu.link_exit(exit);
    }
    if go.entry == 0 && exit.after_sti {
        // Or an interrupt would come before HLT, say, which then sleeps through what it was to wait for.
        cpu.shadow = Shadow::Sti;
    }
    go
}

/// Leaves at an exit, because the budget is used up.
pub extern "sysv64" fn leave(cpu: &mut Cpu, exit: *const Exit) -> Go {
    // SAFETY: as in `instruction`.
    cpu.rip = unsafe { &*exit }.target();
    cpu.go_out(Ok(()))
}

/// Looks after a store that met attention: see [`Thunks::wrote`](super::thunks::Thunks::wrote).
pub extern "sysv64" fn wrote(cpu: &mut Cpu, site: *const Site) -> Go {
    // SAFETY: as in `instruction`.
    let site = unsafe { &*site };
    let [at, attention, size, callee, _] = cpu.gate.spare;
    let page = cpu.mmu.watch.page_of_attention(attention as *const u8);
    let size = if site.size() == 0 { size as u32 } else { site.size() };
    if size != 0 {
        cpu.wrote(page, at as u32 & 0xfff, size);
    }
    if cpu.translations_hold() {
        return cpu.go_on(site.resume());
    }
    cpu.regs.set(regs::BLOCK_RIP, site.origin().rip());
    cpu.rip = cpu.next_rip(site.uop());
    if let Some(target) = site.calls() {
        // What it pushed may have overwritten the call itself, so it cannot be executed anew.
        cpu.rip = if let Callee::Away(distance) = target { site.origin().at(distance) } else { callee };
        let sp = cpu.stack_pointer();
        cpu.set_stack_pointer(sp.wrapping_sub(u64::from(site.origin().world().word())));
    }
    cpu.go_to_rip()
}

/// Translates what a return pops or a call pushes, and has it tried again.
pub extern "sysv64" fn fill(cpu: &mut Cpu, site: *const Site) -> Go {
    // SAFETY: as in `instruction`.
    let site = unsafe { &*site };
    let sp = cpu.stack_pointer();
    let calls = site.calls().is_some();
    let word = site.origin().world().word();
    let at = if calls { cpu.wrap_linear(sp.wrapping_sub(u64::from(word))) } else { sp };
    // A fault comes again, and to its place, below.
    if calls {
        let _ = cpu.host_write(seg::SS, at, word);
    } else {
        let _ = cpu.host_read(seg::SS, at, word);
    }
    if cpu.mmu.know_stack(cpu.mmu.view(), at, word) {
        return cpu.go_on(site.again());
    }
    let mut go = run_instruction(cpu, site);
    // The return address that the host would have taken from its stack, if there is one.
    if !calls && go.entry != 0 && go.stack < cpu.gate.base - 8 {
        go.stack += 8;
    }
    go
}

/// Goes on with the code at an address that a return popped.
pub extern "sysv64" fn returned(cpu: &mut Cpu, target: u64) -> Go {
    if !Cpu::canonical(target) {
        // The return itself raises this: back to before it.
        let site = cpu.shared.code.return_site(cpu.gate.return_site);
        // SAFETY: as in `instruction`.
        let site = unsafe { &*site };
        let (sp, popped) = (cpu.stack_pointer(), site.origin().world().word() + site.size());
        cpu.set_stack_pointer(sp.wrapping_sub(u64::from(popped)));
        return run_instruction(cpu, site);
    }
    cpu.rip = target;
    cpu.go_to_rip()
}
