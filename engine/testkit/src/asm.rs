//! Assembling guests.

use iced_x86::IcedError;
use iced_x86::code_asm::{CodeAssembler, al, eax};

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
    /// Ends the guest.
    fn done(&mut self) -> Result<(), IcedError>;
}

impl Phrases for CodeAssembler {
    fn report(&mut self) -> Result<(), IcedError> {
        self.out(i32::from(REPORT), eax)
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
