//! One vCPU: the loop around KVM_RUN.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use kvm_bindings::{
    KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_XEN, KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, kvm_mp_state,
};
use kvm_ioctls::{MsrExitReason, ReadMsrExit, VcpuExit, VcpuFd, WriteMsrExit};
use vireo_core::state::{Activity, VcpuState};
use vireo_core::{Bus, EngineError, Exit, Vcpu};

use crate::kick::Doorbell;
use crate::partition::Shared;
use crate::sys::os;
use crate::{clock, hypercall, msrs, state};

/// What only the thread that runs or inspects the vCPU touches.
pub struct VcpuCore {
    /// The vCPU itself.
    pub fd: VcpuFd,
    /// It met a triple fault and waits for new state.
    shutdown: bool,
}

/// Why a vCPU left KVM_RUN, counted.
#[derive(Default)]
pub struct Counters {
    /// All returns of KVM_RUN.
    pub exits: AtomicU64,
    /// For port I/O.
    pub port_io: AtomicU64,
    /// For MMIO.
    pub mmio: AtomicU64,
    /// For MSRs.
    pub msr: AtomicU64,
    /// Interrupts of the PIC delivered.
    pub pic_interrupts: AtomicU64,
}

/// A vCPU as the partition sees it.
pub struct VcpuSlot {
    core: Mutex<VcpuCore>,
    /// Gets it out of KVM_RUN.
    pub bell: Doorbell,
    /// Counters, by exit.
    pub counters: Counters,
    in_guest: AtomicBool,
    nmi: AtomicBool,
    extint: AtomicBool,
    taken: AtomicBool,
}

impl VcpuSlot {
    /// For a fresh vCPU.
    pub fn new(fd: VcpuFd) -> Result<Self, EngineError> {
        Ok(Self {
            bell: Doorbell::new(&fd)?,
            core: Mutex::new(VcpuCore { fd, shutdown: false }),
            counters: Counters::default(),
            in_guest: AtomicBool::new(false),
            nmi: AtomicBool::new(false),
            extint: AtomicBool::new(false),
            taken: AtomicBool::new(false),
        })
    }

    /// Waits until the vCPU is out of `run`.
    pub fn core(&self) -> MutexGuard<'_, VcpuCore> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The vCPU if it is out of `run` now.
    pub fn idle_core(&self) -> Option<MutexGuard<'_, VcpuCore>> {
        match self.core.try_lock() {
            Ok(core) => Some(core),
            Err(TryLockError::Poisoned(p)) => Some(p.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Whether this is the first time that it is asked for.
    pub fn take(&self) -> bool {
        !self.taken.swap(true, AcqRel)
    }

    /// Raises an NMI.
    pub fn raise_nmi(&self) {
        self.nmi.store(true, SeqCst);
        self.bell.poke();
    }

    /// The PIC's output.
    pub fn set_extint(&self, asserted: bool) {
        if !self.extint.swap(asserted, SeqCst) && asserted {
            self.bell.poke();
        }
    }

    /// Returns when the vCPU has left KVM_RUN at least once since the call: processors keep addresses of dirty
    /// pages in buffers that KVM empties then (api.rst, KVM_CAP_DIRTY_LOG_RING).
    pub fn flush(&self) {
        let seen = self.counters.exits.load(SeqCst);
        while self.in_guest.load(SeqCst) && self.counters.exits.load(SeqCst) == seen {
            self.bell.poke();
            std::thread::sleep(std::time::Duration::from_micros(20));
        }
    }
}

/// A vCPU in its owner's hands.
pub struct KvmVcpu {
    shared: Arc<Shared>,
    index: u32,
}

/// What the loop does after an exit.
enum Next {
    /// Runs on; the vCPU may be in the middle of an instruction.
    Resume,
    /// Runs on; the vCPU is between two instructions.
    Boundary,
    /// Serves this many bytes of port I/O at this place in memory shared with KVM.
    PortRead(u16, NonNull<[u8]>),
    /// As above.
    PortWrite(u16, NonNull<[u8]>),
    /// Empties the dirty rings.
    EmptyRings,
    /// Serves a hypercall.
    Hypercall,
    /// Serves a hypercall made by a port.
    PortHypercall,
    /// Looks at what interrupted KVM_RUN.
    Interrupted,
    /// KVM cannot go on.
    Stuck(String),
    /// Leaves the loop.
    Return(Exit),
}

impl KvmVcpu {
    /// For [`vireo_core::Partition::take_vcpu`].
    pub fn new(shared: Arc<Shared>, index: u32) -> Self {
        Self { shared, index }
    }

    fn slot(&self) -> &VcpuSlot {
        &self.shared.vcpus[self.index as usize]
    }

    fn run_loop(&self, core: &mut VcpuCore, bus: &dyn Bus) -> Result<Exit, EngineError> {
        let slot = self.slot();
        if slot.extint.load(SeqCst) {
            // What KVM last said about readiness is stale: let it say it anew.
            slot.bell.arm();
        }
        let mut boundary = false;
        loop {
            slot.pass_nmi(core)?;
            slot.offer_extint(core, bus, boundary)?;
            slot.in_guest.store(true, SeqCst);
            let left = core.fd.run();
            slot.in_guest.store(false, SeqCst);
            slot.counters.exits.fetch_add(1, SeqCst);
            let next = match left {
                Ok(exit) => self.serve(exit, bus),
                Err(e) => after_error(e.errno())?,
            };
            boundary = matches!(next, Next::Boundary | Next::Interrupted);
            match next {
                Next::Resume | Next::Boundary => {}
                Next::PortRead(port, data) => core.each_item(data, |d| bus.pio_read(self.index, port, d)),
                Next::PortWrite(port, data) => core.each_item(data, |d| bus.pio_write(self.index, port, d)),
                Next::EmptyRings => self.shared.collect_rings()?,
                Next::Hypercall => hypercall::serve(&mut core.fd, self.index, bus)?,
                Next::PortHypercall => hypercall::serve_port(&mut core.fd, self.index, bus)?,
                Next::Interrupted if slot.bell.answer() => return Ok(Exit::Kicked),
                Next::Interrupted => {}
                Next::Stuck(why) => return Err(core.diagnose(self.index, &why)),
                Next::Return(exit) => {
                    core.shutdown = exit == Exit::Shutdown;
                    return Ok(exit);
                }
            }
        }
    }

    fn serve(&self, exit: VcpuExit<'_>, bus: &dyn Bus) -> Next {
        let counters = &self.slot().counters;
        match exit {
            VcpuExit::IoIn(port, data) => {
                counters.port_io.fetch_add(1, Relaxed);
                return Next::PortRead(port, NonNull::from(data));
            }
            VcpuExit::IoOut(port, data) => {
                counters.port_io.fetch_add(1, Relaxed);
                if self.shared.by_port && port == u16::from(hypercall::PORT) && data.len() == 1 {
                    return Next::PortHypercall;
                }
                return Next::PortWrite(port, NonNull::from(data));
            }
            VcpuExit::MmioRead(gpa, data) => {
                counters.mmio.fetch_add(1, Relaxed);
                bus.mmio_read(self.index, gpa, data);
            }
            VcpuExit::MmioWrite(gpa, data) => {
                counters.mmio.fetch_add(1, Relaxed);
                bus.mmio_write(self.index, gpa, data);
            }
            VcpuExit::X86Rdmsr(msr) => {
                counters.msr.fetch_add(1, Relaxed);
                self.read_msr(msr, bus);
            }
            VcpuExit::X86Wrmsr(msr) => {
                counters.msr.fetch_add(1, Relaxed);
                self.write_msr(msr, bus);
            }
            VcpuExit::IoapicEoi(vector) => bus.ioapic_eoi(vector),
            VcpuExit::IrqWindowOpen => return Next::Boundary,
            VcpuExit::Intr => return Next::Interrupted,
            VcpuExit::Shutdown => return Next::Return(Exit::Shutdown),
            VcpuExit::Unsupported(KVM_EXIT_DIRTY_RING_FULL) => return Next::EmptyRings,
            VcpuExit::Unsupported(KVM_EXIT_XEN) => return Next::Hypercall,
            VcpuExit::FailEntry(reason, cpu) => {
                return Next::Stuck(format!(
                    "the processor refused the guest's state (reason {reason:#x}, CPU {cpu})"
                ));
            }
            VcpuExit::InternalError => return Next::Stuck("KVM met an internal error".into()),
            other => return Next::Stuck(format!("unexpected exit {other:?}")),
        }
        Next::Resume
    }

    fn read_msr(&self, msr: ReadMsrExit<'_>, bus: &dyn Bus) {
        // KVM owns the MSR and refuses the access: #GP. All others are the board's.
        let answer = match msrs::read_from_contract(&self.shared.model, msr.index) {
            _ if msr.reason == MsrExitReason::Inval => None,
            Some(answer) => answer.ok(),
            None => bus.msr_read(self.index, msr.index).ok(),
        };
        *msr.error = u8::from(answer.is_none());
        *msr.data = answer.unwrap_or(0);
    }

    fn write_msr(&self, msr: WriteMsrExit<'_>, bus: &dyn Bus) {
        let done = match msrs::write_by_contract(&self.shared.model, msr.index, msr.data) {
            _ if msr.reason == MsrExitReason::Inval => false,
            Some(answer) => answer.is_ok(),
            None => bus.msr_write(self.index, msr.index, msr.data).is_ok(),
        };
        *msr.error = u8::from(!done);
    }
}

/// KVM_RUN failed: what that means.
fn after_error(errno: i32) -> Result<Next, EngineError> {
    match errno {
        libc::EINTR => Ok(Next::Interrupted),
        // A vCPU that waited for INIT has got it.
        libc::EAGAIN => Ok(Next::Resume),
        other => Err(EngineError::os("running a vCPU", io::Error::from_raw_os_error(other))),
    }
}

impl VcpuSlot {
    /// Hands an NMI that was raised to KVM.
    fn pass_nmi(&self, core: &VcpuCore) -> Result<(), EngineError> {
        if self.nmi.swap(false, SeqCst) { core.fd.nmi().map_err(os("raising an NMI")) } else { Ok(()) }
    }

    /// Delivers the PIC's interrupt if the vCPU can take one, or asks KVM to say when.
    fn offer_extint(&self, core: &mut VcpuCore, bus: &dyn Bus, boundary: bool) -> Result<(), EngineError> {
        let wanted = self.extint.load(SeqCst);
        let run = core.fd.get_kvm_run();
        run.request_interrupt_window = u8::from(wanted);
        if !wanted || !boundary || run.ready_for_interrupt_injection == 0 {
            return Ok(());
        }
        if let Some(vector) = bus.pic_acknowledge() {
            core.inject_external(vector)?;
            self.counters.pic_interrupts.fetch_add(1, Relaxed);
        }
        core.fd.get_kvm_run().request_interrupt_window = u8::from(self.extint.load(SeqCst));
        Ok(())
    }
}

impl VcpuCore {
    /// Puts an acknowledged vector on its way. By the pending events rather than by KVM_INTERRUPT, whose vector KVM
    /// keeps where it cannot be read back: an acknowledged interrupt would be lost by a save before it is taken.
    fn inject_external(&mut self, vector: u8) -> Result<(), EngineError> {
        let what = "injecting an interrupt of the PIC";
        let mut events = self.fd.get_vcpu_events().map_err(os(what))?;
        events.interrupt.injected = 1;
        events.interrupt.nr = vector;
        events.interrupt.soft = 0;
        events.flags = 0;
        self.fd.set_vcpu_events(&events).map_err(os(what))?;
        if self.fd.get_mp_state().map_err(os(what))?.mp_state == KVM_MP_STATE_HALTED {
            self.fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).map_err(os(what))?;
        }
        Ok(())
    }

    /// Calls `serve` for each item of a port access; a string instruction has several.
    fn each_item(&mut self, mut data: NonNull<[u8]>, serve: impl FnMut(&mut [u8])) {
        // SAFETY: KVM filled in the `io` member: the exit was KVM_EXIT_IO.
        let size = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.io.size };
        // SAFETY: kvm-ioctls gave this part of the mapping, which lives as long as `self.fd`; nobody else uses it until
        // the next KVM_RUN, and the reference above to the head of the mapping is gone.
        let data = unsafe { data.as_mut() };
        data.chunks_exact_mut(usize::from(size).max(1)).for_each(serve);
    }

    /// An error that says where the guest was.
    fn diagnose(&mut self, index: u32, why: &str) -> EngineError {
        // SAFETY: both members are plain numbers: any bytes are valid, and they are only shown.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let at = match (self.fd.get_regs(), self.fd.get_sregs()) {
            (Ok(r), Ok(s)) => {
                format!(
                    "CS {:#x}+{:#x} RIP {:#x} CR0 {:#x} CR3 {:#x}",
                    s.cs.selector, s.cs.base, r.rip, s.cr0, s.cr3
                )
            }
            _ => "a place that cannot be read".into(),
        };
        EngineError::Internal(format!("vCPU {index}: {why} (suberror {suberror}) at {at}"))
    }
}

impl Vcpu for KvmVcpu {
    fn index(&self) -> u32 {
        self.index
    }

    fn run(&mut self, bus: &dyn Bus) -> Result<Exit, EngineError> {
        let slot = self.slot();
        let mut core = slot.core();
        if core.shutdown {
            return Ok(if slot.bell.answer() { Exit::Kicked } else { Exit::Shutdown });
        }
        let running = slot.bell.enter();
        let result = self.run_loop(&mut core, bus);
        drop(running);
        if self.index == 0 {
            self.shared.clock().note(clock::read_tsc(&core.fd)?);
        }
        result
    }

    fn save(&mut self) -> Result<VcpuState, EngineError> {
        let slot = self.slot();
        let core = slot.core();
        slot.pass_nmi(&core)?;
        let mut state = state::save(&core.fd, &self.shared.model, &self.shared.msrs)?;
        if core.shutdown {
            state.activity = Activity::Shutdown;
        }
        self.shared.clock().freeze_saved(self.index, &mut state.apic);
        Ok(state)
    }

    fn load(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        state::validate(state)?;
        let slot = self.slot();
        let mut core = slot.core();
        let before = state::save(&core.fd, &self.shared.model, &self.shared.msrs)?;
        if let Err(refused) = state::load(&core.fd, &self.shared.msrs, state) {
            state::load(&core.fd, &self.shared.msrs, &before)?;
            return Err(refused);
        }
        core.shutdown = state.activity == Activity::Shutdown;
        self.shared.clock().freeze_loaded(self.index, &state.apic);
        Ok(())
    }
}
