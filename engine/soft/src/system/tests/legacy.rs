//! Real mode, protected mode, virtual-8086 mode, gates and tasks.

use iced_x86::code_asm::*;
use vireo_core::state::{cr0, efer, rflags};

use super::guest::*;
use crate::cpu::{seg, vector};

#[test]
fn a_real_mode_interrupt_and_its_return() {
    let mut g = Guest::real();
    g.write::<u32>(0x21 * 4, ((HANDLER >> 4) << 16) as u32);
    g.code(CODE, 16, |a| {
        a.sti()?;
        a.stc()?;
        a.int(0x21)?;
        a.mov(bx, 0x1234)?;
        a.hlt()
    });
    g.code(HANDLER, 16, |a| {
        a.pushf()?;
        a.pop(cx)?;
        a.mov(ax, 0x5678)?;
        a.iret()
    });
    assert_eq!(g.run(), End::Halted);
    assert_eq!((g.cpu.regs.get(0) as u16, g.cpu.regs.get(3) as u16), (0x5678, 0x1234));
    assert_eq!(g.cpu.regs.get(1) & (rflags::IF | rflags::CF), rflags::CF);
    assert_eq!(g.cpu.rflags() & (rflags::IF | rflags::CF), rflags::IF | rflags::CF);
    assert_eq!(g.cpu.regs.get(4), 0x1000);
}

#[test]
fn from_real_mode_to_64_bit_mode() {
    let mut g = Guest::at_reset(vireo_core::model::Vendor::Intel);
    let tables = Guest::long(vireo_core::model::Vendor::Intel);
    for at in (GDT..GDT + 0x100).chain(PAGES..PAGES + 0x3000).step_by(8) {
        g.write::<u64>(at, tables.read(at));
    }
    g.cpu.seg[seg::CS as usize] = vireo_core::state::Segment::real((CODE >> 4) as u16, 0x9b);
    g.cpu.rip = 0;
    g.cpu.mode_changed();
    g.write::<u16>(0x500, 0xff);
    g.write::<u32>(0x502, GDT as u32);
    g.code(CODE, 16, |a| {
        a.lgdt(fword_ptr(0x500))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // jmp far dword 0x40:CODE + 0x100
        a.db(&[0x66, 0xea])?;
        a.dd(&[(CODE + 0x100) as u32])?;
        a.dw(&[sel::CODE32])
    });
    g.code(CODE + 0x100, 32, |a| {
        a.mov(eax, u32::from(sel::DATA))?;
        a.mov(ds, eax)?;
        a.mov(ss, eax)?;
        a.mov(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, PAGES as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080_u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000_u32 as i32)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea])?;
        a.dd(&[(CODE + 0x200) as u32])?;
        a.dw(&[sel::CODE64])
    });
    g.code(CODE + 0x200, 64, |a| {
        a.mov(rax, 0x1122_3344_5566_7788_u64)?;
        a.hlt()
    });
    assert_eq!(g.run(), End::Halted);
    assert!(g.cpu.mode.is64());
    assert_eq!(g.cpu.regs.get(0), 0x1122_3344_5566_7788);
    assert_eq!(g.cpu.ctl.efer, efer::LME | efer::LMA);
    assert_eq!(g.cpu.ctl.cr0 & (cr0::PE | cr0::PG), cr0::PE | cr0::PG);
}

#[test]
fn big_real_mode_keeps_the_limit() {
    let mut g = Guest::protected();
    g.write::<u32>(0xf_0000, 0xcafe_babe);
    g.code(CODE, 32, |a| {
        a.mov(eax, cr0)?;
        a.and(eax, !1)?;
        a.mov(cr0, eax)?;
        // Still 32-bit code; a real-mode load changes the base only.
        a.mov(eax, 0x1000)?;
        a.mov(ds, eax)?;
        a.mov(ebx, dword_ptr(0xe_0000))?;
        a.hlt()
    });
    assert_eq!(g.run(), End::Halted);
    assert_eq!(g.cpu.regs.get(3), 0xcafe_babe);
    assert_eq!(g.cpu.seg[seg::DS as usize].base, 0x1_0000);
}

#[test]
fn a_call_gate_copies_parameters_and_a_far_return_drops_them() {
    let mut g = Guest::protected();
    // 32-bit call gate, DPL 3, two parameters.
    g.write(GDT + u64::from(sel::FREE), gate(sel::CODE32, HANDLER, 0xec) | 2 << 32);
    g.code(CODE, 32, |a| {
        a.push(0x1111)?;
        a.push(0x2222)?;
        a.db(&[0x9a, 0, 0, 0, 0])?;
        a.dw(&[sel::FREE | 3])?;
        a.mov(edx, esp)?;
        a.mov(dword_ptr(0x600), 1)?;
        a.int3()
    });
    g.code(HANDLER, 32, |a| {
        a.mov(eax, dword_ptr(esp + 8))?;
        a.mov(ebx, dword_ptr(esp + 12))?;
        a.mov(esi, cs)?;
        a.mov(edi, ss)?;
        a.retf_1(8)
    });
    g.code(HANDLER + 0x100, 32, |a| a.hlt());
    g.idt(vector::BP, gate(sel::CODE32, HANDLER + 0x100, 0xee));
    g.drop_to_user(sel::USER_CODE32, 0xc0fb);
    assert_eq!(g.run(), End::Halted);
    assert_eq!((g.cpu.regs.get(0), g.cpu.regs.get(3)), (0x2222, 0x1111));
    assert_eq!((g.cpu.regs.get(6), g.cpu.regs.get(7)), (u64::from(sel::CODE32), u64::from(sel::DATA)));
    // Both stacks lost their parameters.
    assert_eq!(g.cpu.regs.get(2), STACK);
    assert_eq!(g.read::<u32>(0x600), 1);
}

#[test]
fn a_double_fault_goes_through_a_task_gate() {
    let mut g = Guest::protected();
    let task = 0x5000_u64;
    g.write(GDT + u64::from(sel::TASK), descriptor(task, 0x67, 0x89));
    for (offset, v) in [(0x20, HANDLER as u32), (0x24, 2), (0x38, 0x2_8000), (0x28, 77)] {
        g.write::<u32>(task + offset, v);
    }
    for (i, s) in [sel::DATA, sel::CODE32, sel::DATA, sel::DATA, sel::DATA, sel::DATA].into_iter().enumerate()
    {
        g.write::<u32>(task + 0x48 + 4 * i as u64, u32::from(s));
    }
    g.idt(vector::DF, gate(sel::TASK, 0, 0x85));
    // #DE without a gate raises #GP, and two contributory faults are a double fault.
    g.code(CODE, 32, |a| {
        a.mov(ebx, 0x1234)?;
        a.div(ecx)
    });
    g.code(HANDLER, 32, |a| {
        a.pop(edx)?;
        a.hlt()
    });
    assert_eq!(g.run(), End::Halted);
    assert_eq!((g.cpu.regs.get(0), g.cpu.regs.get(2)), (77, 0));
    assert_eq!(g.cpu.tr.selector, sel::TASK);
    assert_ne!(g.cpu.ctl.cr0 & cr0::TS, 0);
    assert_ne!(g.cpu.eflags & rflags::NT, 0);
    // The old task is saved, still busy, and linked.
    assert_eq!((g.read::<u32>(TSS + 0x20), g.read::<u32>(TSS + 0x34)), ((CODE + 5) as u32, 0x1234));
    assert_eq!(g.read::<u16>(task), sel::TSS);
    assert_eq!(g.read::<u8>(GDT + u64::from(sel::TASK) + 5), 0x8b);
}

#[test]
fn iret_with_nt_returns_to_the_calling_task() {
    let mut g = Guest::protected();
    let task = 0x5000_u64;
    g.write(GDT + u64::from(sel::TASK), descriptor(task, 0x67, 0x89));
    for (offset, v) in [(0x20, HANDLER as u32), (0x24, 2), (0x38, 0x2_8000)] {
        g.write::<u32>(task + offset, v);
    }
    for (i, s) in [sel::DATA, sel::CODE32, sel::DATA, sel::DATA, sel::DATA, sel::DATA].into_iter().enumerate()
    {
        g.write::<u32>(task + 0x48 + 4 * i as u64, u32::from(s));
    }
    g.code(CODE, 32, |a| {
        a.mov(ebx, 0x4321)?;
        a.db(&[0x9a, 0, 0, 0, 0])?;
        a.dw(&[sel::TASK])?;
        a.inc(ebx)?;
        a.hlt()
    });
    g.code(HANDLER, 32, |a| {
        a.mov(ebx, 0)?;
        a.iretd()
    });
    assert_eq!(g.run(), End::Halted);
    assert_eq!(g.cpu.regs.get(3), 0x4322);
    assert_eq!((g.cpu.tr.selector, g.cpu.eflags & rflags::NT), (sel::TSS, 0));
    assert_eq!(g.read::<u8>(GDT + u64::from(sel::TASK) + 5), 0x89);
}

#[test]
fn virtual_8086_mode_and_back() {
    let mut g = Guest::protected();
    g.idt(vector::GP, gate(sel::CODE32, HANDLER, 0x8e));
    g.code(CODE, 32, |a| {
        // GS, FS, DS, ES, SS, ESP, EFLAGS (VM, IOPL 0), CS, EIP.
        for v in [0x44, 0x33, 0x22, 0x11, 0x2000, 0x800, 0x2_0002, (HANDLER >> 4) as i32, 0x800] {
            a.push(v)?;
        }
        a.iretd()
    });
    g.code(HANDLER + 0x800, 16, |a| {
        a.mov(ax, ds)?;
        a.mov(bx, 0x77)?;
        a.int(0x21)
    });
    g.code(HANDLER, 32, |a| {
        a.mov(esi, dword_ptr(esp))?;
        a.mov(edi, dword_ptr(esp + 4))?;
        a.mov(ebp, dword_ptr(esp + 12))?;
        a.mov(ecx, dword_ptr(esp + 28))?;
        a.mov(edx, ds)?;
        a.hlt()
    });
    assert_eq!(g.run(), End::Halted);
    assert_eq!((g.cpu.regs.get(0) as u16, g.cpu.regs.get(3) as u16), (0x22, 0x77));
    // #GP(0) at the INT, flags with VM and RF, GS deepest, data segments null.
    assert_eq!((g.cpu.regs.get(6), g.cpu.regs.get(7)), (0, 0x805));
    assert_eq!(g.cpu.regs.get(5), rflags::VM | rflags::RF | 2);
    // Below the error code, EIP, CS, EFLAGS, ESP and SS: ES, DS, FS, GS.
    assert_eq!(g.cpu.regs.get(1), 0x22);
    assert_eq!(g.cpu.regs.get(2), 0);
    assert_eq!(g.read::<u32>(STACK0 - 4), 0x44);
    assert!(!g.cpu.vm86() && g.cpu.cpl == 0);
}

#[test]
fn without_an_idt_everything_ends_in_shutdown() {
    let mut g = Guest::protected();
    g.cpu.idtr.limit = 0;
    g.code(CODE, 32, |a| a.ud2());
    assert_eq!(g.run(), End::Shutdown);
}

#[test]
fn segment_loads_check_what_they_load() {
    let cases = [
        (sel::FREE, vector::GP, u32::from(sel::FREE)),
        (sel::TSS, vector::GP, u32::from(sel::TSS)),
        (0x1ff8, vector::GP, 0x1ff8),
        (sel::DATA | 4, vector::GP, u32::from(sel::DATA | 4)),
        (sel::TASK, vector::NP, u32::from(sel::TASK)),
    ];
    for (selector, vector, error) in cases {
        let mut g = Guest::protected();
        // Not present data.
        g.write(GDT + u64::from(sel::TASK), descriptor(0, 0xffff, 0x13));
        g.cpu.regs.set(0, u64::from(selector));
        g.code(CODE, 32, |a| a.mov(ds, eax));
        let f = g.step().expect_err("a bad selector");
        assert_eq!((f.vector, f.error), (vector, Some(error)), "{selector:#x}");
    }
}

#[test]
fn loading_a_segment_marks_it_accessed() {
    let mut g = Guest::protected();
    g.write(GDT + u64::from(sel::FREE), descriptor(0x1234, 0xffff, 0x92));
    g.cpu.regs.set(0, u64::from(sel::FREE));
    g.code(CODE, 32, |a| a.mov(es, eax));
    g.step().expect("a good selector");
    assert_eq!(g.read::<u8>(GDT + u64::from(sel::FREE) + 5), 0x93);
    assert_eq!(g.cpu.seg[seg::ES as usize].base, 0x1234);
}

#[test]
fn legacy_pae_refuses_reserved_bits_of_its_pointers() {
    for (pointer, ok) in [(PAGES + 0x1001, true), (PAGES + 0x1003, false), (0, true), (1 << 40 | 1, false)] {
        let mut g = Guest::protected();
        g.write::<u64>(PAGES, pointer);
        g.write::<u64>(PAGES + 0x1000, 0x87);
        g.cpu.ctl.cr4 = 1 << 5;
        g.cpu.ctl.cr3 = PAGES;
        g.cpu.regs.set(0, g.cpu.ctl.cr0 | cr0::PG);
        g.code(CODE, 32, |a| a.mov(iced_x86::code_asm::cr0, eax));
        let result = g.step().map_err(|f| (f.vector, f.error));
        assert_eq!(result, if ok { Ok(()) } else { Err((vector::GP, Some(0))) }, "{pointer:#x}");
        assert_eq!(g.cpu.ctl.cr0 & cr0::PG != 0, ok);
    }
}

#[test]
fn a_16_bit_interrupt_gate_pushes_words() {
    let mut g = Guest::protected();
    g.idt(0x30, gate(sel::CODE32, 0x8000, 0x86));
    g.code(CODE, 32, |a| a.int(0x30));
    g.code(0x8000, 32, |a| a.hlt());
    assert_eq!(g.run(), End::Halted);
    assert_eq!(g.cpu.regs.get(4), STACK - 6);
    assert_eq!(g.read::<[u16; 2]>(STACK - 6), [CODE as u16 + 2, sel::CODE32]);
}

#[test]
fn the_local_descriptor_table() {
    let mut g = Guest::protected();
    let ldt = 0x4000_u64;
    g.write(GDT + u64::from(sel::FREE), descriptor(ldt, 0xf, 0x82));
    g.write(ldt + 8, descriptor(0x9000, 0xff, 0xf2));
    g.write::<u32>(0x9004, 0xfeed);
    g.code(CODE, 32, |a| {
        a.mov(eax, u32::from(sel::FREE))?;
        a.lldt(ax)?;
        a.sldt(ebx)?;
        a.mov(eax, 0xc)?;
        a.mov(fs, eax)?;
        a.mov(ecx, dword_ptr(4).fs())?;
        // Beyond the limit of the segment.
        a.mov(ecx, dword_ptr(0x100).fs())
    });
    for _ in 0..6 {
        g.step().expect("no fault");
    }
    assert_eq!((g.cpu.regs.get(3), g.cpu.regs.get(1)), (u64::from(sel::FREE), 0xfeed));
    let f = g.step().expect_err("outside the limit");
    assert_eq!((f.vector, f.error), (vector::GP, Some(0)));
    // The table ends after its second entry.
    g.cpu.rip = CODE;
    g.cpu.regs.set(0, 0x14);
    g.code(CODE + 0x40, 32, |a| a.mov(es, eax));
    g.cpu.rip = CODE + 0x40;
    let f = g.step().expect_err("outside the table");
    assert_eq!((f.vector, f.error), (vector::GP, Some(0x14)));
}
