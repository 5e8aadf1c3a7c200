//! The six arithmetic flags in the form in which `lahf; seto al` leaves them in AX.
//!
//! Executing the guest's own instruction on the host and taking its flags this way costs two cheap instructions and is
//! exact for defined and undefined flags alike; `add al, 0x7f; sahf` puts them back.

use vireo_core::state::rflags;

/// AH = SF:ZF:0:AF:0:PF:1:CF, AL = OF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(pub u16);

/// The arithmetic flags that AH holds.
const IN_AH: u64 = rflags::CF | rflags::PF | rflags::AF | rflags::ZF | rflags::SF;

impl Flags {
    /// From RFLAGS; other bits are ignored.
    pub fn from_rflags(v: u64) -> Self {
        Self(((v & IN_AH | rflags::ONE) << 8) as u16 | (v & rflags::OF != 0) as u16)
    }
    /// The bits at their places in RFLAGS; all others zero.
    pub fn to_rflags(self) -> u64 {
        u64::from(self.0 >> 8) & IN_AH | u64::from(self.0 & 1) << 11
    }
    /// Carry.
    #[inline(always)]
    pub fn cf(self) -> bool {
        self.0 & 1 << 8 != 0
    }
    /// Zero.
    #[inline(always)]
    pub fn zf(self) -> bool {
        self.0 & 1 << 14 != 0
    }
    /// Sets or clears the given arithmetic flags (RFLAGS positions).
    pub fn assign(&mut self, mask: u64, value: bool) {
        let v = self.to_rflags();
        *self = Self::from_rflags(if value { v | mask } else { v & !mask });
    }
    /// Condition `cc` as in the low four bits of Jcc's opcode.
    #[inline(always)]
    pub fn condition(self, cc: u8) -> bool {
        let f = self.0;
        let (cf, zf, sf, pf, of) = (f >> 8, f >> 14, f >> 15, f >> 10, f);
        let v = match cc >> 1 {
            0 => of,
            1 => cf,
            2 => zf,
            3 => cf | zf,
            4 => sf,
            5 => pf,
            6 => sf ^ of,
            _ => (sf ^ of) | zf,
        };
        (v ^ u16::from(cc)) & 1 != 0
    }
}
