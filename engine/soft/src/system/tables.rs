//! Descriptor-table registers, LDT and task register, and the instructions that look at descriptors (SDM vol. 2).

use vireo_core::PageRange;
use vireo_core::state::{DescriptorTable, cr4, rflags};

use super::control::only_cpl0;
use super::descriptor::{self, Descriptor, Selector, system_type};
use super::{far, operand16, segment, store_selector};
use crate::cpu::{Cpu, Exec, Shadow, seg, vector};
use crate::exec::Uop;

/// #GP(0) above privilege level 0 while CR4.UMIP is set.
pub fn check_umip(cpu: &mut Cpu) -> Exec {
    if cpu.cpl != 0 && cpu.ctl.cr4 & cr4::UMIP != 0 { Err(cpu.gp(0)) } else { Ok(()) }
}

/// #UD outside protected mode.
fn check_protected(cpu: &mut Cpu) -> Exec {
    if cpu.protected() { Ok(()) } else { Err(cpu.ud()) }
}

/// `imm` of the table instructions: GDTR or IDTR.
pub const GDT: u64 = 0;
/// See [`GDT`].
pub const IDT: u64 = 1;

/// `sgdt`, `sidt`: operand size in `aux`. The 16-bit form stores 32 bits of base like every processor since the 386.
pub fn store_table(cpu: &mut Cpu, u: &Uop) -> Exec {
    check_umip(cpu)?;
    let t = if u.imm == GDT { cpu.gdtr } else { cpu.idtr };
    let width: usize = if u.aux == 8 { 8 } else { 4 };
    let mut image = [0; 10];
    image[..2].copy_from_slice(&t.limit.to_le_bytes());
    image[2..].copy_from_slice(&t.base.to_le_bytes());
    let at = u.linear(cpu, 2 + width as u32, true)?;
    cpu.write_bytes(u.segment(), at, &image[..2 + width])
}

/// `lgdt`, `lidt`: a 16-bit operand size loads 24 bits of base.
pub fn load_table(cpu: &mut Cpu, u: &Uop) -> Exec {
    only_cpl0(cpu)?;
    let at = u.linear(cpu, if u.aux == 8 { 10 } else { 6 }, false)?;
    let limit = cpu.load::<u16>(u.segment(), at)?;
    let at = at.wrapping_add(2);
    let base = match u.aux {
        8 => cpu.load::<u64>(u.segment(), at)?,
        4 => u64::from(cpu.load::<u32>(u.segment(), at)?),
        _ => u64::from(cpu.load::<u32>(u.segment(), at)? & 0xff_ffff),
    };
    if !Cpu::canonical(base) {
        return Err(cpu.gp(0));
    }
    let t = DescriptorTable { base, limit };
    if u.imm == GDT {
        cpu.gdtr = t
    } else {
        cpu.idtr = t
    }
    Ok(())
}

/// `sldt`.
pub fn sldt(cpu: &mut Cpu, u: &Uop) -> Exec {
    check_protected(cpu)?;
    check_umip(cpu)?;
    let v = cpu.ldtr.selector;
    store_selector(cpu, u, v)
}

/// `str`.
pub fn str(cpu: &mut Cpu, u: &Uop) -> Exec {
    check_protected(cpu)?;
    check_umip(cpu)?;
    let v = cpu.tr.selector;
    store_selector(cpu, u, v)
}

/// `smsw`: a register gets as much of CR0 as it holds.
pub fn smsw(cpu: &mut Cpu, u: &Uop) -> Exec {
    check_umip(cpu)?;
    let v = cpu.ctl.cr0;
    if u.aux & super::MEMORY != 0 {
        return store_selector(cpu, u, v as u16);
    }
    super::set_sized(cpu, u.dst, u.aux, v);
    Ok(())
}

/// A system descriptor of the GDT for LLDT and LTR, whose base must be canonical.
fn system_segment(cpu: &mut Cpu, s: Selector) -> Exec<Descriptor> {
    if s.is_local() {
        return Err(cpu.gp(s.error()));
    }
    let d = descriptor::read_system(cpu, s, vector::GP, 0)?;
    if !Cpu::canonical(d.base()) { Err(cpu.gp(s.error())) } else { Ok(d) }
}

/// `lldt`.
pub fn lldt(cpu: &mut Cpu, u: &Uop) -> Exec {
    check_protected(cpu)?;
    only_cpl0(cpu)?;
    let s = Selector(operand16(cpu, u)?);
    if s.is_null() {
        cpu.ldtr = segment::null(s);
        return Ok(());
    }
    let d = system_segment(cpu, s)?;
    if !d.is_system(system_type::LDT) {
        return Err(cpu.gp(s.error()));
    }
    if !d.present() {
        return Err(cpu.raise(vector::NP, Some(s.error())));
    }
    cpu.ldtr = d.segment(s);
    Ok(())
}

/// `ltr`.
pub fn ltr(cpu: &mut Cpu, u: &Uop) -> Exec {
    check_protected(cpu)?;
    only_cpl0(cpu)?;
    let s = Selector(operand16(cpu, u)?);
    if s.is_null() {
        return Err(cpu.gp(0));
    }
    let d = system_segment(cpu, s)?;
    if !(d.is_system(system_type::TSS32) || !cpu.long_mode() && d.is_system(system_type::TSS16)) {
        return Err(cpu.gp(s.error()));
    }
    if !d.present() {
        return Err(cpu.raise(vector::NP, Some(s.error())));
    }
    descriptor::mark_busy(cpu, s, true)?;
    let busy = Descriptor { low: d.low | u64::from(system_type::BUSY) << 40, ..d };
    cpu.tr = busy.segment(s);
    Ok(())
}

/// The descriptor of a selector if the current privilege may see it; conforming code always.
fn visible(cpu: &mut Cpu, s: Selector) -> Exec<Option<Descriptor>> {
    if s.is_null() {
        return Ok(None);
    }
    let cpl = cpu.cpl;
    Ok(descriptor::find(cpu, s)?.filter(|d| d.conforming() || cpl.max(s.rpl()) <= d.dpl()))
}

/// System descriptors that LAR tells about.
fn lar_knows(kind: u8, long: bool) -> bool {
    use system_type::*;
    match kind {
        LDT | TSS32 | TSS32_BUSY | CALL32 => true,
        TSS16 | TSS16_BUSY | CALL16 | TASK_GATE => !long,
        _ => false,
    }
}

/// System descriptors that have a limit for LSL.
fn lsl_knows(kind: u8, long: bool) -> bool {
    use system_type::*;
    match kind {
        LDT | TSS32 | TSS32_BUSY => true,
        TSS16 | TSS16_BUSY => !long,
        _ => false,
    }
}

/// `lar`: access rights; ZF tells whether. Operand size in `aux`.
pub fn lar(cpu: &mut Cpu, u: &Uop) -> Exec {
    look(cpu, u, lar_knows, |d| d.low >> 32 & 0x00ff_ff00)
}

/// `lsl`: segment limit in bytes.
pub fn lsl(cpu: &mut Cpu, u: &Uop) -> Exec {
    look(cpu, u, lsl_knows, |d| u64::from(d.limit()))
}

fn look(cpu: &mut Cpu, u: &Uop, knows: fn(u8, bool) -> bool, value: fn(Descriptor) -> u64) -> Exec {
    check_protected(cpu)?;
    let s = Selector(operand16(cpu, u)?);
    let long = cpu.long_mode();
    let d = visible(cpu, s)?.filter(|d| d.is_segment() || knows(d.kind(), long));
    if let Some(d) = d {
        super::set_sized(cpu, u.dst, u.aux, value(d));
    }
    cpu.flags.assign(rflags::ZF, d.is_some());
    Ok(())
}

/// `verr`.
pub fn verr(cpu: &mut Cpu, u: &Uop) -> Exec {
    verify(cpu, u, Descriptor::readable)
}

/// `verw`.
pub fn verw(cpu: &mut Cpu, u: &Uop) -> Exec {
    verify(cpu, u, Descriptor::writable_data)
}

fn verify(cpu: &mut Cpu, u: &Uop, good: fn(Descriptor) -> bool) -> Exec {
    check_protected(cpu)?;
    let s = Selector(operand16(cpu, u)?);
    let found = visible(cpu, s)?.is_some_and(good);
    cpu.flags.assign(rflags::ZF, found);
    Ok(())
}

/// `arpl r/m16, r16`: raises the RPL of the first to that of the second (`imm`: its register number).
pub fn arpl(cpu: &mut Cpu, u: &Uop) -> Exec {
    check_protected(cpu)?;
    let by = Selector(cpu.regs.get(u.imm as u8) as u16).rpl();
    if u.aux & super::MEMORY == 0 {
        let s = Selector(cpu.regs.get(u.src) as u16);
        let raise = s.rpl() < by;
        if raise {
            cpu.regs.set16(u.src, s.with_rpl(by).0);
        }
        cpu.flags.assign(rflags::ZF, raise);
        return Ok(());
    }
    let at = u.linear(cpu, 2, false)?;
    let s = Selector(cpu.load::<u16>(u.segment(), at)?);
    let raise = s.rpl() < by;
    if raise {
        // Written, and checked for it, only if it changes.
        let at = u.linear(cpu, 2, true)?;
        cpu.store::<u16>(u.segment(), at, s.with_rpl(by).0)?;
    }
    cpu.flags.assign(rflags::ZF, raise);
    Ok(())
}

/// `mov sreg, r/m16`: segment register in `dst`.
pub fn load_segment(cpu: &mut Cpu, u: &Uop) -> Exec {
    let s = operand16(cpu, u)?;
    segment::load(cpu, u.dst, s)?;
    after_stack_load(cpu, u.dst);
    Ok(())
}

/// Loading SS by MOV or POP holds interrupts off until the stack pointer is loaded too.
fn after_stack_load(cpu: &mut Cpu, reg: u8) {
    if reg == seg::SS {
        cpu.shadow = Shadow::MovSs;
    }
}

/// `mov r/m16, sreg`: segment register in `src`.
pub fn read_segment(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = cpu.seg[usize::from(u.src % 6)].selector;
    store_selector(cpu, u, v)
}

/// `push sreg`: segment register in `src`, operand size in `aux`.
pub fn push_segment(cpu: &mut Cpu, u: &Uop) -> Exec {
    let v = cpu.seg[usize::from(u.src % 6)].selector;
    match u.aux {
        2 => cpu.push(v),
        4 => cpu.push(u32::from(v)),
        _ => cpu.push(u64::from(v)),
    }
}

/// `pop sreg`: segment register in `dst`, operand size in `aux`.
pub fn pop_segment(cpu: &mut Cpu, u: &Uop) -> Exec {
    let mut stack = super::stack::Stack::current(cpu, 0);
    let v = stack.pop(cpu, u32::from(u.aux))? as u16;
    segment::load(cpu, u.dst, v)?;
    // At the width of the stack that was popped from, which may differ from that of a new SS.
    stack.commit_pointer(cpu);
    after_stack_load(cpu, u.dst);
    Ok(())
}

/// `lds`, `les`, `lfs`, `lgs`, `lss`: segment register in `src`, operand size in `aux`.
pub fn load_pointer(cpu: &mut Cpu, u: &Uop) -> Exec {
    let (selector, offset) = far::read_pointer(cpu, u)?;
    segment::load(cpu, u.src, selector.0)?;
    super::set_sized(cpu, u.dst, u.aux, offset);
    Ok(())
}

/// `invlpg`.
pub fn invlpg(cpu: &mut Cpu, u: &Uop) -> Exec {
    only_cpl0(cpu)?;
    let mask = if cpu.mode.is64() { u64::MAX } else { 0xffff_ffff };
    let s = cpu.seg[usize::from(u.segment() % 6)];
    let based = !cpu.mode.is64() || u.segment() >= seg::FS;
    let linear = (u.offset(cpu) & u.address_mask()).wrapping_add(if based { s.base } else { 0 }) & mask;
    // A non-canonical address is no page: nothing to do.
    if Cpu::canonical(linear) {
        cpu.mmu.flush_pages(PageRange::at(linear));
    }
    Ok(())
}

/// `invpcid`: type in register `src`, 16 bytes of PCID and address in memory.
pub fn invpcid(cpu: &mut Cpu, u: &Uop) -> Exec {
    only_cpl0(cpu)?;
    let width = if cpu.mode.is64() { u64::MAX } else { 0xffff_ffff };
    let kind = cpu.regs.get(u.src) & width;
    let at = u.linear(cpu, 16, false)?;
    let pcid = cpu.load::<u64>(u.segment(), at)?;
    let linear = cpu.load::<u64>(u.segment(), at.wrapping_add(8))?;
    let enabled = cpu.ctl.cr4 & cr4::PCIDE != 0;
    let bad_pcid = kind < 2 && (pcid >> 12 != 0 || !enabled && pcid != 0);
    if kind > 3 || bad_pcid || kind == 0 && !Cpu::canonical(linear) {
        return Err(cpu.gp(0));
    }
    let in_use = pcid == u64::from(cpu.pcid());
    match kind {
        0 if in_use => cpu.mmu.flush_pages(PageRange::at(linear)),
        1 if in_use => cpu.mmu.flush_non_global(),
        // All of a space that is not in use is allowed to go as well.
        0 | 1 => cpu.mmu.forget_space(pcid as u16),
        2 => cpu.mmu.flush_all(),
        _ => {
            cpu.mmu.flush_non_global();
            cpu.mmu.forget_other_spaces();
        }
    }
    Ok(())
}
