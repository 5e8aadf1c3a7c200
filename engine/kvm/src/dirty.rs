//! Finding the pages that guests wrote: dirty rings, or KVM's bitmaps where there are none.

use std::sync::atomic::{AtomicU32, Ordering::*};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, kvm_dirty_gfn};
use kvm_ioctls::{VcpuFd, VmFd};
use vireo_core::dirty::PAGE;
use vireo_core::{DirtyBitmap, EngineError};

use crate::slots::Slots;
use crate::sys::{self, VcpuMapping};

/// How a partition learns which pages its vCPUs wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirtyMethod {
    /// A ring of page numbers for each vCPU (KVM_CAP_DIRTY_LOG_RING): the cost follows the number of writes.
    Ring,
    /// A bitmap for each memory slot (KVM_GET_DIRTY_LOG): the cost follows the size of memory.
    Bitmap,
}

/// Entries of a ring: the guest leaves KVM_RUN when it has written about so many pages since a harvest. 4096
/// keeps the ring of a vCPU within 64 KiB.
pub const RING_ENTRIES: u32 = 4096;

/// Flags of an entry (linux/kvm.h): filled in by KVM; done with by us.
const DIRTY: u32 = 1;
const RESET: u32 = 2;

/// The dirty ring of one vCPU.
#[derive(Debug)]
pub struct Ring {
    mapping: VcpuMapping,
    next: u32,
}

impl Ring {
    /// Maps the ring of a vCPU of a partition with [`DirtyMethod::Ring`].
    pub fn new(vcpu: &VcpuFd) -> Result<Self, EngineError> {
        let len = RING_ENTRIES as usize * size_of::<kvm_dirty_gfn>();
        let mapping = VcpuMapping::new(vcpu, u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE, len)?;
        Ok(Self { mapping, next: 0 })
    }

    /// Takes the entries filled in so far: (slot, page of it) each. `false`: the ring was full to its last entry. KVM
    /// stops a guest well before that, so then it did not, and entries may have been overwritten.
    fn drain(&mut self, mut found: impl FnMut(usize, u64)) -> bool {
        for _ in 0..RING_ENTRIES {
            let index = (self.next % RING_ENTRIES) as usize;
            // SAFETY: the index is inside the mapping, which holds RING_ENTRIES entries.
            let entry = unsafe { self.mapping.start().cast::<kvm_dirty_gfn>().add(index) }.as_ptr();
            // SAFETY: `flags` is a naturally aligned u32 in shared memory that the kernel accesses atomically.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            if flags.load(Acquire) & DIRTY == 0 {
                return true;
            }
            // SAFETY: the kernel does not touch a filled entry before its reset, which only we ask for.
            let (slot, page) = unsafe { ((*entry).slot, (*entry).offset) };
            flags.store(RESET, Release);
            self.next = self.next.wrapping_add(1);
            found((slot & 0xffff) as usize, page);
        }
        false
    }
}

/// Moves what the rings hold to the bitmap, and lets KVM reuse the entries.
pub fn collect_rings(
    vm: &VmFd,
    rings: &mut [Ring],
    slots: &Slots,
    bitmap: &DirtyBitmap,
) -> Result<(), EngineError> {
    let (mut any, mut intact) = (false, true);
    for ring in rings {
        intact &= ring.drain(|slot, page| {
            any = true;
            if let Some(gpa) = slots.page_address(slot, page) {
                bitmap.mark(gpa, 1);
            }
        });
    }
    if !intact {
        return Err(EngineError::Internal(
            "KVM overran a dirty ring, so that written pages are not known: use dirty bitmaps on this host"
                .into(),
        ));
    }
    if any { sys::reset_dirty_rings(vm) } else { Ok(()) }
}

/// Moves what KVM's bitmaps of all slots hold to ours.
pub fn collect_bitmaps(vm: &VmFd, slots: &Slots, bitmap: &DirtyBitmap) -> Result<(), EngineError> {
    for (slot, range) in slots.ranges().filter(|(_, r)| r.writable) {
        let bits =
            vm.get_dirty_log(slot as u32, range.len as usize).map_err(sys::os("reading KVM's dirty log"))?;
        vireo_core::dirty::pages(&bits).for_each(|offset| bitmap.mark(range.gpa + offset, 1));
    }
    Ok(())
}
