//! A board that records what guests do to it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vireo_core::{Bus, HypercallRegs, MsrFault, PageRange, Partition, RunGate, TlbScope, VcpuSet};

/// Port: the guest reports a 32-bit number.
pub const REPORT: u16 = 0xe0;
/// Port: the guest is done.
pub const DONE: u16 = 0xe4;
/// An MSR of the board that may be read and written.
pub const BOARD_MSR: u32 = 0x4000_0080;
/// A hypercall of the board: adds RDX to RCX, into RAX, and turns XMM0 around.
pub const HYPERCALL_ADD: u64 = 0x8001;
/// The other one: flushes TLBs of the vCPUs in mask RDX. RCX: 0, all; 1, what is not global; else the page at this address.
pub const HYPERCALL_FLUSH: u64 = 0x8002;

/// Something that reached the board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Port, bytes given.
    PioRead(u16, Vec<u8>),
    /// Port, bytes taken.
    PioWrite(u16, Vec<u8>),
    /// Address, bytes given.
    MmioRead(u64, Vec<u8>),
    /// Address, bytes taken.
    MmioWrite(u64, Vec<u8>),
    /// Index.
    MsrRead(u32),
    /// Index, value.
    MsrWrite(u32, u64),
    /// A vector was ended at a local APIC.
    Eoi(u8),
}

#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    reports: Vec<u32>,
    stop_at: Option<usize>,
    done: bool,
    shutdown: bool,
    failed: Option<String>,
    msrs: BTreeMap<u32, u64>,
    pic: VecDeque<u8>,
}

/// The board.
#[derive(Default)]
pub struct RecordingBus {
    seen: Mutex<Seen>,
    changed: Condvar,
    gate: Mutex<Option<Arc<RunGate>>>,
    partition: OnceLock<Arc<dyn Partition>>,
}

impl RecordingBus {
    /// A board for a partition.
    pub fn new(partition: Arc<dyn Partition>) -> Self {
        let bus = Self::default();
        bus.partition.set(partition).ok();
        bus.lock().msrs.insert(BOARD_MSR, 0x1122_3344_5566_7788);
        bus
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The gate that ends when the guest is done.
    pub fn attach(&self, gate: Arc<RunGate>) {
        let mut seen = self.lock();
        (seen.done, seen.shutdown) = (false, false);
        drop(seen);
        *self.gate.lock().unwrap_or_else(PoisonError::into_inner) = Some(gate);
    }

    fn end(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.lock());
        self.changed.notify_all();
        if let Some(gate) = &*self.gate.lock().unwrap_or_else(PoisonError::into_inner) {
            gate.end();
        }
    }

    /// Stops the vCPUs at the guest's report of this number, on its own thread: before it can go on.
    pub fn stop_at(&self, report: usize) {
        self.lock().stop_at = Some(report);
    }

    /// A vCPU met a triple fault.
    pub fn shut_down(&self) {
        self.end(|s| s.shutdown = true);
    }

    /// A vCPU cannot go on.
    pub fn fail(&self, why: String) {
        self.end(|s| s.failed = Some(why));
    }

    /// What the guest did to the board, in order.
    pub fn events(&self) -> Vec<Event> {
        self.lock().events.clone()
    }

    /// The numbers that the guest reported.
    pub fn reports(&self) -> Vec<u32> {
        self.lock().reports.clone()
    }

    /// Whether there was a triple fault.
    pub fn was_shut_down(&self) -> bool {
        self.lock().shutdown
    }

    /// Waits until something holds; what is wrong if it does not in time.
    fn wait(&self, limit: Duration, holds: impl Fn(&Seen) -> bool) -> Result<(), String> {
        let until = Instant::now() + limit;
        let mut seen = self.lock();
        loop {
            if let Some(why) = &seen.failed {
                return Err(why.clone());
            }
            if holds(&seen) {
                return Ok(());
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else {
                return Err(format!("no end after {limit:?}; reports so far {:x?}", seen.reports));
            };
            seen = self.changed.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the guest's end, by its own word or by a triple fault.
    pub fn wait_for_end(&self, limit: Duration) -> Result<(), String> {
        self.wait(limit, |s| s.done || s.shutdown)
    }

    /// Waits until the guest has reported that many numbers.
    pub fn wait_for_reports(&self, count: usize, limit: Duration) -> Result<(), String> {
        self.wait(limit, |s| s.reports.len() >= count)
    }

    /// Waits until an event was seen.
    pub fn wait_for_event(&self, event: &Event, limit: Duration) -> Result<(), String> {
        self.wait(limit, |s| s.events.contains(event))
    }

    /// Raises an interrupt at the PIC.
    pub fn raise_pic(&self, vector: u8) {
        self.lock().pic.push_back(vector);
        self.set_extint(true);
    }

    fn set_extint(&self, asserted: bool) {
        if let Some(partition) = self.partition.get() {
            partition.set_extint(asserted);
        }
    }

    fn record(&self, event: Event) {
        self.lock().events.push(event);
        self.changed.notify_all();
    }
}

impl Bus for RecordingBus {
    fn pio_read(&self, _: u32, port: u16, data: &mut [u8]) {
        for (i, b) in (0..).zip(data.iter_mut()) {
            *b = (port as u8).wrapping_add(0x11 * i).wrapping_add(self.lock().events.len() as u8);
        }
        self.record(Event::PioRead(port, data.to_vec()));
    }

    fn pio_write(&self, _: u32, port: u16, data: &[u8]) {
        match (port, data) {
            (REPORT, &[a, b, c, d]) => {
                let stop = {
                    let mut seen = self.lock();
                    seen.reports.push(u32::from_le_bytes([a, b, c, d]));
                    seen.stop_at == Some(seen.reports.len())
                };
                if stop {
                    self.end(|_| ());
                }
                self.changed.notify_all();
            }
            (DONE, _) => self.end(|s| s.done = true),
            _ => self.record(Event::PioWrite(port, data.to_vec())),
        }
    }

    fn mmio_read(&self, _: u32, gpa: u64, data: &mut [u8]) {
        for (i, b) in (0..).zip(data.iter_mut()) {
            *b = (gpa as u8 ^ 0x5a).wrapping_add(i);
        }
        self.record(Event::MmioRead(gpa, data.to_vec()));
    }

    fn mmio_write(&self, _: u32, gpa: u64, data: &[u8]) {
        self.record(Event::MmioWrite(gpa, data.to_vec()));
    }

    fn msr_read(&self, _: u32, msr: u32) -> Result<u64, MsrFault> {
        self.record(Event::MsrRead(msr));
        self.lock().msrs.get(&msr).copied().ok_or(MsrFault)
    }

    fn msr_write(&self, _: u32, msr: u32, value: u64) -> Result<(), MsrFault> {
        self.record(Event::MsrWrite(msr, value));
        self.lock().msrs.get_mut(&msr).map(|v| *v = value).ok_or(MsrFault)
    }

    fn hypercall(&self, vcpu: u32, regs: &HypercallRegs) -> Option<HypercallRegs> {
        let [rax, rcx, rdx, ..] = regs.gpr;
        let mut answer = *regs;
        match rax {
            _ if regs.cpl != 0 => return None,
            HYPERCALL_ADD => {
                answer.gpr[0] = rcx.wrapping_add(rdx);
                answer.xmm[0] = regs.xmm[0].swap_bytes();
            }
            HYPERCALL_FLUSH => {
                let mut of = VcpuSet::default();
                of.add_word(0, rdx);
                let scope = match rcx {
                    0 => TlbScope::All,
                    1 => TlbScope::NonGlobal,
                    page => TlbScope::Pages(vec![PageRange::at(page)]),
                };
                self.partition.get()?.tlb_flusher()?.flush_tlbs(vcpu, &of, &scope);
            }
            _ => return None,
        }
        Some(answer)
    }

    fn pic_acknowledge(&self) -> Option<u8> {
        let (vector, more) = {
            let pic = &mut self.lock().pic;
            (pic.pop_front(), !pic.is_empty())
        };
        self.set_extint(more);
        vector
    }

    fn ioapic_eoi(&self, vector: u8) {
        self.record(Event::Eoi(vector));
    }
}
