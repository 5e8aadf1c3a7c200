//! Running guests on an engine.

use std::sync::Arc;
use std::time::Duration;

use vireo_core::model::CpuModel;
use vireo_core::{Engine, EngineError, Exit, Partition, PartitionSpec, RamRange, RunGate, Vcpu, VcpuState};

use crate::bus::RecordingBus;
use crate::ram::Ram;
use crate::record::Failure;
use crate::tables;

/// How long a guest may take: seconds too many for the slowest engine on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(20);

/// An engine and a CPU model on which cases run.
pub struct Bench<'a> {
    /// The engine.
    pub engine: &'a dyn Engine,
    /// The CPU of all guests; all engines that are compared have to offer it.
    pub model: Arc<CpuModel>,
}

/// A partition with RAM, a board and its vCPUs.
pub struct Machine {
    /// RAM from address 0.
    pub ram: Arc<Ram>,
    /// The partition.
    pub partition: Arc<dyn Partition>,
    /// The board.
    pub bus: Arc<RecordingBus>,
    /// The vCPUs.
    pub vcpus: Vec<Box<dyn Vcpu>>,
}

/// What the host side of a case may do while the guest runs.
pub struct Host<'a> {
    /// The partition.
    pub partition: &'a dyn Partition,
    /// The board.
    pub bus: &'a RecordingBus,
    /// RAM.
    pub ram: &'a Ram,
    /// The gate of the vCPU threads.
    pub gate: &'a Arc<RunGate>,
}

impl Host<'_> {
    /// Waits until the guest has reported that many numbers.
    pub fn wait_for_reports(&self, count: usize) -> Result<(), Failure> {
        self.bus.wait_for_reports(count, LIMIT).map_err(Failure::Stuck)
    }

    /// Writes to the guest's RAM as a device does: the partition is told.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.ram.write(at, bytes);
        self.partition.host_wrote(at, bytes.len() as u64);
    }
}

impl Machine {
    /// An empty machine whose RAM holds the tables for a mode.
    pub fn new(bench: &Bench<'_>, vcpus: u32, handler_bits: u32) -> Result<Self, Failure> {
        let ram = Arc::new(Ram::new(tables::RAM as usize)?);
        tables::write(&ram, handler_bits)?;
        Self::with_ram(bench, vcpus, ram)
    }

    /// A machine with RAM that is already filled.
    pub fn with_ram(bench: &Bench<'_>, vcpus: u32, ram: Arc<Ram>) -> Result<Self, Failure> {
        let spec = PartitionSpec::new(vcpus, Arc::clone(&bench.model), tables::RAM_LIMIT);
        let partition = bench.engine.new_partition(&spec)?;
        let host = Arc::clone(&ram) as Arc<dyn vireo_core::HostRam>;
        partition.map_ram(RamRange { gpa: 0, len: tables::RAM, host, offset: 0, writable: true })?;
        let taken: Result<Vec<_>, EngineError> =
            (0..vcpus).map(|i| Arc::clone(&partition).take_vcpu(i)).collect();
        let bus = Arc::new(RecordingBus::new(Arc::clone(&partition)));
        Ok(Self { ram, partition, bus, vcpus: taken? })
    }

    /// The state of vCPU 0.
    pub fn save(&mut self) -> Result<VcpuState, Failure> {
        Ok(self.vcpus[0].save()?)
    }

    /// Sets the state of vCPU 0.
    pub fn load(&mut self, state: &VcpuState) -> Result<(), Failure> {
        Ok(self.vcpus[0].load(state)?)
    }

    /// Runs all vCPUs until the guest is done or shuts down.
    pub fn run(&mut self) -> Result<(), Failure> {
        self.run_with(|_| Ok(()))
    }

    /// Runs all vCPUs, and the host's part beside them, until both are done.
    pub fn run_with(&mut self, host: impl FnOnce(&Host<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        let outcome = self.run_part(|h| {
            host(h)?;
            h.bus.wait_for_end(LIMIT).map_err(Failure::Stuck)
        });
        outcome.map_err(|e| self.with_traps(e))
    }

    /// Adds the unexpected traps to what is told about a guest that got stuck.
    fn with_traps(&self, e: Failure) -> Failure {
        match e {
            Failure::Stuck(why) => Failure::Stuck(format!("{why}; traps {:x?}", tables::traps(&self.ram))),
            other => other,
        }
    }

    /// Runs all vCPUs until the host's part returns.
    pub fn run_part(&mut self, host: impl FnOnce(&Host<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        let gate = RunGate::new(Arc::clone(&self.partition), self.vcpus.len() as u32);
        self.bus.attach(Arc::clone(&gate));
        let (bus, vcpus) = (&self.bus, &mut self.vcpus);
        std::thread::scope(|scope| {
            for vcpu in vcpus {
                let gate = Arc::clone(&gate);
                scope.spawn(move || run_vcpu(vcpu.as_mut(), bus, &gate));
            }
            gate.resume();
            let outcome =
                host(&Host { partition: self.partition.as_ref(), bus, ram: &self.ram, gate: &gate });
            gate.end();
            outcome
        })
    }
}

fn run_vcpu(vcpu: &mut dyn Vcpu, bus: &RecordingBus, gate: &RunGate) {
    let index = vcpu.index();
    while gate.enter(index) {
        match vcpu.run(bus) {
            Ok(Exit::Kicked) => {}
            Ok(Exit::Shutdown) => bus.shut_down(),
            Err(e) => bus.fail(format!("vCPU {index}: {e}")),
        }
    }
}
