//! The interface of one partition.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use vireo_chipset::clock::{Clock, Timer, TimerService};
use vireo_chipset::state::{RestoreError, check, check_version};
use vireo_core::model::{APIC_BUS_HZ, Vendor};
use vireo_core::{HypercallRegs, MsrFault, Partition};
use vireo_memory::GuestMemory;

use crate::crash::{CrashRegisters, CrashSink};
use crate::hypercall::{self, Target};
use crate::ports::Ports;
use crate::processors::Processors;
use crate::reference::{NS, ReferenceTime};
use crate::state::{DEVICE, Global, HypervState, VERSION, VpState};
use crate::stimer::{EXPIRED, Expiry, Stimer, TIMERS};
use crate::synic::{QueueFull, Synic, Wires};
use crate::{Enlightenments, EventPort, Message, MessagePort, SINTS, msr};

/// HYPERCALL: no more changes.
const LOCKED: u64 = 1 << 1;

/// What the board gives the interface.
pub struct Seams {
    /// Guest memory.
    pub memory: Arc<GuestMemory>,
    /// Takes interrupts; its clock is reference time's.
    pub partition: Arc<dyn Partition>,
    /// Whose processor the guest sees.
    pub vendor: Vendor,
    /// The clock that timers count by.
    pub clock: Arc<dyn Clock>,
    /// Makes timers.
    pub timers: Arc<dyn TimerService>,
    /// What the guest was told that there is.
    pub enlightenments: &'static Enlightenments,
    /// Learns of the guest's crash.
    pub crashes: Arc<dyn CrashSink>,
    /// Number of vCPUs.
    pub vcpus: u32,
}

/// The interface: MSRs and hypercalls of all vCPUs.
///
/// A vCPU's part is locked while it is looked at; nothing else is locked after it but what the partition, guest memory and
/// timers lock themselves.
pub struct Hyperv(Arc<Inner>);

struct Inner {
    seams: Seams,
    reference: RwLock<ReferenceTime>,
    global: Mutex<Global>,
    ports: Ports,
    vps: Box<[Mutex<Vp>]>,
}

struct Vp {
    assist_page: u64,
    synic: Synic,
    timers: [Stimer; TIMERS],
    wakers: [Box<dyn Timer>; TIMERS],
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Hyperv {
    /// The interface as after reset.
    pub fn new(seams: Seams) -> Self {
        let clock = seams.partition.clock();
        let inner = Arc::new_cyclic(|this: &Weak<Inner>| {
            let waker = |vp: u32, index: usize| {
                let this = Weak::clone(this);
                let expired = move || {
                    if let Some(this) = this.upgrade() {
                        this.timer_expired(vp, index);
                    }
                };
                seams.timers.create(Box::new(expired))
            };
            let vp = |vp| {
                Mutex::new(Vp {
                    assist_page: 0,
                    synic: Synic::default(),
                    timers: Default::default(),
                    wakers: std::array::from_fn(|index| waker(vp, index)),
                })
            };
            Inner {
                reference: RwLock::new(ReferenceTime::new(clock.tsc_hz, 0, 0)),
                global: Mutex::default(),
                ports: Ports::default(),
                vps: (0..seams.vcpus).map(vp).collect(),
                seams,
            }
        });
        Self(inner)
    }

    /// Sends messages of a connection to `port`.
    pub fn connect_messages(&self, connection: u32, port: Arc<dyn MessagePort>) {
        self.0.ports.connect_messages(connection, port);
    }

    /// Sends events of a connection to `port`.
    pub fn connect_events(&self, connection: u32, port: Arc<dyn EventPort>) {
        self.0.ports.connect_events(connection, port);
    }

    /// Lets nobody take events of a connection any more.
    pub fn disconnect_events(&self, connection: u32) {
        self.0.ports.disconnect_events(connection);
    }

    /// Sends a message to a vCPU's SINT (below [`SINTS`]); a vCPU that is not there gets none.
    ///
    /// # Errors
    /// The guest has not taken so many that there is no room for more.
    pub fn post_message(&self, vp: u32, sint: usize, message: Message) -> Result<(), QueueFull> {
        match self.0.vp(vp) {
            Some(mut v) if sint < SINTS => v.synic.post(sint, message, &self.0.wires(vp)),
            _ => Ok(()),
        }
    }

    /// Signals an event (below [`crate::EVENTS`]) to a vCPU's SINT.
    pub fn signal_event(&self, vp: u32, sint: usize, event: u16) {
        if let Some(v) = self.0.vp(vp).filter(|_| sint < SINTS) {
            v.synic.signal(sint, event, &self.0.wires(vp));
        }
    }

    /// Reference time now, in units of 100 ns.
    pub fn reference_time(&self) -> u64 {
        self.0.now()
    }

    /// RDMSR of an index in [`msr::RANGE`].
    pub fn msr_read(&self, vp: u32, index: u32) -> Result<u64, MsrFault> {
        self.0.msr_read(vp, index).ok_or(MsrFault)
    }

    /// WRMSR of an index in [`msr::RANGE`].
    pub fn msr_write(&self, vp: u32, index: u32, value: u64) -> Result<(), MsrFault> {
        if self.0.msr_write(vp, index, value) { Ok(()) } else { Err(MsrFault) }
    }

    /// A hypercall. `None`: #UD, since the guest has not set the interface up, or is not the kernel.
    pub fn hypercall(&self, vp: u32, regs: &HypercallRegs) -> Option<HypercallRegs> {
        if regs.cpl != 0 || lock(&self.0.global).hypercall & msr::PAGE_ENABLED == 0 {
            return None;
        }
        let processors = self.0.processors(vp);
        let target = Target { memory: &self.0.seams.memory, ports: &self.0.ports, vp, processors };
        Some(hypercall::serve(regs, &target))
    }

    /// As after power-on. Ports stay connected.
    pub fn reset(&self) {
        *lock(&self.0.global) = Global::default();
        for vp in &self.0.vps {
            let mut v = lock(vp);
            v.assist_page = 0;
            v.synic = Synic::default();
            v.timers = Default::default();
            v.wakers.iter().for_each(|w| w.cancel());
        }
    }

    /// The state; the machine is paused.
    pub fn save(&self) -> HypervState {
        let save = |vp: &Mutex<Vp>| {
            let v = lock(vp);
            let (control_and_pages, sints, queues) = v.synic.registers();
            VpState { assist_page: v.assist_page, control_and_pages, sints, queues, timers: v.timers }
        };
        HypervState {
            version: VERSION,
            reference: self.0.now(),
            global: *lock(&self.0.global),
            vps: self.0.vps.iter().map(save).collect(),
        }
    }

    /// Takes over a saved state; the machine is paused, its memory and its partition's clock are restored.
    ///
    /// # Errors
    /// Another version, or a state that none can have. Nothing is changed then.
    pub fn restore(&self, state: &HypervState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        check(DEVICE, state.vps.len() == self.0.vps.len(), "another number of vCPUs")?;
        let synics: Option<Vec<Synic>> = state
            .vps
            .iter()
            .map(|v| Synic::from_registers(v.control_and_pages, v.sints, &v.queues))
            .collect();
        let timers = state.vps.iter().flat_map(|v| &v.timers).all(Stimer::is_sane);
        check(DEVICE, synics.is_some() && timers, "registers hold what they cannot")?;
        let clock = self.0.seams.partition.clock();
        let reference = ReferenceTime::new(clock.tsc_hz, clock.tsc, state.reference);
        *self.0.reference.write().unwrap_or_else(PoisonError::into_inner) = reference;
        *lock(&self.0.global) = state.global;
        if let Some(page) = msr::page(state.global.reference_tsc) {
            // A page that is no RAM was none before, either.
            _ = reference.write_page(&self.0.seams.memory, page);
        }
        for ((vp, from), synic) in self.0.vps.iter().zip(&state.vps).zip(synics.into_iter().flatten()) {
            let mut v = lock(vp);
            v.assist_page = from.assist_page;
            v.synic = synic;
            v.timers = from.timers;
            (0..TIMERS).for_each(|index| self.0.arm(&v, index, state.reference));
        }
        Ok(())
    }
}

impl Inner {
    fn vp(&self, vp: u32) -> Option<MutexGuard<'_, Vp>> {
        self.vps.get(vp as usize).map(lock)
    }

    fn wires(&self, vp: u32) -> Wires<'_> {
        Wires { memory: &self.seams.memory, partition: &*self.seams.partition, vp }
    }

    /// The processors, for one that was told of hypercalls about others.
    fn processors(&self, vp: u32) -> Option<Processors<'_>> {
        let partition = &*self.seams.partition;
        let flusher = partition.tlb_flusher().filter(|_| self.seams.enlightenments.flushes_tlbs())?;
        Some(Processors { flusher, partition, vp, count: self.seams.vcpus })
    }

    fn reference(&self) -> ReferenceTime {
        *self.reference.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.reference().now(&*self.seams.partition)
    }

    fn msr_read(&self, vp: u32, index: u32) -> Option<u64> {
        let mut v = self.vp(vp)?;
        if let Some(value) = v.synic.read(index) {
            return Some(value);
        }
        if let Some((timer, is_count)) = timer_of(index) {
            let t = &mut v.timers[timer];
            return Some(if is_count { t.count() } else { t.config() });
        }
        let global = lock(&self.global);
        Some(match index {
            msr::GUEST_OS_ID => global.guest_os_id,
            msr::HYPERCALL => global.hypercall,
            msr::VP_INDEX => vp.into(),
            msr::TIME_REF_COUNT => self.now(),
            msr::REFERENCE_TSC => global.reference_tsc,
            msr::TSC_FREQUENCY => self.reference().tsc_hz,
            msr::APIC_FREQUENCY => APIC_BUS_HZ,
            msr::VP_ASSIST_PAGE => v.assist_page,
            msr::CRASH_P0..=msr::CRASH_P4 => global.crash.parameter((index - msr::CRASH_P0) as usize),
            msr::CRASH_CTL => CrashRegisters::CTL,
            _ => return None,
        })
    }

    /// Whether the MSR takes the value.
    fn msr_write(&self, vp: u32, index: u32, value: u64) -> bool {
        let Some(mut v) = self.vp(vp) else { return false };
        if let Some(taken) = v.synic.write(index, value, &self.wires(vp)) {
            return taken;
        }
        if let Some((timer, is_count)) = timer_of(index) {
            let now = self.now();
            let t = &mut v.timers[timer];
            if is_count {
                t.set_count(value, now)
            } else {
                t.set_config(value, now)
            }
            self.look_at_timer(vp, &mut v, timer, now);
            return true;
        }
        if index == msr::VP_ASSIST_PAGE {
            v.assist_page = value;
            return true;
        }
        drop(v);
        self.write_global(index, value)
    }

    fn write_global(&self, index: u32, value: u64) -> bool {
        let mut global = lock(&self.global);
        match index {
            msr::GUEST_OS_ID => {
                global.guest_os_id = value;
                if value == 0 {
                    global.hypercall &= !msr::PAGE_ENABLED;
                }
            }
            msr::HYPERCALL => self.write_hypercall(&mut global, value),
            msr::REFERENCE_TSC => {
                global.reference_tsc = value;
                if let Some(page) = msr::page(value) {
                    // A page that is no RAM tells nothing; the guest may read the counter.
                    _ = self.reference().write_page(&self.seams.memory, page);
                }
            }
            msr::CRASH_P0..=msr::CRASH_P4 => {
                global.crash.set_parameter((index - msr::CRASH_P0) as usize, value)
            }
            msr::CRASH_CTL => {
                let crash = global.crash.control(value, &self.seams.memory);
                drop(global);
                if let Some(crash) = crash {
                    self.seams.crashes.crashed(crash);
                }
            }
            _ => return false,
        }
        true
    }

    fn write_hypercall(&self, global: &mut Global, value: u64) {
        if global.hypercall & LOCKED != 0 {
            return;
        }
        global.hypercall = value;
        // The page is there only for a guest that has said who it is.
        let page = msr::page(value).filter(|_| global.guest_os_id != 0);
        let code = hypercall::page(self.seams.partition.hypercall_instruction(self.seams.vendor));
        let there = page.is_some_and(|p| self.seams.memory.write(p, &code).is_ok());
        if !there {
            global.hypercall &= !msr::PAGE_ENABLED;
        }
    }

    /// Called by the timer service.
    fn timer_expired(&self, vp: u32, index: usize) {
        let now = self.now();
        if let Some(mut v) = self.vp(vp) {
            self.look_at_timer(vp, &mut v, index, now);
        }
    }

    /// Tells the guest if a timer is due, and has it looked at again when it is next.
    fn look_at_timer(&self, vp: u32, v: &mut Vp, index: usize, now: u64) {
        match v.timers[index].expire(now) {
            Some(Expiry::Direct(vector)) => self.wires(vp).interrupt(vector),
            Some(Expiry::Message { sint, due }) => {
                let mut payload = [0; 24];
                payload[..4].copy_from_slice(&(index as u32).to_le_bytes());
                payload[8..16].copy_from_slice(&due.to_le_bytes());
                payload[16..].copy_from_slice(&now.to_le_bytes());
                // One that the guest has not taken yet says enough.
                if !v.synic.has_waiting(sint, EXPIRED, index as u64)
                    && let Some(message) = Message::new(EXPIRED, index as u64, &payload)
                {
                    _ = v.synic.post(sint, message, &self.wires(vp));
                }
            }
            None => {}
        }
        self.arm(v, index, now);
    }

    fn arm(&self, v: &Vp, index: usize, now: u64) {
        match v.timers[index].due() {
            Some(due) => {
                let left = due.saturating_sub(now).saturating_mul(NS);
                v.wakers[index].arm(self.seams.clock.now_ns().saturating_add(left));
            }
            None => v.wakers[index].cancel(),
        }
    }
}

/// The timer that an MSR belongs to, and whether it is its count.
fn timer_of(index: u32) -> Option<(usize, bool)> {
    let at =
        (msr::STIMER0_CONFIG..=msr::STIMER3_COUNT).contains(&index).then(|| index - msr::STIMER0_CONFIG)?;
    Some((at as usize / 2, at % 2 == 1))
}
