//! The traits of an engine, from probe to running vCPU.

use std::sync::Arc;
use std::time::Duration;

use crate::model::Vendor;
use crate::{
    Bus, CpuModel, EngineError, MsiMessage, Probe, RamRange, TlbFlusher, VcpuState, capability::EngineKind,
};

/// What a partition is made from.
#[derive(Clone, Debug)]
pub struct PartitionSpec {
    /// Number of vCPUs; APIC ids are 0 to n-1.
    pub vcpus: u32,
    /// The CPU that the guest sees.
    pub cpu_model: Arc<CpuModel>,
    /// First guest-physical address above all RAM there will ever be (sizes the dirty log).
    pub ram_limit: u64,
    /// Bytes that an engine may use for translated code and what goes with it; one that translates nothing uses none.
    pub translation_memory: u64,
}

impl PartitionSpec {
    /// What [`PartitionSpec::translation_memory`] is where nobody says: 200 MiB.
    pub const TRANSLATION_MEMORY: u64 = 200 << 20;

    /// With that.
    pub fn new(vcpus: u32, cpu_model: Arc<CpuModel>, ram_limit: u64) -> Self {
        Self { vcpus, cpu_model, ram_limit, translation_memory: Self::TRANSLATION_MEMORY }
    }
}

/// An engine on this host.
pub trait Engine: Send + Sync {
    /// Which one.
    fn kind(&self) -> EngineKind;
    /// What it can do here; takes a few milliseconds at most.
    fn probe(&self) -> Probe;
    /// Makes an empty partition: vCPUs at reset, no memory, guest time at zero.
    fn new_partition(&self, spec: &PartitionSpec) -> Result<Arc<dyn Partition>, EngineError>;
}

/// Counters since the partition was made. Those that an engine cannot count stay `None`.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct PartitionStats {
    /// Guest instructions executed.
    pub instructions: Option<u64>,
    /// Times a vCPU left guest code for the bus or the board.
    pub exits: Option<u64>,
    /// Software TLB fills.
    pub tlb_fills: Option<u64>,
    /// Software TLB flushes.
    pub tlb_flushes: Option<u64>,
    /// Interrupts delivered to the guest.
    pub interrupts: Option<u64>,
    /// Local APIC timer expirations.
    pub timer_fires: Option<u64>,
    /// Anything else an engine counts: (name, value).
    pub other: Vec<(&'static str, u64)>,
}

/// The instruction by which a guest makes a hypercall. It answers in RAX and XMM registers, and changes no others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypercallInstruction {
    /// VMCALL.
    Vmcall,
    /// VMMCALL.
    Vmmcall,
    /// OUT of AL to a port that the engine keeps for it.
    Out(u8),
}

impl HypercallInstruction {
    /// That of a vendor's processors.
    pub fn of(vendor: Vendor) -> Self {
        match vendor {
            Vendor::Intel => Self::Vmcall,
            Vendor::Amd => Self::Vmmcall,
        }
    }

    /// Its code.
    pub fn code(self) -> Vec<u8> {
        match self {
            Self::Vmcall => vec![0x0f, 0x01, 0xc1],
            Self::Vmmcall => vec![0x0f, 0x01, 0xd9],
            Self::Out(port) => vec![0xe6, port],
        }
    }
}

/// A virtual machine's processors and its view of memory. Shared by all threads of the board.
pub trait Partition: Send + Sync {
    /// Which engine runs it.
    fn kind(&self) -> EngineKind;
    /// Maps RAM. Before the first run, or while paused.
    fn map_ram(&self, range: RamRange) -> Result<(), EngineError>;
    /// Removes a range exactly as it was mapped. Before the first run, or while paused.
    fn unmap_ram(&self, gpa: u64, len: u64) -> Result<(), EngineError>;
    /// Hands out a vCPU, once each.
    fn take_vcpu(self: Arc<Self>, index: u32) -> Result<Box<dyn Vcpu>, EngineError>;
    /// Makes the vCPU's `run` return [`Exit::Kicked`] soon, or at its next call if it is not running.
    /// May be called from any thread at any time.
    fn kick(&self, vcpu: u32);

    /// By what instruction its guest makes hypercalls, where the guest sees a processor of `vendor`.
    fn hypercall_instruction(&self, vendor: Vendor) -> HypercallInstruction {
        HypercallInstruction::of(vendor)
    }

    /// What flushes the TLBs of vCPUs for another one, if the engine can.
    fn tlb_flusher(&self) -> Option<&dyn TlbFlusher> {
        None
    }

    /// Delivers an MSI, the form in which IOAPIC and PCI devices raise interrupts.
    fn deliver_msi(&self, message: MsiMessage);
    /// Level of the PIC's INTR output, wired to LINT0 of vCPU 0.
    fn set_extint(&self, asserted: bool);
    /// Raises an NMI (button, `vm nmi`).
    fn inject_nmi(&self, vcpu: u32);

    /// A device wrote guest RAM: marks the dirty log and drops code translated from there. Called by the memory
    /// accessors after each write.
    fn host_wrote(&self, gpa: u64, len: u64);
    /// Turns the dirty log on, all pages clean.
    fn dirty_start(&self) -> Result<(), EngineError>;
    /// The pages written since the last harvest, by vCPUs and devices; word `i` holds pages `64*i ..`. May
    /// be called while running: a write after the call is seen by the next one.
    fn dirty_harvest(&self) -> Result<Vec<u64>, EngineError>;
    /// Puts harvested bits back (they could not be sent).
    fn dirty_put_back(&self, bits: &[u64]);
    /// Turns the dirty log off.
    fn dirty_stop(&self) -> Result<(), EngineError>;

    /// Guest time now: the TSC value of vCPU 0 and its rate. While paused it does not move.
    fn clock(&self) -> ClockState;
    /// Sets guest time; only while paused, and before the vCPUs' states are loaded: their timers count from it. The rate must equal the partition's or be one it can scale to.
    fn set_clock(&self, clock: &ClockState) -> Result<(), EngineError>;
    /// Stops guest time and timers (all vCPUs are paused).
    fn freeze_clock(&self);
    /// Lets guest time go on from where it was frozen.
    fn thaw_clock(&self);

    /// Counters.
    fn stats(&self) -> PartitionStats;
}

/// Guest time in portable form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ClockState {
    /// Value of the time-stamp counter.
    pub tsc: u64,
    /// Its rate in Hz.
    pub tsc_hz: u64,
}

/// Why [`Vcpu::run`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// [`Partition::kick`] was called.
    Kicked,
    /// The guest shut the processor down (triple fault). The board resets the machine or stops it.
    Shutdown,
}

/// One virtual processor, owned by its thread. HLT, INIT and start-up IPIs are served inside [`Vcpu::run`].
pub trait Vcpu: Send {
    /// Its index, equal to its APIC id.
    fn index(&self) -> u32;
    /// Executes guest code, calling `bus` for all that the engine does not own.
    fn run(&mut self, bus: &dyn Bus) -> Result<Exit, EngineError>;
    /// The architectural state. The vCPU is not running, as the `&mut` says.
    fn save(&mut self) -> Result<VcpuState, EngineError>;
    /// Replaces the architectural state. Values that no processor can be in are refused, whole.
    fn load(&mut self, state: &VcpuState) -> Result<(), EngineError>;
    /// CPU time that the vCPU's thread spent in guest code, if known.
    fn guest_time(&self) -> Option<Duration> {
        None
    }
}
