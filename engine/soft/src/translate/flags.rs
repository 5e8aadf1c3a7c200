//! Which arithmetic flags matter where.

use iced_x86::{Instruction, Mnemonic as M, OpKind};
use vireo_isa::{Desc, flag};

use crate::exec::MULTIPLY_GIVES;

/// Which flags an instruction certainly gives values of its own.
pub fn killed(i: &Instruction, desc: &Desc) -> u32 {
    let all = (desc.flags_written | desc.flags_undefined) & flag::STATUS;
    // What a division leaves undefined it leaves alone, on processors at hand.
    if matches!(i.mnemonic(), M::Div | M::Idiv) {
        return 0;
    }
    // As some do with what a multiplication leaves undefined.
    if matches!(i.mnemonic(), M::Mul | M::Imul) {
        return *MULTIPLY_GIVES;
    }
    // As these do with what they leave undefined.
    if matches!(i.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc | M::Bsf | M::Bsr | M::Tzcnt | M::Lzcnt) {
        return desc.flags_written & flag::STATUS;
    }
    let counted = matches!(
        i.mnemonic(),
        M::Shl | M::Shr | M::Sar | M::Sal | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    );
    if !counted {
        return all;
    }
    // A count of zero leaves all flags alone.
    let last = i.op_count() - 1;
    // Nor does a rotation of a byte or word by its size or more certainly give OF a value.
    let size = if i.op0_kind() == OpKind::Memory { i.memory_size().size() } else { i.op0_register().size() };
    let rotates = matches!(i.mnemonic(), M::Rol | M::Ror | M::Rcl | M::Rcr);
    match i.op_kind(last) {
        OpKind::Immediate8 if rotates && size < 4 && i.immediate8() & 0x1f > 7 => 0,
        OpKind::Immediate8 if i.immediate8() & 0x1f != 0 => all,
        _ => 0,
    }
}

/// For each instruction, and behind the last, the flags whose values before it matter. `exact(n)`: whether instruction
/// `n` may look at all of them, or leave the block with them.
pub fn live_before(instructions: &[Instruction], exact: impl Fn(usize) -> bool) -> Vec<u32> {
    let mut live = vec![flag::STATUS; instructions.len() + 1];
    for (n, i) in instructions.iter().enumerate().rev() {
        let desc = vireo_isa::describe(i.code());
        live[n] = match exact(n) {
            true => flag::STATUS,
            false => live[n + 1] & !killed(i, desc) | desc.flags_read & flag::STATUS,
        };
    }
    live
}

#[cfg(test)]
mod tests {
    use super::*;

    fn killed_by(bytes: &[u8]) -> u32 {
        let i = iced_x86::Decoder::new(64, bytes, 0).decode();
        killed(&i, vireo_isa::describe(i.code()))
    }

    #[test]
    fn what_a_multiplication_keeps_is_kept_on_hosts_that_keep_it() {
        macro_rules! kept {
            ($op:literal) => {{
                let after = |before: u64| {
                    let mut after: u64;
                    // SAFETY: arithmetic on registers, and flags by way of the stack.
                    unsafe {
                        std::arch::asm!("push {f}", "popfq", $op, "pushfq", "pop {f}",
                            inout("rax") 3u64 => _, out("rdx") _, in("rcx") 5u64, f = inout(reg) before => after);
                    }
                    after as u32 & flag::STATUS
                };
                after(2) ^ after(2 | u64::from(flag::STATUS))
            }};
        }
        for (bytes, kept) in [
            (&[0x48, 0x0f, 0xaf, 0xc1][..], kept!("imul rax, rcx")),
            (&[0x48, 0xf7, 0xe1], kept!("mul rcx")),
            (&[0x48, 0xf7, 0xe9], kept!("imul rcx")),
            (&[0xf6, 0xe1], kept!("mul cl")),
            (&[0xf6, 0xe9], kept!("imul cl")),
        ] {
            let killed = killed_by(bytes);
            assert_eq!(killed & kept, 0, "{bytes:x?}");
            assert_eq!(killed & (flag::CF | flag::OF), flag::CF | flag::OF);
        }
    }
}
