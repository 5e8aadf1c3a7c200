//! How much memory a guest is to have: pure arithmetic.

/// Memory that may change while a machine runs. All sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimits {
    /// Least that a guest is left with.
    pub minimum: u64,
    /// What it starts with.
    pub startup: u64,
    /// Most that it gets.
    pub maximum: u64,
    /// How much more than it needs a guest is to have, in percent of that.
    pub buffer: u32,
}

/// Targets are multiples of this: guests give memory in pieces of it.
const STEP: u64 = 2 << 20;
/// A guest is not troubled for less than one part in so many of what it has.
const SLACK: u64 = 20;

impl MemoryLimits {
    /// Memory that does not change.
    pub fn fixed(size: u64) -> Self {
        Self { minimum: size, startup: size, maximum: size, buffer: 0 }
    }

    /// Whether it may change.
    pub fn dynamic(&self) -> bool {
        self.minimum < self.maximum
    }

    /// What a guest is to have that has `assigned` and needs `demand`: that and the buffer, within the limits. Not less than it has
    /// for a difference that is hardly worth it.
    pub fn target(&self, assigned: u64, demand: u64) -> u64 {
        let buffer = u128::from(demand) * u128::from(self.buffer) / 100;
        let wanted = u64::try_from(u128::from(demand) + buffer).unwrap_or(u64::MAX);
        let wanted = wanted.min(u64::MAX - STEP).next_multiple_of(STEP);
        let wanted = self.bounded(wanted);
        let little = wanted < assigned && assigned - wanted < assigned / SLACK;
        if little { self.bounded(assigned) } else { wanted }
    }

    /// The nearest that is within the limits.
    pub fn bounded(&self, wanted: u64) -> u64 {
        wanted.min(self.maximum).max(self.minimum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMITS: MemoryLimits =
        MemoryLimits { minimum: 256 * MIB, startup: 512 * MIB, maximum: 1024 * MIB, buffer: 20 };

    #[test]
    fn a_guest_has_what_it_needs_and_a_buffer() {
        for (assigned, demand, target) in [
            (512, 400, 480),
            (512, 100, 256),
            (512, 640, 768),
            (512, 5000, 1024),
            // 494 MiB would do, and 18 are not worth the trouble.
            (512, 411, 512),
            // But more is worth it.
            (512, 430, 516),
            (480, 400, 480),
        ] {
            let got = LIMITS.target(assigned * MIB, demand * MIB) / MIB;
            assert_eq!(got, target, "{assigned} {demand}");
        }
        assert_eq!(LIMITS.target(0, u64::MAX), LIMITS.maximum);
        let fixed = MemoryLimits::fixed(512 * MIB);
        assert_eq!((fixed.dynamic(), fixed.target(512 * MIB, 1)), (false, 512 * MIB));
    }

    proptest! {
        #[test]
        fn a_target_is_within_the_limits_and_stays(
            minimum in any::<u64>(), more in any::<u64>(), assigned in any::<u64>(), demand in any::<u64>(), buffer in any::<u32>()
        ) {
            let maximum = minimum.saturating_add(more);
            let limits = MemoryLimits { minimum, startup: minimum, maximum, buffer };
            let target = limits.target(assigned, demand);
            prop_assert!((minimum..=maximum).contains(&target));
            // A guest that has what it is to have is left alone.
            prop_assert_eq!(limits.target(target, demand), target);
        }
    }
}
