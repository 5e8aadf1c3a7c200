//! A decoded instruction, ready to run.

use std::cell::Cell;

use crate::cpu::{Cpu, Exec, regs, seg};

/// Executes one micro-operation. On [`crate::cpu::Stop::Fault`] no guest-visible state has changed (except that a
/// string instruction keeps the progress it made).
pub type Handler = fn(&mut Cpu, &Uop) -> Exec;

/// How [`Uop::address`] becomes linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Address {
    /// 64 bits, no segment base.
    Flat64,
    /// 32 bits, flat segment.
    Flat32,
    /// Everything else: FS or GS base, 67h in 64-bit mode, segment with base or limit, 16-bit addresses.
    General,
}

/// One guest instruction: 32 bytes.
#[repr(C)]
pub struct Uop {
    /// What executes it. A cell, because a block that modifies itself is cut short while it runs.
    pub run: Cell<Handler>,
    /// Immediate, branch offset from the block's start, or pointer to a host stub.
    pub imm: u64,
    /// Displacement of the memory operand.
    pub disp: i32,
    /// Destination register, in the numbering of [`regs`].
    pub dst: u8,
    /// Source register.
    pub src: u8,
    /// Base register of the memory operand, or [`regs::ZERO`] or [`regs::BLOCK_RIP`].
    pub base: u8,
    /// Index register, or [`regs::ZERO`].
    pub index: u8,
    /// Shift count of the index, 0 to 3.
    pub scale: u8,
    /// Segment of the memory operand (0 to 5); bits 4 and 5 hold the address size: 0 = 16, 1 = 32, 2 = 64 bits.
    pub seg: u8,
    /// How the address becomes linear.
    pub address: Address,
    /// Length of the instruction in bytes.
    pub len: u8,
    /// Offset of the next instruction from the block's start.
    pub next: u16,
    /// For the handler: prefixes, condition, size, as it likes.
    pub aux: u16,
}

impl Uop {
    /// Segment register number of the memory operand.
    #[inline(always)]
    pub fn segment(&self) -> u8 {
        self.seg & 7
    }
    /// Mask of effective addresses: 16, 32 or 64 bits.
    #[inline(always)]
    pub fn address_mask(&self) -> u64 {
        match self.seg >> 4 {
            0 => 0xffff,
            1 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }
    /// Effective address (offset in the segment).
    #[inline(always)]
    pub fn offset(&self, cpu: &Cpu) -> u64 {
        let a = cpu.regs.get(self.base).wrapping_add(cpu.regs.get(self.index) << (self.scale & 3));
        a.wrapping_add(self.disp as i64 as u64)
    }
    /// Effective address without the index.
    pub fn base_offset(&self, cpu: &Cpu) -> u64 {
        cpu.regs.get(self.base).wrapping_add(self.disp as i64 as u64)
    }
    /// Sets the address size: 0 = 16, 1 = 32, 2 = 64 bits.
    pub fn set_address_size(&mut self, size: u8) {
        self.seg = self.segment() | size << 4;
        if self.address == Address::Flat64 && size != 2 {
            self.address = Address::General;
        }
    }
    /// Linear address of `size` bytes at the memory operand, for reading (`write` = false) or writing.
    #[inline(always)]
    pub fn linear(&self, cpu: &mut Cpu, size: u32, write: bool) -> Exec<u64> {
        let offset = self.offset(cpu);
        self.linear_of(cpu, offset, size, write)
    }
    /// The same for an effective address that the caller computed from [`Uop::offset`].
    #[inline(always)]
    pub fn linear_of(&self, cpu: &mut Cpu, offset: u64, size: u32, write: bool) -> Exec<u64> {
        match self.address {
            Address::Flat64 => Ok(offset),
            Address::Flat32 => Ok(offset & 0xffff_ffff),
            Address::General => cpu.segment_linear(self.segment(), offset & self.address_mask(), size, write),
        }
    }
}

/// A micro-operation with no operands; decoders fill in the rest.
impl Uop {
    /// See above.
    pub fn new(run: Handler, len: u8, next: u16) -> Self {
        Self {
            run: Cell::new(run),
            imm: 0,
            disp: 0,
            dst: 0,
            src: 0,
            base: regs::ZERO,
            index: regs::ZERO,
            scale: 0,
            seg: seg::DS,
            address: Address::General,
            len,
            next,
            aux: 0,
        }
    }
}
