//! Where things are in a guest's memory, and the tables of the processor.

use iced_x86::code_asm::*;
use vireo_core::VcpuState;
use vireo_core::state::{DescriptorTable, Element, Segment, SegmentRegisters, cr0, cr4, efer};

use crate::asm::assemble;
use crate::ram::Ram;
use crate::record::Failure;

/// Bytes of RAM of every guest, from address 0.
pub const RAM: u64 = 0x20_0000;
/// First address above all RAM that cases map.
pub const RAM_LIMIT: u64 = 64 << 20;
/// Global descriptor table.
pub const GDT: u64 = 0x1000;
/// Task state segment; its I/O bitmap is beyond its limit, so that it allows no port.
pub const TSS: u64 = 0x1400;
/// Interrupt descriptor table.
pub const IDT: u64 = 0x2000;
/// Variables of the handlers: where the log goes on, where to return to (0: where it happened), whether to end
/// interrupts at the x2APIC.
pub const LOG_POINTER: u64 = 0x3000;
/// See [`LOG_POINTER`].
pub const RESUME: u64 = 0x3008;
/// See [`LOG_POINTER`].
pub const END_INTERRUPTS: u64 = 0x3010;
/// The log of exceptions and interrupts: [`Trap`]s of 64 bytes.
pub const LOG: u64 = 0x3100;
/// Handlers.
pub const HANDLERS: u64 = 0x4000;
/// Where the guest's own code starts.
pub const CODE: u64 = 0x8000;
/// Where it goes on after a fault, if it does so elsewhere than at the fault.
pub const AFTER: u64 = CODE + 0x100;
/// Code of the second vCPU, page-aligned below 1 MiB for a start-up IPI.
pub const CODE_AP: u64 = 0xa000;
/// For what a guest wants to remember.
pub const DATA: u64 = 0xc000;
/// Top of the kernel stack.
pub const STACK: u64 = 0x7f00;
/// Top of the stack in the TSS, for entries from user mode.
pub const STACK0: u64 = 0x7700;
/// Top of the user stack.
pub const USER_STACK: u64 = 0x6f00;
/// Roots of page tables: 4-level, PAE, 32-bit.
pub const PML4: u64 = 0x1_0000;
/// See [`PML4`].
pub const PDPT_PAE: u64 = 0x1_5000;
/// See [`PML4`].
pub const PD32: u64 = 0x1_6000;
/// Page table of the linear addresses from [`WINDOW`] in 4-level and PAE mode.
pub const PT: u64 = 0x1_4000;
/// Page table of the linear addresses from [`WINDOW32`] in 32-bit mode.
pub const PT32: u64 = 0x1_7000;
/// 2 MiB of linear addresses mapped page by page; at first to the RAM from 1 MiB on.
pub const WINDOW: u64 = 0x60_0000;
/// As [`WINDOW`], 4 MiB.
pub const WINDOW32: u64 = 0x80_0000;
/// RAM behind the first page of the windows.
pub const WINDOW_RAM: u64 = 0x10_0000;
/// Physical addresses without RAM.
pub const MMIO: u64 = 0xd000_0000;

/// Selectors.
pub mod sel {
    #![allow(missing_docs)]
    pub const CODE64: u16 = 0x08;
    pub const DATA: u16 = 0x10;
    pub const CODE32: u16 = 0x18;
    pub const USER_DATA: u16 = 0x28 | 3;
    pub const USER_CODE64: u16 = 0x30 | 3;
    pub const CODE16: u16 = 0x38;
    pub const DATA16: u16 = 0x40;
    /// 4 KiB from [`super::WINDOW_RAM`].
    pub const SMALL: u16 = 0x48;
    pub const NOT_PRESENT: u16 = 0x50;
    pub const TSS: u16 = 0x58;
}

/// An exception or interrupt as the handlers saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    pub vector: u64,
    pub error: u64,
    pub ip: u64,
    pub cs: u64,
    pub flags: u64,
    pub cr2: u64,
}

/// Bytes of a handler's entry.
const ENTRY: u64 = 16;
const HAS_ERROR: u32 = 1 << 8 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14 | 1 << 17 | 1 << 21;

/// Vectors with a handler; all of them below this.
pub const VECTORS: u64 = 0x60;

fn descriptor(base: u32, limit: u32, attributes: u32) -> u64 {
    let (base, limit, attributes) = (u64::from(base), u64::from(limit), u64::from(attributes));
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | (attributes & 0xff) << 40
        | (limit >> 16 & 15) << 48
        | (attributes >> 12 & 15) << 52
        | (base >> 24) << 56
}

const FLAT: u32 = 0xf_ffff;
const KERNEL_DATA: u32 = 0xc093;
const KERNEL_CODE64: u32 = 0xa09b;
const KERNEL_CODE32: u32 = 0xc09b;
const KERNEL_CODE16: u32 = 0x009b;

/// Writes all tables; gates and handlers for 64-bit or 32-bit mode.
pub fn write(ram: &Ram, bits: u32) -> Result<(), Failure> {
    let tss_attributes = 0x008b & !2;
    let gdt = [
        0,
        descriptor(0, FLAT, KERNEL_CODE64),
        descriptor(0, FLAT, KERNEL_DATA),
        descriptor(0, FLAT, KERNEL_CODE32),
        descriptor(0, FLAT, 0xc0fb),
        descriptor(0, FLAT, 0xc0f3),
        descriptor(0, FLAT, 0xa0fb),
        descriptor(0, 0xffff, KERNEL_CODE16),
        descriptor(0, 0xffff, 0x0093),
        descriptor(WINDOW_RAM as u32, 0xfff, 0x4093),
        descriptor(0, FLAT, 0xc013),
        descriptor(TSS as u32, 0x67, tss_attributes),
        0,
    ];
    (0..).zip(gdt).for_each(|(i, d)| ram.write(GDT + 8 * i, &d.to_le_bytes()));
    // Stack for entries to level 0: RSP0 in 64-bit mode, ESP0 and SS0 in 32-bit mode; then the bitmap's offset.
    ram.write(TSS + 4, &STACK0.to_le_bytes());
    if bits == 32 {
        ram.write(TSS + 8, &sel::DATA.to_le_bytes());
    }
    ram.write(TSS + 0x66, &0x68u16.to_le_bytes());
    ram.write(LOG_POINTER, &LOG.to_le_bytes());
    write_pages(ram);
    for vector in 0..VECTORS {
        write_gate(ram, bits, vector);
        let entry = entry(bits, vector)?;
        ram.write(HANDLERS + ENTRY * vector, &entry);
    }
    let at = HANDLERS + ENTRY * VECTORS;
    ram.write(at, &if bits == 64 { handler64(at)? } else { handler32(at)? });
    Ok(())
}

/// An interrupt gate; user mode may use vectors 3, 4 and 40h.
fn write_gate(ram: &Ram, bits: u32, vector: u64) {
    let target = HANDLERS + ENTRY * vector;
    let dpl = if matches!(vector, 3 | 4 | 0x40) { 3u64 } else { 0 };
    let (selector, size) = if bits == 64 { (sel::CODE64, 16) } else { (sel::CODE32, 8) };
    let gate = target & 0xffff | u64::from(selector) << 16 | (0x8e | dpl << 5) << 40 | (target >> 16) << 48;
    ram.write(IDT + size * vector, &gate.to_le_bytes());
}

fn entry(bits: u32, vector: u64) -> Result<Vec<u8>, Failure> {
    assemble(bits, HANDLERS + ENTRY * vector, |a| {
        if vector >= 32 || HAS_ERROR >> vector & 1 == 0 {
            a.push(0)?;
        }
        a.push(vector as i32)?;
        a.jmp(HANDLERS + ENTRY * VECTORS)
    })
}

fn handler64(at: u64) -> Result<Vec<u8>, Failure> {
    assemble(64, at, |a| {
        let (mut stay, mut no_eoi) = (a.create_label(), a.create_label());
        for r in [rax, rbx, rcx, rdx] {
            a.push(r)?;
        }
        a.mov(rbx, qword_ptr(LOG_POINTER))?;
        // vector, error, RIP, CS, RFLAGS
        for i in 0..5i32 {
            a.mov(rax, qword_ptr(rsp + 32 + 8 * i))?;
            a.mov(qword_ptr(rbx + 8 * i), rax)?;
        }
        a.mov(rax, cr2)?;
        a.mov(qword_ptr(rbx + 40), rax)?;
        a.add(rbx, 64)?;
        a.mov(qword_ptr(LOG_POINTER), rbx)?;
        a.mov(rax, qword_ptr(RESUME))?;
        a.test(rax, rax)?;
        a.jz(stay)?;
        a.mov(qword_ptr(rsp + 48), rax)?;
        a.set_label(&mut stay)?;
        a.cmp(qword_ptr(END_INTERRUPTS), 0)?;
        a.jz(no_eoi)?;
        a.mov(ecx, 0x80b)?;
        a.xor(eax, eax)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.set_label(&mut no_eoi)?;
        for r in [rdx, rcx, rbx, rax] {
            a.pop(r)?;
        }
        a.add(rsp, 16)?;
        a.iretq()
    })
}

fn handler32(at: u64) -> Result<Vec<u8>, Failure> {
    assemble(32, at, |a| {
        let mut stay = a.create_label();
        for r in [eax, ebx] {
            a.push(r)?;
        }
        a.push(ds)?;
        a.mov(eax, i32::from(sel::DATA))?;
        a.mov(ds, eax)?;
        a.mov(ebx, dword_ptr(LOG_POINTER))?;
        for i in 0..5i32 {
            a.mov(eax, dword_ptr(esp + 12 + 4 * i))?;
            a.mov(dword_ptr(ebx + 8 * i), eax)?;
        }
        a.mov(eax, cr2)?;
        a.mov(dword_ptr(ebx + 40), eax)?;
        a.add(ebx, 64)?;
        a.mov(dword_ptr(LOG_POINTER), ebx)?;
        a.mov(eax, dword_ptr(RESUME))?;
        a.test(eax, eax)?;
        a.jz(stay)?;
        a.mov(dword_ptr(esp + 20), eax)?;
        a.set_label(&mut stay)?;
        a.pop(ds)?;
        a.pop(ebx)?;
        a.pop(eax)?;
        a.add(esp, 8)?;
        a.iretd()
    })
}

/// Present, writable, for user mode too.
const PWU: u64 = 7;
const LARGE: u64 = 0x80;

fn write_pages(ram: &Ram) {
    let set = |at: u64, value: u64| ram.write(at, &value.to_le_bytes());
    let (pdpt, low, high) = (PML4 + 0x1000, PML4 + 0x2000, PML4 + 0x3000);
    set(PML4, pdpt | PWU);
    // The first and the fourth gigabyte, linear = physical; the third 2 MiB page by page.
    set(pdpt, low | PWU);
    set(pdpt + 24, high | PWU);
    set(PDPT_PAE, low | 1);
    set(PDPT_PAE + 24, high | 1);
    for i in 0..512 {
        set(low + 8 * i, i << 21 | LARGE | PWU);
        set(high + 8 * i, (3 << 30 | i << 21) | LARGE | PWU);
        set(PT + 8 * i, (WINDOW_RAM + ((i & 0xff) << 12)) | PWU);
    }
    set(low + 8 * (WINDOW >> 21), PT | PWU);
    let set32 = |at: u64, value: u64| ram.write(at, &(value as u32).to_le_bytes());
    for i in 0..1024 {
        set32(PD32 + 4 * i, i << 22 | LARGE | PWU);
        set32(PT32 + 4 * i, (WINDOW_RAM + ((i & 0xff) << 12)) | PWU);
    }
    set32(PD32 + 4 * (WINDOW32 >> 22), PT32 | PWU);
}

/// The mode in which a guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    Protected16,
    Protected32,
    Paging32,
    Pae,
    Long,
}

impl Mode {
    /// Size of the code that runs in it.
    pub fn bits(self) -> u32 {
        match self {
            Self::Real | Self::Protected16 => 16,
            Self::Protected32 | Self::Paging32 | Self::Pae => 32,
            Self::Long => 64,
        }
    }

    /// Whether gates and handlers are of 64-bit mode.
    pub fn handler_bits(self) -> u32 {
        if self == Self::Long { 64 } else { 32 }
    }
}

fn flat(selector: u16, attributes: u32) -> Segment {
    Segment { selector, base: 0, limit: u32::MAX, attributes }
}

/// A vCPU in a mode at [`CODE`].
pub fn state(mode: Mode) -> VcpuState {
    let mut s = VcpuState::at_reset(0);
    s.general.rip = CODE;
    s.general.gpr[2] = 0;
    s.general.gpr[4] = STACK;
    s.debug.dr6 = 0xffff_0ff0;
    s.segments.gdtr = DescriptorTable { base: GDT, limit: 13 * 8 - 1 };
    s.segments.idtr = DescriptorTable { base: IDT, limit: (VECTORS * 16 - 1) as u16 };
    s.segments.tr = Segment { selector: sel::TSS, base: TSS, limit: 0x67, attributes: 0x8b };
    s.segments.ldtr = Segment { attributes: Segment::UNUSABLE, ..Segment::default() };
    s.control.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::MP;
    let code = match mode {
        Mode::Real => {
            s.segments.data = [Segment::real(0, 0x93); 6];
            s.segments.data[SegmentRegisters::CS] = Segment::real(0, 0x9b);
            s.segments.idtr = DescriptorTable { base: 0, limit: 0x3ff };
            s.segments.tr = Segment { selector: 0, base: 0, limit: 0xffff, attributes: 0x8b };
            s.control.cr0 = cr0::ET | cr0::NE;
            return s;
        }
        Mode::Protected16 => {
            s.segments.data =
                [Segment { selector: sel::DATA16, base: 0, limit: 0xffff, attributes: 0x93 }; 6];
            let code = Segment { selector: sel::CODE16, base: 0, limit: 0xffff, attributes: KERNEL_CODE16 };
            s.segments.data[SegmentRegisters::CS] = code;
            return s;
        }
        Mode::Protected32 => flat(sel::CODE32, KERNEL_CODE32),
        Mode::Paging32 => {
            s.control.cr0 |= cr0::PG;
            s.control.cr3 = PD32;
            s.control.cr4 = cr4::PSE;
            flat(sel::CODE32, KERNEL_CODE32)
        }
        Mode::Pae => {
            s.control.cr0 |= cr0::PG;
            s.control.cr3 = PDPT_PAE;
            s.control.cr4 = cr4::PAE;
            s.control.efer = efer::NXE;
            flat(sel::CODE32, KERNEL_CODE32)
        }
        Mode::Long => {
            s.control.cr0 |= cr0::PG;
            s.control.cr3 = PML4;
            s.control.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
            s.control.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
            flat(sel::CODE64, KERNEL_CODE64)
        }
    };
    s.segments.data = [flat(sel::DATA, KERNEL_DATA); 6];
    s.segments.data[SegmentRegisters::CS] = code;
    s
}

/// The traps that the handlers logged.
pub fn traps(ram: &Ram) -> Vec<Trap> {
    let count = ram.u64(LOG_POINTER).saturating_sub(LOG) / 64;
    let field = |i: u64, f: u64| ram.u64(LOG + 64 * i + 8 * f);
    (0..count.min(32))
        .map(|i| Trap {
            vector: field(i, 0),
            error: field(i, 1),
            ip: field(i, 2),
            cs: field(i, 3) & 0xffff,
            flags: field(i, 4),
            cr2: field(i, 5),
        })
        .collect()
}
