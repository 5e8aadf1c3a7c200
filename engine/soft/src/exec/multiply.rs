//! Multiplication and division, by the host's instructions.

use std::sync::LazyLock;

use vireo_isa::flag;

use super::Uop;
use super::native::Int;
use crate::cpu::flags::Flags;
use crate::cpu::regs::{HIGH as AH, gpr};
use crate::cpu::{Cpu, Exec, vector};

/// Kinds of [`Wide::wide`].
#[allow(missing_docs)]
pub mod wide {
    pub const MUL: u8 = 0;
    pub const IMUL: u8 = 1;
    pub const DIV: u8 = 2;
    pub const IDIV: u8 = 3;
}

/// Operations on a double-width accumulator.
pub trait Wide: Int {
    /// (low, high) of the accumulator and the operand to (low, high) and flags. Division must have been checked.
    fn wide<const OP: u8>(low: Self, high: Self, b: Self, f: Flags) -> (Self, Self, Flags);
    /// Whether `high:low / b` raises #DE.
    fn divide_error(low: Self, high: Self, b: Self, signed: bool) -> bool;
    /// `imul a, b`.
    fn imul(a: Self, b: Self, f: Flags) -> (Self, Flags);
}

/// Flags in, accumulator in DX:AX, operation, accumulator and flags out.
macro_rules! accumulator_op {
    ($op:literal, $m:literal, $low:ident, $high:ident, $b:ident, $f:ident) => {{
        let (mut low, mut high, mut f) = (u64::from($low), u64::from($high), $f.0 as u64);
        // SAFETY: arithmetic on registers; a division was checked not to raise #DE.
        unsafe {
            std::arch::asm!(
                "add al, 0x7f", "sahf", "mov rax, {low}", concat!($op, " {b", $m, "}"), "mov {low}, rax",
                "lahf", "seto al",
                low = inout(reg) low, b = in(reg) $b, inout("rax") f, inout("rdx") high,
                options(pure, nomem, nostack));
        }
        (low as Self, high as Self, Flags(f as u16))
    }};
}

macro_rules! wide_int {
    ($t:ty, $s:ty, $double:ty, $sdouble:ty, $m:literal) => {
        impl Wide for $t {
            #[inline(always)]
            fn wide<const OP: u8>(low: Self, high: Self, b: Self, f: Flags) -> (Self, Self, Flags) {
                match OP {
                    wide::MUL => accumulator_op!("mul", $m, low, high, b, f),
                    wide::IMUL => accumulator_op!("imul", $m, low, high, b, f),
                    wide::DIV => accumulator_op!("div", $m, low, high, b, f),
                    _ => accumulator_op!("idiv", $m, low, high, b, f),
                }
            }
            fn divide_error(low: Self, high: Self, b: Self, signed: bool) -> bool {
                if b == 0 {
                    return true;
                }
                if !signed {
                    return high >= b;
                }
                let dividend = (<$double>::from(high) << <$t>::BITS | <$double>::from(low)) as $sdouble;
                // Only the most negative dividend by -1 overflows the division of the double width itself.
                match dividend.checked_div(<$sdouble>::from(b as $s)) {
                    Some(q) => <$s>::try_from(q).is_err(),
                    None => true,
                }
            }
            #[inline(always)]
            fn imul(a: Self, b: Self, f: Flags) -> (Self, Flags) {
                let (mut r, mut f) = (a, f.0);
                // SAFETY: arithmetic on registers.
                unsafe {
                    std::arch::asm!(
                        "add al, 0x7f", "sahf", concat!("imul {r", $m, "}, {b", $m, "}"), "lahf", "seto al",
                        r = inout(reg) r, b = in(reg) b, inout("ax") f, options(pure, nomem, nostack));
                }
                (r, Flags(f))
            }
        }
    };
}
wide_int!(u16, i16, u32, i32, ":x");
wide_int!(u32, i32, u64, i64, ":e");
wide_int!(u64, i64, u128, i128, ":r");

/// The arithmetic flags to which this host's multiplications certainly give values of their own. Intel's processors do to
/// all; AMD's leave those that are undefined as they were. So the host is asked: a flag counts if what it was before never
/// shows.
pub static MULTIPLY_GIVES: LazyLock<u32> = LazyLock::new(|| {
    let bytes: [fn(u8, u8, Flags) -> Flags; 2] = [
        |a, b, f| narrow_wide::<{ wide::MUL }>(a.into(), b, f).1,
        |a, b, f| narrow_wide::<{ wide::IMUL }>(a.into(), b, f).1,
    ];
    gives(bytes) & wide_gives::<u16>() & wide_gives::<u32>() & wide_gives::<u64>()
});

fn wide_gives<T: Wide>() -> u32 {
    let ops: [fn(T, T, Flags) -> Flags; 3] = [
        |a, b, f| T::imul(a, b, f).1,
        |a, b, f| T::wide::<{ wide::MUL }>(a, a, b, f).2,
        |a, b, f| T::wide::<{ wide::IMUL }>(a, a, b, f).2,
    ];
    gives(ops)
}

fn gives<T: Int, const N: usize>(ops: [fn(T, T, Flags) -> Flags; N]) -> u32 {
    let all = u64::from(flag::STATUS);
    let (clear, set) = (Flags::from_rflags(0), Flags::from_rflags(all));
    let mut shows = 0;
    for (a, b) in [(0, 0), (1, 1), (1, u64::MAX), (0xf, 0x11), (u64::MAX, 0x7f)] {
        let (a, b) = (T::from_u64(a), T::from_u64(b));
        for op in ops {
            shows |= op(a, b, clear).to_rflags() ^ op(a, b, set).to_rflags();
        }
    }
    (all & !shows) as u32
}

fn apply<T: Wide, const OP: u8>(cpu: &mut Cpu, b: T) -> Exec {
    let (low, high) = (T::get(&cpu.regs, gpr::RAX), T::get(&cpu.regs, gpr::RDX));
    if OP >= wide::DIV && T::divide_error(low, high, b, OP == wide::IDIV) {
        return Err(cpu.raise(vector::DE, None));
    }
    let (low, high, f) = T::wide::<OP>(low, high, b, cpu.flags);
    T::set(&mut cpu.regs, gpr::RAX, low);
    T::set(&mut cpu.regs, gpr::RDX, high);
    cpu.flags = f;
    Ok(())
}

/// `mul`, `imul`, `div`, `idiv` of DX:AX by a register.
pub fn wide_r<T: Wide, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = T::get(&cpu.regs, u.src);
    apply::<T, OP>(cpu, b)
}
/// The same by memory.
pub fn wide_m<T: Wide, const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = cpu.operand::<T>(u)?;
    apply::<T, OP>(cpu, b)
}

/// AX and the operand to AX and flags. Division must have been checked.
fn narrow_wide<const OP: u8>(ax: u16, b: u8, f: Flags) -> (u16, Flags) {
    let (mut r, mut f) = (u64::from(ax), u64::from(f.0));
    macro_rules! op {
        ($op:literal) => {
            // SAFETY: arithmetic on registers; a division was checked not to raise #DE.
            unsafe {
                std::arch::asm!(
                    "add al, 0x7f", "sahf", "mov rax, {r}", concat!($op, " {b}"), "mov {r}, rax", "lahf", "seto al",
                    r = inout(reg) r, b = in(reg_byte) b, inout("rax") f, options(pure, nomem, nostack));
            }
        };
    }
    match OP {
        wide::MUL => op!("mul"),
        wide::IMUL => op!("imul"),
        wide::DIV => op!("div"),
        _ => op!("idiv"),
    }
    (r as u16, Flags(f as u16))
}

/// The 8-bit forms: AX by a register, or (`aux` = 1) memory.
pub fn narrow<const OP: u8>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = if u.aux == 0 { cpu.regs.get8(u.src) } else { cpu.operand::<u8>(u)? };
    let ax = cpu.regs.get(gpr::RAX) as u16;
    if OP == wide::DIV && (b == 0 || ax / u16::from(b) > 0xff) {
        return Err(cpu.raise(vector::DE, None));
    }
    if OP == wide::IDIV
        && (ax as i16).checked_div(i16::from(b as i8)).is_none_or(|q| i8::try_from(q).is_err())
    {
        return Err(cpu.raise(vector::DE, None));
    }
    let (r, f) = narrow_wide::<OP>(ax, b, cpu.flags);
    cpu.regs.set8(gpr::RAX, r as u8);
    cpu.regs.set8(AH, (r >> 8) as u8);
    cpu.flags = f;
    Ok(())
}

/// `imul reg, reg` and, with `imm`, `imul reg, reg, imm` (`aux` = 1).
pub fn imul_rr<T: Wide>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = T::get(&cpu.regs, u.src);
    finish::<T>(cpu, u, b)
}
/// `imul reg, mem` and `imul reg, mem, imm` (`aux` = 1).
pub fn imul_rm<T: Wide>(cpu: &mut Cpu, u: &Uop) -> Exec {
    let b = cpu.operand::<T>(u)?;
    finish::<T>(cpu, u, b)
}
fn finish<T: Wide>(cpu: &mut Cpu, u: &Uop, b: T) -> Exec {
    let a = if u.aux == 1 { T::from_u64(u.imm) } else { T::get(&cpu.regs, u.dst) };
    let (r, f) = T::imul(a, b, cpu.flags);
    cpu.flags = f;
    T::set(&mut cpu.regs, u.dst, r);
    Ok(())
}
