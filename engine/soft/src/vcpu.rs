//! The run loop of one vCPU: blocks, and between them everything that is not an instruction.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::*;
use std::time::Duration;

use vireo_core::state::{Activity, rflags};
use vireo_core::{Bus, EngineError, Exit, Vcpu, VcpuState};

use crate::clock::host_tsc_hz;
use crate::cpu::{Cpu, Exec, Fault, Shadow, Source, Stop, vector};
use crate::partition::{Shared, StaleCode, request};
use crate::system;

/// Blocks between two looks at the time: a few microseconds.
const BLOCKS_PER_LOOK: u32 = 256;

/// A vCPU of the software engine.
pub struct SoftVcpu {
    cpu: Box<Cpu>,
}

// SAFETY: all of `Cpu` moves with its owner; the only borrowed thing, the bus pointer, is set during `run` alone.
unsafe impl Send for SoftVcpu {}

impl SoftVcpu {
    /// A vCPU at reset.
    pub fn new(shared: Arc<Shared>, index: u32) -> Self {
        Self { cpu: Box::new(Cpu::new(shared, index)) }
    }
}

#[cfg(test)]
impl From<Box<Cpu>> for SoftVcpu {
    fn from(cpu: Box<Cpu>) -> Self {
        Self { cpu }
    }
}

/// Why the inner loop was left.
pub(crate) enum Leave {
    /// To the caller of `run`.
    Exit(Exit),
    /// To look at requests, events and time again.
    Again,
}

impl Vcpu for SoftVcpu {
    fn index(&self) -> u32 {
        self.cpu.index
    }

    fn run(&mut self, bus: &dyn Bus) -> Result<Exit, EngineError> {
        let cpu = &mut *self.cpu;
        // SAFETY: only the lifetime is erased; `leave` clears the pointer before this function returns, and
        // nothing unwinds past it with the pointer in use.
        let bus: NonNull<dyn Bus> = unsafe { std::mem::transmute(NonNull::from(bus)) };
        cpu.bus = Some(bus);
        cpu.enter();
        // Also if the bus panics.
        let shared = Arc::clone(&cpu.shared);
        let inside = shared.vcpus[cpu.index as usize].flushes.inside();
        let exit = loop {
            if let Leave::Exit(exit) = cpu.look_and_run() {
                break exit;
            }
        };
        drop(inside);
        cpu.leave();
        cpu.bus = None;
        Ok(exit)
    }

    fn save(&mut self) -> Result<VcpuState, EngineError> {
        self.cpu.save()
    }

    fn load(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.cpu.load_state(state)
    }
}

impl Cpu {
    /// Before guest code runs: takes the RAM map if it changed.
    pub(crate) fn enter(&mut self) {
        self.take_thread();
        self.take_ram();
        self.fpu.enter();
        self.mode_changed();
    }

    /// Takes the RAM map if it changed.
    pub(crate) fn take_ram(&mut self) {
        let ram = self.shared.ram();
        if !Arc::ptr_eq(&ram, &self.mmu.ram) {
            self.mmu.ram = ram;
            if let Some(l) = &mut self.lockstep {
                l.forget_memory(&self.mmu);
            }
            self.mmu.flush_all();
            self.code.clear();
        }
    }

    /// After guest code ran.
    pub(crate) fn leave(&mut self) {
        self.fpu.leave();
        self.publish_counters();
    }

    fn publish_counters(&self) {
        let c = &self.shared.vcpus[self.index as usize].counters;
        c.instructions.store(self.instructions, Relaxed);
        c.exits.store(self.exits.get(), Relaxed);
        c.tlb_fills.store(self.mmu.fills, Relaxed);
        c.tlb_flushes.store(self.mmu.flushes, Relaxed);
        c.blocks.store(self.code.built, Relaxed);
        c.translations.store(self.code.translator.built, Relaxed);
    }

    pub(crate) fn own(&self) -> &crate::partition::VcpuShared {
        &self.shared.vcpus[self.index as usize]
    }

    /// Whether somebody asked this vCPU to look; long instructions stop for it.
    #[inline(always)]
    pub fn events_wanted(&self) -> bool {
        self.own().requests.load(Relaxed) != 0
    }

    /// Serves requests, time and events, then runs blocks until one of them comes up again.
    pub(crate) fn look_and_run(&mut self) -> Leave {
        if self.serve_requests() {
            return Leave::Exit(Exit::Kicked);
        }
        self.serve_timer();
        match self.activity {
            Activity::Running => {}
            Activity::Shutdown => return Leave::Exit(Exit::Shutdown),
            Activity::Halted if self.wakes_up() => self.activity = Activity::Running,
            Activity::Halted | Activity::WaitForSipi => {
                self.publish_counters();
                let wait = self.time_to_timer();
                self.own().flushes.outside(|| self.own().sleep(wait));
                return Leave::Again;
            }
        }
        self.shared.code.enter(self.index);
        let end = self.deliver_event().and_then(|()| self.run_blocks());
        self.shared.code.leave(self.index);
        match end {
            Ok(()) => Leave::Again,
            Err(stop) => self.serve_stop(stop),
        }
    }

    /// Runs until something has to be looked at.
    fn run_blocks(&mut self) -> Exec {
        if self.shadow != Shadow::None || self.stepwise() {
            // Lock step makes its translations itself.
            if self.shadow == Shadow::Sti && !self.stepwise() && self.lockstep.is_none() {
                self.translate_if_wanted();
            }
            return self.run_stepwise();
        }
        self.renew_budget();
        if self.lockstep.is_some() {
            return self.run_lockstep();
        }
        for _ in 0..BLOCKS_PER_LOOK {
            match self.known_translation() {
                Some(entry) => self.run_translated(entry)?,
                None => self.run_block(false)?,
            }
            if self.budget_is_used_up() || self.has_to_look() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether blocks have to wait for what the run loop does.
    #[inline(always)]
    fn has_to_look(&self) -> bool {
        self.events_wanted() || self.shadow != Shadow::None || self.interrupt_due() || self.tracing()
    }

    /// As [`Cpu::run_blocks`], for comparing interpreter and translator.
    #[cold]
    #[inline(never)]
    fn run_lockstep(&mut self) -> Exec {
        for _ in 0..BLOCKS_PER_LOOK {
            self.run_in_lockstep()?;
            if self.has_to_look() {
                break;
            }
        }
        Ok(())
    }

    /// Instruction by instruction, at least one. Out of line, or the loop over blocks becomes slower.
    #[cold]
    #[inline(never)]
    fn run_stepwise(&mut self) -> Exec {
        for _ in 0..BLOCKS_PER_LOOK {
            self.run_one()?;
            if !self.stepwise() || self.events_wanted() || self.interrupt_due() {
                break;
            }
        }
        Ok(())
    }

    /// One instruction: the shadow before it ends with it, and traps for TF and breakpoints come after it.
    fn run_one(&mut self) -> Exec {
        let shadow = std::mem::replace(&mut self.shadow, Shadow::None);
        self.before_instruction(shadow)?;
        let traced = self.tracing();
        let end = self.run_block(true);
        let stepped = traced && matches!(end, Ok(()) | Err(Stop::Yield));
        match end {
            // A trap of the instruction's own comes first.
            Err(Stop::Fault | Stop::Trap | Stop::Shutdown) => return end,
            // After MOV SS and POP SS the traps wait: the one for TF is lost to the next instruction's own.
            _ if self.shadow == Shadow::MovSs => return end,
            _ if stepped || self.breakpoint_met() => {}
            _ => return end,
        }
        if self.activity == Activity::Halted {
            self.activity = Activity::Running;
        }
        Err(self.debug_trap(stepped))
    }

    /// Single-stepping is on.
    #[inline(always)]
    fn tracing(&self) -> bool {
        self.eflags & rflags::TF != 0
    }

    /// An interrupt is known to be deliverable now.
    #[inline(always)]
    pub(crate) fn interrupt_due(&self) -> bool {
        self.interrupt_waits && self.eflags & rflags::IF != 0
    }

    /// What a block or an event delivery ended with.
    fn serve_stop(&mut self, stop: Stop) -> Leave {
        match stop {
            Stop::EndBlock | Stop::Untraced => Leave::Again,
            Stop::Yield => {
                if !self.events_wanted() && self.activity == Activity::Running {
                    self.own().flushes.outside(std::thread::yield_now);
                }
                Leave::Again
            }
            Stop::Fault | Stop::Trap => {
                self.shadow = Shadow::None;
                if stop == Stop::Fault {
                    self.forget_breakpoints();
                }
                match system::deliver(self, self.fault) {
                    Ok(()) | Err(Stop::EndBlock) => Leave::Again,
                    Err(_) => self.shut_down(),
                }
            }
            Stop::Shutdown => self.shut_down(),
        }
    }

    fn shut_down(&mut self) -> Leave {
        self.activity = Activity::Shutdown;
        Leave::Exit(Exit::Shutdown)
    }

    /// True when the board kicked.
    fn serve_requests(&mut self) -> bool {
        // In one order with `Flushes::step_in` before, whatever the host's processor.
        let bits = self.own().requests.swap(0, SeqCst);
        if bits == 0 {
            return false;
        }
        if bits & request::FLUSH != 0 {
            self.serve_flushes();
        }
        if bits & request::CODE != 0 {
            self.take_stale_code();
        }
        if bits & request::INTERRUPT != 0 {
            self.take_mail();
        }
        bits & request::KICK != 0
    }

    /// Drops the blocks whose bytes others are known to have overwritten, in the middle of a block too.
    pub(crate) fn drop_stale_code(&mut self) {
        let bits = &self.own().requests;
        if bits.load(SeqCst) & request::CODE != 0 {
            bits.fetch_and(!request::CODE, AcqRel);
            self.take_stale_code();
        }
    }

    fn take_stale_code(&mut self) {
        match self.own().take_stale_code() {
            StaleCode::Some(list) => {
                list.into_iter().for_each(|(page, granules)| self.code.invalidate(page, granules))
            }
            StaleCode::All => self.code.clear(),
        }
    }

    /// Delivers the event of highest priority that can be delivered now (SDM vol. 3A, table 6-2).
    fn deliver_event(&mut self) -> Exec {
        // What an event's delivery met (its stack, its tables), or an instruction whose own trap came first.
        if self.breakpoint_met() && self.shadow != Shadow::MovSs {
            return Err(self.debug_trap(false));
        }
        if self.nmi_pending && !self.nmi_masked && self.shadow != Shadow::MovSs {
            self.nmi_pending = false;
            self.nmi_masked = true;
            return self.inject(vector::NMI);
        }
        if !self.interrupt_due() || self.shadow != Shadow::None {
            return Ok(());
        }
        let Some(v) = self.take_interrupt() else { return Ok(()) };
        self.own().counters.interrupts.fetch_add(1, Relaxed);
        self.inject(v)
    }

    fn inject(&mut self, vector: u8) -> Exec {
        let event = Fault { vector, error: None, source: Source::External };
        match system::deliver(self, event) {
            Ok(()) | Err(Stop::EndBlock) => Ok(()),
            Err(stop) => Err(stop),
        }
    }

    /// A halted processor goes on: an NMI, or an interrupt that IF lets through.
    fn wakes_up(&self) -> bool {
        self.nmi_pending && !self.nmi_masked || self.interrupt_due()
    }

    /// Guest TSC.
    pub fn tsc(&self) -> u64 {
        self.shared.clock.tsc().wrapping_add(self.tsc_adjust)
    }

    /// How long until the local APIC's timer fires.
    fn time_to_timer(&self) -> Option<Duration> {
        let deadline = self.apic_deadline?;
        let ticks = deadline.saturating_sub(self.tsc());
        let ns = u128::from(ticks) * 1_000_000_000 / u128::from(host_tsc_hz());
        Some(Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX)))
    }

    fn serve_timer(&mut self) {
        if self.timer_due() {
            self.own().counters.timer_fires.fetch_add(1, Relaxed);
        }
    }
}
