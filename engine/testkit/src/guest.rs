//! A guest of one vCPU, from its code to its record.

use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use vireo_core::VcpuState;

use crate::asm::assemble;
use crate::bus::Event;
use crate::machine::{Bench, Host, Machine};
use crate::record::Failure;
use crate::tables::{self, AFTER, CODE, Mode, Trap};

/// A guest ready to run.
pub struct Guest {
    /// What it runs on.
    pub machine: Machine,
    mode: Mode,
    /// The state in which it starts.
    pub start: VcpuState,
}

impl Guest {
    /// Code in the mode's own size.
    pub fn new(
        bench: &Bench<'_>,
        mode: Mode,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, Failure> {
        Self::with_vcpus(bench, 1, mode, write)
    }

    /// As `new`, with several vCPUs; all but the first wait for a start-up IPI.
    pub fn with_vcpus(
        bench: &Bench<'_>,
        vcpus: u32,
        mode: Mode,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<Self, Failure> {
        let machine = Machine::new(bench, vcpus, mode.handler_bits())?;
        let guest = Self { machine, mode, start: tables::state(mode) };
        guest.code(mode.bits(), CODE, write)?;
        Ok(guest)
    }

    /// Adds code elsewhere.
    pub fn code(
        &self,
        bits: u32,
        at: u64,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), Failure> {
        self.machine.ram.write(at, &assemble(bits, at, write)?);
        Ok(())
    }

    /// Makes handlers return to this address rather than to where a fault was.
    pub fn resume_at(&self, at: u64) {
        debug_assert!(self.mode != Mode::Real);
        self.machine.ram.write(tables::RESUME, &at.to_le_bytes());
    }

    /// Makes handlers return to this code, in the mode's own size, rather than to where a fault was.
    pub fn resume_with(
        &self,
        write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) -> Result<(), Failure> {
        self.resume_at(AFTER);
        self.code(self.mode.bits(), AFTER, write)
    }

    /// Makes handlers end every interrupt at the x2APIC.
    pub fn end_interrupts(&self) {
        self.machine.ram.write(tables::END_INTERRUPTS, &[1]);
    }

    /// Runs from the start state to the guest's end.
    pub fn run(&mut self) -> Result<(), Failure> {
        self.run_with(|_| Ok(()))
    }

    /// As `run`, with a host's part.
    pub fn run_with(&mut self, host: impl FnOnce(&Host<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        self.machine.load(&self.start)?;
        self.machine.run_with(host)
    }

    /// Runs from the start state until the host's part returns.
    pub fn run_part(&mut self, host: impl FnOnce(&Host<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        self.machine.load(&self.start)?;
        self.machine.run_part(host)
    }

    /// The traps so far.
    pub fn traps(&self) -> Vec<Trap> {
        tables::traps(&self.machine.ram)
    }

    /// The only trap there has to be.
    pub fn trap(&self) -> Result<Trap, Failure> {
        match self.traps()[..] {
            [trap] => Ok(trap),
            ref other => Err(Failure::Stuck(format!("one trap expected, saw {other:x?}"))),
        }
    }

    /// Vectors and error codes of the traps so far.
    pub fn vectors(&self) -> Vec<(u64, u64)> {
        self.traps().iter().map(|t| (t.vector, t.error)).collect()
    }

    /// What the guest reported.
    pub fn reports(&self) -> Vec<u32> {
        self.machine.bus.reports()
    }

    /// What reached the board.
    pub fn events(&self) -> Vec<Event> {
        self.machine.bus.events()
    }
}
