//! AVX instructions that access memory element by element, and those that clear registers.
//!
//! Elements whose mask bit is clear are not accessed, so they raise nothing; that is why the host cannot be asked.

use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use vireo_isa::Fp;

use crate::cpu::{Cpu, Exec, regs};
use crate::exec::{Handler, Uop};

/// Bits of [`Uop::imm`]: elements have 8 bytes, not 4; indices have 8 bytes, not 4. Above them the number of elements.
const WIDE: u64 = 1;
const WIDE_INDEX: u64 = 2;
/// Any of the vector registers is a YMM register.
const YMM: u64 = 4;
const COUNT: u32 = 8;

/// Handler of one of these instructions.
pub fn select(i: &Instruction, u: &mut Uop) -> Option<Handler> {
    match i.mnemonic() {
        M::Vzeroupper => return Some(zero_upper),
        M::Vzeroall => return Some(zero_all),
        _ => {}
    }
    let number = |op: u32| i.op_register(op).number() as u8;
    Some(match i.mnemonic() {
        M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => {
            let wide = matches!(i.mnemonic(), M::Vmaskmovpd | M::Vpmaskmovq);
            u.imm = elements(i.op1_register().size(), wide);
            if i.op0_kind() == OpKind::Memory {
                (u.src, u.dst) = (number(1), number(2));
                store_masked
            } else {
                (u.dst, u.src) = (number(0), number(1));
                load_masked
            }
        }
        M::Vgatherdps | M::Vgatherdpd | M::Vpgatherdd | M::Vpgatherdq => {
            let wide = matches!(i.mnemonic(), M::Vgatherdpd | M::Vpgatherdq);
            u.imm = elements(i.op0_register().size(), wide);
            index(i, u);
            gather
        }
        M::Vgatherqps | M::Vgatherqpd | M::Vpgatherqd | M::Vpgatherqq => {
            let wide = matches!(i.mnemonic(), M::Vgatherqpd | M::Vpgatherqq);
            u.imm = elements(i.memory_index().size(), true) & !WIDE | WIDE_INDEX | u64::from(wide);
            index(i, u);
            gather
        }
        _ => return None,
    })
}

/// [`Uop::imm`] for registers of so many bytes.
fn elements(bytes: usize, wide: bool) -> u64 {
    (bytes as u64 / if wide { 8 } else { 4 }) << COUNT | u64::from(wide)
}

/// Registers of a gather: `src` the mask, `aux` the index, which is none of the general registers that an address has.
fn index(i: &Instruction, u: &mut Uop) {
    (u.dst, u.src) = (i.op0_register().number() as u8, i.op2_register().number() as u8);
    u.aux = i.memory_index().number() as u16;
    let vectors = [i.op0_register(), i.memory_index()];
    u.imm |= if vectors.iter().any(|r| r.is_ymm()) { YMM } else { 0 };
    u.index = regs::ZERO;
    if i.memory_base() == Register::None {
        // Nothing but the size of the displacement says how long addresses are.
        u.set_address_size(if i.memory_displ_size() == 8 { 2 } else { 1 });
    }
}

/// A YMM register by elements.
#[derive(Clone, Copy)]
struct Lanes {
    bits: [u64; 4],
    /// Bytes of an element: 4 or 8.
    size: u32,
}

impl Lanes {
    fn of(register: [u128; 2], size: u32) -> Self {
        let half = |v: u128| [v as u64, (v >> 64) as u64];
        let [[a, b], [c, d]] = register.map(half);
        Self { bits: [a, b, c, d], size }
    }

    fn register(self) -> [u128; 2] {
        let [a, b, c, d] = self.bits.map(u128::from);
        [a | b << 64, c | d << 64]
    }

    /// Element `n` (below 32 bytes / size).
    fn get(self, n: u32) -> u64 {
        match self.size {
            8 => self.bits[n as usize],
            _ => self.bits[n as usize / 2] >> (32 * (n % 2)) & 0xffff_ffff,
        }
    }

    fn set(&mut self, n: u32, v: u64) {
        if self.size == 8 {
            self.bits[n as usize] = v;
        } else {
            let (word, shift) = (&mut self.bits[n as usize / 2], 32 * (n % 2));
            *word = *word & !(0xffff_ffff << shift) | (v & 0xffff_ffff) << shift;
        }
    }

    /// The uppermost bit of element `n`: its mask bit.
    fn chosen(self, n: u32) -> bool {
        self.get(n) >> (8 * self.size - 1) & 1 != 0
    }

    /// The element, sign-extended.
    fn signed(self, n: u32) -> u64 {
        let v = self.get(n);
        if self.size == 8 { v } else { i64::from(v as i32) as u64 }
    }
}

/// Size and number of elements.
fn shape(u: &Uop) -> (u32, u32) {
    (if u.imm & WIDE != 0 { 8 } else { 4 }, (u.imm >> COUNT) as u32)
}

fn load(cpu: &mut Cpu, u: &Uop, at: u64, size: u32) -> Exec<u64> {
    match size {
        8 => cpu.load::<u64>(u.segment(), at),
        _ => cpu.load::<u32>(u.segment(), at).map(u64::from),
    }
}

fn check(cpu: &mut Cpu) -> Exec {
    cpu.check_fp(Fp::Avx { mxcsr: false })
}

// Registers that the mode cannot name stay.
fn zero_upper(cpu: &mut Cpu, _: &Uop) -> Exec {
    check(cpu)?;
    (0..cpu.vector_registers()).for_each(|n| cpu.fpu.set_ymm(n, [cpu.fpu.xmm(n), 0]));
    Ok(())
}

fn zero_all(cpu: &mut Cpu, _: &Uop) -> Exec {
    check(cpu)?;
    (0..cpu.vector_registers()).for_each(|n| cpu.fpu.set_ymm(n, [0, 0]));
    Ok(())
}

/// VMASKMOV, VPMASKMOV from memory: elements that are not chosen become zero.
fn load_masked(cpu: &mut Cpu, u: &Uop) -> Exec {
    check(cpu)?;
    let (size, count) = shape(u);
    let mask = Lanes::of(cpu.fpu.ymm(u.src), size);
    let mut to = Lanes::of([0, 0], size);
    let offset = u.offset(cpu);
    for n in (0..count).filter(|n| mask.chosen(*n)) {
        let at = u.linear_of(cpu, offset.wrapping_add(u64::from(n * size)), size, false)?;
        to.set(n, load(cpu, u, at, size)?);
    }
    cpu.fpu.set_ymm(u.dst, to.register());
    Ok(())
}

/// VMASKMOV, VPMASKMOV to memory: nothing is stored unless all that is chosen can be.
fn store_masked(cpu: &mut Cpu, u: &Uop) -> Exec {
    check(cpu)?;
    let (size, count) = shape(u);
    let (mask, from) = (Lanes::of(cpu.fpu.ymm(u.src), size), Lanes::of(cpu.fpu.ymm(u.dst), size));
    let offset = u.offset(cpu);
    let at = |cpu: &mut Cpu, n: u32| u.linear_of(cpu, offset.wrapping_add(u64::from(n * size)), size, true);
    for n in (0..count).filter(|n| mask.chosen(*n)) {
        let at = at(cpu, n)?;
        cpu.check_write(u.segment(), at, size)?;
    }
    for n in (0..count).filter(|n| mask.chosen(*n)) {
        let at = at(cpu, n)?;
        match size {
            8 => cpu.store(u.segment(), at, from.get(n))?,
            _ => cpu.store(u.segment(), at, from.get(n) as u32)?,
        }
    }
    Ok(())
}

/// Gathers: element by element from the lowest; each that is done clears its mask, so that a fault can come in between
/// (SDM vol. 2 and AMD APM vol. 4, "VPGATHERDD"). After a fault what is not done is as it was; but on processors of Intel each
/// mask element has become all ones or all zeroes, and 128-bit forms have cleared the upper halves: that of the mask at once,
/// that of the destination with the first element.
fn gather(cpu: &mut Cpu, u: &Uop) -> Exec {
    check(cpu)?;
    let (size, count) = shape(u);
    let index = Lanes::of(cpu.fpu.ymm(u.aux as u8), if u.imm & WIDE_INDEX != 0 { 8 } else { 4 });
    let mask = Lanes::of(cpu.fpu.ymm(u.src), size);
    let (mut left, mut to) = (Lanes::of([0, 0], size), Lanes::of(cpu.fpu.ymm(u.dst), size));
    let (amd, whole) = (cpu.is_amd(), if u.imm & YMM != 0 { 32 } else { 16 });
    if amd {
        left = mask;
    } else {
        (0..whole / size).for_each(|n| left.set(n, if mask.chosen(n) { u64::MAX } else { 0 }));
    }
    let offset = u.base_offset(cpu);
    for n in 0..count {
        if !mask.chosen(n) {
            left.set(n, 0);
            continue;
        }
        let offset = offset.wrapping_add(index.signed(n) << (u.scale & 3));
        match u.linear_of(cpu, offset, size, false).and_then(|at| load(cpu, u, at, size)) {
            Ok(v) => {
                to.set(n, v);
                if !amd {
                    (whole / size..32 / size).for_each(|n| to.set(n, 0));
                }
            }
            Err(stop) => {
                cpu.fpu.set_ymm(u.dst, to.register());
                cpu.fpu.set_ymm(u.src, left.register());
                return Err(stop);
            }
        }
        left.set(n, 0);
    }
    (count..32 / size).for_each(|n| to.set(n, 0));
    cpu.fpu.set_ymm(u.dst, to.register());
    cpu.fpu.set_ymm(u.src, [0, 0]);
    Ok(())
}
