//! Reference time: 100 ns units since the partition was made, the same whatever the rate of the TSC (TLFS 12.4).

use vireo_core::Partition;
use vireo_memory::{GuestMemory, MemoryError};

/// Units in a second.
const HZ: u64 = 10_000_000;

/// Nanoseconds in a unit.
pub const NS: u64 = 100;

/// Time as a function of the partition's TSC: `tsc * scale / 2^64 + offset`, as guests compute it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReferenceTime {
    scale: u64,
    offset: u64,
    /// Rate of the TSC in Hz.
    pub tsc_hz: u64,
}

impl ReferenceTime {
    /// With a TSC of this rate that reads `tsc` at time `now`.
    pub fn new(tsc_hz: u64, tsc: u64, now: u64) -> Self {
        let scale =
            u64::try_from((u128::from(HZ) << 64) / u128::from(tsc_hz.max(HZ + 1))).unwrap_or(u64::MAX);
        let offset = now.wrapping_sub(scaled(tsc, scale));
        Self { scale, offset, tsc_hz }
    }

    /// The time at which the TSC reads `tsc`.
    pub fn at(&self, tsc: u64) -> u64 {
        scaled(tsc, self.scale).wrapping_add(self.offset)
    }

    /// Now.
    pub fn now(&self, partition: &dyn Partition) -> u64 {
        self.at(partition.clock().tsc)
    }

    /// Writes the page by which a guest computes it.
    pub fn write_page(&self, memory: &GuestMemory, page: u64) -> Result<(), MemoryError> {
        // Sequence 0 tells the guest to ask by MSR; it is raised by each change.
        let sequence = page + SEQUENCE;
        let next = memory.read_obj::<u32>(sequence)?.wrapping_add(1).max(1);
        memory.write_obj(sequence, 0_u32)?;
        memory.write_obj(page + SCALE, self.scale)?;
        memory.write_obj(page + OFFSET, self.offset)?;
        memory.write_obj(sequence, next)
    }
}

const SEQUENCE: u64 = 0;
const SCALE: u64 = 8;
const OFFSET: u64 = 16;

fn scaled(tsc: u64, scale: u64) -> u64 {
    ((u128::from(tsc) * u128::from(scale)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_at_another_rate() {
        let a = ReferenceTime::new(2_600_000_000, 0, 0);
        let hour = 3600 * HZ;
        let seen = a.at(2_600_000_000 * 3600);
        assert!(seen.abs_diff(hour) < 2, "{seen}");
        let b = ReferenceTime::new(3_100_000_000, 2_600_000_000 * 3600, seen);
        let tsc = 2_600_000_000 * 3600 + 3_100_000_000 * 3600;
        assert!(b.at(tsc).abs_diff(2 * hour) < 3);
        // What no processor has divides by nothing and overflows nothing.
        assert_eq!(ReferenceTime::new(0, 0, 5).at(0), 5);
    }
}
