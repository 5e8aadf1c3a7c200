//! The state in which each boot protocol wants the bootstrap processor, and the tables that state points to.

use vireo_core::VcpuState;
use vireo_core::state::{DescriptorTable, Element, Segment, SegmentRegisters, cr0, cr4, efer, msr, rflags};
use vireo_memory::{GuestMemory, MemoryError};

use super::bzimage::ENTRY_64;
use crate::map;

/// IA32_MTRR_DEF_TYPE: MTRRs on, fixed ranges off, everything write-back (SDM vol. 3A, 12.11.2.1).
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Selector of the code segment (boot.rst: `__BOOT_CS`).
const CODE: u16 = 0x10;
/// Selector of the data segment (`__BOOT_DS`).
const DATA: u16 = 0x18;

/// Attributes as in [`Segment`]: present, DPL 0, accessed, base 0, limit 4 GiB.
const CODE_64: u32 = 0x9b | Segment::L | Segment::G;
const CODE_32: u32 = 0x9b | Segment::DB | Segment::G;
const DATA_32: u32 = 0x93 | Segment::DB | Segment::G;
/// A busy 32-bit TSS.
const TSS: u32 = 0x8b;

const RSI: usize = 6;
const RSP: usize = 4;
const RBX: usize = 3;

/// 64-bit entry (boot.rst, "64-bit Boot Protocol"): long mode, memory identity-mapped, RSI = `boot_params`.
pub(crate) fn linux64(memory: &GuestMemory, load_address: u64) -> Result<VcpuState, MemoryError> {
    write_identity_map(memory)?;
    write_gdt(memory, CODE_64)?;
    let mut state = flat(CODE_64);
    state.segments.gdtr = GDTR;
    state.control.cr0 |= cr0::PG;
    state.control.cr3 = map::PAGE_TABLES;
    state.control.cr4 = cr4::PAE;
    state.control.efer = efer::LME | efer::LMA;
    state.general.rip = load_address + ENTRY_64;
    state.general.gpr[RSI] = map::BOOT_PARAMS;
    state.general.gpr[RSP] = map::STACK_TOP;
    Ok(state)
}

/// 32-bit entry (boot.rst, "32-bit Boot Protocol"): flat protected mode, no paging, ESI = `boot_params`.
pub(crate) fn linux32(memory: &GuestMemory, load_address: u64) -> Result<VcpuState, MemoryError> {
    write_gdt(memory, CODE_32)?;
    let mut state = flat(CODE_32);
    state.segments.gdtr = GDTR;
    state.general.rip = load_address;
    state.general.gpr[RSI] = map::BOOT_PARAMS;
    state.general.gpr[RSP] = map::STACK_TOP;
    Ok(state)
}

/// PVH entry (Xen `docs/misc/pvh.pandoc`): flat protected mode, no paging, EBX = start info, a TSS of 0x67 bytes.
pub(crate) fn pvh(entry: u32) -> VcpuState {
    let mut state = flat(CODE_32);
    state.segments.tr.limit = 0x67;
    state.general.rip = entry.into();
    state.general.gpr[RBX] = map::PVH_INFO.start;
    state
}

/// A vCPU as firmware leaves it: at reset, with all memory write-back. Kernels take MTRRs that are off, or that differ
/// between processors, for a defect.
pub fn waiting(index: u32) -> VcpuState {
    let mut state = VcpuState::at_reset(index);
    state.msrs.set(msr::MTRR_DEF_TYPE, MTRR_WRITE_BACK);
    state
}

/// What all have in common: protection on, flat segments, interrupts off, general registers zero.
fn flat(code: u32) -> VcpuState {
    let mut state = waiting(0);
    let segment = |selector, attributes| Segment { selector, base: 0, limit: u32::MAX, attributes };
    state.segments.data = [segment(DATA, DATA_32); 6];
    state.segments.data[SegmentRegisters::CS] = segment(CODE, code);
    state.segments.tr.attributes = TSS;
    state.control.cr0 = cr0::PE | cr0::ET;
    state.general.gpr = [0; 16];
    state.general.rflags = rflags::ONE;
    virtual_wire(&mut state);
    state
}

/// Firmware leaves the local APIC of the bootstrap processor on, with the 8259A behind LINT0 and NMI behind LINT1 (MP
/// specification 1.4, 3.6.2.2), so that the timer ticks before the kernel has found the I/O APIC.
fn virtual_wire(state: &mut VcpuState) {
    const SPURIOUS: usize = 0xf0;
    const LINT0: usize = 0x350;
    const LINT1: usize = 0x360;
    state.apic.set_register(SPURIOUS, 0x1ff);
    state.apic.set_register(LINT0, 0x700);
    state.apic.set_register(LINT1, 0x400);
}

const GDT_ENTRIES: u64 = 4;
const GDTR: DescriptorTable = DescriptorTable { base: map::GDT, limit: (GDT_ENTRIES * 8 - 1) as u16 };

fn write_gdt(memory: &GuestMemory, code: u32) -> Result<(), MemoryError> {
    for (i, descriptor) in [0, 0, descriptor(code), descriptor(DATA_32)].into_iter().enumerate() {
        memory.write_obj(map::GDT + i as u64 * 8, descriptor)?;
    }
    Ok(())
}

/// The descriptor of a segment with base 0 and limit 4 GiB (SDM vol. 3A, 3.4.5).
fn descriptor(attributes: u32) -> u64 {
    0x000f_0000_0000_ffff | u64::from(attributes) << 40
}

/// Maps the first 4 GiB onto themselves in 2 MiB pages: all RAM a boot loader may use, and the devices.
fn write_identity_map(memory: &GuestMemory) -> Result<(), MemoryError> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    const TABLE: u64 = 4096;
    let (pml4, pdpt, directories) =
        (map::PAGE_TABLES, map::PAGE_TABLES + TABLE, map::PAGE_TABLES + 2 * TABLE);
    memory.fill(pml4, 2 * TABLE, 0)?;
    memory.write_obj(pml4, pdpt | PRESENT_WRITABLE)?;
    for i in 0..4 {
        memory.write_obj(pdpt + i * 8, (directories + i * TABLE) | PRESENT_WRITABLE)?;
    }
    for page in 0..4 * 512 {
        memory.write_obj(directories + page * 8, page << 21 | LARGE | PRESENT_WRITABLE)?;
    }
    Ok(())
}
