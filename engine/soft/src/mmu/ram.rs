//! Guest-physical addresses to host memory.

use vireo_core::{EngineError, RamRange};

/// The RAM of a partition, sorted by address. Changes only while every vCPU is paused: they then take a new map.
#[derive(Clone, Default, Debug)]
pub struct RamMap {
    ranges: Vec<RamRange>,
}

/// Host memory behind a guest-physical page.
#[derive(Clone, Copy, Debug)]
pub struct HostPage {
    /// Host address of the page.
    pub host: *mut u8,
    /// Whether guest writes go there.
    pub writable: bool,
}

impl RamMap {
    /// Adds a range; refuses overlaps.
    pub fn insert(&mut self, range: RamRange) -> Result<(), EngineError> {
        let at = self.ranges.partition_point(|r| r.gpa < range.gpa);
        let before = at.checked_sub(1).and_then(|i| self.ranges.get(i));
        let clash = before.is_some_and(|r| r.end() > range.gpa)
            || self.ranges.get(at).is_some_and(|r| range.end() > r.gpa);
        if clash {
            let reason = "it overlaps a range that is already mapped";
            return Err(EngineError::BadRange { start: range.gpa, len: range.len, reason });
        }
        self.ranges.insert(at, range);
        Ok(())
    }

    /// Removes a range exactly as it was inserted.
    pub fn remove(&mut self, gpa: u64, len: u64) -> Result<(), EngineError> {
        match self.ranges.iter().position(|r| r.gpa == gpa && r.len == len) {
            Some(i) => {
                self.ranges.remove(i);
                Ok(())
            }
            None => Err(EngineError::BadRange { start: gpa, len, reason: "no such range is mapped" }),
        }
    }

    /// The page that holds `gpa`, if it is RAM.
    pub fn page(&self, gpa: u64) -> Option<HostPage> {
        let r = self.ranges.iter().find(|r| gpa >= r.gpa && gpa < r.end())?;
        let at = r.offset + ((gpa - r.gpa) & !0xfff);
        // Within the backing: `RamRange::validate` was called before the range came here.
        Some(HostPage { host: r.host.as_ptr().wrapping_add(at as usize), writable: r.writable })
    }
}
