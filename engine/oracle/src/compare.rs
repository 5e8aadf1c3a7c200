//! What counts as a difference between the real CPU and an engine.
//!
//! Everything is compared bit for bit, undefined flags included: the engines execute the same host instruction
//! where flags are undefined, so they leave them as the host does. The exceptions are listed here.

use crate::case::{Case, Change, CpuImage, End, FxImage, Outcome};
use crate::trampoline::{STUB_STACK, TRAMPOLINE};
use iced_x86::{Code, Decoder, Mnemonic};
use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;
use vireo_isa::{Fp, decoder_options, describe};

/// One field in which two outcomes differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The field's name.
    pub field: String,
    /// What the real CPU did.
    pub native: String,
    /// What the subject did.
    pub subject: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: the CPU has {}, the engine {}", self.field, self.native, self.subject)
    }
}

/// Bytes of the FXSAVE image that are not compared.
///
/// FOP, FIP and FDP (6-23) would show addresses of the code that executed the instruction, which is not the
/// guest's in an engine that uses the host's x87 unit; and processors differ in when they record them
/// (SDM vol. 1, 8.1.8; AMD stores them only with a pending exception). MXCSR_MASK (28-31) is a constant of the
/// host. Of each x87 slot the 10 bytes of the register are compared; the rest, and all behind XMM15, is reserved.
const IGNORED: [Range<usize>; 2] = [6..24, 28..32];

/// What this host has and no CPU model does, and what shows of it.
#[derive(Clone, Copy, Debug, Default)]
struct Extras {
    /// MXCSR has a bit 17, MM: misaligned SSE mode (AMD APM vol. 3, CPUID Fn8000_0001_ECX[7]). So FXSAVE stores another
    /// MXCSR_MASK (vol. 2, 11.5.9).
    misaligned_sse: bool,
    /// LOCK MOV CR0 is MOV CR8 (AMD APM vol. 3, CPUID Fn8000_0001_ECX[4] and "MOV CRn"), so it is #GP in ring 3, not #UD.
    lock_mov_cr8: bool,
}

static EXTRAS: LazyLock<Extras> = LazyLock::new(|| {
    use std::arch::x86_64::__cpuid;
    // The bits mean something else, or nothing, on other processors.
    if !crate::host_is_amd() || __cpuid(0x8000_0000).eax < 0x8000_0001 {
        return Extras::default();
    }
    let ecx = __cpuid(0x8000_0001).ecx;
    Extras { misaligned_sse: ecx >> 7 & 1 != 0, lock_mov_cr8: ecx >> 4 & 1 != 0 }
});

impl Extras {
    /// LOCK MOV to or from CR0 that got beyond decoding on the CPU alone.
    fn explain_end(self, case: &Case, native: End, subject: End) -> bool {
        let gp = End::Fault { vector: 13, error: Some(0), address: None };
        let ud = End::Fault { vector: 6, error: None, address: None };
        let opcode = case.bytes.iter().position(|b| *b == 0x0f).unwrap_or(0);
        let (prefixes, instruction) = case.bytes.split_at(opcode);
        let mov_cr0 = matches!(instruction, [0x0f, 0x20 | 0x22, modrm, ..] if modrm >> 3 & 7 == 0);
        self.lock_mov_cr8 && prefixes.contains(&0xf0) && mov_cr0 && (native, subject) == (gp, ud)
    }

    /// MXCSR and MXCSR_MASK as FXSAVE stored them.
    fn explain_word(self, code: Code, native: Option<u64>, subject: Option<u64>) -> bool {
        let (Some(n), Some(s)) = (native, subject) else { return false };
        let masks = (n >> 32, s >> 32) == (0x2_ffff, 0xffff) && n as u32 == s as u32;
        self.misaligned_sse && describe(code).fp == Fp::Fxsave && masks
    }
}

/// The code the case decodes to with everything known enabled.
#[must_use]
pub fn code_of(case: &Case) -> Code {
    let options = decoder_options(crate::model());
    Decoder::with_ip(case.mode.bitness(), &case.bytes, case.cpu.rip, options).decode().code()
}

/// A faulting instruction of this form may have stored part of its data: it stores more than one item, or an
/// item so large that the manuals allow it (SDM vol. 3, 6.5 and the pages of the instructions).
fn may_store_partially(code: Code) -> bool {
    use Mnemonic as M;
    let many = matches!(code.mnemonic(), M::Pusha | M::Pushad | M::Enter | M::Fnsave | M::Fnstenv);
    let image = matches!(describe(code).fp, Fp::Fxsave | Fp::Xsave);
    many || image || matches!(code, Code::Fstp_m80fp | Code::Fbstp_m80bcd)
}

/// The CPU may name any byte of the faulting page: the operand is accessed in several pieces, in any order.
fn page_only(code: Code) -> bool {
    use Mnemonic as M;
    let pieces = matches!(
        code.mnemonic(),
        M::Frstor | M::Fldenv | M::Fbld | M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq
    );
    may_store_partially(code) || pieces || code == Code::Fld_m80fp
}

/// The sandbox and its kernel have pages of their own, all from here on, so a fault there may say "present".
const HOST_PAGES: u64 = 1 << 46;

fn without_host_pages(end: End) -> End {
    match end {
        End::Fault { vector: 14, error: Some(error), address: Some(address) } if address >= HOST_PAGES => {
            End::Fault { vector: 14, error: Some(error & !1), address: Some(address) }
        }
        other => other,
    }
}

/// Whether the engine faulted where the sandbox keeps its own code, control block and stack, which a case cannot know of.
fn met_the_sandbox(subject: End) -> bool {
    let End::Fault { vector: 14, address: Some(address), .. } = subject else { return false };
    (TRAMPOLINE..STUB_STACK + crate::layout::PAGE).contains(&address)
}

/// Registers (a bit each) that a case leaves to the processor's design.
///
/// - A repeated string instruction with 32-bit addresses in 64-bit mode uses the lower halves of its registers; whether
///   their upper halves are cleared when nothing was done, or the first element faulted, differs between instructions
///   of one and the same processor.
/// - POPA that faults half-way may have loaded some of the registers: the manuals only say that it can be restarted.
fn free_registers(case: &Case, code: Code, faulted: bool) -> u32 {
    let string = describe(code).class == vireo_isa::Class::String;
    let narrow = case.mode == crate::Mode::Long && case.bytes.contains(&0x67);
    let popa = matches!(code.mnemonic(), Mnemonic::Popa | Mnemonic::Popad);
    match (string && narrow, popa && faulted) {
        (true, _) => 1 << 1 | 1 << 6 | 1 << 7,
        (_, true) => 0xff & !(1 << 4),
        _ => 0,
    }
}

/// The fields in which the engine's outcome differs from the CPU's. A lost native run says nothing, so nothing
/// differs from it; a lost run of the subject always differs.
#[must_use]
pub fn compare(case: &Case, native: &Outcome, subject: &Outcome) -> Vec<Difference> {
    let mut found = Vec::new();
    if native.end == End::Lost || met_the_sandbox(subject.end) {
        return found;
    }
    let code = code_of(case);
    let faulted = matches!(native.end, End::Fault { .. });
    if EXTRAS.explain_end(case, native.end, subject.end) {
        return found;
    }
    compare_ends(code, native.end, subject.end, &mut found);
    let free = free_registers(case, code, faulted);
    compare_registers(case, &native.cpu, &subject.cpu, free, &mut found);
    compare_high(case.mode.registers(), &native.cpu, &subject.cpu, &mut found);
    // An MMX instruction that faults may have put the x87 stack's top to zero already.
    let free_top = faulted && matches!(describe(code).fp, Fp::Mmx);
    compare_fx(case.mode.registers(), &native.cpu.fx, &subject.cpu.fx, free_top, &mut found);
    if native.memory != subject.memory && !(faulted && may_store_partially(code)) {
        compare_memory(code, &native.memory, &subject.memory, &mut found);
    }
    found
}

fn differ(found: &mut Vec<Difference>, field: impl Into<String>, native: String, subject: String) {
    if native != subject {
        found.push(Difference { field: field.into(), native, subject });
    }
}

fn compare_ends(code: Code, native: End, subject: End, found: &mut Vec<Difference>) {
    // Both operands of CMPS may fault; which one is accessed first is the processor's choice.
    let either =
        matches!(code.mnemonic(), Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq);
    let coarse = |end| match without_host_pages(end) {
        End::Fault { vector, error, .. } if either => End::Fault { vector, error, address: None },
        End::Fault { vector, error, address } if page_only(code) => {
            End::Fault { vector, error, address: address.map(|a| a & !0xfff) }
        }
        other => other,
    };
    differ(found, "end", format!("{:x?}", coarse(native)), format!("{:x?}", coarse(subject)));
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

fn compare_registers(
    case: &Case,
    native: &CpuImage,
    subject: &CpuImage,
    free: u32,
    found: &mut Vec<Difference>,
) {
    // In 32-bit code the upper halves cannot be seen, and mode switches may change them (SDM vol. 1, 3.4.1.1).
    let mask = if case.mode == crate::Mode::Long { u64::MAX } else { 0xffff_ffff };
    for (i, name) in NAMES.iter().enumerate().take(case.mode.registers()) {
        let mask = match (free >> i & 1, case.mode) {
            (0, _) => mask,
            (_, crate::Mode::Long) => 0xffff_ffff,
            _ => 0,
        };
        let (n, s) = (native.gpr[i] & mask, subject.gpr[i] & mask);
        differ(found, *name, format!("{n:x}"), format!("{s:x}"));
    }
    differ(found, "rip", format!("{:x}", native.rip & mask), format!("{:x}", subject.rip & mask));
    differ(found, "rflags", format!("{:x}", native.rflags), format!("{:x}", subject.rflags));
}

fn compare_fx(
    registers: usize,
    native: &FxImage,
    subject: &FxImage,
    free_top: bool,
    found: &mut Vec<Difference>,
) {
    // The top of stack is in bits 11 to 13 of FSW.
    let byte = |fx: &FxImage, at: usize| fx.0[at] & if free_top && at == 3 { !0x38 } else { 0xff };
    let mut header = (0..32).filter(|at| !IGNORED.iter().any(|r| r.contains(at)));
    if header.any(|at| byte(native, at) != byte(subject, at)) {
        let text =
            |fx: &FxImage| format!("{:04x} {:04x} {:02x} {:08x}", fx.u16(0), fx.u16(2), fx.0[4], fx.mxcsr());
        differ(found, "FCW FSW FTW MXCSR", text(native), text(subject));
    }
    for i in 0..8 {
        if native.st(i) != subject.st(i) {
            let text = |fx: &FxImage| fx.st(i).iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
            differ(found, format!("st{i}"), text(native), text(subject));
        }
    }
    for i in 0..registers {
        if native.xmm(i) != subject.xmm(i) {
            let text = |fx: &FxImage| format!("{:032x}", fx.xmm(i));
            differ(found, format!("xmm{i}"), text(native), text(subject));
        }
    }
}

fn compare_high(registers: usize, native: &CpuImage, subject: &CpuImage, found: &mut Vec<Difference>) {
    for (i, (n, s)) in native.high.iter().zip(&subject.high).enumerate().take(registers) {
        differ(found, format!("upper half of ymm{i}"), format!("{n:032x}"), format!("{s:032x}"));
    }
}

fn compare_memory(code: Code, native: &[Change], subject: &[Change], found: &mut Vec<Difference>) {
    let text = |value: Option<u64>| value.map_or("no change".to_owned(), |v| format!("{v:016x}"));
    let at = |list: &[Change], address| list.iter().find(|c| c.address == address).map(|c| c.value);
    let mut addresses: Vec<u64> = native.iter().chain(subject).map(|c| c.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    for address in addresses {
        let (n, s) = (at(native, address), at(subject, address));
        if EXTRAS.explain_word(code, n, s) {
            continue;
        }
        differ(found, format!("[{address:x}]"), text(n), text(s));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemImage, Mode};

    const ALL: Extras = Extras { misaligned_sse: true, lock_mov_cr8: true };
    const GP: End = End::Fault { vector: 13, error: Some(0), address: None };
    const UD: End = End::Fault { vector: 6, error: None, address: None };

    fn case(bytes: &[u8]) -> Case {
        let cpu = CpuImage::initial(Mode::Protected);
        Case { bytes: bytes.to_vec(), mode: Mode::Protected, cpu, memory: MemImage::default() }
    }

    #[test]
    fn lock_mov_cr0_may_be_mov_cr8_and_nothing_else_may() {
        assert!(ALL.explain_end(&case(&[0xf0, 0x0f, 0x20, 0xc0]), GP, UD));
        assert!(!ALL.explain_end(&case(&[0xf0, 0x0f, 0x20, 0xc0]), UD, GP));
        assert!(!ALL.explain_end(&case(&[0xf0, 0x0f, 0x20, 0xc0]), End::Done, UD));
        assert!(!ALL.explain_end(&case(&[0xf0, 0x0f, 0x20, 0xd0]), GP, UD));
        assert!(!ALL.explain_end(&case(&[0x0f, 0x20, 0xc0]), GP, UD));
        assert!(!Extras::default().explain_end(&case(&[0xf0, 0x0f, 0x20, 0xc0]), GP, UD));
    }

    #[test]
    fn mxcsr_mask_may_have_mm_and_nothing_else_may() {
        let (mm, plain) = (Some(0x0002_ffff_0000_1f80), Some(0x0000_ffff_0000_1f80));
        assert!(ALL.explain_word(Code::Fxsave64_m512byte, mm, plain));
        assert!(!ALL.explain_word(Code::Fxsave64_m512byte, plain, mm));
        assert!(!ALL.explain_word(Code::Fxsave64_m512byte, mm, Some(0x0000_ffff_0000_1f81)));
        assert!(!ALL.explain_word(Code::Movups_xmmm128_xmm, mm, plain));
        assert!(!Extras::default().explain_word(Code::Fxsave64_m512byte, mm, plain));
    }
}
