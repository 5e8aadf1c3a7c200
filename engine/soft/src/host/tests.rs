//! Stubs against results computed otherwise, faults, and what must never happen to the host.

mod avx;

use std::sync::Arc;

use iced_x86::code_asm::*;
use iced_x86::{Code, Decoder, DecoderOptions, OpCodeOperandKind as K, Register};
use vireo_core::state::{Segment, XsaveState, cr0, cr4, efer};
use vireo_core::{CpuModel, HostRam, Partition, PartitionSpec, RamRange};
use vireo_isa::Class;

use super::stub::{ARENA_SIZE, MAX_STUB};
use crate::cpu::regs::gpr;
use crate::cpu::{Cpu, Exec, Stop, seg, vector};
use crate::exec::{self, Address, Uop};
use crate::partition::SoftPartition;

/// A page-aligned piece of zeroed memory, never freed.
struct Pages(*mut u8, usize);

// SAFETY: leaked memory stays valid for every thread.
unsafe impl Send for Pages {}
// SAFETY: as above; all access is by raw pointer.
unsafe impl Sync for Pages {}
// SAFETY: allocated page-aligned with this length, and never freed.
unsafe impl HostRam for Pages {
    fn as_ptr(&self) -> *mut u8 {
        self.0
    }
    fn len(&self) -> usize {
        self.1
    }
}

const RAM: usize = 16 << 12;
const DATA: u64 = 0x4000;

/// 64-bit code without paging: linear addresses are physical, and those above RAM belong to no one.
struct Machine {
    cpu: Box<Cpu>,
    ram: *mut u8,
}

impl Machine {
    fn new() -> Self {
        Self::of("vireo-v2")
    }

    /// One of a model, all of whose XSAVE components are enabled.
    fn of(model: &str) -> Self {
        let layout = std::alloc::Layout::from_size_align(RAM, 4096).unwrap();
        // SAFETY: the size is not zero.
        let ram = unsafe { std::alloc::alloc_zeroed(layout) };
        let model = CpuModel::named(model).expect("the model exists");
        let components = model.xcr0_mask();
        let spec = PartitionSpec::new(1, model, RAM as u64);
        let partition = SoftPartition::new(&spec).expect("a partition");
        let host = Arc::new(Pages(ram, RAM));
        partition.map_ram(RamRange { gpa: 0, len: RAM as u64, host, offset: 0, writable: true }).unwrap();
        let mut cpu = Box::new(Cpu::new(Arc::clone(&partition.0), 0));
        cpu.seg[seg::CS as usize].attributes |= Segment::L;
        cpu.ctl.cr0 = cr0::PE | cr0::NE | cr0::MP;
        cpu.ctl.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        cpu.ctl.efer = efer::LMA;
        cpu.ctl.xcr0 = components;
        cpu.mode_changed();
        cpu.fpu.enter();
        Self { cpu, ram }
    }

    fn try_bytes(&mut self, code: &[u8]) -> Exec {
        let i = Decoder::with_ip(64, code, 0, DecoderOptions::NONE).decode();
        let mut u = Uop::new(exec::undefined, i.len() as u8, i.len() as u16);
        let number =
            |r: Register| if r == Register::None { crate::cpu::regs::ZERO } else { r.number() as u8 };
        (u.base, u.index) = (number(i.memory_base()), number(i.memory_index()));
        (u.disp, u.address) = (i.memory_displacement64() as i32, Address::Flat64);
        u.seg |= 2 << 4;
        let shared = Arc::clone(&self.cpu.shared);
        super::decode(&i, vireo_isa::describe(i.code()), 64, &shared.stubs, &mut u)
            .unwrap_or_else(|| panic!("{:?} is not for the host", i.code()));
        (u.run.get())(&mut self.cpu, &u)
    }

    fn attempt(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Exec {
        let mut a = CodeAssembler::new(64).unwrap();
        f(&mut a).unwrap();
        self.try_bytes(&a.assemble(0).unwrap())
    }

    fn run(&mut self, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
        assert_eq!(self.attempt(f), Ok(()), "{:?}", self.cpu.fault);
    }

    fn faults(&mut self, v: u8, f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) {
        assert_eq!(self.attempt(f), Err(Stop::Fault));
        assert_eq!(self.cpu.fault.vector, v);
    }

    fn memory(&self, at: u64) -> &'static mut [u8] {
        // SAFETY: within the leaked memory; the tests use one reference at a time.
        unsafe { std::slice::from_raw_parts_mut(self.ram.add(at as usize), RAM - at as usize) }
    }

    /// The x87 status word.
    fn status(&mut self) -> u16 {
        self.run(|a| a.fnstsw(ax));
        self.cpu.regs.get(gpr::RAX) as u16
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cpu.fpu.leave();
    }
}

/// Four singles as a register's value.
fn singles(v: [f32; 4]) -> u128 {
    let mut b = [0; 16];
    b.as_chunks_mut().0.iter_mut().zip(v).for_each(|(b, v): (&mut [u8; 4], f32)| *b = v.to_le_bytes());
    u128::from_le_bytes(b)
}

#[test]
fn registers_and_memory_reach_the_instruction() {
    let mut m = Machine::new();
    m.cpu.fpu.set_xmm(9, singles([1.0, 2.0, 3.0, 4.0]));
    m.cpu.fpu.set_xmm(0, singles([10.0, 20.0, 30.0, 40.0]));
    m.run(|a| a.addps(xmm9, xmm0));
    assert_eq!(m.cpu.fpu.xmm(9), singles([11.0, 22.0, 33.0, 44.0]));
    m.run(|a| a.mulps(xmm9, xmm9));
    assert_eq!(m.cpu.fpu.xmm(9), singles([121.0, 484.0, 1089.0, 1936.0]));
    // Across a page border, by an index register that is RSP's neighbour.
    m.memory(0x4ffc)[..8].copy_from_slice(&2.5f64.to_le_bytes());
    m.cpu.regs.set(gpr::RBP, 0x4ff0);
    m.run(|a| a.cvtsd2si(r12, qword_ptr(rbp + 12)));
    assert_eq!(m.cpu.regs.get(12), 2);
    m.cpu.regs.set(gpr::RDX, 0);
    m.cpu.regs.set(gpr::RSP, 0xdead_beef_0000_0083);
    m.run(|a| a.crc32(rdx, spl));
    // CRC-32C of one byte 0x83 from zero, by the polynomial.
    let crc = (0..8).fold(0x83u32, |c, _| c >> 1 ^ if c & 1 != 0 { 0x82f6_3b78 } else { 0 });
    assert_eq!(m.cpu.regs.get(gpr::RDX), crc.into());
    assert_eq!(m.cpu.regs.get(gpr::RSP), 0xdead_beef_0000_0083);
}

#[test]
fn implicit_operands_and_flags_are_the_guests() {
    let mut m = Machine::new();
    m.cpu.fpu.set_xmm(0, u128::from(u64::MAX));
    m.cpu.fpu.set_xmm(1, 1 | 2 << 64);
    m.cpu.fpu.set_xmm(2, 3 | 4 << 64);
    m.run(|a| a.pblendvb(xmm1, xmm2));
    assert_eq!(m.cpu.fpu.xmm(1), 3 | 2 << 64);
    m.cpu.fpu.set_xmm(3, u128::from_le_bytes(*b"find the needle\0"));
    m.cpu.fpu.set_xmm(4, u128::from_le_bytes(*b"needle\0\0\0\0\0\0\0\0\0\0"));
    m.run(|a| a.pcmpistri(xmm4, xmm3, 0b1100));
    assert_eq!(m.cpu.regs.get(gpr::RCX), 9);
    assert!(m.cpu.flags.cf());
    m.cpu.regs.set(gpr::RAX, 7);
    m.cpu.flags = crate::cpu::flags::Flags::from_rflags(vireo_core::state::rflags::CF);
    m.cpu.regs.set(gpr::RBX, 5);
    m.run(|a| a.adcx(rbx, rax));
    assert_eq!(m.cpu.regs.get(gpr::RBX), 13);
}

#[test]
fn unmasked_sse_exceptions_are_the_guests() {
    let mut m = Machine::new();
    m.cpu.fpu.set_xmm(1, singles([1.0; 4]));
    m.cpu.fpu.set_xmm(2, 0);
    m.cpu.fpu.mxcsr = 0x1f80 & !(1 << 9);
    m.faults(vector::XM, |a| a.divps(xmm1, xmm2));
    assert_eq!(m.cpu.fpu.xmm(1), singles([1.0; 4]));
    assert_eq!(m.cpu.fpu.mxcsr & 0x3f, 1 << 2);
    m.cpu.ctl.cr4 &= !cr4::OSXMMEXCPT;
    m.faults(vector::UD, |a| a.divps(xmm1, xmm2));
    // The host's own arithmetic is not affected.
    assert_eq!(std::hint::black_box(1.0f32) / std::hint::black_box(0.0), f32::INFINITY);
    m.cpu.fpu.mxcsr = 0x1f80;
    m.run(|a| a.divps(xmm1, xmm2));
    assert_eq!(m.cpu.fpu.xmm(1), singles([f32::INFINITY; 4]));
    assert_eq!(m.cpu.fpu.mxcsr, 0x1f84);
}

#[test]
fn division_faults_come_back() {
    let mut m = Machine::new();
    m.cpu.regs.set(gpr::RAX, 100);
    m.cpu.regs.set(gpr::RDX, 0);
    m.cpu.regs.set(gpr::RCX, 0);
    for _ in 0..3 {
        m.faults(vector::DE, |a| a.div(rcx));
    }
    assert_eq!(m.cpu.regs.get(gpr::RAX), 100);
    m.cpu.regs.set(gpr::RCX, 7);
    m.run(|a| a.div(rcx));
    assert_eq!((m.cpu.regs.get(gpr::RAX), m.cpu.regs.get(gpr::RDX)), (14, 2));
}

#[test]
fn x87_exceptions_wait_for_the_next_waiting_instruction() {
    let mut m = Machine::new();
    m.memory(DATA)[..2].copy_from_slice(&0x37bu16.to_le_bytes());
    m.cpu.regs.set(gpr::RSI, DATA);
    m.run(|a| a.fninit());
    m.run(|a| a.fldcw(word_ptr(rsi)));
    m.run(|a| a.fld1());
    m.run(|a| a.fldz());
    m.run(|a| a.fdivp(st1, st0));
    assert_eq!(m.status() & 0x84, 0x84);
    m.faults(vector::MF, |a| a.fld1());
    // Before a fault of the operand: this address is not canonical.
    m.cpu.regs.set(gpr::RDI, 1 << 63);
    m.faults(vector::MF, |a| a.fld(qword_ptr(rdi)));
    m.run(|a| a.fnclex());
    m.faults(vector::GP, |a| a.fld(qword_ptr(rdi)));
    m.run(|a| a.fld1());
    m.run(|a| a.fistp(word_ptr(rsi)));
    assert_eq!(m.memory(DATA)[..2], [1, 0]);
}

#[test]
fn x87_state_survives_runs_and_saves() {
    let mut m = Machine::new();
    m.cpu.regs.set(gpr::RSI, DATA);
    m.run(|a| a.fninit());
    m.run(|a| a.fldpi());
    m.cpu.fpu.leave();
    let saved: XsaveState = m.cpu.fpu.save();
    m.run(|a| a.fninit());
    m.cpu.fpu.leave();
    m.cpu.fpu.load(&saved, 3).unwrap();
    m.run(|a| a.fstp(qword_ptr(rsi)));
    assert_eq!(m.memory(DATA)[..8], std::f64::consts::PI.to_le_bytes());
    let mut bad = saved;
    bad.image[27] = 0x80;
    assert!(m.cpu.fpu.load(&bad, 3).is_err());
}

#[test]
fn no_host_address_reaches_the_guest() {
    let mut m = Machine::new();
    m.cpu.regs.set(gpr::RSI, DATA);
    m.run(|a| a.fninit());
    m.run(|a| a.fldcw(word_ptr(rsi)));
    // All exceptions unmasked by the zero control word: the next load of a signalling NaN reports its operand.
    m.memory(DATA + 64)[..4].copy_from_slice(&0x7fa0_0000u32.to_le_bytes());
    m.run(|a| a.fld(dword_ptr(rsi + 64)));
    for wide in [true, false] {
        m.memory(DATA + 512)[..512].fill(0);
        if wide {
            m.run(|a| a.fxsave64(ptr(rsi + 512)));
        } else {
            m.run(|a| a.fxsave(ptr(rsi + 512)));
        }
        let image = m.memory(DATA + 512);
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| image[at + i]));
        // FIP: the instruction was at address zero; FDP: its operand.
        assert_eq!((word(8) & 0xffff_ffff, word(16) & 0xffff_ffff), (0, DATA + 64));
    }
    m.run(|a| a.fnstenv(ptr(rsi + 1024)));
    let env = m.memory(DATA + 1024);
    assert_eq!(env[12..16], [0; 4]);
    assert_eq!(u32::from_le_bytes(std::array::from_fn(|i| env[20 + i])), DATA as u32 + 64);
}

#[test]
fn saving_and_restoring_keep_what_was_not_asked_for() {
    let mut m = Machine::new();
    m.cpu.regs.set(gpr::RSI, DATA);
    m.cpu.fpu.set_xmm(5, 0x55);
    m.cpu.regs.set(gpr::RAX, 2);
    m.cpu.regs.set(gpr::RDX, 0);
    m.memory(DATA)[..576].fill(0);
    m.memory(DATA)[32] = 0xee;
    m.run(|a| a.xsave(ptr(rsi)));
    let image = m.memory(DATA);
    assert_eq!((image[32], image[240], image[512]), (0xee, 0x55, 2));
    m.cpu.fpu.set_xmm(5, 0);
    m.run(|a| a.xrstor(ptr(rsi)));
    assert_eq!(m.cpu.fpu.xmm(5), 0x55);
    m.memory(DATA)[512] = 4;
    m.faults(vector::GP, |a| a.xrstor(ptr(rsi)));
    m.memory(DATA)[512] = 0;
    m.memory(DATA)[527] = 0x80;
    m.faults(vector::GP, |a| a.xrstor(ptr(rsi)));
    m.memory(DATA)[527] = 0;
    m.run(|a| a.xrstor(ptr(rsi)));
    assert_eq!(m.cpu.fpu.xmm(5), 0);
    m.cpu.regs.set(gpr::RSI, DATA + 32);
    m.faults(vector::GP, |a| a.xrstor(ptr(rsi)));
}

#[test]
fn checks_come_before_execution() {
    let mut m = Machine::new();
    m.cpu.regs.set(gpr::RSI, DATA + 8);
    m.faults(vector::GP, |a| a.paddd(xmm1, xmmword_ptr(rsi)));
    m.faults(vector::GP, |a| a.movaps(xmmword_ptr(rsi), xmm1));
    m.run(|a| a.movups(xmmword_ptr(rsi), xmm1));
    m.cpu.ctl.cr0 |= cr0::TS;
    m.faults(vector::NM, |a| a.paddd(xmm1, xmm2));
    m.faults(vector::NM, |a| a.fld1());
    m.faults(vector::NM, |a| a.paddd(mm1, mm2));
    m.cpu.ctl.cr0 |= cr0::EM;
    m.faults(vector::UD, |a| a.paddd(xmm1, xmm2));
    m.faults(vector::UD, |a| a.paddd(mm1, mm2));
    m.faults(vector::NM, |a| a.fld1());
    m.cpu.ctl.cr0 &= !(cr0::EM | cr0::TS);
    m.cpu.ctl.cr4 &= !cr4::OSFXSR;
    m.faults(vector::UD, |a| a.movaps(xmm1, xmm2));
    m.run(|a| a.paddd(mm1, mm2));
}

#[test]
fn stubs_are_shared_by_all_registers() {
    let mut m = Machine::new();
    let shared = Arc::clone(&m.cpu.shared);
    let before = shared.stubs.count();
    for r in [xmm0, xmm3, xmm15] {
        m.run(|a| a.pshufd(r, xmm7, 0x1b));
        m.run(|a| a.pshufd(xmm2, r, 0x1b));
    }
    assert_eq!(shared.stubs.count(), before + 1);
}

/// How many stubs a form can have: immediates, MMX and x87 registers, memory or register, LOCK.
fn variants(code: Code) -> usize {
    let op = |k: &K| match k {
        K::imm8 | K::imm8sex16 | K::imm8sex32 | K::imm8sex64 => 256,
        K::mm_reg | K::mm_rm | K::sti_opcode => 8,
        K::mm_or_mem => 9,
        K::xmm_or_mem | K::ymm_or_mem | K::r8_or_mem | K::r16_or_mem | K::r32_or_mem | K::r64_or_mem => 2,
        K::r32_or_mem_mpx | K::r64_or_mem_mpx | K::r16_reg_mem | K::r32_reg_mem | K::r64_reg_mem => 2,
        _ => 1,
    };
    let info = code.op_code();
    info.op_kinds().iter().map(op).product::<usize>() * if info.can_use_lock_prefix() { 2 } else { 1 }
}

#[test]
fn all_stubs_there_can_be_fit_into_the_arena() {
    let executable =
        |c: Class| matches!(c, Class::Integer | Class::X87 | Class::Mmx | Class::Sse | Class::Avx);
    let count: usize = vireo_isa::known().filter(|d| executable(d.class)).map(|d| variants(d.code)).sum();
    assert!(count * MAX_STUB < ARENA_SIZE, "{count} stubs");
}

#[test]
fn code_is_never_writable_where_it_is_executable() {
    let mut m = Machine::new();
    m.run(|a| a.paddd(xmm1, xmm2));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let stubs: Vec<_> = maps.lines().filter(|l| l.contains("memfd:code")).collect();
    assert!(stubs.iter().any(|l| l.contains(" r-xs ")) && stubs.iter().any(|l| l.contains(" rw-s ")));
    assert!(!maps.lines().any(|l| l.contains("wx")), "{maps}");
}

#[test]
fn faults_outside_stubs_are_not_swallowed() {
    let _handlers_are_installed = Machine::new();
    // SAFETY: the child only touches an address that is not mapped, and cannot go on from there.
    let status = unsafe {
        match libc::fork() {
            0 => {
                std::ptr::without_provenance::<u8>(8).read_volatile();
                libc::_exit(0)
            }
            child => {
                assert!(child > 0);
                let mut status = 0;
                assert_eq!(libc::waitpid(child, &mut status, 0), child);
                status
            }
        }
    };
    assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
}
