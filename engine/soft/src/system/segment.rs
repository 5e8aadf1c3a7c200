//! Loading segment registers (SDM vol. 3A, 3.4.3 and 5.4 to 5.9).

use vireo_core::state::Segment;

use super::descriptor::{self, Descriptor, Selector};
use crate::cpu::{Cpu, Exec, seg, vector};

/// Access rights of a real-mode data segment: present, read/write data, accessed.
const REAL_DATA: u32 = 0x93;
/// The same for code.
const REAL_CODE: u32 = 0x9b;
/// Rights of all segments in virtual-8086 mode.
const VM86: u32 = 0xf3;

/// The segment register that loading `selector` into `reg` gives in real mode. Limit, size and granularity stay as
/// they are, which is what makes "big real mode".
pub fn real(cpu: &Cpu, reg: u8, selector: u16) -> Segment {
    let old = &cpu.seg[(reg % 6) as usize];
    let kind = if reg == seg::CS { REAL_CODE } else { REAL_DATA };
    Segment {
        selector,
        base: u64::from(selector) << 4,
        limit: old.limit,
        attributes: old.attributes & (Segment::G | Segment::DB) | kind,
    }
}

/// The segment register that a selector gives in virtual-8086 mode.
pub fn vm86(selector: u16) -> Segment {
    Segment { selector, base: u64::from(selector) << 4, limit: 0xffff, attributes: VM86 }
}

/// A register with a null selector.
pub fn null(selector: Selector) -> Segment {
    Segment { selector: selector.0, base: 0, limit: 0, attributes: Segment::UNUSABLE }
}

/// SS with a null selector, as 64-bit mode allows at CPL 0 to 2.
pub fn null_stack(cpl: u8) -> Segment {
    let attributes = Segment::UNUSABLE | u32::from(cpl) << 5;
    Segment { selector: u16::from(cpl), base: 0, limit: 0, attributes }
}

/// Checks a selector for DS, ES, FS or GS at privilege `cpl` and gives the register. Invalid selectors raise `invalid`
/// (#GP; #TS in task switches), with `ext` in the error code.
pub fn data(cpu: &mut Cpu, selector: Selector, cpl: u8, invalid: u8, ext: u32) -> Exec<Segment> {
    if selector.is_null() {
        return Ok(null(selector));
    }
    let d = descriptor::read(cpu, selector, invalid, ext)?;
    let private = !d.conforming() && (selector.rpl() > d.dpl() || cpl > d.dpl());
    if !d.readable() || private {
        return Err(cpu.raise(invalid, Some(selector.error() | ext)));
    }
    if !d.present() {
        return Err(cpu.raise(vector::NP, Some(selector.error() | ext)));
    }
    Ok(descriptor::mark_accessed(cpu, selector, d)?.segment(selector))
}

/// Checks a non-null selector for SS at privilege `cpl` and gives the register.
pub fn stack(cpu: &mut Cpu, selector: Selector, cpl: u8, invalid: u8, ext: u32) -> Exec<Segment> {
    if selector.is_null() {
        return Err(cpu.raise(invalid, Some(ext)));
    }
    let d = descriptor::read(cpu, selector, invalid, ext)?;
    if selector.rpl() != cpl || d.dpl() != cpl || !d.writable_data() {
        return Err(cpu.raise(invalid, Some(selector.error() | ext)));
    }
    if !d.present() {
        return Err(cpu.raise(vector::SS, Some(selector.error() | ext)));
    }
    Ok(descriptor::mark_accessed(cpu, selector, d)?.segment(selector))
}

/// A code segment checked for a transfer, with the privilege it will run at.
#[derive(Clone, Copy, Debug)]
pub struct Code {
    /// CS to load; RPL = `cpl`.
    pub segment: Segment,
    /// The new CPL.
    pub cpl: u8,
}

impl Code {
    /// Whether it is 64-bit code on `cpu`.
    pub fn is64(&self, cpu: &Cpu) -> bool {
        cpu.long_mode() && self.segment.attributes & Segment::L != 0
    }

    /// Checks that `target` may be branched to: canonical in 64-bit code, else within the limit. Gives the address as RIP
    /// will hold it.
    pub fn check_target(&self, cpu: &mut Cpu, target: u64, ext: u32) -> Exec<u64> {
        if self.is64(cpu) {
            return if Cpu::canonical(target) { Ok(target) } else { Err(cpu.gp(ext)) };
        }
        let target = target & 0xffff_ffff;
        if target > u64::from(self.segment.limit) { Err(cpu.gp(ext)) } else { Ok(target) }
    }
}

/// The last checks of a code segment, common to all transfers: presence, and in long mode not both L and D.
pub fn code(cpu: &mut Cpu, selector: Selector, d: Descriptor, cpl: u8, ext: u32) -> Exec<Code> {
    if cpu.long_mode() && d.long() && d.big() {
        return Err(cpu.gp(selector.error() | ext));
    }
    if !d.present() {
        return Err(cpu.raise(vector::NP, Some(selector.error() | ext)));
    }
    let d = descriptor::mark_accessed(cpu, selector, d)?;
    Ok(Code { segment: d.segment(selector.with_rpl(cpl)), cpl })
}

/// Loads DS, ES, FS, GS or SS from a selector, as MOV, POP and LDS do, in every mode.
pub fn load(cpu: &mut Cpu, reg: u8, selector: u16) -> Exec {
    let new = if cpu.vm86() {
        vm86(selector)
    } else if !cpu.protected() {
        real(cpu, reg, selector)
    } else {
        let s = Selector(selector);
        let cpl = cpu.cpl;
        match reg {
            seg::SS if s.is_null() && cpu.mode.is64() && cpl < 3 && s.rpl() == cpl => null_stack(cpl),
            seg::SS => stack(cpu, s, cpl, vector::GP, 0)?,
            _ => data(cpu, s, cpl, vector::GP, 0)?,
        }
    };
    cpu.set_segment(reg, new);
    Ok(())
}

impl Cpu {
    /// Replaces a segment register, hidden part and all.
    pub fn set_segment(&mut self, reg: u8, new: Segment) {
        self.seg[(reg % 6) as usize] = new;
        self.mode_changed();
    }
}

/// After a return to an outer level: data segments that the new CPL may not use become null (SDM vol. 3A, 5.8.6).
pub fn drop_inner_data(cpu: &mut Cpu) {
    for reg in [seg::ES, seg::DS, seg::FS, seg::GS] {
        let s = &mut cpu.seg[reg as usize];
        let conforming = s.kind() & 0xc == 0xc;
        if s.usable() && !conforming && s.dpl() < cpu.cpl {
            *s = null(Selector(0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vm86_segments_are_sixteen_times_the_selector() {
        let s = vm86(0xf000);
        assert_eq!((s.base, s.limit, s.dpl()), (0xf_0000, 0xffff, 3));
    }

    #[test]
    fn a_null_stack_keeps_the_privilege_level() {
        let s = null_stack(2);
        assert!(!s.usable());
        assert_eq!((s.selector, s.dpl()), (2, 2));
    }
}
