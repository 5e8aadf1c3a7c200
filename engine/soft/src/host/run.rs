//! Handlers that call stubs.

use std::sync::PoisonError;

use vireo_core::state::{cr0, cr4};
use vireo_isa::Fp;

use super::fpu::{AVX, Pointers, SSE};
use super::stub::{Stub, Unit};
use crate::cpu::{Cpu, Exec, Stop, seg, vector};
use crate::exec::Uop;

/// A copy of an operand that the host cannot reach in one piece.
#[repr(C, align(64))]
struct Bounce([u8; 128]);

impl Cpu {
    /// The checks before a floating-point instruction (SDM vol. 3A, table 2-2 and 13.1).
    #[inline(always)]
    pub(super) fn check_fp(&mut self, fp: Fp) -> Exec {
        let (c0, c4) = (self.ctl.cr0, self.ctl.cr4);
        let (ud, nm) = match fp {
            Fp::None => return Ok(()),
            Fp::Wait => (false, c0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS),
            Fp::X87 { .. } | Fp::Fxsave => (false, c0 & (cr0::EM | cr0::TS) != 0),
            Fp::Mmx => (c0 & cr0::EM != 0, c0 & cr0::TS != 0),
            Fp::Sse { .. } | Fp::MmxSse { .. } => {
                (c0 & cr0::EM != 0 || c4 & cr4::OSFXSR == 0, c0 & cr0::TS != 0)
            }
            Fp::Avx { .. } => (c4 & cr4::OSXSAVE == 0 || !self.avx_enabled(), c0 & cr0::TS != 0),
            Fp::Xsave => (c4 & cr4::OSXSAVE == 0, c0 & cr0::TS != 0),
        };
        if ud {
            return Err(self.ud());
        }
        if nm {
            return Err(self.raise(vector::NM, None));
        }
        Ok(())
    }

    /// Vector registers that the mode can name: 16, or 8 outside 64-bit mode.
    pub(super) fn vector_registers(&self) -> u8 {
        if self.mode.is64() { 16 } else { 8 }
    }

    /// XCR0 has SSE and AVX state.
    pub(crate) fn avx_enabled(&self) -> bool {
        self.ctl.xcr0 & (SSE | AVX) == SSE | AVX
    }

    /// Linear address of a memory operand of `size` bytes, aligned as `align_mask` says.
    #[inline(always)]
    pub(super) fn aligned_linear(&mut self, u: &Uop, size: u32, align_mask: u64, write: bool) -> Exec<u64> {
        let at = u.linear(self, size, write)?;
        if at & align_mask != 0 {
            return Err(self.gp(0));
        }
        Ok(at)
    }

    /// Tells the watch of a write of `size` bytes through a host address.
    #[inline(always)]
    pub(super) fn after_host_write(&mut self, page: u32, linear: u64, size: u32) {
        self.look_after_write(page, (linear & 0xfff) as u32, size);
    }
}

/// The stub of a micro-operation.
#[inline(always)]
fn stub_of(u: &Uop) -> &Stub {
    // SAFETY: `stub::select` or `environment::select` put a pointer there that is valid as long as the partition,
    // which the vCPU holds.
    unsafe { &*(u.imm as *const Stub) }
}

/// Calls the stub. `memory` points to its operand, if it has one.
#[inline(always)]
pub(super) fn call(cpu: &mut Cpu, stub: &Stub, u: &Uop, memory: *mut u8) -> Exec {
    if stub.unit != Unit::None {
        cpu.fpu.make_live();
        if !stub.waiting {
            cpu.fpu.latch();
        }
    }
    let vcpu: *mut Cpu = cpu;
    let place = |n: usize, number: u64| {
        let p = stub.places[n];
        vcpu.cast::<u8>().wrapping_add(p.base as usize + (number << p.shift) as usize)
    };
    let (first, second) = (place(0, u.dst.into()), place(1, u.src.into()));
    let aux = if stub.unit == Unit::Compute { 0 } else { u64::from(u.aux) };
    let (third, fourth) = (place(2, aux & 0xff), place(3, aux >> 8));
    // SAFETY: the operand pointers lie in the register files of `cpu`, the memory operand is readable or
    // writable as the instruction needs it, and stubs touch nothing else.
    let ending = unsafe { (stub.entry)(vcpu, memory, third, fourth, first, second) };
    if let Some((vector, mxcsr)) = ending.exception() {
        return Err(exception(cpu, stub, vector, mxcsr));
    }
    match stub.unit {
        Unit::None | Unit::Control => {}
        Unit::Init => cpu.fpu.set_pointers(Pointers::default()),
        Unit::Compute => {
            let ip = (cpu.seg[seg::CS as usize].selector, cpu.instruction_rip(u));
            let operand = (stub.size != 0).then(|| {
                let s = cpu.seg[(u.segment() % 6) as usize].selector;
                (s, u.offset(cpu) & u.address_mask())
            });
            cpu.fpu.executed(u.aux, ip, operand);
        }
    }
    Ok(())
}

/// What the guest sees of an exception on the host.
#[cold]
fn exception(cpu: &mut Cpu, stub: &Stub, vector: u8, mxcsr: u32) -> Stop {
    match vector {
        vector::XM => {
            cpu.fpu.mxcsr = mxcsr & super::fpu::MXCSR_MASK;
            if cpu.ctl.cr4 & cr4::OSXMMEXCPT == 0 {
                return cpu.ud();
            }
            cpu.raise(vector::XM, None)
        }
        // CR0.NE = 0 would ask for an interrupt by the PIC; no system for these processors wants that.
        vector::MF => {
            cpu.fpu.latch();
            cpu.raise(vector::MF, None)
        }
        vector::GP | vector::AC => cpu.gp(0),
        vector::DE => cpu.raise(vector::DE, None),
        // The host lacks what the model lists.
        _ => {
            debug_assert!(false, "vector {vector} from a stub of {} bytes", stub.size);
            cpu.ud()
        }
    }
}

/// A pending x87 exception comes before a fault of the memory operand.
#[inline(always)]
fn pending_first(cpu: &mut Cpu, stub: &Stub, result: Exec) -> Exec {
    match result {
        Err(Stop::Fault) if stub.waiting && cpu.fpu.pending() => {
            cpu.fpu.latch();
            Err(cpu.raise(vector::MF, None))
        }
        r => r,
    }
}

/// No memory operand.
pub fn register(cpu: &mut Cpu, u: &Uop) -> Exec {
    let stub = stub_of(u);
    cpu.check_fp(stub.fp)?;
    call(cpu, stub, u, std::ptr::null_mut())
}

/// Reads its memory operand.
pub fn read(cpu: &mut Cpu, u: &Uop) -> Exec {
    let stub = stub_of(u);
    cpu.check_fp(stub.fp)?;
    let result = read_operand(cpu, stub, u);
    pending_first(cpu, stub, result)
}

#[inline(always)]
fn read_operand(cpu: &mut Cpu, stub: &Stub, u: &Uop) -> Exec {
    let at = cpu.aligned_linear(u, stub.size, stub.align_mask, false)?;
    if let Some(p) = cpu.host_read(u.segment(), at, stub.size)? {
        return call(cpu, stub, u, p.cast_mut());
    }
    let mut copy = Bounce([0; 128]);
    let data = copy.0.get_mut(..stub.size as usize).unwrap_or_default();
    cpu.read_bytes(u.segment(), at, data)?;
    call(cpu, stub, u, copy.0.as_mut_ptr())
}

/// Writes its memory operand.
pub fn write(cpu: &mut Cpu, u: &Uop) -> Exec {
    let stub = stub_of(u);
    cpu.check_fp(stub.fp)?;
    let result = store_operand::<false>(cpu, stub, u);
    unit_after_fault(cpu, stub, u, result)
}

/// Reads and writes its memory operand.
pub fn modify(cpu: &mut Cpu, u: &Uop) -> Exec {
    let stub = stub_of(u);
    cpu.check_fp(stub.fp)?;
    let result = store_operand::<true>(cpu, stub, u);
    pending_first(cpu, stub, result)
}

/// MASKMOVQ, MASKMOVDQU: the whole operand must be writable, whatever the mask; processors of Intel look at the upper half
/// of 16 bytes first, which shows in CR2.
pub fn masked(cpu: &mut Cpu, u: &Uop) -> Exec {
    let stub = stub_of(u);
    cpu.check_fp(stub.fp)?;
    let result = masked_operand(cpu, stub, u);
    unit_after_fault(cpu, stub, u, result)
}

fn masked_operand(cpu: &mut Cpu, stub: &Stub, u: &Uop) -> Exec {
    if stub.size == 16 && !cpu.is_amd() {
        let at = u.linear(cpu, 16, true)?;
        cpu.check_write(u.segment(), at.wrapping_add(8), 8)?;
    }
    store_operand::<true>(cpu, stub, u)
}

#[inline(always)]
fn store_operand<const READ: bool>(cpu: &mut Cpu, stub: &Stub, u: &Uop) -> Exec {
    let at = cpu.aligned_linear(u, stub.size, stub.align_mask, true)?;
    if let Some((p, page)) = cpu.host_write(u.segment(), at, stub.size)? {
        call(cpu, stub, u, p)?;
        cpu.after_host_write(page, at, stub.size);
        return Ok(());
    }
    store_copy::<READ>(cpu, stub, u, at)
}

/// What a copy holds before the instruction writes to it: nothing that x87 stores produce in all their bytes.
const BLANK: u8 = 0xa5;

/// By way of a copy: two pages, or a device. All faults of the access were raised before.
#[cold]
#[inline(never)]
fn store_copy<const READ: bool>(cpu: &mut Cpu, stub: &Stub, u: &Uop, at: u64) -> Exec {
    let shared = std::sync::Arc::clone(&cpu.shared);
    let _all = stub.locked.then(|| shared.split_lock.lock().unwrap_or_else(PoisonError::into_inner));
    let mut copy = Bounce([BLANK; 128]);
    let size = (stub.size as usize).min(copy.0.len());
    if READ {
        cpu.read_bytes(u.segment(), at, &mut copy.0[..size])?;
    }
    call(cpu, stub, u, copy.0.as_mut_ptr())?;
    if stub.unit == Unit::Compute && stored_nothing(cpu, &copy.0[..size]) {
        return Ok(());
    }
    cpu.write_bytes(u.segment(), at, &copy.0[..size])
}

/// An x87 store whose unmasked exception forbids it completes without its store; the exception waits.
fn stored_nothing(cpu: &Cpu, copy: &[u8]) -> bool {
    cpu.fpu.pending() && copy.iter().all(|b| *b == BLANK)
}

/// What a fault of a store leaves in the floating-point units.
#[inline(always)]
fn unit_after_fault(cpu: &mut Cpu, stub: &Stub, u: &Uop, result: Exec) -> Exec {
    match pending_first(cpu, stub, result) {
        Err(Stop::Fault) if stub.unit != Unit::None && cpu.fault.vector != vector::MF => {
            if stub.unit == Unit::Compute {
                // AMD's processors look at the operand before they compute.
                if cpu.is_amd() { Err(Stop::Fault) } else { x87_store_faulted(cpu, stub, u) }
            } else {
                mmx_store_faulted(cpu, stub, u)
            }
        }
        Err(Stop::Fault) if matches!(stub.fp, Fp::Avx { mxcsr: true }) && !cpu.is_amd() => {
            // It computes before it stores, which shows in MXCSR, and in an exception that comes first.
            let fault = cpu.fault;
            call(cpu, stub, u, Bounce([BLANK; 128]).0.as_mut_ptr())?;
            cpu.fault = fault;
            Err(Stop::Fault)
        }
        r => r,
    }
}

/// An x87 store whose operand faults. The fault goes unnoticed if the instruction does not come to its store.
#[cold]
#[inline(never)]
fn x87_store_faulted(cpu: &mut Cpu, stub: &Stub, u: &Uop) -> Exec {
    let fault = cpu.fault;
    let (image, pointers) = (cpu.fpu.x87_image(), cpu.fpu.pointers());
    let mut copy = Bounce([BLANK; 128]);
    let result = call(cpu, stub, u, copy.0.as_mut_ptr());
    if result.is_ok() && stored_nothing(cpu, &copy.0[..(stub.size as usize).min(128)]) {
        return Ok(());
    }
    cpu.fpu.set_x87_image(&image, pointers);
    cpu.fault = fault;
    Err(Stop::Fault)
}

/// An MMX store whose operand faults. Some processors have then already gone over to MMX state; the host's own
/// shows it with an address that faults as well.
#[cold]
#[inline(never)]
fn mmx_store_faulted(cpu: &mut Cpu, stub: &Stub, u: &Uop) -> Exec {
    const NOT_CANONICAL: usize = 1 << 63;
    let fault = cpu.fault;
    let result = call(cpu, stub, u, std::ptr::without_provenance_mut(NOT_CANONICAL));
    debug_assert!(result.is_err());
    cpu.fault = fault;
    Err(Stop::Fault)
}
