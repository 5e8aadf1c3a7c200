//! Integer arithmetic by the host's own instructions, flags included.

use crate::cpu::flags::Flags;
use crate::cpu::regs::Regs;
use crate::mmu::Value;

/// An operand width: 8, 16, 32 or 64 bits.
pub trait Int: Value + PartialEq + Eq {
    /// Reads a register at this width.
    fn get(regs: &Regs, r: u8) -> Self;
    /// Writes a register at this width (32 bits clear the upper half).
    fn set(regs: &mut Regs, r: u8, v: Self);
    /// `a op b`.
    fn binary<const OP: u8>(a: Self, b: Self, f: Flags) -> (Self, Flags);
    /// `op a`.
    fn unary<const OP: u8>(a: Self, f: Flags) -> (Self, Flags);
    /// `a shifted by count`, count as in CL.
    fn shift<const OP: u8>(a: Self, count: u8, f: Flags) -> (Self, Flags);
    /// `a` rotated by the immediate `N`: other than by CL, the host's undefined OF is not that of the count.
    fn rotate<const OP: u8, const N: u8>(a: Self, f: Flags) -> (Self, Flags);
    /// LOCK CMPXCHG on guest memory: whether `old` was there and is now `new`.
    ///
    /// # Safety
    /// `p` points to this many writable bytes of guest memory.
    unsafe fn compare_exchange(p: *mut u8, old: Self, new: Self) -> Result<(), Self>;
}

/// Binary operations in the order of the opcode map, then TEST.
#[allow(missing_docs)]
pub mod binary {
    pub const ADD: u8 = 0;
    pub const OR: u8 = 1;
    pub const ADC: u8 = 2;
    pub const SBB: u8 = 3;
    pub const AND: u8 = 4;
    pub const SUB: u8 = 5;
    pub const XOR: u8 = 6;
    pub const CMP: u8 = 7;
    pub const TEST: u8 = 8;
    /// Whether the operation only sets flags.
    pub const fn is_compare(op: u8) -> bool {
        op >= CMP
    }
}

/// Unary operations.
#[allow(missing_docs)]
pub mod unary {
    pub const INC: u8 = 0;
    pub const DEC: u8 = 1;
    pub const NEG: u8 = 2;
    pub const NOT: u8 = 3;
}

/// Shifts in the order of the opcode map (6 is an alias of SHL).
#[allow(missing_docs)]
pub mod shift {
    pub const ROL: u8 = 0;
    pub const ROR: u8 = 1;
    pub const RCL: u8 = 2;
    pub const RCR: u8 = 3;
    pub const SHL: u8 = 4;
    pub const SHR: u8 = 5;
    pub const SAR: u8 = 7;
}

/// `op a, b`, flags out.
macro_rules! op2 {
    ($op:literal, $class:ident, $m:literal, $a:ident, $b:ident) => {{
        let (mut r, f): (Self, u16) = ($a, 0);
        let mut f = f;
        // SAFETY: arithmetic on registers only; AX takes the flags.
        unsafe {
            std::arch::asm!(
                concat!($op, " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                a = inout($class) r, b = in($class) $b, inout("ax") f,
                options(pure, nomem, nostack));
        }
        (r, Flags(f))
    }};
}

/// `op a, b`, flags in and out.
macro_rules! op2f {
    ($op:literal, $class:ident, $m:literal, $a:ident, $b:ident, $f:ident) => {{
        let (mut r, mut f): (Self, u16) = ($a, $f.0);
        // SAFETY: as above; `add al, 0x7f` sets OF from AL, `sahf` the others from AH.
        unsafe {
            std::arch::asm!(
                "add al, 0x7f", "sahf", concat!($op, " {a", $m, "}, {b", $m, "}"), "lahf", "seto al",
                a = inout($class) r, b = in($class) $b, inout("ax") f,
                options(pure, nomem, nostack));
        }
        (r, Flags(f))
    }};
}

/// `op a`, flags in and out.
macro_rules! op1f {
    ($op:literal, $class:ident, $m:literal, $a:ident, $f:ident) => {{
        let (mut r, mut f): (Self, u16) = ($a, $f.0);
        // SAFETY: as above.
        unsafe {
            std::arch::asm!(
                "add al, 0x7f", "sahf", concat!($op, " {a", $m, "}"), "lahf", "seto al",
                a = inout($class) r, inout("ax") f, options(pure, nomem, nostack));
        }
        (r, Flags(f))
    }};
}

/// `op a, cl`, flags in and out.
macro_rules! shiftf {
    ($op:literal, $class:ident, $m:literal, $a:ident, $n:ident, $f:ident) => {{
        let (mut r, mut f): (Self, u16) = ($a, $f.0);
        // SAFETY: as above.
        unsafe {
            std::arch::asm!(
                "add al, 0x7f", "sahf", concat!($op, " {a", $m, "}, cl"), "lahf", "seto al",
                a = inout($class) r, in("cl") $n, inout("ax") f, options(pure, nomem, nostack));
        }
        (r, Flags(f))
    }};
}

/// `op a, N`, flags in and out.
macro_rules! rotatef {
    ($op:literal, $class:ident, $m:literal, $a:ident, $n:ident, $f:ident) => {{
        let (mut r, mut f): (Self, u16) = ($a, $f.0);
        // SAFETY: as above.
        unsafe {
            std::arch::asm!(
                "add al, 0x7f", "sahf", concat!($op, " {a", $m, "}, {n}"), "lahf", "seto al",
                a = inout($class) r, n = const $n, inout("ax") f, options(pure, nomem, nostack));
        }
        (r, Flags(f))
    }};
}

macro_rules! int {
    ($t:ty, $class:ident, $m:literal, $acc:tt, $ptr:literal, $get:expr, $set:expr) => {
        impl Int for $t {
            #[inline(always)]
            fn get(regs: &Regs, r: u8) -> Self {
                $get(regs, r)
            }
            #[inline(always)]
            fn set(regs: &mut Regs, r: u8, v: Self) {
                $set(regs, r, v)
            }
            #[inline(always)]
            fn binary<const OP: u8>(a: Self, b: Self, f: Flags) -> (Self, Flags) {
                match OP {
                    binary::ADD => op2!("add", $class, $m, a, b),
                    binary::OR => op2!("or", $class, $m, a, b),
                    binary::ADC => op2f!("adc", $class, $m, a, b, f),
                    binary::SBB => op2f!("sbb", $class, $m, a, b, f),
                    binary::AND => op2!("and", $class, $m, a, b),
                    binary::SUB => op2!("sub", $class, $m, a, b),
                    binary::XOR => op2!("xor", $class, $m, a, b),
                    binary::CMP => op2!("cmp", $class, $m, a, b),
                    _ => op2!("test", $class, $m, a, b),
                }
            }
            #[inline(always)]
            fn unary<const OP: u8>(a: Self, f: Flags) -> (Self, Flags) {
                match OP {
                    unary::INC => op1f!("inc", $class, $m, a, f),
                    unary::DEC => op1f!("dec", $class, $m, a, f),
                    unary::NEG => op1f!("neg", $class, $m, a, f),
                    _ => (!a, f),
                }
            }
            #[inline(always)]
            fn shift<const OP: u8>(a: Self, n: u8, f: Flags) -> (Self, Flags) {
                match OP {
                    shift::ROL => shiftf!("rol", $class, $m, a, n, f),
                    shift::ROR => shiftf!("ror", $class, $m, a, n, f),
                    shift::RCL => shiftf!("rcl", $class, $m, a, n, f),
                    shift::RCR => shiftf!("rcr", $class, $m, a, n, f),
                    shift::SHR => shiftf!("shr", $class, $m, a, n, f),
                    shift::SAR => shiftf!("sar", $class, $m, a, n, f),
                    _ => shiftf!("shl", $class, $m, a, n, f),
                }
            }
            #[inline(always)]
            fn rotate<const OP: u8, const N: u8>(a: Self, f: Flags) -> (Self, Flags) {
                match OP {
                    shift::ROL => rotatef!("rol", $class, $m, a, N, f),
                    _ => rotatef!("ror", $class, $m, a, N, f),
                }
            }
            #[inline(always)]
            // SAFETY: as the trait asks of the caller.
            unsafe fn compare_exchange(p: *mut u8, old: Self, new: Self) -> Result<(), Self> {
                let mut found = old;
                // SAFETY: the caller vouches for the address.
                unsafe {
                    std::arch::asm!(
                        concat!("lock cmpxchg ", $ptr, " ptr [{p}], {new", $m, "}"),
                        p = in(reg) p, new = in($class) new, inout($acc) found, options(nostack));
                }
                if found == old { Ok(()) } else { Err(found) }
            }
        }
    };
}

int!(u8, reg_byte, "", "al", "byte", Regs::get8, Regs::set8);
int!(u16, reg, ":x", "ax", "word", |r: &Regs, i| r.get(i) as u16, Regs::set16);
int!(u32, reg, ":e", "eax", "dword", |r: &Regs, i| r.get(i) as u32, Regs::set32);
int!(u64, reg, ":r", "rax", "qword", |r: &Regs, i| r.get(i), Regs::set);

#[cfg(test)]
mod tests {
    use super::*;
    use vireo_core::state::rflags::*;

    #[test]
    fn flags_come_from_the_host() {
        let none = Flags::from_rflags(0);
        let (r, f) = u8::binary::<{ binary::ADD }>(0xff, 1, none);
        assert_eq!((r, f.to_rflags()), (0, CF | PF | AF | ZF));
        let (r, f) = u32::binary::<{ binary::SUB }>(0x8000_0000, 1, none);
        assert_eq!((r, f.to_rflags()), (0x7fff_ffff, OF | PF | AF));
    }

    #[test]
    fn flags_go_in() {
        let carry = Flags::from_rflags(CF | OF);
        assert_eq!(u64::binary::<{ binary::ADC }>(1, 2, carry).0, 4);
        // INC keeps CF; a shift by zero keeps everything.
        assert!(u16::unary::<{ unary::INC }>(5, carry).1.cf());
        assert_eq!(u32::shift::<{ shift::SHL }>(5, 0, carry), (5, carry));
    }

    #[test]
    fn every_combination_of_flags_survives_the_round_trip() {
        for v in 0..64u64 {
            let bits = [CF, PF, AF, ZF, SF, OF];
            let flags = (0..6).filter(|i| v >> i & 1 != 0).map(|i| bits[i]).sum();
            assert_eq!(Flags::from_rflags(flags).to_rflags(), flags);
            let through_host = u32::shift::<{ shift::ROL }>(1, 0, Flags::from_rflags(flags)).1;
            assert_eq!(through_host.to_rflags(), flags);
        }
    }
}
