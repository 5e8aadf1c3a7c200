//! Assembling guests.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, eax, ecx, edx, rax, rdx};

use crate::bus::{DONE, REPORT};
use crate::record::Failure;

/// Machine code for an address.
pub fn assemble(
    bits: u32,
    at: u64,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<Vec<u8>, Failure> {
    let mut a = CodeAssembler::new(bits)?;
    write(&mut a)?;
    Ok(a.assemble(at)?)
}

/// Sequences that guests use.
pub trait Phrases {
    /// Reports EAX to the board.
    fn report(&mut self) -> Result<(), IcedError>;
    /// Reports a constant.
    fn report_value(&mut self, value: u32) -> Result<(), IcedError>;
    /// Writes an MSR whose upper half is 0.
    fn write_msr(&mut self, index: u32, value: u32) -> Result<(), IcedError>;
    /// The TSC into RAX.
    fn read_tsc(&mut self) -> Result<(), IcedError>;
    /// Turns interrupts on, for long enough that a pending one is taken in spite of STI's shadow.
    fn open_interrupt_window(&mut self) -> Result<(), IcedError>;
    /// Ends the guest.
    fn done(&mut self) -> Result<(), IcedError>;
}

impl Phrases for CodeAssembler {
    fn report(&mut self) -> Result<(), IcedError> {
        self.out(i32::from(REPORT), eax)
    }
    fn report_value(&mut self, value: u32) -> Result<(), IcedError> {
        self.mov(eax, value)?;
        self.report()
    }
    fn write_msr(&mut self, index: u32, value: u32) -> Result<(), IcedError> {
        self.mov(ecx, index)?;
        self.mov(eax, value)?;
        self.xor(edx, edx)?;
        self.wrmsr()
    }
    fn read_tsc(&mut self) -> Result<(), IcedError> {
        self.rdtsc()?;
        self.shl(rdx, 32)?;
        self.or(rax, rdx)
    }
    fn open_interrupt_window(&mut self) -> Result<(), IcedError> {
        self.sti()?;
        self.nop()?;
        self.nop()
    }
    fn done(&mut self) -> Result<(), IcedError> {
        self.out(i32::from(DONE), al)?;
        // The board stops the vCPU after this instruction; should it run on, it shall do no harm.
        let mut here = self.create_label();
        self.set_label(&mut here)?;
        self.pause()?;
        self.jmp(here)
    }
}
