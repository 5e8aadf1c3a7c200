//! The system calls of /dev/kvm that `kvm-ioctls` does not wrap, each behind a safe function.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_xen_hvm_config};
use kvm_ioctls::{VcpuFd, VmFd};
use vireo_core::EngineError;

/// ioctl numbers (linux/kvm.h): direction << 30 | size << 16 | 0xAE << 8 | number.
const KVM_XEN_HVM_CONFIG: libc::c_ulong = 0x4038_ae7a;
const KVM_RESET_DIRTY_RINGS: libc::c_ulong = 0xaec7;
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee2;

/// Wraps the error of a kvm-ioctls call.
pub fn os(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> EngineError {
    move |e| EngineError::os(what, io::Error::from_raw_os_error(e.errno()))
}

fn check(what: &'static str, result: libc::c_int) -> Result<libc::c_int, EngineError> {
    if result < 0 { Err(EngineError::os(what, io::Error::last_os_error())) } else { Ok(result) }
}

/// The offset of a vCPU's TSC from the host's (after scaling). The vCPU must not be running.
pub fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, EngineError> {
    let mut offset = 0u64;
    let attr = offset_attr(&mut offset);
    // SAFETY: the kernel writes 8 bytes to `attr.addr`, which is `offset`.
    let r = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_DEVICE_ATTR, &attr) };
    check("reading the TSC offset of a vCPU", r)?;
    Ok(offset)
}

/// Sets the offset that [`tsc_offset`] reads.
pub fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<(), EngineError> {
    let attr = offset_attr(&mut offset);
    // SAFETY: the kernel reads 8 bytes at `attr.addr`, which is `offset`.
    let r = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR, &attr) };
    check("setting the TSC offset of a vCPU", r).map(drop)
}

fn offset_attr(value: &mut u64) -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: ptr::from_mut(value).expose_provenance() as u64,
        flags: 0,
    }
}

/// Tells KVM that harvested dirty-ring entries may be reused; it write-protects their pages again.
pub fn reset_dirty_rings(vm: &VmFd) -> Result<(), EngineError> {
    // SAFETY: the call takes no argument and touches no memory of this process but the rings.
    let r = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS, 0) };
    check("resetting the dirty rings", r).map(drop)
}

/// Configures KVM's Xen support.
pub fn set_xen_config(vm: &VmFd, config: &kvm_xen_hvm_config) -> Result<(), EngineError> {
    // SAFETY: the kernel reads one `kvm_xen_hvm_config`; its blob sizes are the caller's and zero here.
    let r = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_XEN_HVM_CONFIG, ptr::from_ref(config)) };
    check("asking KVM for hypercall exits", r).map(drop)
}

/// A shared mapping of part of a vCPU's file descriptor.
#[derive(Debug)]
pub struct VcpuMapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory with no thread affinity; users synchronise by atomics.
unsafe impl Send for VcpuMapping {}
// SAFETY: as above.
unsafe impl Sync for VcpuMapping {}

impl VcpuMapping {
    /// Maps `len` bytes from byte `offset` of the vCPU's file descriptor.
    pub fn new(vcpu: &VcpuFd, offset: u64, len: usize) -> Result<Self, EngineError> {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        // SAFETY: the descriptor is borrowed by the call only, and open.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
        // SAFETY: a new mapping at an address of the kernel's choice disturbs nothing.
        let start = unsafe {
            mmap(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, fd, offset)
        };
        let start = start.map_err(|e| EngineError::os("mapping memory shared with a vCPU", e))?;
        let start =
            NonNull::new(start.cast()).ok_or_else(|| EngineError::Internal("mmap gave null".into()))?;
        Ok(Self { start, len })
    }

    /// First byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for VcpuMapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and nothing uses it after its owner.
        unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len).ok() };
    }
}
