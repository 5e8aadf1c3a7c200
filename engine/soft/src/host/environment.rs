//! FNSTENV, FNSAVE, FLDENV, FRSTOR: the host's processor makes and takes the 32-bit protected-mode form; the guest's
//! form (SDM vol. 1, figures 8-9 to 8-12) and the pointers are put in and out here.

use iced_x86::{Code, Instruction};
use vireo_isa::Desc;

use super::fpu::Pointers;
use super::run::call;
use super::stub::{Stub, StubCache, stub_for};
use crate::cpu::{Cpu, Exec, vector};
use crate::exec::{Handler, Uop};

/// Size of the environment, and of environment and registers, in the 32-bit form.
const ENVIRONMENT: usize = 28;
const REGISTERS: usize = 80;

/// The host's form, aligned so that it lies in one cache line pair.
#[repr(C, align(64))]
struct Buffer([u8; ENVIRONMENT + REGISTERS]);

/// Handler of one of these. `aux` bit 0: 32-bit form; bit 1: registers as well.
pub fn select(i: &Instruction, desc: &Desc, stubs: &StubCache, u: &mut Uop) -> Option<Handler> {
    use Code::*;
    let (code, aux, run): (Code, u16, Handler) = match i.code() {
        Fnstenv_m14byte => (Fnstenv_m28byte, 0, store),
        Fnstenv_m28byte => (Fnstenv_m28byte, 1, store),
        Fnsave_m94byte => (Fnsave_m108byte, 2, store),
        Fnsave_m108byte => (Fnsave_m108byte, 3, store),
        Fldenv_m14byte => (Fldenv_m28byte, 0, load),
        Fldenv_m28byte => (Fldenv_m28byte, 1, load),
        Frstor_m94byte => (Frstor_m108byte, 2, load),
        Frstor_m108byte => (Frstor_m108byte, 3, load),
        _ => return None,
    };
    let mut host = *i;
    host.set_code(code);
    u.imm = stub_for(&host, desc, stubs)? as u64;
    u.aux = aux;
    Some(run)
}

/// Length of the environment in the guest's form, and of what follows it.
fn lengths(u: &Uop) -> (usize, usize) {
    let env = if u.aux & 1 != 0 { ENVIRONMENT } else { ENVIRONMENT / 2 };
    (env, if u.aux & 2 != 0 { REGISTERS } else { 0 })
}

fn stub(u: &Uop) -> &Stub {
    // SAFETY: `select` put it there; valid as long as the partition.
    unsafe { &*(u.imm as *const Stub) }
}

/// FNSTENV, FNSAVE.
fn store(cpu: &mut Cpu, u: &Uop) -> Exec {
    let stub = stub(u);
    cpu.check_fp(stub.fp)?;
    let (env, registers) = lengths(u);
    let size = (env + registers) as u32;
    let at = u.linear(cpu, size, true)?;
    cpu.check_write(u.segment(), at, size)?;
    let mut host = Buffer([0; ENVIRONMENT + REGISTERS]);
    call(cpu, stub, u, host.0.as_mut_ptr())?;
    let mut data = [0; ENVIRONMENT + REGISTERS];
    let pointers = cpu.fpu.pointers();
    encode(&mut data[..env], &host.0, &pointers, cpu.real_style_pointers());
    data[env..env + registers].copy_from_slice(&host.0[ENVIRONMENT..ENVIRONMENT + registers]);
    if registers != 0 {
        // FNSAVE initialises the unit.
        cpu.fpu.set_pointers(Pointers::default());
    }
    cpu.write_bytes(u.segment(), at, &data[..env + registers])
}

/// FLDENV, FRSTOR.
fn load(cpu: &mut Cpu, u: &Uop) -> Exec {
    let stub = stub(u);
    cpu.check_fp(stub.fp)?;
    if stub.waiting && cpu.fpu.pending() {
        cpu.fpu.latch();
        return Err(cpu.raise(vector::MF, None));
    }
    let (env, registers) = lengths(u);
    let at = u.linear(cpu, (env + registers) as u32, false)?;
    let mut data = [0; ENVIRONMENT + REGISTERS];
    cpu.read_bytes(u.segment(), at, &mut data[..env + registers])?;
    let mut host = Buffer([0; ENVIRONMENT + REGISTERS]);
    let pointers = decode(&data[..env], &mut host.0, cpu.real_style_pointers());
    host.0[ENVIRONMENT..ENVIRONMENT + registers].copy_from_slice(&data[env..env + registers]);
    call(cpu, stub, u, host.0.as_mut_ptr())?;
    cpu.fpu.set_pointers(pointers);
    Ok(())
}

fn put16(to: &mut [u8], at: usize, v: u16) {
    to[at..at + 2].copy_from_slice(&v.to_le_bytes());
}
fn put32(to: &mut [u8], at: usize, v: u32) {
    to[at..at + 4].copy_from_slice(&v.to_le_bytes());
}
fn get16(from: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([from[at], from[at + 1]])
}
fn get32(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| from[at + i]))
}

/// Linear address of a real-mode pointer.
fn linear(selector: u16, offset: u64) -> u32 {
    (u32::from(selector) << 4).wrapping_add(offset as u32)
}

/// Writes the guest's form (14 or 28 bytes); control, status and tag word come from the host's.
fn encode(to: &mut [u8], host: &[u8], p: &Pointers, real: bool) {
    let (ip, dp) = (linear(p.fcs, p.fip), linear(p.fds, p.fdp));
    if to.len() < ENVIRONMENT {
        for n in 0..3 {
            put16(to, 2 * n, get16(host, 4 * n));
        }
        let fields = if real {
            [ip as u16, (ip >> 4 & 0xf000) as u16 | p.fop, dp as u16, (dp >> 4 & 0xf000) as u16]
        } else {
            [p.fip as u16, p.fcs, p.fdp as u16, p.fds]
        };
        fields.iter().enumerate().for_each(|(n, v)| put16(to, 6 + 2 * n, *v));
        return;
    }
    to.copy_from_slice(&host[..ENVIRONMENT]);
    // Upper halves of 16-bit fields are reserved; processors store ones.
    let ones = 0xffff_0000;
    let fields = if real {
        let upper = |a: u32| a >> 4 & 0x0fff_f000;
        [ip & 0xffff | ones, upper(ip) | u32::from(p.fop), dp & 0xffff | ones, upper(dp)]
    } else {
        let (fcs, fop) = (u32::from(p.fcs), u32::from(p.fop));
        [p.fip as u32, fcs | fop << 16, p.fdp as u32, u32::from(p.fds) | ones]
    };
    fields.iter().enumerate().for_each(|(n, v)| put32(to, 12 + 4 * n, *v));
}

/// Reads the guest's form into the host's, and gives the pointers.
fn decode(from: &[u8], host: &mut [u8], real: bool) -> Pointers {
    let wide = from.len() == ENVIRONMENT;
    let stride = if wide { 4 } else { 2 };
    for n in 0..3 {
        put32(host, 4 * n, u32::from(get16(from, stride * n)) | 0xffff_0000);
    }
    let field = |n: usize| if wide { get32(from, 12 + 4 * n) } else { u32::from(get16(from, 6 + 2 * n)) };
    let f = [field(0), field(1), field(2), field(3)];
    if real {
        let joined = |low: u32, high: u32| {
            let upper = if wide { high << 4 & 0xffff_0000 } else { (high & 0xf000) << 4 };
            u64::from(low & 0xffff | upper)
        };
        let fop = (f[1] & 0x7ff) as u16;
        return Pointers { fip: joined(f[0], f[1]), fcs: 0, fdp: joined(f[2], f[3]), fds: 0, fop };
    }
    let fop = if wide { (f[1] >> 16 & 0x7ff) as u16 } else { 0 };
    Pointers { fip: f[0].into(), fcs: f[1] as u16, fdp: f[2].into(), fds: f[3] as u16, fop }
}
