//! What of the interface a guest is told of: a named set, part of the virtual machine's contract as its CPU model is.
//!
//! A guest asks once, at boot. So a machine keeps its set through checkpoints and migrations, and a published set never
//! changes its answers.

/// Leaf 4000_0003h EAX: MSRs that there are (TLFS 2.4.4).
mod partition {
    pub const REFERENCE_COUNTER: u32 = 1 << 1;
    pub const SYNIC: u32 = 1 << 2;
    pub const SYNTHETIC_TIMERS: u32 = 1 << 3;
    pub const HYPERCALLS: u32 = 1 << 5;
    pub const VP_INDEX: u32 = 1 << 6;
    pub const REFERENCE_TSC: u32 = 1 << 9;
    pub const FREQUENCIES: u32 = 1 << 11;
}
/// Leaf 4000_0003h EBX: hypercalls that may be made.
mod calls {
    pub const POST_MESSAGES: u32 = 1 << 4;
    pub const SIGNAL_EVENTS: u32 = 1 << 5;
}
/// Leaf 4000_0003h EDX.
mod features {
    pub const FREQUENCIES: u32 = 1 << 8;
    pub const CRASH: u32 = 1 << 10;
    pub const DIRECT_TIMERS: u32 = 1 << 19;
}
/// Leaf 4000_0004h EAX: what a guest had better do.
mod hints {
    pub const REMOTE_FLUSH: u32 = 1 << 2;
    pub const NO_AUTO_EOI: u32 = 1 << 9;
    pub const CLUSTER_IPI: u32 = 1 << 10;
    pub const PROCESSOR_SETS: u32 = 1 << 11;
}

/// Spins on a lock after which a guest had better tell ([`crate::Hyperv`] then lets other threads run). TLFS 2.4.5, EBX.
const SPINS: u32 = 0xfff;

/// A named set.
#[derive(Debug, PartialEq, Eq)]
pub struct Enlightenments {
    name: &'static str,
    partition: u32,
    calls: u32,
    features: u32,
    hints: u32,
}

/// The sets there are. A published one never changes.
///
/// Not in `hyperv-1`: the invariant TSC (EAX bit 15). With it Linux keeps time by the TSC alone, and must then never meet a host
/// whose TSC runs at another rate; without, by the reference TSC page and by synthetic timers, in units that are the same
/// everywhere.
///
/// `hyperv-1-flush` is `hyperv-1` and hypercalls by which a processor flushes the TLBs of others and interrupts several at once.
/// Not every engine flushes, so a machine that is to move between engines does without.
static SETS: [Enlightenments; 2] = [
    HYPERV_1,
    Enlightenments {
        name: "hyperv-1-flush",
        hints: HYPERV_1.hints | hints::REMOTE_FLUSH | hints::CLUSTER_IPI | hints::PROCESSOR_SETS,
        ..HYPERV_1
    },
];

const HYPERV_1: Enlightenments = Enlightenments {
    name: "hyperv-1",
    partition: partition::REFERENCE_COUNTER
        | partition::SYNIC
        | partition::SYNTHETIC_TIMERS
        | partition::HYPERCALLS
        | partition::VP_INDEX
        | partition::REFERENCE_TSC
        | partition::FREQUENCIES,
    calls: calls::POST_MESSAGES | calls::SIGNAL_EVENTS,
    features: features::FREQUENCIES | features::CRASH | features::DIRECT_TIMERS,
    hints: hints::NO_AUTO_EOI,
};

/// Most virtual processors of a partition, as leaf 4000_0005h says.
const MAX_VPS: u32 = 1024;

impl Enlightenments {
    /// The set of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SETS.iter().find(|s| s.name == name)
    }

    /// The set that a new machine gets, on an engine that can flush TLBs (`flushes`), or cannot.
    pub fn best(flushes: bool) -> &'static Self {
        SETS.iter().rev().find(|s| flushes || !s.flushes_tlbs()).unwrap_or(&SETS[0])
    }

    /// Whether it needs an engine that flushes TLBs of other processors ([`vireo_core::TlbFlusher`]).
    pub fn flushes_tlbs(&self) -> bool {
        self.hints & hints::REMOTE_FLUSH != 0
    }

    /// Names of all sets, oldest first.
    pub fn names() -> impl Iterator<Item = &'static str> {
        SETS.iter().map(|s| s.name)
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The leaves of CPUID from 4000_0000h on: EAX, EBX, ECX, EDX each (TLFS 2.4).
    pub fn cpuid(&self) -> Vec<[u32; 4]> {
        let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
        vec![
            [0x4000_0006, word(b"Micr"), word(b"osof"), word(b"t Hv")],
            [word(b"Hv#1"), 0, 0, 0],
            // Who makes it: version 10.0, as guests need to know of direct timers and VMBus 5; build 1.
            [1, 10 << 16, 0, 0],
            [self.partition, self.calls, 0, self.features],
            [self.hints, SPINS, 0, 0],
            [MAX_VPS, MAX_VPS, 0, 0],
            [0; 4],
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Golden: a set that changes is another set.
    #[test]
    fn a_published_set_never_changes() {
        let leaves = |name| Enlightenments::named(name).expect("published").cpuid();
        let hyperv_1 = leaves("hyperv-1");
        assert_eq!(
            hyperv_1,
            [
                [0x4000_0006, 0x7263_694d, 0x666f_736f, 0x7648_2074],
                [0x3123_7648, 0, 0, 0],
                [1, 0x000a_0000, 0, 0],
                [0x0000_0a6e, 0x30, 0, 0x0008_0500],
                [0x200, 0xfff, 0, 0],
                [1024, 1024, 0, 0],
                [0; 4],
            ]
        );
        let mut with_flush = hyperv_1;
        with_flush[4][0] = 0xe04;
        assert_eq!(leaves("hyperv-1-flush"), with_flush);
        assert!(Enlightenments::names().all(|n| Enlightenments::named(n).is_some()));
    }

    #[test]
    fn a_new_machine_gets_what_its_engine_can_do() {
        assert_eq!(Enlightenments::best(true).name(), "hyperv-1-flush");
        assert_eq!(Enlightenments::best(false).name(), "hyperv-1");
    }
}
