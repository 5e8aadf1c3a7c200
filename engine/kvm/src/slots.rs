//! Memory slots: which host memory KVM maps at which guest-physical address.

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use vireo_core::{EngineError, RamRange};

use crate::sys;

/// The RAM of a partition. A slot's number is its place in the list.
#[derive(Default)]
pub struct Slots {
    list: Vec<Option<RamRange>>,
    logging: bool,
}

impl Slots {
    /// Maps a range that has passed [`RamRange::validate`].
    pub fn insert(&mut self, vm: &VmFd, range: RamRange) -> Result<(), EngineError> {
        if self.ranges().any(|(_, r)| range.gpa < r.end() && r.gpa < range.end()) {
            let reason = "it overlaps a range that is mapped";
            return Err(EngineError::BadRange { start: range.gpa, len: range.len, reason });
        }
        let slot = self.list.iter().position(Option::is_none).unwrap_or(self.list.len());
        set(vm, slot, &range, range.len, self.logging)?;
        if slot == self.list.len() {
            self.list.push(None);
        }
        self.list[slot] = Some(range);
        Ok(())
    }

    /// Removes a range exactly as it was mapped.
    pub fn remove(&mut self, vm: &VmFd, gpa: u64, len: u64) -> Result<(), EngineError> {
        let found = self.ranges().find(|(_, r)| r.gpa == gpa && r.len == len).map(|(i, r)| (i, r.clone()));
        let Some((slot, range)) = found else {
            let reason = "no range is mapped exactly so";
            return Err(EngineError::BadRange { start: gpa, len, reason });
        };
        set(vm, slot, &range, 0, false)?;
        self.list[slot] = None;
        Ok(())
    }

    /// Turns KVM's logging of writes on or off for every slot.
    pub fn set_logging(&mut self, vm: &VmFd, on: bool) -> Result<(), EngineError> {
        for (slot, range) in self.ranges() {
            set(vm, slot, range, range.len, on)?;
        }
        self.logging = on;
        Ok(())
    }

    /// Whether writes are logged.
    pub fn logging(&self) -> bool {
        self.logging
    }

    /// All slots in use.
    pub fn ranges(&self) -> impl Iterator<Item = (usize, &RamRange)> {
        self.list.iter().enumerate().filter_map(|(i, r)| Some((i, r.as_ref()?)))
    }

    /// The guest-physical address of a page of a slot, if it has that page.
    pub fn page_address(&self, slot: usize, page: u64) -> Option<u64> {
        let range = self.list.get(slot)?.as_ref()?;
        let offset = page.checked_mul(vireo_core::dirty::PAGE).filter(|&o| o < range.len)?;
        Some(range.gpa + offset)
    }
}

/// `len` 0 deletes the slot.
fn set(vm: &VmFd, slot: usize, range: &RamRange, len: u64, logging: bool) -> Result<(), EngineError> {
    let flags = match (range.writable, logging) {
        (false, _) => KVM_MEM_READONLY,
        (true, true) => KVM_MEM_LOG_DIRTY_PAGES,
        (true, false) => 0,
    };
    let region = kvm_userspace_memory_region {
        slot: slot as u32,
        flags,
        guest_phys_addr: range.gpa,
        memory_size: len,
        userspace_addr: range.host.as_ptr().expose_provenance() as u64 + range.offset,
    };
    // SAFETY: `HostRam` promises memory that stays mapped and is never covered by references; the range was
    // validated to lie inside it, and the slot list holds it until the slot is deleted.
    unsafe { vm.set_user_memory_region(region) }.map_err(sys::os("mapping guest RAM"))
}
