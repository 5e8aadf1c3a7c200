//! One table that describes each x86 instruction the engines know.
//!
//! The table has one [`Desc`] per [`Code`] (one encoding form) of the `iced-x86` decoder. It is derived from
//! the decoder's own facts (operands, flags, CPUID features, modes) plus short hand-written lists for what
//! the decoder does not tell: which features the engines implement, when FPU state must be checked, which
//! instructions end a block. The interpreter, the translator and the generator of the CPU oracle all read it,
//! so a form is either known to all of them or to none.
//!
//! It owns: the vocabulary of CPU [`Feature`]s with their CPUID bits, and the descriptions.
//! It never executes, decodes or encodes guest code, and holds no state.
#![forbid(unsafe_code)]

mod desc;
mod feature;
mod table;

pub use desc::{Class, Desc, Fp, Modes, Privilege, flag};
pub use feature::{CpuidBit, CpuidReg, Feature, FeatureSet};
pub use iced_x86::Code;
pub use table::{decoder_options, describe, known};
