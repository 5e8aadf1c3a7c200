//! Random register and memory values, with a liking for the ones that break things.

use crate::case::{CpuImage, FxImage};
use crate::{Mode, Rng, has_avx, layout};

/// A general register: small, near a power of two, all ones, a repeated byte, or anything.
pub fn integer(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => rng.below(20),
        1 => (1_u64 << rng.below(64)).wrapping_add(rng.below(3)).wrapping_sub(1),
        2 => rng.below(4).wrapping_neg(),
        3 => rng.pick(&[0x7f, 0x80, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000, i64::MAX as u64, 1 << 63]),
        4 => rng.next() & 0xffff_ffff,
        5 => (rng.next() & 0xff) * 0x0101_0101_0101_0101,
        _ => rng.next(),
    }
}

fn single(rng: &mut Rng) -> u32 {
    const SPECIAL: [u32; 16] = [
        0,
        1,
        0x007f_ffff,
        0x0080_0000,
        0x3f80_0000,
        0x3f00_0000,
        0x4080_0000,
        0x7f7f_ffff,
        0x7f80_0000,
        0x7fc0_0000,
        0x7fa0_0001,
        0x4f00_0000,
        0x5f00_0000,
        0x3fc0_0000,
        0x4eff_ffff,
        0x3480_0000,
    ];
    let sign = (rng.next() as u32) & 0x8000_0000;
    match rng.below(4) {
        0 | 1 => rng.pick(&SPECIAL) | sign,
        // Near one, so that sums and products stay in range.
        2 => (0x3b00_0000 + (rng.next() as u32 & 0x09ff_ffff)) | sign,
        _ => rng.next() as u32,
    }
}

fn double(rng: &mut Rng) -> u64 {
    const SPECIAL: [u64; 16] = [
        0,
        1,
        0x000f_ffff_ffff_ffff,
        0x0010_0000_0000_0000,
        0x3ff0_0000_0000_0000,
        0x3fe0_0000_0000_0000,
        0x4010_0000_0000_0000,
        0x7fef_ffff_ffff_ffff,
        0x7ff0_0000_0000_0000,
        0x7ff8_0000_0000_0000,
        0x7ff4_0000_0000_0001,
        0x41e0_0000_0000_0000,
        0x43e0_0000_0000_0000,
        0x3ff8_0000_0000_0000,
        0x41df_ffff_ffe0_0000,
        0x47ef_ffff_f000_0000,
    ];
    let sign = rng.next() & (1 << 63);
    match rng.below(4) {
        0 | 1 => rng.pick(&SPECIAL) | sign,
        2 => (0x3f00_0000_0000_0000 + (rng.next() & 0x01ff_ffff_ffff_ffff)) | sign,
        _ => rng.next(),
    }
}

/// 80 bits for an x87 register: all classes of SDM vol. 1, table 4-3 and 8-3, unsupported ones included.
pub fn extended(rng: &mut Rng) -> [u8; 10] {
    let mantissa = match rng.below(8) {
        0 => 0,
        1 => 1 << 63,
        2 => 3 << 62,
        3 => u64::MAX,
        4 => (1 << 63) | 1,
        5 => rng.next(),
        _ => rng.next() | 1 << 63,
    };
    let exponent = match rng.below(8) {
        0 => 0,
        1 => 1,
        2 => 0x7ffe,
        3 => 0x7fff,
        4 => rng.next() as u16 & 0x7fff,
        _ => 0x3fff - 34 + rng.below(100) as u16,
    };
    let exponent = exponent | (rng.next() as u16 & 0x8000);
    let mut value = [0; 10];
    value[..8].copy_from_slice(&mantissa.to_le_bytes());
    value[8..].copy_from_slice(&exponent.to_le_bytes());
    value
}

/// 128 bits: lanes of one kind.
pub fn vector(rng: &mut Rng) -> u128 {
    let half = |rng: &mut Rng, kind| match kind {
        0 => u64::from(single(rng)) | u64::from(single(rng)) << 32,
        1 => double(rng),
        2 => integer(rng),
        _ => rng.next(),
    };
    let kind = rng.below(4);
    u128::from(half(rng, kind)) | u128::from(half(rng, kind)) << 64
}

/// An FXSAVE image. Reserved bits of MXCSR are clear; instruction and data pointers are zero.
pub fn fx(rng: &mut Rng) -> FxImage {
    let mut image = FxImage::initial();
    let masks = if rng.one_in(6) { rng.next() as u16 & 0x3f } else { 0x3f };
    image.set_u16(0, if rng.one_in(2) { 0x37f } else { masks | 0x40 | (rng.next() as u16 & 0xf00) });
    // Condition codes, top of stack, and sticky flags of masked exceptions; rarely a pending exception.
    let control = image.u16(0);
    let mut status = rng.next() as u16 & 0x7f00;
    if rng.one_in(3) {
        status |= rng.next() as u16 & 0x7f & (control | 0x40);
    }
    if rng.one_in(24) {
        let pending = rng.next() as u16 & 0x3f;
        status |= pending | if pending & !control & 0x3f != 0 { 0x8080 } else { 0 };
    }
    image.set_u16(2, status);
    image.0[4] = match rng.below(3) {
        0 => 0xff,
        1 => rng.next() as u8,
        _ => (rng.next() | rng.next()) as u8,
    };
    let rounding = (rng.next() as u32) & 0xe040;
    let flags = if rng.one_in(3) { rng.next() as u32 & 0x3f } else { 0 };
    let masks = if rng.one_in(8) { rng.next() as u32 & 0x1f80 } else { 0x1f80 };
    image.set_mxcsr(masks | flags | if rng.one_in(2) { rounding } else { 0 });
    for i in 0..8 {
        let value = extended(rng);
        image.set_st(i, value);
    }
    for i in 0..16 {
        let value = vector(rng);
        image.set_xmm(i, value);
    }
    image
}

/// All registers. In 32-bit code only what it can name is random, the rest is zero.
pub fn cpu(rng: &mut Rng, mode: Mode) -> CpuImage {
    let mut image = CpuImage::initial(mode);
    for register in &mut image.gpr[..mode.registers()] {
        *register = integer(rng);
    }
    image.fx = fx(rng);
    if has_avx() && rng.one_in(2) {
        image.high[..mode.registers()].fill_with(|| vector(rng));
    }
    if mode != Mode::Long {
        image.gpr.iter_mut().for_each(|r| *r &= 0xffff_ffff);
        (8..16).for_each(|i| image.fx.set_xmm(i, 0));
    }
    image.rflags = 0x202 | (rng.next() & 0x8d5);
    for (odds, bit) in [(5, 10), (30, 14), (20, 21)] {
        image.rflags |= if rng.one_in(odds) { 1 << bit } else { 0 };
    }
    image
}

/// A stack pointer: in the stack window, seldom so near its ends that a push or a pop leaves it.
pub fn stack_pointer(rng: &mut Rng) -> u64 {
    match rng.below(20) {
        0 => layout::STACK + rng.below(16),
        1 => layout::STACK + layout::PAGE - rng.below(16),
        2 => layout::STACK + 1024 + rng.below(2048),
        _ => layout::STACK + 1024 + rng.below(256) * 8,
    }
}

/// An address for an access of `size` bytes: mostly in the data pages, aligned if asked for, seldom across
/// or beyond a border.
pub fn target(rng: &mut Rng, size: u64, aligned: bool) -> u64 {
    let size = size.max(1);
    let inside = 2 * layout::PAGE - size;
    match rng.below(40) {
        0 | 1 => layout::DATA + layout::PAGE - rng.below(size),
        2 | 3 => layout::GUARD - rng.below(size),
        4 => layout::GUARD + rng.below(64),
        5 => layout::READ_ONLY + rng.below(layout::PAGE - size),
        6 => layout::DATA - rng.below(size),
        7 => layout::STACK + rng.below(layout::PAGE - size),
        8 => layout::READ_ONLY - rng.below(size),
        9 => layout::DATA + rng.below(inside),
        _ if aligned => layout::DATA + (rng.below(inside) & !(size.next_power_of_two().min(64) - 1)),
        n if n < 24 => layout::DATA + (rng.below(inside) & !7),
        _ => layout::DATA + rng.below(inside),
    }
}
