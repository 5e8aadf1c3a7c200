//! Interrupt messages: what an ICR write or a device's MSI asks for (SDM vol. 3A, 11.6.1 and 11.11).

use vireo_core::MsiMessage;

/// How a message acts on its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// An interrupt with the vector, to every target.
    Fixed,
    /// The same, to the one target that does the least important work.
    LowestPriority,
    /// System-management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI; the vector is the page number of the start address.
    StartUp,
    /// The vector comes from the PIC.
    ExtInt,
}

impl DeliveryMode {
    /// From the three-bit field of ICR, LVT and MSI data. `None`: reserved.
    pub fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            2 => Some(Self::Smi),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::StartUp),
            7 => Some(Self::ExtInt),
            _ => None,
        }
    }

    /// Whether the vector is that of an interrupt.
    pub fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// Which local APICs a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// By APIC id. `wide`: 32 bits, from an APIC in x2APIC mode; all ones is everybody in either width.
    Physical {
        /// The id.
        id: u32,
        /// 32 bits rather than 8.
        wide: bool,
    },
    /// By logical id.
    Logical {
        /// Message destination address: matched with LDR and DFR of the receiver.
        id: u32,
        /// 32 bits rather than 8.
        wide: bool,
    },
    /// The sender.
    Myself,
    /// Everybody, the sender too.
    All,
    /// Everybody but the sender.
    Others,
}

/// An interrupt message on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// How it acts.
    pub mode: DeliveryMode,
    /// Vector, for the modes that have one.
    pub vector: u8,
    /// Level-triggered: its EOI is told to the IOAPIC.
    pub level: bool,
    /// For whom.
    pub destination: Destination,
}

impl Message {
    /// An MSI as devices and the IOAPIC write it. `None`: not an interrupt message (another address, a reserved
    /// mode, the de-assertion of a level).
    pub fn from_msi(msi: &MsiMessage) -> Option<Self> {
        if msi.address >> 20 != 0xfee {
            return None;
        }
        let address = msi.address as u32;
        let id = address >> 12 & 0xff;
        let logical = address & 1 << 2 != 0;
        let redirect = address & 1 << 3 != 0;
        let level = msi.data & 1 << 15 != 0;
        if level && msi.data & 1 << 14 == 0 {
            return None;
        }
        let mode = match DeliveryMode::from_bits(msi.data >> 8)? {
            DeliveryMode::StartUp => return None,
            DeliveryMode::Fixed if redirect && logical => DeliveryMode::LowestPriority,
            mode => mode,
        };
        let destination = if logical {
            Destination::Logical { id, wide: false }
        } else {
            Destination::Physical { id, wide: false }
        };
        Some(Self { mode, vector: msi.data as u8, level, destination })
    }

    /// The message of an ICR value. `None`: a reserved mode, or the de-assertion of INIT, which does nothing since
    /// the Pentium 4 (SDM vol. 3A, 11.6.1).
    pub fn from_icr(icr: u64, x2apic: bool) -> Option<Self> {
        let low = icr as u32;
        let assert = low & 1 << 14 != 0;
        let level = low & 1 << 15 != 0;
        let mode = match DeliveryMode::from_bits(low >> 8)? {
            DeliveryMode::ExtInt => return None,
            DeliveryMode::Init if level && !assert => return None,
            mode => mode,
        };
        let id = if x2apic { (icr >> 32) as u32 } else { (icr >> 56) as u32 };
        let destination = match low >> 18 & 3 {
            1 => Destination::Myself,
            2 => Destination::All,
            3 => Destination::Others,
            _ if low & 1 << 11 != 0 => Destination::Logical { id, wide: x2apic },
            _ => Destination::Physical { id, wide: x2apic },
        };
        // IPIs are edge-triggered whatever the bit says (SDM vol. 3A, 11.6.1, "Trigger Mode").
        Some(Self { mode, vector: low as u8, level: false, destination })
    }
}
