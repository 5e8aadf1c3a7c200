//! What processors of Intel and AMD do differently, short of system calls. The CPU oracle holds each to the host's own
//! processor; here is both, whatever the host.

use vireo_core::model::Vendor;
use vireo_core::state::{cr0, cr4, rflags};

use super::guest::*;
use crate::cpu::{Fault, vector};

/// The first address that is not mapped.
const END: u64 = 0x20_0000;
const BOTH: [Vendor; 2] = [Vendor::Intel, Vendor::Amd];

/// A guest about to execute these bytes, in 64-bit mode.
fn about_to(vendor: Vendor, bytes: &[u8]) -> Guest {
    let mut g = Guest::long(vendor);
    g.cpu.ctl.cr0 |= cr0::MP;
    g.cpu.ctl.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
    (CODE..).zip(bytes).for_each(|(at, b)| g.write(at, *b));
    g
}

/// The same in 32-bit code.
fn about_to_32(vendor: Vendor, bytes: &[u8]) -> Guest {
    let mut g = about_to(vendor, bytes);
    g.drop_to_user(sel::USER_CODE32, 0xc0fb);
    g
}

/// Executes one instruction to its end, if it has many elements.
fn finish(g: &mut Guest) -> Result<(), Fault> {
    for _ in 0..100 {
        g.step()?;
        if g.cpu.rip != CODE {
            return Ok(());
        }
    }
    panic!("the instruction does not end");
}

#[test]
fn prefetch_of_a_register() {
    for (vendor, raised) in BOTH.into_iter().zip([None, Some(vector::UD)]) {
        let mut g = about_to(vendor, &[0x0f, 0x0d, 0xc8]);
        assert_eq!(g.step().err().map(|f| f.vector), raised);
        // Of memory it is a prefetch on both.
        assert_eq!(about_to(vendor, &[0x0f, 0x0d, 0x08]).step(), Ok(()));
    }
}

#[test]
fn a_call_to_a_bad_address() {
    for (vendor, pushed) in BOTH.into_iter().zip([CODE + 2, 0]) {
        let mut g = about_to(vendor, &[0xff, 0xd0]); // call rax
        g.cpu.regs.set(0, 1 << 63);
        assert_eq!(g.step().expect_err("#GP").vector, vector::GP);
        assert_eq!((g.cpu.regs.get(4), g.read::<u64>(STACK - 8)), (STACK, pushed));
        // A stack that cannot be written is found before.
        let mut g = about_to(vendor, &[0xff, 0xd0]);
        g.cpu.regs.set(0, 1 << 63);
        g.cpu.regs.set(4, END + 16);
        assert_eq!(g.step().expect_err("#PF").vector, vector::PF);
    }
}

#[test]
fn flags_of_a_comparison_that_faults_later() {
    // The comparison of 1 with the FFh of a device.
    for (vendor, after) in BOTH.into_iter().zip([rflags::OF, rflags::CF | rflags::AF]) {
        let mut g = about_to(vendor, &[0xf2, 0xae]); // repne scasb
        g.cpu.regs.set(0, 1);
        g.cpu.regs.set(1, 8);
        g.cpu.regs.set(7, END - 4);
        g.cpu.set_rflags(rflags::OF);
        assert_eq!(finish(&mut g).expect_err("#PF").vector, vector::PF);
        assert_eq!((g.cpu.regs.get(1), g.cpu.regs.get(7)), (4, END));
        assert_eq!(g.cpu.flags.to_rflags(), after);
        // The first element's fault leaves what was before on both.
        g.cpu.set_rflags(rflags::OF);
        assert!(finish(&mut g).is_err());
        assert_eq!(g.cpu.flags.to_rflags(), rflags::OF);
    }
}

#[test]
fn undefined_flags_of_decimal_adjustments() {
    let flags = |vendor, opcode, ax, before| {
        let mut g = about_to_32(vendor, &[opcode]);
        g.cpu.regs.set(0, ax);
        g.cpu.set_rflags(before);
        assert_eq!(g.step(), Ok(()));
        (g.cpu.regs.get(0), g.cpu.flags.to_rflags())
    };
    use rflags::{AF, CF, OF, PF, SF, ZF};
    // As processors of either vendor have answered the oracle.
    for (opcode, ax, before, result, intel, amd) in [
        (0x37, 0x80, 0, 0, ZF | PF, 0),                                         // aaa
        (0x37, 0x8000, AF, 0x8106, AF | CF | PF, AF | CF | PF | SF),            // aaa
        (0x3f, 0xa63a, 0, 0xa504, AF | CF, AF | CF | SF),                       // aas
        (0x3f, 0x8000, AF, 0x7e0a, AF | CF | PF, AF | CF | PF | OF),            // aas
        (0x27, 0x60, AF | CF, 0xc6, AF | CF | PF | SF, AF | CF | PF | SF | OF), // daa
        (0x2f, 0x96, CF, 0x36, CF | PF, CF | PF | OF),                          // das
    ] {
        assert_eq!(flags(Vendor::Intel, opcode, ax, before), (result, intel), "{opcode:x} of {ax:x}");
        assert_eq!(flags(Vendor::Amd, opcode, ax, before), (result, amd), "{opcode:x} of {ax:x}");
    }
}

#[test]
fn bound_reads_the_upper_bound() {
    for (vendor, raised) in BOTH.into_iter().zip([vector::BR, vector::PF]) {
        let mut g = about_to_32(vendor, &[0x62, 0x03]); // bound eax, [ebx]
        g.cpu.regs.set(0, 0xffff_fff0);
        g.cpu.regs.set(3, END - 4);
        assert_eq!(g.step().expect_err("a fault").vector, raised);
    }
}

#[test]
fn the_page_fault_of_a_masked_store() {
    for (vendor, address) in BOTH.into_iter().zip([END + 8, END]) {
        let mut g = about_to(vendor, &[0x66, 0x0f, 0xf7, 0xc0]); // maskmovdqu xmm0, xmm0
        g.cpu.regs.set(7, END);
        assert_eq!(g.step().expect_err("#PF").vector, vector::PF);
        assert_eq!(g.cpu.mmu.fault_address, address);
    }
}

#[test]
fn an_x87_store_that_faults_and_would_not_store() {
    for vendor in BOTH {
        // fninit; fldcw [rbx]; fistp dword [rsi]: nothing to store, and invalid operation unmasked.
        let mut g = about_to(vendor, &[0xdb, 0xe3, 0xd9, 0x2b, 0xdb, 0x1e]);
        g.write::<u16>(STACK, 0x37e);
        g.cpu.regs.set(3, STACK);
        g.cpu.regs.set(6, END);
        g.cpu.enter();
        assert_eq!((g.step(), g.step()), (Ok(()), Ok(())));
        let raised = g.step().err().map(|f| f.vector);
        assert_eq!(raised, (vendor == Vendor::Amd).then_some(vector::PF));
        assert_eq!(g.cpu.fpu.pending(), vendor == Vendor::Intel);
        g.cpu.leave();
    }
}
