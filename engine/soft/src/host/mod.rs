//! Execution of x87, MMX, SSE and rare integer instructions by the host's processor.
//!
//! Owns: the floating-point registers ([`FpuState`]), the cache of stubs ([`StubCache`]) and the handlers of all
//! unprivileged instructions that `exec` has none for. Never touches modes, privileges or devices.
//!
//! Correct by construction: a *stub* executes the guest's own instruction, re-encoded with registers and a memory
//! operand of the stub's choice, between loads and stores of exactly what the instruction reads and writes. Rounding,
//! NaNs, undefined flags and exceptions are therefore the processor's. What is too large for an
//! operand (FXSAVE and its like) and what 64-bit mode lacks (decimal adjust) is written out in Rust; so are SSE moves,
//! because they are frequent, and AVX accesses that a mask leaves out.

mod arena;
mod avx;
mod decimal;
mod environment;
mod fence;
mod fpu;
mod image;
mod mapping;
mod moves;
mod run;
mod stub;
mod trap;

#[cfg(test)]
mod tests;

use iced_x86::Instruction;
use vireo_isa::Desc;

use crate::exec::Uop;

pub use fpu::{AVX, FpuCopy, FpuState, SSE, X87};
pub use mapping::{CodeMapping, serialize};
pub use stub::StubCache;
pub use trap::Answer;

/// Sets handler and operands of an instruction that `exec` and `system` do not execute. The address fields of `u` are
/// those of the explicit memory operand. `None`: it is not for the host either.
///
/// What it leaves in `u` stays valid as long as `stubs`.
pub fn decode(i: &Instruction, desc: &Desc, mode_bits: u32, stubs: &StubCache, u: &mut Uop) -> Option<()> {
    let run = moves::select(i, u)
        .or_else(|| fence::select(i, desc.class))
        .or_else(|| decimal::select(i, u))
        .or_else(|| image::select(i, u))
        .or_else(|| avx::select(i, u))
        .or_else(|| environment::select(i, desc, stubs, u))
        .or_else(|| stub::select(i, desc, mode_bits, stubs, u))?;
    u.run.set(run);
    Some(())
}
