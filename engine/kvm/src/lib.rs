//! The engine on Linux's /dev/kvm.
//!
//! Owns everything that is KVM's shape: file descriptors, memory slots, the split interrupt chip (local APICs in
//! the kernel; PIC and IOAPIC are the board's), dirty rings, MSR filter, the translation of vCPU state to and from
//! KVM's structures, and the probe that tells whether this host's KVM is worth using. It implements the traits
//! of `vireo-core` and never knows a device: ports, MMIO and foreign MSRs go to the board's bus.
//!
//! Sources: "The Definitive KVM (Kernel-based Virtual Machine) API Documentation" (Documentation/virt/kvm/api.rst
//! of Linux), Intel SDM and AMD APM for the state.

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!("/dev/kvm with x86 guests exists on x86-64 Linux only");

mod clock;
mod cpuid;
mod dirty;
mod engine;
mod hypercall;
mod kick;
mod msrs;
mod partition;
mod routes;
mod slots;
mod speed;
mod state;
mod sys;
mod vcpu;

pub use dirty::DirtyMethod;
pub use engine::KvmEngine;
