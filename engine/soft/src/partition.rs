//! A partition of the software engine: what its vCPUs share, and the engine traits over it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};

use vireo_core::partition::{ClockState, PartitionStats};
use vireo_core::{
    CpuModel, EngineError, EngineKind, MsiMessage, Partition, PartitionSpec, RamRange, TlbFlusher, Vcpu,
    dirty::PAGE,
};

use crate::apic::Mailbox;
use crate::clock::{Clock, host_tsc_hz};
use crate::flush::Flushes;
use crate::host::StubCache;
use crate::mmu::RamMap;
use crate::mmu::watch::Watch;
use crate::translate::SharedCode;
use crate::vcpu::SoftVcpu;

/// Something that a vCPU has to look at between two blocks.
pub mod request {
    /// The board kicked it.
    pub const KICK: u32 = 1;
    /// Its mailbox has interrupts, INIT, SIPI or NMI.
    pub const INTERRUPT: u32 = 2;
    /// Code it may have decoded was overwritten by somebody else.
    pub const CODE: u32 = 4;
    /// Others want its TLB flushed ([`crate::flush`]). It need not wake for this.
    pub const FLUSH: u32 = 8;
}

/// Code that a vCPU has to drop before it runs its next block.
pub enum StaleCode {
    /// Decoded from these (page, granules).
    Some(Vec<(u32, u64)>),
    /// Everything: the vCPU slept through more changes than are worth remembering.
    All,
}

/// Most changes that are remembered one by one.
const MAX_STALE: usize = 4096;

impl Default for StaleCode {
    fn default() -> Self {
        Self::Some(Vec::new())
    }
}

impl StaleCode {
    fn add(&mut self, page: u32, granules: u64) {
        match self {
            Self::Some(list) if list.len() < MAX_STALE => list.push((page, granules)),
            _ => *self = Self::All,
        }
    }
}

/// The part of a vCPU that other threads reach.
pub struct VcpuShared {
    /// Bits of [`request`]; polled between blocks.
    pub requests: AtomicU32,
    /// Interrupts on their way to its local APIC.
    pub mailbox: Mailbox,
    /// Level of the PIC's output (vCPU 0 only).
    pub extint: AtomicBool,
    /// Code that others wrote to.
    stale_code: Mutex<StaleCode>,
    /// What others want flushed.
    pub flushes: Flushes,
    /// Whether it sleeps in HLT or waits for SIPI.
    asleep: Mutex<bool>,
    wake: Condvar,
    taken: AtomicBool,
    /// Counters, published when the vCPU leaves its loop or sleeps.
    pub counters: Counters,
}

/// Statistics of one vCPU.
#[derive(Default)]
pub struct Counters {
    /// Instructions that the interpreter completed.
    pub instructions: AtomicU64,
    /// Calls of the bus: ports, MMIO, MSRs, hypercalls, interrupt acknowledgement.
    pub exits: AtomicU64,
    /// TLB fills.
    pub tlb_fills: AtomicU64,
    /// TLB flushes.
    pub tlb_flushes: AtomicU64,
    /// Interrupts delivered.
    pub interrupts: AtomicU64,
    /// APIC timer expirations.
    pub timer_fires: AtomicU64,
    /// Blocks decoded.
    pub blocks: AtomicU64,
    /// Translations made.
    pub translations: AtomicU64,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VcpuShared {
    fn new(index: u32) -> Self {
        Self {
            requests: AtomicU32::new(0),
            mailbox: Mailbox::new(index),
            extint: AtomicBool::new(false),
            stale_code: Mutex::default(),
            flushes: Flushes::default(),
            asleep: Mutex::new(false),
            wake: Condvar::new(),
            taken: AtomicBool::new(false),
            counters: Counters::default(),
        }
    }

    /// Asks the vCPU to look, and wakes it if it sleeps.
    pub fn request(&self, bits: u32) {
        self.requests.fetch_or(bits, AcqRel);
        if *lock(&self.asleep) {
            self.wake.notify_all();
        }
    }

    /// Sleeps until a request comes that it has to wake for, or the time is over. Returns at once if one is already there.
    pub fn sleep(&self, at_most: Option<std::time::Duration>) {
        let mut asleep = lock(&self.asleep);
        *asleep = true;
        if self.requests.load(Acquire) & !request::FLUSH == 0 {
            asleep = match at_most {
                Some(t) => self.wake.wait_timeout(asleep, t).unwrap_or_else(PoisonError::into_inner).0,
                None => self.wake.wait(asleep).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *asleep = false;
    }

    /// Takes what is known of overwritten code.
    pub fn take_stale_code(&self) -> StaleCode {
        std::mem::take(&mut *lock(&self.stale_code))
    }
}

/// What all vCPUs of a partition share.
pub struct Shared {
    /// The CPU the guest sees.
    pub model: Arc<CpuModel>,
    /// Guest-physical address width.
    pub physical_bits: u32,
    /// First address above all RAM there can be.
    ram_limit: u64,
    /// How bytes are decoded for the model.
    pub decoder_options: u32,
    /// Host stubs of x87, MMX, SSE and rare instructions.
    pub stubs: StubCache,
    /// Held by atomic operations that cannot be done by one host instruction.
    pub split_lock: Mutex<()>,
    /// Attention bytes, code granules, dirty log.
    pub watch: Arc<Watch>,
    /// Guest time.
    pub clock: Clock,
    /// The vCPUs.
    pub vcpus: Box<[VcpuShared]>,
    /// Pages that others than vCPUs wrote to, for [`crate::lockstep`] only.
    written: Mutex<Vec<u32>>,
    /// Whether they are told of.
    tells: AtomicBool,
    /// What is translated.
    pub code: SharedCode,
    /// Memory for decoded code of each vCPU, in bytes.
    pub block_memory: usize,
    ram: RwLock<Arc<RamMap>>,
}

impl Shared {
    /// RAM as it is now.
    pub fn ram(&self) -> Arc<RamMap> {
        Arc::clone(&self.ram.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn written_by_host(&self, page: u32) {
        if self.tells.load(Relaxed) {
            lock(&self.written).push(page);
        }
    }

    /// From now on [`Shared::take_written`] is told of pages that others than vCPUs write to.
    pub fn tell_written(&self) {
        self.tells.store(true, Relaxed);
    }

    /// Takes the list of pages that others than vCPUs wrote to.
    pub fn take_written(&self) -> Vec<u32> {
        std::mem::take(&mut *lock(&self.written))
    }

    /// Decoded code was overwritten: drops what is translated of it, then tells every vCPU but one.
    pub fn code_changed(&self, except: Option<u32>, page: u32, granules: u64) {
        self.code.invalidate(page, granules);
        for (i, v) in (0..).zip(&self.vcpus) {
            if Some(i) != except {
                lock(&v.stale_code).add(page, granules);
                v.requests.fetch_or(request::CODE, AcqRel);
            }
        }
    }
}

/// Clock rates that differ by less than one part in so many are the same: 250 ppm.
const TSC_TOLERANCE: u64 = 4000;

/// A partition of the software engine.
pub struct SoftPartition(pub(crate) Arc<Shared>);

impl SoftPartition {
    /// An empty partition.
    pub fn new(spec: &PartitionSpec) -> Result<Self, EngineError> {
        let model = Arc::clone(&spec.cpu_model);
        host_tsc_hz();
        let memory = spec.translation_memory as usize;
        let avx = model.has(vireo_isa::Feature::Avx);
        Ok(Self(Arc::new(Shared {
            code: SharedCode::new(spec.vcpus, memory * 2 / 5, avx)?,
            block_memory: memory / 5 / spec.vcpus.max(1) as usize,
            physical_bits: model.physical_bits(),
            ram_limit: spec.ram_limit,
            decoder_options: vireo_isa::decoder_options(model.features()),
            stubs: StubCache::new()?,
            split_lock: Mutex::new(()),
            watch: Arc::new(Watch::new(spec.ram_limit)?),
            clock: Clock::new(),
            vcpus: (0..spec.vcpus).map(VcpuShared::new).collect(),
            written: Mutex::default(),
            tells: AtomicBool::new(false),
            ram: RwLock::default(),
            model,
        })))
    }

    fn change_ram(
        &self,
        change: impl FnOnce(&mut RamMap) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let mut slot = self.0.ram.write().unwrap_or_else(PoisonError::into_inner);
        let mut map = RamMap::clone(&slot);
        change(&mut map)?;
        // vCPUs are paused: each takes the new map, and empties its TLB, when it runs again.
        *slot = Arc::new(map);
        self.0.code.clear();
        Ok(())
    }

    fn sum(&self, of: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        self.0.vcpus.iter().map(|v| of(&v.counters).load(Relaxed)).sum()
    }
}

impl Partition for SoftPartition {
    fn kind(&self) -> EngineKind {
        EngineKind::Soft
    }

    fn map_ram(&self, range: RamRange) -> Result<(), EngineError> {
        range.validate(self.0.physical_bits)?;
        if range.end() > self.0.ram_limit {
            let reason = "it ends above the partition's RAM limit";
            return Err(EngineError::BadRange { start: range.gpa, len: range.len, reason });
        }
        self.change_ram(|m| m.insert(range))
    }

    fn unmap_ram(&self, gpa: u64, len: u64) -> Result<(), EngineError> {
        self.change_ram(|m| m.remove(gpa, len))
    }

    fn take_vcpu(self: Arc<Self>, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        let v = self.0.vcpus.get(index as usize).ok_or(EngineError::NoVcpu(index))?;
        if v.taken.swap(true, AcqRel) {
            return Err(EngineError::NoVcpu(index));
        }
        Ok(Box::new(SoftVcpu::new(Arc::clone(&self.0), index)))
    }

    fn kick(&self, vcpu: u32) {
        if let Some(v) = self.0.vcpus.get(vcpu as usize) {
            v.request(request::KICK);
        }
    }

    fn tlb_flusher(&self) -> Option<&dyn TlbFlusher> {
        Some(&*self.0)
    }

    fn deliver_msi(&self, message: MsiMessage) {
        self.0.deliver_msi(message);
    }

    fn set_extint(&self, asserted: bool) {
        if let Some(v) = self.0.vcpus.first() {
            v.extint.store(asserted, Release);
            v.request(request::INTERRUPT);
        }
    }

    fn inject_nmi(&self, vcpu: u32) {
        if let Some(v) = self.0.vcpus.get(vcpu as usize) {
            v.mailbox.post_nmi();
            v.request(request::INTERRUPT);
        }
    }

    fn host_wrote(&self, gpa: u64, len: u64) {
        let mut at = gpa;
        let end = gpa.saturating_add(len);
        while at < end {
            let page = (at / PAGE) as u32;
            let piece = (end - at).min(PAGE - at % PAGE);
            if self.0.watch.attention(page) != 0 {
                let tell = |granules| self.0.code_changed(None, page, granules);
                self.0.watch.after_write(page, (at % PAGE) as u32, piece as u32, tell);
            }
            self.0.written_by_host(page);
            at += piece;
        }
    }

    fn dirty_start(&self) -> Result<(), EngineError> {
        self.0.watch.dirty_start();
        Ok(())
    }
    fn dirty_harvest(&self) -> Result<Vec<u64>, EngineError> {
        Ok(self.0.watch.dirty_harvest())
    }
    fn dirty_put_back(&self, bits: &[u64]) {
        self.0.watch.dirty_put_back(bits);
    }
    fn dirty_stop(&self) -> Result<(), EngineError> {
        self.0.watch.dirty_stop();
        Ok(())
    }

    fn clock(&self) -> ClockState {
        self.0.clock.export()
    }
    fn set_clock(&self, clock: &ClockState) -> Result<(), EngineError> {
        // What hosts measure differs by their error; within that the guest's own clock discipline evens it out.
        if clock.tsc_hz.abs_diff(host_tsc_hz()) > host_tsc_hz() / TSC_TOLERANCE {
            return Err(EngineError::Unsupported {
                engine: "soft",
                what: "run a guest clock of another rate",
                reason: format!(
                    "the state's counter runs at {} Hz, this host's at {} Hz",
                    clock.tsc_hz,
                    host_tsc_hz()
                ),
            });
        }
        self.0.clock.import(clock.tsc);
        Ok(())
    }
    fn freeze_clock(&self) {
        self.0.clock.freeze();
    }
    fn thaw_clock(&self) {
        self.0.clock.thaw();
    }

    fn stats(&self) -> PartitionStats {
        let (code, about) = self.0.code.bytes();
        PartitionStats {
            // Translated code does not count them.
            instructions: None,
            exits: Some(self.sum(|c| &c.exits)),
            tlb_fills: Some(self.sum(|c| &c.tlb_fills)),
            tlb_flushes: Some(self.sum(|c| &c.tlb_flushes)),
            interrupts: Some(self.sum(|c| &c.interrupts)),
            timer_fires: Some(self.sum(|c| &c.timer_fires)),
            other: vec![
                ("interpreted", self.sum(|c| &c.instructions)),
                ("blocks decoded", self.sum(|c| &c.blocks)),
                ("translations", self.sum(|c| &c.translations)),
                ("code bytes", code as u64),
                ("bytes about code", about as u64),
            ],
        }
    }
}
