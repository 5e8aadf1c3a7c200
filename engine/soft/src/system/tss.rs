//! What the processor reads from the current TSS outside task switches: stacks and the I/O permission bitmap
//! (SDM vol. 3A, 7.2 and 7.7; vol. 1, 18.5.2).

use vireo_core::state::Segment;

use super::descriptor::{Selector, system_type};
use super::segment;
use super::stack::Stack;
use crate::cpu::{Cpu, Exec, vector};

/// Whether TR holds a 32-bit (or 64-bit) TSS rather than a 16-bit one.
pub fn is_wide(cpu: &Cpu) -> bool {
    cpu.tr.kind() & 8 != 0
}

/// Linear address of `size` bytes of the TSS; outside raises #TS with the TSS selector.
fn field(cpu: &mut Cpu, offset: u32, size: u32, ext: u32) -> Exec<u64> {
    let tr = cpu.tr;
    if !tr.usable() || offset + (size - 1) > tr.limit {
        return Err(cpu.raise(vector::TS, Some(Selector(tr.selector).error() | ext)));
    }
    Ok(tr.base.wrapping_add(u64::from(offset)))
}

/// The stack for privilege level `cpl`, checked, empty. Errors carry `ext`.
pub fn inner_stack(cpu: &mut Cpu, cpl: u8, ext: u32) -> Exec<Stack> {
    let level = u32::from(cpl);
    if cpu.long_mode() {
        let at = field(cpu, 4 + 8 * level, 8, ext)?;
        let sp = cpu.load_sys::<u64>(at)?;
        return long_stack(cpu, sp, cpl, ext);
    }
    let (sp, ss) = if is_wide(cpu) {
        let at = field(cpu, 4 + 8 * level, 6, ext)?;
        (u64::from(cpu.load_sys::<u32>(at)?), cpu.load_sys::<u16>(at.wrapping_add(4))?)
    } else {
        let at = field(cpu, 2 + 4 * level, 4, ext)?;
        (u64::from(cpu.load_sys::<u16>(at)?), cpu.load_sys::<u16>(at.wrapping_add(2))?)
    };
    let s = Selector(ss);
    let ss: Segment = segment::stack(cpu, s, cpl, vector::TS, ext)?;
    Ok(Stack::in_segment(ss, sp, cpl, s.error() | ext))
}

/// A 64-bit stack with the null SS of an inner level.
fn long_stack(cpu: &mut Cpu, sp: u64, cpl: u8, ext: u32) -> Exec<Stack> {
    if !Cpu::canonical(sp) {
        return Err(cpu.raise(vector::SS, Some(ext)));
    }
    Ok(Stack::long(segment::null_stack(cpl), sp, cpl, ext))
}

/// Interrupt stack pointer `ist` (1 to 7) of a 64-bit TSS.
pub fn interrupt_stack(cpu: &mut Cpu, ist: u64, ext: u32) -> Exec<u64> {
    let at = field(cpu, 28 + 8 * (ist as u32 & 7), 8, ext)?;
    cpu.load_sys::<u64>(at)
}

/// Whether the TSS allows `size` ports from `port`.
pub fn allows_io(cpu: &mut Cpu, port: u16, size: u32) -> Exec<bool> {
    const MAP_BASE: u32 = 0x66;
    let tr = cpu.tr;
    let wide = matches!(tr.kind(), system_type::TSS32 | system_type::TSS32_BUSY);
    if !tr.usable() || !wide || tr.limit < MAP_BASE + 1 {
        return Ok(false);
    }
    let map = u32::from(cpu.load_sys::<u16>(tr.base.wrapping_add(u64::from(MAP_BASE)))?);
    // Two bytes are always read, so the bit map ends with a byte of ones within the limit.
    let at = map + u32::from(port / 8);
    if at + 1 > tr.limit {
        return Ok(false);
    }
    let bits = cpu.load_sys::<u16>(tr.base.wrapping_add(u64::from(at)))?;
    Ok(port_bits(port, size) & bits == 0)
}

/// The bits of `size` ports in the 16 bits that begin with the byte of `port`.
fn port_bits(port: u16, size: u32) -> u16 {
    (((1u32 << size) - 1) << (port & 7)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_ports_may_span_two_bytes_of_the_map() {
        assert_eq!(port_bits(0x3f8, 1), 1);
        assert_eq!(port_bits(0xcfc, 4), 0xf0);
        assert_eq!(port_bits(0x7f, 4), 0b111_1000_0000);
    }
}
