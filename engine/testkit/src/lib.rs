//! Tiny guests that hold every engine to the same behaviour.
//!
//! Owns the guests (assembled at run time, a few dozen instructions each), a machine with RAM and a recording bus to
//! run them on, and the cases: each gives a [`Record`] of what was seen, checked against what the architecture
//! says and, by the callers, compared between engines. It uses the traits of `vireo-core` only; which engines there
//! are is the business of its test and its program. Never part of a product.

mod asm;
mod bus;
mod cases;
mod guest;
pub mod hosts;
mod machine;
mod ram;
mod record;
pub mod report;
mod tables;

pub use cases::{Case, Transfer, cases, transfers};
pub use machine::Bench;
pub use record::{Failure, Record};
