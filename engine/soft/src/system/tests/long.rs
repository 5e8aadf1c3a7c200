//! 64-bit mode: system calls, exceptions, interrupt stacks, compatibility mode.

use iced_x86::code_asm::*;
use vireo_core::model::Vendor;
use vireo_core::state::{cr4, rflags};

use super::guest::*;
use crate::cpu::{Fault, Source, vector};

const STAR: u64 = 0x0018_0008 << 32;

#[test]
fn syscall_and_sysret() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.msr.star = STAR;
    g.cpu.msr.lstar = HANDLER;
    g.cpu.msr.syscall_mask = rflags::IF | rflags::TF;
    g.code(CODE, 64, |a| {
        a.syscall()?;
        a.mov(r8, cs)?;
        a.mov(r9, ss)?;
        a.int3()
    });
    g.code(HANDLER, 64, |a| {
        a.mov(r14, cs)?;
        a.mov(r15, ss)?;
        a.mov(r13, r11)?;
        a.sysretq()
    });
    g.code(HANDLER + 0x100, 64, |a| a.hlt());
    g.idt(vector::BP, gate(sel::CODE64, HANDLER + 0x100, 0xee));
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    g.cpu.set_rflags(rflags::IF | rflags::CF);
    assert_eq!(g.run(), End::Halted);
    let r = |i| g.cpu.regs.get(i);
    assert_eq!((r(14), r(15)), (u64::from(sel::CODE64), u64::from(sel::DATA)));
    assert_eq!((r(8), r(9)), (u64::from(sel::USER_CODE64), u64::from(sel::USER_DATA)));
    assert_eq!(r(13), rflags::IF | rflags::CF | rflags::ONE);
    assert_eq!(r(1), CODE + 2);
    // The frame of INT3 on the ring-0 stack: RIP, CS, RFLAGS, RSP, SS.
    assert_eq!(r(4), STACK0 - 40);
    assert_eq!(g.read::<u64>(STACK0 - 16), STACK);
    assert_eq!(g.read::<u64>(STACK0 - 8), u64::from(sel::USER_DATA));
    assert_eq!((g.cpu.seg[2].selector, g.cpu.seg[2].usable()), (0, false));
}

#[test]
fn a_masked_trap_flag_gives_no_trap_in_the_kernel() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.msr.star = STAR;
    g.cpu.msr.lstar = HANDLER;
    g.cpu.msr.syscall_mask = rflags::TF;
    g.code(CODE, 64, |a| a.syscall());
    g.cpu.set_rflags(rflags::TF);
    assert_eq!(g.cpu.run_block(true), Err(crate::cpu::Stop::Untraced));
    assert_eq!((g.cpu.rip, g.cpu.eflags & rflags::TF), (HANDLER, 0));
}

#[test]
fn sysret_to_a_bad_address_differs_by_vendor() {
    for (vendor, result) in [(Vendor::Intel, Some(vector::GP)), (Vendor::Amd, None)] {
        let mut g = Guest::long(vendor);
        g.cpu.msr.star = STAR;
        g.cpu.regs.set(1, 1 << 47);
        g.code(CODE, 64, |a| a.sysretq());
        assert_eq!(g.step().err().map(|f| f.vector), result);
        assert_eq!(g.cpu.cpl, if result.is_some() { 0 } else { 3 });
    }
}

#[test]
fn a_page_fault_from_user_code() {
    let mut g = Guest::long(Vendor::Intel);
    g.idt(vector::PF, gate(sel::CODE64, HANDLER, 0x8e));
    g.code(CODE, 64, |a| {
        a.mov(rax, 0x40_0000_u64)?;
        a.mov(qword_ptr(rax + 8), rax)
    });
    g.code(HANDLER, 64, |a| {
        a.mov(rbx, cr2)?;
        a.pop(rcx)?;
        a.pop(rdx)?;
        a.hlt()
    });
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    assert_eq!(g.run(), End::Halted);
    // User write to an absent page.
    assert_eq!((g.cpu.regs.get(3), g.cpu.regs.get(1)), (0x40_0008, 6));
    assert!(g.cpu.regs.get(2) > CODE);
    // Fault-class exceptions push RF.
    assert_ne!(g.read::<u64>(STACK0 - 24) & rflags::RF, 0);
}

#[test]
fn an_interrupt_stack_is_used_without_a_privilege_change() {
    let mut g = Guest::long(Vendor::Intel);
    g.idt(vector::NMI, gate(sel::CODE64, HANDLER, 0x8e) | 1 << 32);
    g.code(HANDLER, 64, |a| a.iretq());
    g.cpu.regs.set(4, STACK + 3);
    let nmi = Fault { vector: vector::NMI, error: None, source: Source::External };
    g.cpu.nmi_masked = true;
    crate::system::deliver(&mut g.cpu, nmi).expect("delivered");
    assert_eq!((g.cpu.rip, g.cpu.regs.get(4)), (HANDLER, IST1 - 40));
    assert_eq!(g.read::<u64>(IST1 - 8), u64::from(sel::DATA));
    g.step().expect("iretq");
    assert_eq!((g.cpu.rip, g.cpu.regs.get(4), g.cpu.nmi_masked), (CODE, STACK + 3, false));
}

#[test]
fn a_fault_on_the_way_to_a_handler_doubles() {
    let mut g = Guest::long(Vendor::Intel);
    g.idt(vector::PF, gate(sel::CODE64, HANDLER, 0x8e));
    g.idt(vector::DF, gate(sel::CODE64, HANDLER + 0x100, 0x8e) | 1 << 32);
    g.code(CODE, 64, |a| a.mov(rax, qword_ptr(0x50_0000)));
    g.code(HANDLER + 0x100, 64, |a| {
        a.pop(rbx)?;
        a.hlt()
    });
    // The stack is not mapped, so the page fault cannot be delivered.
    g.cpu.regs.set(4, 0x60_0000);
    g.cpu.regs.set(3, 9);
    assert_eq!(g.run(), End::Halted);
    assert_eq!((g.cpu.regs.get(3), g.cpu.regs.get(4)), (0, IST1 - 40));
    assert_eq!(g.read::<u64>(IST1 - 40), CODE);
    assert_eq!(g.cpu.ctl.cr2, 0x5f_fff8);
}

#[test]
fn an_int_without_permission_is_the_instruction_s_own_fault() {
    let mut g = Guest::long(Vendor::Intel);
    g.idt(0x80, gate(sel::CODE64, HANDLER, 0x8e));
    g.idt(vector::GP, gate(sel::CODE64, HANDLER, 0x8e));
    g.code(CODE, 64, |a| a.int(0x80));
    g.code(HANDLER, 64, |a| {
        a.pop(rbx)?;
        a.pop(rcx)?;
        a.hlt()
    });
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    assert_eq!(g.run(), End::Halted);
    assert_eq!((g.cpu.regs.get(3), g.cpu.regs.get(1)), (0x80 << 3 | 2, CODE));
}

#[test]
fn iret_to_compatibility_mode_and_sysenter_back() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.msr.sysenter_cs = u64::from(sel::CODE64);
    (g.cpu.msr.sysenter_eip, g.cpu.msr.sysenter_esp) = (HANDLER, STACK0);
    g.code(CODE, 64, |a| {
        a.push(i32::from(sel::USER_DATA))?;
        a.push(0x2_4000)?;
        a.push(0x202)?;
        a.push(i32::from(sel::USER_CODE32))?;
        a.push((CODE + 0x100) as i32)?;
        a.iretq()
    });
    g.code(CODE + 0x100, 32, |a| {
        a.mov(ebx, esp)?;
        a.mov(ecx, cs)?;
        a.sysenter()
    });
    g.code(HANDLER, 64, |a| {
        a.mov(r12, rsp)?;
        a.hlt()
    });
    assert_eq!(g.run(), End::Halted);
    assert_eq!((g.cpu.regs.get(3), g.cpu.regs.get(1)), (0x2_4000, u64::from(sel::USER_CODE32)));
    assert_eq!((g.cpu.regs.get(12), g.cpu.eflags & rflags::IF), (STACK0, 0));
    assert!(g.cpu.mode.is64() && g.cpu.cpl == 0);
}

#[test]
fn sysenter_does_not_exist_in_long_mode_on_amd() {
    let mut g = Guest::long(Vendor::Amd);
    g.cpu.msr.sysenter_cs = 8;
    g.code(CODE, 64, |a| a.sysenter());
    assert_eq!(g.step().expect_err("#UD").vector, vector::UD);
}

#[test]
fn bases_of_fs_and_gs() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.ctl.cr4 |= cr4::FSGSBASE;
    g.cpu.msr.kernel_gs_base = 0xffff_8000_0000_1000;
    g.write::<u64>(0x9008, 0x55);
    g.code(CODE, 64, |a| {
        a.mov(rax, 0x9000_u64)?;
        a.wrgsbase(rax)?;
        a.mov(rbx, qword_ptr(8).gs())?;
        a.swapgs()?;
        a.rdgsbase(rcx)?;
        a.hlt()
    });
    assert_eq!(g.run(), End::Halted);
    assert_eq!((g.cpu.regs.get(3), g.cpu.regs.get(1)), (0x55, 0xffff_8000_0000_1000));
    assert_eq!(g.cpu.msr.kernel_gs_base, 0x9000);
}

#[test]
fn hypercalls_reach_the_board() {
    let mut g = Guest::long(Vendor::Intel);
    g.code(CODE, 64, |a| a.vmcall());
    g.cpu.regs.set(1, 41);
    g.step().expect("a hypercall");
    assert_eq!((g.cpu.regs.get(0), g.cpu.rip), (42, CODE + 3));
    g.cpu.rip = CODE;
    g.cpu.regs.set(1, 0);
    assert_eq!(g.step().expect_err("no such interface").vector, vector::UD);
}
