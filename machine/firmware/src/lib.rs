//! What firmware leaves behind for an operating system: the memory map, ACPI tables, SMBIOS, and a Linux kernel in
//! memory with vCPU 0 at its first instruction.
//!
//! Owns the low megabyte's physical map ([`map`]), the Linux and PVH boot protocols ([`linux`]), the ACPI tables
//! ([`acpi`]) and SMBIOS ([`smbios`]); [`start`](start()) writes all of it for the standard board. It runs nothing: each call writes guest memory once and returns. Kernel and
//! initrd files are hostile: they are parsed without panics, and cost no more memory than they are long. Device
//! addresses come from `vireo_chipset::layout`, never from here.

#![warn(missing_docs)]
#![forbid(unsafe_code)]

pub mod acpi;
mod fields;
pub mod linux;
pub mod map;
pub mod smbios;
mod start;

pub use start::{Start, StartError, start};
