//! Delivery of exceptions and interrupts (SDM vol. 3A, chapter 6).

use vireo_core::state::{Segment, rflags};

use super::descriptor::{self, Descriptor, Selector, system_type};
use super::segment::{self, Code};
use super::stack::Stack;
use super::{far, task, tss};
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, Fault, Shadow, Source, Stop, seg, vector};

/// Delivers an event at [`Cpu::rip`]; exceptions that come up on the way are delivered in its place. `Err`:
/// [`Stop::Shutdown`], a triple fault.
pub fn deliver(cpu: &mut Cpu, first: Fault) -> Exec {
    let mut event = first;
    note_page_fault(cpu, event);
    loop {
        match deliver_once(cpu, event) {
            Ok(()) => return Ok(()),
            // An INT instruction that cannot be delivered is at fault itself.
            Err(Stop::Fault) if event.source.is_instruction() => cpu.rip = cpu.trap_rip,
            Err(Stop::Fault | Stop::Trap) => {}
            Err(other) => return Err(other),
        }
        let second = cpu.fault;
        note_page_fault(cpu, second);
        event = match combine(event, second) {
            Some(e) => e,
            None => return Err(Stop::Shutdown),
        };
    }
}

impl Source {
    /// The event is what an instruction is for: INT n, INT3, INTO, INT1.
    fn is_instruction(self) -> bool {
        matches!(self, Self::SoftwareInterrupt | Self::SoftwareException | Self::PrivilegedSoftwareException)
    }
}

/// CR2 changes when a page fault is raised, also when it becomes a double fault.
fn note_page_fault(cpu: &mut Cpu, event: Fault) {
    if event.vector == vector::PF && event.source == Source::Exception {
        cpu.ctl.cr2 = cpu.mmu.fault_address;
    }
}

/// Classes of SDM vol. 3A, table 6-4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(event: Fault) -> Class {
    if event.source != Source::Exception {
        return Class::Benign;
    }
    match event.vector {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::PageFault,
        vector::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What to deliver when `second` came up during the delivery of `first` (SDM vol. 3A, table 6-5). `None`: shutdown.
fn combine(first: Fault, second: Fault) -> Option<Fault> {
    use Class::*;
    match (class(first), class(second)) {
        (DoubleFault, Contributory | PageFault) => None,
        (Contributory, Contributory) | (PageFault, Contributory | PageFault) => {
            Some(Fault { vector: vector::DF, error: Some(0), source: Source::Exception })
        }
        _ => Some(second),
    }
}

/// One try. On [`Stop::Fault`] nothing changed but memory above the stacks' tops; [`Stop::Trap`]: a task switch was
/// made and the new task is at fault.
fn deliver_once(cpu: &mut Cpu, event: Fault) -> Exec {
    if cpu.ctl.cr0 & vireo_core::state::cr0::PE == 0 {
        real_mode(cpu, event)?;
    } else {
        protected(cpu, event)?;
    }
    if event.vector == vector::DB {
        cpu.debug.dr7 &= !super::control::DR7_GD;
    }
    cpu.shadow = Shadow::None;
    Ok(())
}

fn is_software(event: Fault) -> bool {
    matches!(event.source, Source::SoftwareInterrupt | Source::SoftwareException)
}

/// Bit EXT of error codes: the event is not the program's own INT instruction.
fn ext(event: Fault) -> u32 {
    u32::from(!is_software(event))
}

/// The flags to push: fault-class exceptions set RF so that the instruction can be resumed past a breakpoint.
fn pushed_flags(cpu: &Cpu, event: Fault) -> u64 {
    let fault = event.source == Source::Exception && !matches!(event.vector, vector::DB | vector::DF);
    cpu.rflags() | if fault { rflags::RF } else { 0 }
}

fn real_mode(cpu: &mut Cpu, event: Fault) -> Exec {
    let offset = u32::from(event.vector) * 4;
    if offset + 3 > u32::from(cpu.idtr.limit) {
        return Err(cpu.gp(0));
    }
    let entry = cpu.load_sys::<u32>(cpu.idtr.base.wrapping_add(u64::from(offset)))?;
    let (cs, ip) = ((entry >> 16) as u16, u64::from(entry & 0xffff));
    if ip > u64::from(cpu.seg[seg::CS as usize].limit) {
        return Err(cpu.gp(0));
    }
    let mut stack = Stack::current(cpu, 0);
    stack.push(cpu, 2, cpu.rflags())?;
    stack.push(cpu, 2, u64::from(cpu.seg[seg::CS as usize].selector))?;
    stack.push(cpu, 2, cpu.rip)?;
    stack.commit_pointer(cpu);
    cpu.eflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
    far::load_real_code(cpu, cs, ip);
    Ok(())
}

/// An interrupt or trap gate, checked, with all that the handler's frame needs.
struct Gate {
    gate: Descriptor,
    code: Code,
    target: u64,
    /// Bytes of a frame slot.
    size: u32,
    /// The handler runs at an inner level.
    inner: bool,
}

fn protected(cpu: &mut Cpu, event: Fault) -> Exec {
    let gate = read_gate(cpu, event)?;
    if gate.is_system(system_type::TASK_GATE) {
        let (s, ext) = (gate.gate_selector(), ext(event));
        let d = task::find_tss(cpu, s, vector::GP, ext)?;
        let next = cpu.rip;
        let error = if event.source == Source::Exception { event.error } else { None };
        return match task::switch(cpu, s, d, task::Cause::Gate { error, ext }, next) {
            Err(Stop::EndBlock) => Ok(()),
            other => other,
        };
    }
    let gate = check_code(cpu, event, gate)?;
    let mut stack = choose_stack(cpu, event, &gate)?;
    push_frame(cpu, event, &gate, &mut stack)?;
    let vm86 = cpu.vm86();
    if gate.inner {
        stack.commit(cpu)
    } else {
        stack.commit_pointer(cpu)
    }
    if vm86 {
        for reg in [seg::ES, seg::DS, seg::FS, seg::GS] {
            cpu.seg[reg as usize] = segment::null(Selector(0));
        }
    }
    cpu.eflags &= !(rflags::TF | rflags::NT | rflags::VM | rflags::RF);
    if gate.gate.kind() & 1 == 0 {
        cpu.eflags &= !rflags::IF;
    }
    far::commit(cpu, gate.code, gate.target);
    Ok(())
}

/// The gate of a vector, its type, privilege and presence checked.
fn read_gate(cpu: &mut Cpu, event: Fault) -> Exec<Descriptor> {
    let long = cpu.long_mode();
    let size: u32 = if long { 16 } else { 8 };
    let offset = u32::from(event.vector) * size;
    // Error codes that name a gate have bit 1 (IDT) set and the vector as index.
    let error = u32::from(event.vector) << 3 | 2 | ext(event);
    if offset + (size - 1) > u32::from(cpu.idtr.limit) {
        return Err(cpu.gp(error));
    }
    let at = cpu.idtr.base.wrapping_add(u64::from(offset));
    let mut gate = Descriptor::new(cpu.load_sys::<u64>(at)?);
    if long {
        gate.high = cpu.load_sys::<u64>(at.wrapping_add(8))?;
    }
    let known = match gate.kind() {
        system_type::INTERRUPT32 | system_type::TRAP32 => true,
        system_type::TASK_GATE | system_type::INTERRUPT16 | system_type::TRAP16 => !long,
        _ => false,
    };
    if gate.is_segment() || !known || is_software(event) && gate.dpl() < cpu.cpl {
        return Err(cpu.gp(error));
    }
    if !gate.present() {
        return Err(cpu.raise(vector::NP, Some(error)));
    }
    Ok(gate)
}

/// The code segment and entry point behind an interrupt or trap gate.
fn check_code(cpu: &mut Cpu, event: Fault, gate: Descriptor) -> Exec<Gate> {
    let (s, ext, long) = (gate.gate_selector(), ext(event), cpu.long_mode());
    if s.is_null() {
        return Err(cpu.gp(ext));
    }
    let d = descriptor::read(cpu, s, vector::GP, ext)?;
    let cpl = cpu.cpl;
    let inner = !d.conforming() && d.dpl() < cpl;
    // Virtual-8086 code can only be interrupted into ring 0.
    let from_vm86 = cpu.vm86() && (!inner || d.dpl() != 0);
    if !d.is_code() || d.dpl() > cpl || from_vm86 || long && (!d.long() || d.big()) {
        return Err(cpu.gp(s.error() | ext));
    }
    let code = segment::code(cpu, s, d, if inner { d.dpl() } else { cpl }, ext)?;
    let target = code.check_target(cpu, gate.gate_offset(), ext)?;
    let size = match (long, gate.kind() & 8) {
        (true, _) => 8,
        (_, 0) => 2,
        _ => 4,
    };
    Ok(Gate { gate, code, target, size, inner })
}

fn choose_stack(cpu: &mut Cpu, event: Fault, g: &Gate) -> Exec<Stack> {
    let ext = ext(event);
    if !cpu.long_mode() {
        return if g.inner { tss::inner_stack(cpu, g.code.cpl, ext) } else { Ok(Stack::current(cpu, ext)) };
    }
    let ist = g.gate.gate_ist();
    let ss: Segment = if g.inner { segment::null_stack(g.code.cpl) } else { cpu.seg[seg::SS as usize] };
    let mut stack = match (ist, g.inner) {
        (0, true) => tss::inner_stack(cpu, g.code.cpl, ext)?,
        // Compatibility-mode code of the same level: its pointer, now as a 64-bit one.
        (0, false) => Stack::long(ss, cpu.stack_pointer(), cpu.cpl, ext),
        _ => {
            let sp = tss::interrupt_stack(cpu, ist, ext)?;
            if !Cpu::canonical(sp) {
                return Err(cpu.raise(vector::SS, Some(ext)));
            }
            Stack::long(ss, sp, g.code.cpl, ext)
        }
    };
    stack.sp &= !15;
    Ok(stack)
}

fn push_frame(cpu: &mut Cpu, event: Fault, g: &Gate, stack: &mut Stack) -> Exec {
    let size = g.size;
    let selector = |cpu: &Cpu, r: u8| u64::from(cpu.seg[r as usize].selector);
    if cpu.vm86() {
        for reg in [seg::GS, seg::FS, seg::DS, seg::ES] {
            stack.push(cpu, size, selector(cpu, reg))?;
        }
    }
    if g.inner || cpu.long_mode() {
        stack.push(cpu, size, selector(cpu, seg::SS))?;
        stack.push(cpu, size, cpu.regs.get(gpr::RSP))?;
    }
    stack.push(cpu, size, pushed_flags(cpu, event))?;
    stack.push(cpu, size, selector(cpu, seg::CS))?;
    stack.push(cpu, size, cpu.rip)?;
    match event.error {
        Some(e) if event.source == Source::Exception => stack.push(cpu, size, u64::from(e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exception(vector: u8) -> Fault {
        Fault { vector, error: Some(0), source: Source::Exception }
    }

    #[test]
    fn contributory_faults_double() {
        for (first, second, result) in [
            (vector::GP, vector::NP, Some(vector::DF)),
            (vector::PF, vector::PF, Some(vector::DF)),
            (vector::PF, vector::GP, Some(vector::DF)),
            (vector::GP, vector::PF, Some(vector::PF)),
            (vector::UD, vector::GP, Some(vector::GP)),
            (vector::PF, vector::DB, Some(vector::DB)),
            (vector::DF, vector::GP, None),
            (vector::DF, vector::PF, None),
        ] {
            let got = combine(exception(first), exception(second)).map(|f| f.vector);
            assert_eq!(got, result, "{first} then {second}");
        }
    }

    #[test]
    fn a_software_interrupt_with_an_exception_vector_is_benign() {
        let int13 = Fault { vector: vector::GP, error: None, source: Source::SoftwareInterrupt };
        assert_eq!(combine(int13, exception(vector::GP)), Some(exception(vector::GP)));
        let irq14 = Fault { vector: vector::PF, error: None, source: Source::External };
        assert_eq!(combine(irq14, exception(vector::PF)), Some(exception(vector::PF)));
    }
}
