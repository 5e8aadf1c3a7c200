//! Guest RAM as an engine sees it: ranges of guest-physical addresses backed by host memory.

use std::sync::Arc;

/// Host memory that can back guest RAM.
///
/// # Safety
/// From construction until drop, `as_ptr()` is the start of `len()` bytes of readable and writable,
/// page-aligned memory that stays mapped at that address, and that no Rust reference ever covers (guests write
/// to it at any time, so all access is by raw pointer).
pub unsafe trait HostRam: Send + Sync {
    /// Start of the memory in this process.
    fn as_ptr(&self) -> *mut u8;
    /// Its length in bytes, a multiple of 4096.
    fn len(&self) -> usize;
    /// Whether there is none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One range of guest-physical addresses backed by RAM.
#[derive(Clone)]
pub struct RamRange {
    /// First guest-physical address, page-aligned.
    pub gpa: u64,
    /// Length in bytes, a multiple of 4096.
    pub len: u64,
    /// The memory behind it.
    pub host: Arc<dyn HostRam>,
    /// Where the range starts in `host`, page-aligned.
    pub offset: u64,
    /// Whether the guest may write. A guest's write to a read-only range goes to the bus.
    pub writable: bool,
}

impl RamRange {
    /// First address after the range.
    pub fn end(&self) -> u64 {
        self.gpa + self.len
    }
    /// Checks alignment and bounds; the error says what is wrong.
    pub fn validate(&self, physical_bits: u32) -> Result<(), crate::EngineError> {
        let bad = |reason| Err(crate::EngineError::BadRange { start: self.gpa, len: self.len, reason });
        if self.len == 0 {
            return bad("it is empty");
        }
        if (self.gpa | self.len | self.offset) & 0xfff != 0 {
            return bad("it is not aligned to 4096 bytes");
        }
        match self.gpa.checked_add(self.len) {
            Some(end) if end <= 1 << physical_bits => {}
            _ => return bad("it ends beyond the physical address width of the CPU model"),
        }
        match self.offset.checked_add(self.len) {
            Some(end) if end <= self.host.len() as u64 => Ok(()),
            _ => bad("it ends beyond the host memory behind it"),
        }
    }
}

impl std::fmt::Debug for RamRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "RamRange({:#x}+{:#x}{})",
            self.gpa,
            self.len,
            if self.writable { "" } else { ", read-only" }
        )
    }
}
