//! What instructions refuse: control registers, MSRs, ports, flags.

use iced_x86::code_asm::*;
use vireo_core::model::Vendor;
use vireo_core::state::{cr0, cr4, rflags};

use super::guest::*;
use crate::cpu::{Shadow, vector};

type Body = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

#[test]
fn ring_3_may_not() {
    let bodies: &[(&str, Body)] = &[
        ("hlt", |a| a.hlt()),
        ("cli", |a| a.cli()),
        ("sti", |a| a.sti()),
        ("clts", |a| a.clts()),
        ("mov cr3", |a| a.mov(cr3, rax)),
        ("mov from cr0", |a| a.mov(rax, cr0)),
        ("mov dr7", |a| a.mov(dr7, rax)),
        ("rdmsr", |a| a.rdmsr()),
        ("wrmsr", |a| a.wrmsr()),
        ("invlpg", |a| a.invlpg(ptr(rax))),
        ("lgdt", |a| a.lgdt(ptr(rax))),
        ("ltr", |a| a.ltr(ax)),
        ("wbinvd", |a| a.wbinvd()),
        ("swapgs", |a| a.swapgs()),
        ("in", |a| a.in_(al, dx)),
        ("out", |a| a.out(0x80, al)),
        ("sgdt with UMIP", |a| a.sgdt(ptr(rsp))),
        ("rdtsc with TSD", |a| a.rdtsc()),
        ("sysret", |a| a.sysretq()),
        ("rdpmc", |a| a.rdpmc()),
    ];
    for (name, body) in bodies {
        let mut g = Guest::long(Vendor::Intel);
        g.cpu.ctl.cr4 |= cr4::UMIP | cr4::TSD;
        g.code(CODE, 64, body);
        g.drop_to_user(sel::USER_CODE64, 0xa0fb);
        let f = g.step().expect_err(name);
        assert_eq!((f.vector, f.error), (vector::GP, Some(0)), "{name}");
        assert_eq!(g.cpu.rip, CODE, "{name}");
    }
}

#[test]
fn control_registers_refuse_what_the_architecture_does() {
    let long = cr0::PE | cr0::PG | cr0::NE;
    let cases: &[(u8, u64)] = &[
        (0, cr0::PG),
        (0, long | cr0::NW),
        (0, long | 1 << 32),
        (0, long & !cr0::PG),
        (3, 1 << 40),
        (3, 1 << 63),
        (4, 0),
        (4, cr4::PAE | cr4::VME),
        (4, cr4::PAE | 1 << 12),
        (4, cr4::PAE | 1 << 63),
        (8, 16),
    ];
    for &(n, value) in cases {
        let mut g = Guest::long(Vendor::Intel);
        g.cpu.regs.set(0, value);
        g.code(CODE, 64, |a| match n {
            0 => a.mov(iced_x86::code_asm::cr0, rax),
            3 => a.mov(cr3, rax),
            4 => a.mov(iced_x86::code_asm::cr4, rax),
            _ => a.mov(cr8, rax),
        });
        let before = (g.cpu.ctl.cr0, g.cpu.ctl.cr3, g.cpu.ctl.cr4);
        let f = g.step().expect_err("a value that is refused");
        assert_eq!((f.vector, f.error), (vector::GP, Some(0)), "cr{n} = {value:#x}");
        assert_eq!((g.cpu.ctl.cr0, g.cpu.ctl.cr3, g.cpu.ctl.cr4), before);
    }
}

#[test]
fn pcid_needs_a_root_without_one() {
    for (root, ok) in [(PAGES, true), (PAGES | 1, false)] {
        let mut g = Guest::long(Vendor::Intel);
        g.cpu.ctl.cr3 = root;
        g.cpu.regs.set(0, cr4::PAE | cr4::PCIDE);
        g.code(CODE, 64, |a| a.mov(iced_x86::code_asm::cr4, rax));
        assert_eq!(g.step().is_ok(), ok);
    }
}

#[test]
fn registers_that_do_not_exist() {
    let bodies: &[&[u8]] = &[
        // mov rax, cr1; mov rax, cr5; mov dr8, rax; mov cs, eax; monitor; rsm
        &[0x0f, 0x20, 0xc8],
        &[0x0f, 0x20, 0xe8],
        &[0x44, 0x0f, 0x23, 0xc0],
        &[0x8e, 0xc8],
        &[0x0f, 0x01, 0xc8],
        &[0x0f, 0xaa],
    ];
    for body in bodies {
        let mut g = Guest::long(Vendor::Intel);
        g.code(CODE, 64, |a| a.db(body));
        assert_eq!(g.step().expect_err("#UD").vector, vector::UD, "{body:x?}");
    }
}

#[test]
fn the_io_bitmap_opens_single_ports() {
    for (port, size, ok) in [(0x70_u64, 1, true), (0x71, 1, false), (0x70, 2, false), (0x1000, 1, false)] {
        let mut g = Guest::long(Vendor::Intel);
        g.cpu.tr.limit = 0x67 + 33;
        g.write::<u16>(TSS + 0x66, 0x68);
        for at in 0..33 {
            g.write::<u8>(TSS + 0x68 + at, 0xff);
        }
        g.write::<u8>(TSS + 0x68 + 0x70 / 8, 0xfe);
        g.cpu.regs.set(2, port);
        g.code(CODE, 64, |a| if size == 1 { a.in_(al, dx) } else { a.in_(ax, dx) });
        g.drop_to_user(sel::USER_CODE64, 0xa0fb);
        assert_eq!(g.step().is_ok(), ok, "{port:#x} {size}");
    }
}

#[test]
fn ports_by_every_width_and_repeated() {
    let mut g = Guest::long(Vendor::Intel);
    g.code(CODE, 64, |a| {
        a.mov(rax, u64::MAX)?;
        a.in_(al, 0x12)?;
        a.mov(rbx, rax)?;
        a.mov(edx, 0x1234)?;
        a.in_(eax, dx)?;
        a.out(dx, ax)?;
        a.mov(rdi, 0x8000_u64)?;
        a.mov(ecx, 3)?;
        a.rep().insw()?;
        a.mov(rsi, 0x8000_u64)?;
        a.mov(ecx, 2)?;
        a.rep().outsb()?;
        a.hlt()
    });
    assert_eq!(g.run(), End::Halted);
    assert_eq!((g.cpu.regs.get(3), g.cpu.regs.get(0)), (0xffff_ffff_ffff_ff12, 0x1234_1234));
    assert_eq!((g.cpu.regs.get(7), g.cpu.regs.get(6), g.cpu.regs.get(1)), (0x8006, 0x8002, 0));
    assert_eq!(g.read::<[u16; 4]>(0x8000), [0x1234, 0x1234, 0x1234, 0]);
    let writes = g.bus.writes.lock().expect("not poisoned");
    assert_eq!(*writes, [(0x1234, vec![0x34, 0x12]), (0x1234, vec![0x34]), (0x1234, vec![0x12])]);
}

#[test]
fn ins_into_an_absent_page_reads_no_port_and_keeps_its_place() {
    let mut g = Guest::long(Vendor::Intel);
    g.code(CODE, 64, |a| a.rep().insd());
    g.cpu.regs.set(7, 0x20_0000 - 8);
    g.cpu.regs.set(1, 5);
    // RAM ends at 1 MiB; above it the bus takes writes, up to the end of the page mapped.
    let f = g.step().expect_err("the third element is not mapped");
    assert_eq!((f.vector, g.cpu.regs.get(1), g.cpu.regs.get(7)), (vector::PF, 3, 0x20_0000));
    assert_eq!(g.cpu.rip, CODE);
}

#[test]
fn debug_registers() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.regs.set(0, 0xffff_ffff);
    g.code(CODE, 64, |a| {
        a.mov(dr6, rax)?;
        a.mov(rbx, dr6)?;
        a.mov(dr7, rax)?;
        a.mov(rcx, dr0)
    });
    for _ in 0..3 {
        g.step().expect("no fault");
    }
    assert_eq!(g.cpu.regs.get(3), 0xffff_efff);
    assert_eq!(g.cpu.debug.dr7, 0xffff_27ff);
    // GD is set now.
    assert_eq!(g.step().expect_err("#DB").vector, vector::DB);
    assert_ne!(g.cpu.debug.dr6 & 1 << 13, 0);
}

#[test]
fn shadows_of_sti_and_mov_ss() {
    let mut g = Guest::long(Vendor::Intel);
    g.cpu.regs.set(0, u64::from(sel::DATA));
    g.code(CODE, 64, |a| {
        a.sti()?;
        a.sti()?;
        a.mov(ss, eax)
    });
    for shadow in [Shadow::Sti, Shadow::None, Shadow::MovSs] {
        g.cpu.shadow = Shadow::None;
        g.step().expect("no fault");
        assert_eq!(g.cpu.shadow, shadow);
    }
}

#[test]
fn msrs_of_engine_model_and_board() {
    let mut g = Guest::long(Vendor::Intel);
    let mut read = |i: u64| {
        g.cpu.rip = CODE;
        g.code(CODE, 64, |a| a.rdmsr());
        g.cpu.regs.set(1, i);
        g.step().map(|()| g.cpu.regs.get(2) << 32 | g.cpu.regs.get(0)).map_err(|f| f.vector)
    };
    assert_eq!(read(0x277), Ok(0x0007_0406_0007_0406));
    assert_eq!(read(0x4000_0000), Ok(0x1122_3344_5566_7788));
    assert_eq!(read(0x4000_0001), Err(vector::GP));
    assert_eq!(read(0xc000_0080), Ok(0xd01));
}

#[test]
fn tsc_and_its_adjustment_move_together() {
    let mut g = Guest::long(Vendor::Intel);
    g.code(CODE, 64, |a| {
        a.wrmsr()?;
        a.rdtsc()
    });
    g.cpu.regs.set(1, 0x10);
    g.cpu.regs.set(2, 0x1000);
    g.cpu.regs.set(0, 0);
    g.step().expect("wrmsr");
    g.step().expect("rdtsc");
    // An hour of any clock is less than 2^45 ticks.
    let tsc = g.cpu.regs.get(2) << 32 | g.cpu.regs.get(0);
    assert!((0x1000 << 32..(0x1000 << 32) + (1 << 45)).contains(&tsc), "{tsc:#x}");
    assert!(g.cpu.tsc_adjust > 1 << 40);
}

#[test]
fn lar_lsl_verr_verw_tell_by_zf() {
    let mut g = Guest::long(Vendor::Intel);
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    g.code(CODE, 64, |a| {
        a.mov(eax, u32::from(sel::USER_DATA))?;
        a.lar(ebx, eax)?;
        a.lsl(ecx, eax)?;
        a.verw(ax)?;
        a.sete(dl)?;
        a.mov(eax, u32::from(sel::DATA))?;
        a.verr(ax)?;
        a.setne(dh)
    });
    for _ in 0..8 {
        g.step().expect("no fault");
    }
    assert_eq!((g.cpu.regs.get(3), g.cpu.regs.get(1)), (0x00cf_f300, 0xffff_ffff));
    assert_eq!(g.cpu.regs.get(2) as u16, 0x101);
}

#[test]
fn popf_keeps_what_the_privilege_does_not_allow() {
    let mut g = Guest::long(Vendor::Intel);
    g.drop_to_user(sel::USER_CODE64, 0xa0fb);
    g.code(CODE, 64, |a| {
        a.push(-1)?;
        a.popfq()
    });
    g.step().expect("push");
    g.step().expect("popfq");
    assert_eq!(g.cpu.eflags & (rflags::IF | rflags::IOPL | rflags::VM | rflags::RF), 0);
    assert_ne!(g.cpu.eflags & rflags::AC, 0);
    assert_ne!(g.cpu.eflags & rflags::ID, 0);
}
