//! One instruction at a time: for comparing the engine with the real CPU, and for debugging it.

use std::ptr::NonNull;
use std::sync::Arc;

use vireo_core::{Bus, EngineError, Partition, PartitionSpec, RamRange, VcpuState};

use crate::cpu::{Cpu, Stop, vector};
use crate::partition::SoftPartition;

/// How one instruction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It completed.
    Done,
    /// It raised an exception, which was not delivered: registers are those at its boundary.
    Fault {
        /// Vector, 0 to 31.
        vector: u8,
        /// Error code, if the vector has one.
        error: Option<u32>,
        /// Linear address of a page fault.
        address: Option<u64>,
    },
}

/// A single vCPU that executes on demand; there are no interrupts.
pub struct Stepper {
    partition: SoftPartition,
    cpu: Box<Cpu>,
    translates: bool,
}

impl Stepper {
    /// A vCPU at reset without memory.
    pub fn new(spec: &PartitionSpec) -> Result<Self, EngineError> {
        let partition = SoftPartition::new(&PartitionSpec { vcpus: 1, ..spec.clone() })?;
        let cpu = Box::new(Cpu::new(Arc::clone(&partition.0), 0));
        Ok(Self { partition, cpu, translates: false })
    }

    /// Has instructions executed by the translator from now on: each becomes a translation of its own.
    pub fn translate(&mut self) {
        self.translates = true;
        self.cpu.code.translator.one_by_one();
    }

    /// Maps RAM.
    pub fn map_ram(&mut self, range: RamRange) -> Result<(), EngineError> {
        self.partition.map_ram(range)
    }

    /// Looks up a page for reading and writing, as an access would; what that raises is forgotten.
    pub fn look_up(&mut self, linear: u64) {
        self.cpu.enter();
        // In this order: a fault drops what is cached of the page.
        let _ = self.cpu.host_write(crate::cpu::seg::DS, linear, 1);
        let _ = self.cpu.host_read(crate::cpu::seg::DS, linear, 1);
        self.cpu.leave();
    }

    /// Tells that the host wrote to RAM.
    pub fn host_wrote(&mut self, gpa: u64, len: u64) {
        self.partition.host_wrote(gpa, len);
    }

    /// Replaces the state.
    pub fn load(&mut self, state: &VcpuState) -> Result<(), EngineError> {
        self.cpu.load_state(state)
    }

    /// The state.
    pub fn save(&mut self) -> Result<VcpuState, EngineError> {
        self.cpu.save()
    }

    /// Executes the instruction at RIP; a repeated string instruction to its end.
    pub fn step(&mut self, bus: &dyn Bus) -> Step {
        let cpu = &mut *self.cpu;
        // SAFETY: only the lifetime is erased; the pointer is cleared before `bus` can end.
        let bus: NonNull<dyn Bus> = unsafe { std::mem::transmute(NonNull::from(bus)) };
        cpu.bus = Some(bus);
        cpu.enter();
        let start = cpu.rip;
        let end = loop {
            let translated = if self.translates { cpu.step_translated() } else { None };
            match translated.unwrap_or_else(|| cpu.run_block(true)) {
                Err(Stop::Yield) if cpu.rip == start => {}
                other => break other,
            }
        };
        cpu.leave();
        cpu.bus = None;
        match end {
            Ok(()) | Err(Stop::EndBlock | Stop::Untraced | Stop::Yield | Stop::Shutdown) => Step::Done,
            Err(Stop::Fault | Stop::Trap) => {
                let f = cpu.fault;
                let address = (f.vector == vector::PF).then_some(cpu.mmu.fault_address);
                Step::Fault { vector: f.vector, error: f.error, address }
            }
        }
    }
}
