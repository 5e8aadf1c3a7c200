//! The machine code that enters a case and leaves it again, assembled for fixed addresses.
//!
//! Entering ends in IRETQ: it loads RIP, CS, RFLAGS, RSP and SS at once, and it is a serializing instruction,
//! so freshly written code bytes are fetched correctly (SDM vol. 3, 9.3 and 12.1.3). Leaving starts
//! with moves to absolute addresses only, which change no flag.
//!
//! An IRETQ to a 16-bit stack segment leaves the upper half of ESP as it was, so 16-bit code is entered by way of
//! a far jump, which touches no general register.

use crate::has_avx;
use crate::layout::PAGE;
use iced_x86::code_asm::{AsmRegister64, AsmRegisterYmm, dword_ptr, get_ymm, word_ptr, xmmword_ptr};
use iced_x86::code_asm::{CodeAssembler, eax, ptr, qword_ptr, r8, r9, r10, r11, r12, r13, r14, r15};
use iced_x86::code_asm::{rax, rbp, rbx, rcx, rdi, rdx, rsi, rsp, ss};
use iced_x86::{IcedError, Register};

/// Page of the stubs, readable and executable.
pub const TRAMPOLINE: u64 = 0x3000_0000;
/// Page of the values they move, [`Control`].
pub const CONTROL: u64 = 0x3000_1000;
/// A page for the stubs' stack.
pub const STUB_STACK: u64 = 0x3000_2000;

/// [`Control::pad`] when the signal handler ended the case.
pub const FAULTED: u64 = 2;

/// Selectors of Linux user code and data on x86-64.
pub const CS64: u64 = 0x33;
/// 32-bit user code.
pub const CS32: u64 = 0x23;
/// User data.
pub const DS: u64 = 0x2b;

/// What the stubs load and store; lies at [`CONTROL`]. All fields keep 16-byte alignment of the images.
#[derive(Clone)]
#[repr(C, align(64))]
pub struct Control {
    /// FXSAVE image to load.
    pub fx_in: [u8; 512],
    /// FXSAVE image stored.
    pub fx_out: [u8; 512],
    /// Upper halves of YMM registers to load, if the host has any.
    pub high_in: [u128; 16],
    /// Those stored.
    pub high_out: [u128; 16],
    /// Registers to load; RSP's slot is unused.
    pub gpr_in: [u64; 16],
    /// Registers stored.
    pub gpr_out: [u64; 16],
    /// For 16-bit code: offset (low half) and selector to jump to, and the selector for SS.
    pub far16: [u64; 2],
    /// RIP, CS, RFLAGS, RSP, SS for IRETQ.
    pub frame: [u64; 5],
    /// RFLAGS stored.
    pub rflags_out: u64,
    /// Which pad was reached: 0 the one after the instruction, 1 the landing, [`FAULTED`].
    pub pad: u64,
    /// Non-zero while a case runs: a signal belongs to the case.
    pub armed: u64,
    /// After a fault: RIP, exception vector, error code, CR2.
    pub fault: [u64; 4],
    /// Stack pointer of the caller of `enter`.
    pub host_rsp: u64,
    /// MXCSR of the caller.
    pub host_mxcsr: u32,
}

/// Entry points in the trampoline page.
#[derive(Clone, Debug)]
pub struct Stubs {
    /// The code of the page.
    pub code: Vec<u8>,
    /// `extern "sysv64" fn()`: runs what [`Control`] describes, returns when it ended.
    pub enter: u64,
    /// Where [`Control::frame`] leads for 16-bit code, still in 64-bit code.
    pub enter16: u64,
    /// Exits for 64-bit code: after the instruction, and at the landing.
    pub exit64: [u64; 2],
    /// Exits for 32-bit code.
    pub exit32: [u64; 2],
    /// Where a signal handler resumes after a fault (in 64-bit code).
    pub abandon: u64,
}

fn vectors() -> impl Iterator<Item = (u64, AsmRegisterYmm)> {
    (0..16_u32).filter_map(|i| get_ymm(Register::YMM0 + i).map(|r| (u64::from(i), r)))
}

const ORDER: [AsmRegister64; 16] =
    [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const SAVED: [AsmRegister64; 6] = [rbp, rbx, r12, r13, r14, r15];

macro_rules! field {
    ($name:ident) => {
        CONTROL + std::mem::offset_of!(Control, $name) as u64
    };
}

/// Assembles the stubs.
///
/// # Errors
/// The assembler's, should a stub outgrow its encoding.
pub fn assemble() -> Result<Stubs, IcedError> {
    let enter = assemble_enter()?;
    let leave_at = TRAMPOLINE + 0x400;
    let (leave, exit64, abandon) = assemble_leave(leave_at)?;
    // A far jump to 64-bit code, in 32-bit code: EA offset32 selector16.
    let exit32_at = TRAMPOLINE + 0xc00;
    let mut far = Vec::new();
    for target in exit64 {
        far.push(0xea);
        far.extend_from_slice(&(target as u32).to_le_bytes());
        far.extend_from_slice(&(CS64 as u16).to_le_bytes());
    }
    let mut code = vec![0xcc; PAGE as usize];
    code[..enter.len()].copy_from_slice(&enter);
    code[0x400..0x400 + leave.len()].copy_from_slice(&leave);
    code[0xc00..0xc00 + far.len()].copy_from_slice(&far);
    let enter16_at = TRAMPOLINE + 0xe00;
    let enter16 = assemble_enter16(enter16_at)?;
    code[0xe00..0xe00 + enter16.len()].copy_from_slice(&enter16);
    Ok(Stubs {
        code,
        enter: TRAMPOLINE,
        enter16: enter16_at,
        exit64,
        exit32: [exit32_at, exit32_at + 7],
        abandon,
    })
}

fn assemble_enter() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    for register in SAVED {
        a.push(register)?;
    }
    a.mov(qword_ptr(field!(host_rsp)), rsp)?;
    a.stmxcsr(dword_ptr(field!(host_mxcsr)))?;
    a.fxrstor64(ptr(field!(fx_in)))?;
    if has_avx() {
        for (i, r) in vectors() {
            a.vinsertf128(r, r, xmmword_ptr(field!(high_in) + 16 * i), 1)?;
        }
    }
    a.mov(rsp, field!(frame))?;
    for (i, register) in ORDER.into_iter().enumerate() {
        if register != rsp {
            a.mov(register, qword_ptr(field!(gpr_in) + 8 * i as u64))?;
        }
    }
    a.iretq()?;
    a.assemble(TRAMPOLINE)
}

fn assemble_enter16(at: u64) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.mov(ss, word_ptr(field!(far16) + 8))?;
    a.mov(rsp, qword_ptr(field!(gpr_in) + 8 * 4))?;
    let mut code = a.assemble(at)?;
    // JMP FAR m16:32 at an absolute address.
    code.extend_from_slice(&[0xff, 0x2c, 0x25]);
    code.extend_from_slice(&(field!(far16) as u32).to_le_bytes());
    Ok(code)
}

fn assemble_leave(at: u64) -> Result<(Vec<u8>, [u64; 2], u64), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut fall, mut landing, mut common, mut abandon) =
        (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    for (label, pad) in [(&mut fall, 0), (&mut landing, 1)] {
        a.set_label(label)?;
        a.mov(qword_ptr(field!(gpr_out)), rax)?;
        a.mov(eax, pad)?;
        a.jmp(common)?;
    }
    a.set_label(&mut common)?;
    a.mov(qword_ptr(field!(pad)), rax)?;
    for (i, register) in ORDER.into_iter().enumerate().skip(1) {
        a.mov(qword_ptr(field!(gpr_out) + 8 * i as u64), register)?;
    }
    a.mov(rsp, STUB_STACK + PAGE)?;
    a.pushfq()?;
    a.pop(rax)?;
    a.mov(qword_ptr(field!(rflags_out)), rax)?;
    a.fxsave64(ptr(field!(fx_out)))?;
    if has_avx() {
        for (i, r) in vectors() {
            a.vextractf128(xmmword_ptr(field!(high_out) + 16 * i), r, 1)?;
        }
    }
    a.set_label(&mut abandon)?;
    // A 16-bit case leaves its own SS, which would cost the kernel a detour at every interrupt.
    a.mov(eax, DS as u32)?;
    a.mov(ss, eax)?;
    a.mov(rsp, STUB_STACK + PAGE)?;
    a.push(0x202)?;
    a.popfq()?;
    a.fninit()?;
    if has_avx() {
        a.vzeroupper()?;
    }
    a.ldmxcsr(dword_ptr(field!(host_mxcsr)))?;
    a.mov(rsp, qword_ptr(field!(host_rsp)))?;
    for register in SAVED.into_iter().rev() {
        a.pop(register)?;
    }
    a.ret()?;
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let done = a.assemble_options(at, options)?;
    let places = [done.label_ip(&fall)?, done.label_ip(&landing)?];
    let abandon = done.label_ip(&abandon)?;
    Ok((done.inner.code_buffer, places, abandon))
}
