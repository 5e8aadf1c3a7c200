//! Guest-physical addresses to host memory.

use vireo_core::{EngineError, RamRange};

/// The RAM of a partition, sorted by address. Changes only while every vCPU is paused: they then take a new map.
#[derive(Clone, Default, Debug)]
pub struct RamMap {
    ranges: Vec<RamRange>,
    /// The same, as page walks want it.
    places: Vec<Place>,
}

/// Where a range is in host memory.
#[derive(Clone, Copy, Debug)]
struct Place {
    gpa: u64,
    len: u64,
    host: *mut u8,
    writable: bool,
}

// SAFETY: the pointers are to memory that the ranges beside them keep mapped, and are only numbers here.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

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
        self.place();
        Ok(())
    }

    /// Removes a range exactly as it was inserted.
    pub fn remove(&mut self, gpa: u64, len: u64) -> Result<(), EngineError> {
        match self.ranges.iter().position(|r| r.gpa == gpa && r.len == len) {
            Some(i) => {
                self.ranges.remove(i);
                self.place();
                Ok(())
            }
            None => Err(EngineError::BadRange { start: gpa, len, reason: "no such range is mapped" }),
        }
    }

    /// The page that holds `gpa`, if it is RAM.
    pub fn page(&self, gpa: u64) -> Option<HostPage> {
        let p = self.places.iter().find(|p| gpa.wrapping_sub(p.gpa) < p.len)?;
        // Within the backing: `RamRange::validate` was called before the range came here.
        let host = p.host.wrapping_add(((gpa - p.gpa) & !0xfff) as usize);
        Some(HostPage { host, writable: p.writable })
    }

    fn place(&mut self) {
        let place = |r: &RamRange| Place {
            gpa: r.gpa,
            len: r.len,
            host: r.host.as_ptr().wrapping_add(r.offset as usize),
            writable: r.writable,
        };
        self.places = self.ranges.iter().map(place).collect();
    }
}
