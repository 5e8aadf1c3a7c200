//! What the meaning of a block of code depends on besides its bytes.

use vireo_core::state::{Segment, rflags};

use super::{Cpu, seg};

/// Part of a block's key. Two bits of code size, two of stack size, one for flat segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mode(pub u8);

impl Mode {
    const CODE32: u8 = 1;
    const CODE64: u8 = 2;
    const STACK32: u8 = 4;
    const STACK64: u8 = 8;
    const FLAT: u8 = 16;

    /// The mode that the registers of `cpu` say.
    pub fn of(cpu: &Cpu) -> Self {
        let cs = &cpu.seg[seg::CS as usize];
        if cpu.long_mode() && cs.attributes & Segment::L != 0 {
            return Self(Self::CODE64 | Self::STACK64 | Self::FLAT);
        }
        let mut m = 0;
        if cpu.eflags & rflags::VM == 0 {
            if cs.attributes & Segment::DB != 0 {
                m |= Self::CODE32;
            }
            if cpu.seg[seg::SS as usize].attributes & Segment::DB != 0 {
                m |= Self::STACK32;
            }
        }
        // Flat: no base to add and no access beyond a limit possible for CS (reads), SS, DS and ES.
        let flat = |s: &Segment| s.base == 0 && s.limit == u32::MAX && s.usable();
        let data = |s: &Segment| flat(s) && s.attributes & 0x9e == 0x92;
        let code = |s: &Segment| flat(s) && s.attributes & 0x9a == 0x9a;
        if code(cs) && [seg::SS, seg::DS, seg::ES].iter().all(|&i| data(&cpu.seg[i as usize])) {
            m |= Self::FLAT;
        }
        Self(m)
    }

    /// Width of code: 16, 32 or 64.
    pub fn bits(self) -> u32 {
        match self.0 & 3 {
            0 => 16,
            1 => 32,
            _ => 64,
        }
    }
    /// 64-bit mode.
    #[inline(always)]
    pub fn is64(self) -> bool {
        self.0 & Self::CODE64 != 0
    }
    /// Whether SS, DS, ES and CS need neither base nor limit check (in 64-bit mode always).
    #[inline(always)]
    pub fn flat(self) -> bool {
        self.0 & Self::FLAT != 0
    }
    /// Mask of the stack pointer: 16, 32 or 64 bits.
    #[inline(always)]
    pub fn stack_mask(self) -> u64 {
        match self.0 >> 2 & 3 {
            0 => 0xffff,
            1 => 0xffff_ffff,
            _ => u64::MAX,
        }
    }
    /// Truncates an instruction pointer: 64 bits in 64-bit mode, otherwise 32. (Operand size, not code size, cuts
    /// to 16 bits: the branches see to that.)
    #[inline(always)]
    pub fn mask_ip(self, ip: u64) -> u64 {
        if self.is64() { ip } else { ip & 0xffff_ffff }
    }
}
