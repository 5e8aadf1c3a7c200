//! Who gets a message (SDM vol. 3A, 11.6.2 and 11.12.10).

use super::message::{DeliveryMode, Destination, Message};

/// Where a vCPU is to be found, and whether it takes interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routing {
    /// APIC id; 8 bits in xAPIC mode.
    pub id: u32,
    /// LDR bits 31:24, in xAPIC mode.
    pub logical: u8,
    /// DFR says flat model rather than cluster model, in xAPIC mode.
    pub flat: bool,
    /// In x2APIC mode: the logical id follows from the id.
    pub x2apic: bool,
    /// Enabled in IA32_APIC_BASE: it takes messages.
    pub enabled: bool,
    /// Enabled in SVR too: it takes interrupts.
    pub software_enabled: bool,
    /// Task priority, by which lowest-priority messages are arbitrated.
    pub priority: u8,
}

impl Routing {
    /// As one word, for a mailbox.
    pub(super) fn pack(self) -> u64 {
        let flags = [self.flat, self.x2apic, self.enabled, self.software_enabled];
        let flags = (0..).zip(flags).fold(0, |all, (i, flag)| all | u64::from(flag) << i);
        u64::from(self.id) | u64::from(self.logical) << 32 | u64::from(self.priority) << 40 | flags << 48
    }

    pub(super) fn unpack(word: u64) -> Self {
        let flag = |i: u32| word >> (48 + i) & 1 != 0;
        Self {
            id: word as u32,
            logical: (word >> 32) as u8,
            priority: (word >> 40) as u8,
            flat: flag(0),
            x2apic: flag(1),
            enabled: flag(2),
            software_enabled: flag(3),
        }
    }

    /// The logical id of an APIC in x2APIC mode: cluster in 31:16, one bit of 16 below (SDM vol. 3A, 11.12.10.2).
    pub fn x2apic_logical(id: u32) -> u32 {
        (id >> 4) << 16 | 1 << (id & 15)
    }

    /// Whether a destination names this APIC. Shorthands depend on the sender and are [`route`]'s.
    pub fn matches(&self, destination: &Destination) -> bool {
        let everybody = |id: u32, wide: bool| id == if wide { u32::MAX } else { 0xff };
        match *destination {
            Destination::Physical { id, wide } => everybody(id, wide) || id == self.id,
            Destination::Logical { id, wide } => everybody(id, wide) || self.matches_logical(id),
            Destination::All => true,
            Destination::Myself | Destination::Others => false,
        }
    }

    fn matches_logical(&self, id: u32) -> bool {
        if self.x2apic {
            let own = Self::x2apic_logical(self.id);
            return own >> 16 == id >> 16 && own & id & 0xffff != 0;
        }
        let Ok(id) = u8::try_from(id) else { return false };
        if self.flat {
            self.logical & id != 0
        } else {
            self.logical >> 4 == id >> 4 && self.logical & id & 15 != 0
        }
    }

    /// Whether the APIC takes a message of this kind at all.
    fn takes(&self, mode: DeliveryMode) -> bool {
        self.enabled && (self.software_enabled || !mode.has_vector())
    }
}

/// Calls `deliver` with the index of each vCPU that a message is for. `routing` gives the vCPUs in order of index;
/// `source` is the index of the vCPU that wrote the ICR.
///
/// A lowest-priority message goes to one of its targets: one of those with the lowest task priority, chosen by
/// the vector, so that a vector stays where it is and different ones spread.
pub fn route<I>(message: &Message, source: Option<usize>, routing: I, mut deliver: impl FnMut(usize))
where
    I: Iterator<Item = Routing> + Clone,
{
    let chosen = |i: usize, r: &Routing| {
        r.takes(message.mode)
            && match message.destination {
                Destination::Myself => Some(i) == source,
                Destination::Others => Some(i) != source,
                ref destination => r.matches(destination),
            }
    };
    let targets = routing.enumerate().filter(|(i, r)| chosen(*i, r));
    if message.mode != DeliveryMode::LowestPriority {
        return targets.for_each(|(i, _)| deliver(i));
    }
    // Routing may change between two looks; a message then goes to another target, or to the first.
    let Some(lowest) = targets.clone().map(|(_, r)| r.priority).min() else { return };
    let idle = || targets.clone().filter(|(_, r)| r.priority <= lowest);
    let count = idle().count().max(1);
    if let Some((i, _)) = idle().nth(usize::from(message.vector) % count).or_else(|| targets.clone().next()) {
        deliver(i);
    }
}
