//! IN, OUT, INS, OUTS (SDM vol. 1, chapter 18).

use super::tss;
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, seg};
use crate::exec::Uop;
use crate::mmu::Value;

/// Bit of `aux`: the port is `imm`, not DX.
pub const IMMEDIATE: u16 = 0x100;
/// Bit of `aux`: REP prefix.
pub const REPEAT: u16 = 0x200;

/// Raises #GP(0) unless `size` ports from `port` may be used here.
fn check(cpu: &mut Cpu, port: u16, size: u32) -> Exec {
    let free = !cpu.vm86() && cpu.cpl <= cpu.iopl();
    if free || tss::allows_io(cpu, port, size)? { Ok(()) } else { Err(cpu.gp(0)) }
}

fn port(cpu: &Cpu, u: &Uop) -> u16 {
    if u.aux & IMMEDIATE != 0 { u.imm as u16 } else { cpu.regs.get(gpr::RDX) as u16 }
}

fn read_port(cpu: &mut Cpu, port: u16, size: u32) -> u32 {
    let mut data = [0; 4];
    cpu.bus().pio_read(cpu.index, port, &mut data[..size as usize]);
    cpu.port_accessed(port, size);
    u32::from_le_bytes(data)
}

fn write_port(cpu: &mut Cpu, port: u16, size: u32, v: u32) {
    cpu.bus().pio_write(cpu.index, port, &v.to_le_bytes()[..size as usize]);
    cpu.port_accessed(port, size);
}

/// `in al/ax/eax, imm8/dx`: size in the low bits of `aux`.
pub fn input(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (port, size) = (port(cpu, u), u32::from(u.aux & 7));
    check(cpu, port, size)?;
    let v = read_port(cpu, port, size);
    match size {
        1 => cpu.regs.set8(gpr::RAX, v as u8),
        2 => cpu.regs.set16(gpr::RAX, v as u16),
        _ => cpu.regs.set32(gpr::RAX, v),
    }
    Ok(())
}

/// `out imm8/dx, al/ax/eax`.
pub fn output(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (port, size) = (port(cpu, u), u32::from(u.aux & 7));
    check(cpu, port, size)?;
    let v = cpu.regs.get(gpr::RAX) as u32;
    write_port(cpu, port, size, v);
    Ok(())
}

/// `ins`.
pub fn ins<T: Value>(cpu: &mut Cpu, u: &Uop) -> Exec {
    check(cpu, port(cpu, u), T::SIZE)?;
    cpu.repeated(u, u.aux & REPEAT != 0, |cpu, u| {
        let offset = cpu.regs.get(gpr::RDI) & u.address_mask();
        let at = cpu.segment_linear(seg::ES, offset, T::SIZE, true)?;
        // The device gives each value once, so memory must be known to take it.
        cpu.check_write(seg::ES, at, T::SIZE)?;
        let port = port(cpu, u);
        let v = read_port(cpu, port, T::SIZE);
        cpu.store(seg::ES, at, T::from_u64(u64::from(v)))?;
        cpu.step::<T>(u, gpr::RDI);
        Ok(true)
    })
}

/// `outs`.
pub fn outs<T: Value>(cpu: &mut Cpu, u: &Uop) -> Exec {
    check(cpu, port(cpu, u), T::SIZE)?;
    cpu.repeated(u, u.aux & REPEAT != 0, |cpu, u| {
        let offset = cpu.regs.get(gpr::RSI) & u.address_mask();
        let at = cpu.segment_linear(u.segment(), offset, T::SIZE, false)?;
        let v = cpu.load::<T>(u.segment(), at)?.to_u64();
        let port = port(cpu, u);
        write_port(cpu, port, T::SIZE, v as u32);
        cpu.step::<T>(u, gpr::RSI);
        Ok(true)
    })
}
