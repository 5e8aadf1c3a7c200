//! The form in which cases and outcomes cross the memory shared with the sandbox process.

use crate::case::{Case, Change, CpuImage, End, Outcome};
use crate::layout;

/// Patches of one case.
pub const MAX_PATCHES: usize = 8;
/// Bytes of all patches of one case; FXRSTOR images are the largest.
pub const MAX_PATCH_BYTES: usize = 1024;
/// Changed words of one outcome.
pub const MAX_CHANGES: usize = 256;

/// One case and its outcome. Plain data of fixed size: all bit patterns are valid.
#[repr(C)]
pub struct Record {
    pub bitness: u32,
    pub code_len: u32,
    pub code: [u8; 16],
    pub cpu_in: CpuImage,
    pub patch_count: u32,
    pub patches: [PatchSlot; MAX_PATCHES],
    pub patch_bytes: [u8; MAX_PATCH_BYTES],
    pub status: u32,
    pub vector: u32,
    pub error: u32,
    pub address: u64,
    pub cpu_out: CpuImage,
    pub change_count: u32,
    pub changes: [Change; MAX_CHANGES],
}

/// Where a patch goes (offset in the windows) and where its bytes are.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct PatchSlot {
    pub offset: u32,
    pub start: u32,
    pub len: u32,
}

/// No answer yet.
pub const PENDING: u32 = 0;
/// The instruction completed.
pub const DONE: u32 = 1;
/// It raised an exception.
pub const FAULT: u32 = 2;
/// It changed more words than fit.
pub const OVERFLOW: u32 = 3;

impl Record {
    /// The base of the case's segments.
    pub fn base(&self) -> u64 {
        if self.bitness == 16 { layout::BASE16 } else { 0 }
    }

    /// Writes a case; false if it does not fit, or patches absent memory.
    pub fn set(&mut self, case: &Case) -> bool {
        if case.bytes.is_empty() || case.bytes.len() > 15 || case.memory.patches.len() > MAX_PATCHES {
            return false;
        }
        self.status = PENDING;
        self.bitness = case.mode.bitness();
        self.code_len = case.bytes.len() as u32;
        self.code[..case.bytes.len()].copy_from_slice(&case.bytes);
        self.cpu_in = case.cpu.clone();
        self.patch_count = case.memory.patches.len() as u32;
        let mut start = 0;
        for (slot, patch) in self.patches.iter_mut().zip(&case.memory.patches) {
            let last = patch.address.wrapping_add(patch.bytes.len().saturating_sub(1) as u64);
            let (Some(offset), Some(end)) = (layout::offset(patch.address), layout::offset(last)) else {
                return false;
            };
            let len = patch.bytes.len();
            if start + len > MAX_PATCH_BYTES || (len != 0 && end - offset + 1 != len) {
                return false;
            }
            self.patch_bytes[start..start + len].copy_from_slice(&patch.bytes);
            *slot = PatchSlot { offset: offset as u32, start: start as u32, len: len as u32 };
            start += len;
        }
        true
    }

    /// Reads the outcome.
    pub fn outcome(&self) -> Outcome {
        let end = match self.status {
            DONE => End::Done,
            FAULT => {
                let vector = self.vector as u8;
                // Vectors with an error code: SDM vol. 3, table 6-1.
                let error = matches!(vector, 8 | 10..=14 | 17).then_some(self.error);
                End::Fault { vector, error, address: (vector == 14).then_some(self.address) }
            }
            _ => End::Lost,
        };
        let count = (self.change_count as usize).min(MAX_CHANGES);
        Outcome { end, cpu: self.cpu_out.clone(), memory: self.changes[..count].to_vec() }
    }
}
