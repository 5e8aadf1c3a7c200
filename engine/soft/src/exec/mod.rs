//! Micro-operations, and the handlers of integer data instructions, near branches, stack and strings.

mod alu;
mod bits;
mod branch;
mod data;
mod multiply;
pub mod native;
mod select;
mod stack;
mod string;
mod uop;

pub use data::{too_long, undefined};
pub use multiply::MULTIPLY_GIVES;
pub use select::{condition, register, select};
pub use uop::{Address, Handler, Uop};
