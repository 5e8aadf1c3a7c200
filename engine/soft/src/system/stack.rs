//! A stack that is not (yet) the current one: pushes during control transfers, which commit only at their end.

use vireo_core::state::Segment;

use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, seg, vector};

/// A stack pointer with all that decides where it leads.
#[derive(Clone, Copy, Debug)]
pub struct Stack {
    segment: Segment,
    /// Offset of the top; always within `mask`.
    pub sp: u64,
    mask: u64,
    cpl: u8,
    /// Error code of #SS when there is no room.
    error: u32,
}

impl Stack {
    /// The current stack. `ext` is the error code's EXT bit.
    pub fn current(cpu: &Cpu, ext: u32) -> Self {
        Self {
            segment: cpu.seg[seg::SS as usize],
            sp: cpu.stack_pointer(),
            mask: cpu.mode.stack_mask(),
            cpl: cpu.cpl,
            error: ext,
        }
    }

    /// A stack in a 16- or 32-bit segment. `error` goes with #SS.
    pub fn in_segment(segment: Segment, sp: u64, cpl: u8, error: u32) -> Self {
        let mask = if segment.attributes & Segment::DB != 0 { 0xffff_ffff } else { 0xffff };
        Self { segment, sp: sp & mask, mask, cpl, error }
    }

    /// A stack of 64-bit mode.
    pub fn long(segment: Segment, sp: u64, cpl: u8, error: u32) -> Self {
        Self { segment, sp, mask: u64::MAX, cpl, error }
    }

    /// Linear address of `size` bytes at offset `sp`.
    fn linear(&self, cpu: &mut Cpu, sp: u64, size: u32) -> Exec<u64> {
        if self.mask == u64::MAX {
            let last = sp.wrapping_add(u64::from(size - 1));
            return match Cpu::canonical(sp) && Cpu::canonical(last) {
                true => Ok(sp),
                false => Err(cpu.raise(vector::SS, Some(self.error))),
            };
        }
        if !Cpu::within_limit(&self.segment, sp as u32, size) {
            return Err(cpu.raise(vector::SS, Some(self.error)));
        }
        Ok(self.segment.base.wrapping_add(sp) & 0xffff_ffff)
    }

    /// Pushes the low `size` (2, 4, 8) bytes of a value.
    pub fn push(&mut self, cpu: &mut Cpu, size: u32, v: u64) -> Exec {
        let sp = self.sp.wrapping_sub(u64::from(size)) & self.mask;
        let at = self.linear(cpu, sp, size)?;
        match size {
            2 => cpu.store_as::<u16>(self.cpl, seg::SS, at, v as u16)?,
            4 => cpu.store_as::<u32>(self.cpl, seg::SS, at, v as u32)?,
            _ => cpu.store_as::<u64>(self.cpl, seg::SS, at, v)?,
        }
        self.sp = sp;
        Ok(())
    }

    /// Pops `size` (2, 4, 8) bytes.
    pub fn pop(&mut self, cpu: &mut Cpu, size: u32) -> Exec<u64> {
        let at = self.linear(cpu, self.sp, size)?;
        let v = match size {
            2 => u64::from(cpu.load_as::<u16>(self.cpl, seg::SS, at)?),
            4 => u64::from(cpu.load_as::<u32>(self.cpl, seg::SS, at)?),
            _ => cpu.load_as::<u64>(self.cpl, seg::SS, at)?,
        };
        self.skip(u64::from(size));
        Ok(v)
    }

    /// Moves the top up without reading.
    pub fn skip(&mut self, bytes: u64) {
        self.sp = self.sp.wrapping_add(bytes) & self.mask;
    }

    /// Makes its pointer the stack pointer: the part that the stack's width covers.
    pub fn commit_pointer(&self, cpu: &mut Cpu) {
        set_pointer(cpu, self.mask, self.sp);
    }

    /// Makes it the current stack, SS included. The caller sets CPL and calls `mode_changed`.
    pub fn commit(&self, cpu: &mut Cpu) {
        cpu.seg[seg::SS as usize] = self.segment;
        self.commit_pointer(cpu);
    }
}

/// Sets the stack pointer at the width of `mask`.
fn set_pointer(cpu: &mut Cpu, mask: u64, sp: u64) {
    match mask {
        0xffff => cpu.regs.set16(gpr::RSP, sp as u16),
        _ => cpu.regs.set(gpr::RSP, sp & mask),
    }
}
