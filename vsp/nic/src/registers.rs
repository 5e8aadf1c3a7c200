//! The registers: where they are, what they hold.
//!
//! Source: Intel, "PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual", revision 4.0, chapter 13.

use serde::{Deserialize, Serialize};
use vireo_frame::Mac;

use crate::eeprom::Microwire;
use crate::phy::Phy;

/// Offsets of registers that do something.
pub(crate) mod at {
    #![allow(missing_docs)]
    pub const CTRL: u32 = 0x0000;
    pub const CTRL_COPY: u32 = 0x0004;
    pub const STATUS: u32 = 0x0008;
    pub const EECD: u32 = 0x0010;
    pub const EERD: u32 = 0x0014;
    pub const MDIC: u32 = 0x0020;
    pub const VET: u32 = 0x0038;
    pub const ICR: u32 = 0x00c0;
    pub const ICS: u32 = 0x00c8;
    pub const IMS: u32 = 0x00d0;
    pub const IMC: u32 = 0x00d8;
    pub const RCTL: u32 = 0x0100;
    pub const TCTL: u32 = 0x0400;
    pub const RDBAL: u32 = 0x2800;
    pub const RDT: u32 = 0x2818;
    pub const TDBAL: u32 = 0x3800;
    pub const TDT: u32 = 0x3818;
    pub const STATISTICS: u32 = 0x4000;
    pub const STATISTICS_END: u32 = 0x4100;
    pub const RXCSUM: u32 = 0x5000;
    pub const MTA: u32 = 0x5200;
    pub const RA: u32 = 0x5400;
    pub const VFTA: u32 = 0x5600;
}

/// Registers that are written and read back, and do nothing: flow control, timings, delays, LEDs, wake-up. Offset, and what can
/// be written.
const PLAIN: [(u32, u32); 27] = [
    (0x0018, 0xffff_ffff),
    (0x0028, 0xffff_ffff),
    (0x002c, 0xffff),
    (0x0030, 0xffff),
    (at::VET, 0xffff),
    (0x00c4, 0xffff),
    (0x0170, 0xffff),
    (0x0178, 0xffff_ffff),
    (0x0410, 0x3fff_ffff),
    (0x0458, 0xffff),
    (0x0e00, 0xcfcf_cfcf),
    (0x1000, 0x7f),
    (0x2160, 0x8000_fff8),
    (0x2168, 0xfff8),
    (0x2820, 0xffff),
    (0x2828, 0xffff_ffff),
    (0x282c, 0xffff),
    (0x2c00, 0xfff),
    (0x3820, 0xffff),
    (0x3828, 0xffff_ffff),
    (0x382c, 0xffff),
    (0x3830, 0xffff_ffff),
    (at::RXCSUM, 0x3ff),
    (0x5800, 0x1ff),
    (0x5808, 0x000f_ffff),
    (0x5820, 0xffff_ffff),
    (0x5838, 0xf),
];

pub(crate) mod ctrl {
    pub const FULL_DUPLEX: u32 = 1;
    pub const LINK_UP: u32 = 1 << 6;
    pub const RESET: u32 = 1 << 26;
    pub const VLAN: u32 = 1 << 30;
    pub const PHY_RESET: u32 = 1 << 31;
    /// Bits that stay where they are written.
    pub const KEPT: u32 = 0x7bff_ffff;
}

pub(crate) mod status {
    pub const FULL_DUPLEX: u32 = 1;
    pub const LINK_UP: u32 = 1 << 1;
    pub const GIGABIT: u32 = 2 << 6;
}

/// Causes of interrupts.
pub(crate) mod cause {
    pub const TX_WRITTEN_BACK: u32 = 1;
    pub const TX_EMPTY: u32 = 1 << 1;
    pub const LINK: u32 = 1 << 2;
    pub const RX_LOW: u32 = 1 << 4;
    pub const RX: u32 = 1 << 7;
    pub const MDIO: u32 = 1 << 9;
    pub const ALL: u32 = 0x0001_ffff;
}

pub(crate) mod rctl {
    pub const ENABLE: u32 = 1 << 1;
    pub const ALL_STATIONS: u32 = 1 << 3;
    pub const ALL_GROUPS: u32 = 1 << 4;
    pub const LONG: u32 = 1 << 5;
    pub const LOOPBACK: u32 = 3 << 6;
    pub const BROADCAST: u32 = 1 << 15;
    pub const VLAN_FILTER: u32 = 1 << 18;
    pub const LARGER: u32 = 1 << 25;
    pub const NO_CRC: u32 = 1 << 26;
}

pub(crate) mod tctl {
    pub const ENABLE: u32 = 1 << 1;
    pub const PAD: u32 = 1 << 3;
}

/// A ring of descriptors, in guest memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ring {
    pub base: u64,
    /// In bytes.
    pub length: u32,
    pub head: u32,
    pub tail: u32,
}

/// Bytes of a descriptor of either ring.
pub(crate) const DESCRIPTOR: u64 = 16;

impl Ring {
    /// Descriptors.
    pub fn count(&self) -> u32 {
        self.length / DESCRIPTOR as u32
    }

    /// How many are the card's. None, where a guest has set what cannot be.
    pub fn filled(&self) -> u32 {
        let count = self.count();
        if self.head >= count || self.tail >= count {
            return 0;
        }
        if self.tail >= self.head { self.tail - self.head } else { count - self.head + self.tail }
    }

    /// Where the next one is, which becomes the guest's.
    pub fn take(&mut self) -> u64 {
        let address = self.base.wrapping_add(u64::from(self.head) * DESCRIPTOR);
        self.head = if self.head + 1 >= self.count() { 0 } else { self.head + 1 };
        address
    }

    fn write(&mut self, register: u32, value: u32) {
        match register {
            0x00 => self.base = self.base & !0xffff_ffff | u64::from(value & !0xf),
            0x04 => self.base = self.base & 0xffff_ffff | u64::from(value) << 32,
            0x08 => self.length = value & 0x000f_ff80,
            0x10 => self.head = value & 0xffff,
            0x18 => self.tail = value & 0xffff,
            _ => {}
        }
    }

    fn read(&self, register: u32) -> u32 {
        match register {
            0x00 => self.base as u32,
            0x04 => (self.base >> 32) as u32,
            0x08 => self.length,
            0x10 => self.head,
            0x18 => self.tail,
            _ => 0,
        }
    }
}

/// What is to be summed and cut, as the guest said last (context descriptors, 3.3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Context {
    /// Of the IP header: where it starts, where its sum is, its last byte.
    pub ip: (u8, u8, u16),
    /// The same of TCP or UDP; the last byte may be 0: the end of the frame.
    pub transport: (u8, u8, u16),
    /// Bytes of payload that are to be cut, of headers, and of the payload of each segment.
    pub payload: u32,
    pub headers: u8,
    pub segment: u16,
    pub tcp: bool,
    pub v4: bool,
}

/// A frame whose descriptors have not all come yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Partial {
    pub bytes: Vec<u8>,
    /// Its first descriptor was read: what that said counts.
    pub begun: bool,
    pub cut: bool,
    pub sum_ip: bool,
    pub sum_transport: bool,
    pub too_long: bool,
}

/// All of the card that a guest sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registers {
    pub ctrl: u32,
    pub icr: u32,
    pub ims: u32,
    pub rctl: u32,
    pub tctl: u32,
    pub rx: Ring,
    pub tx: Ring,
    /// Groups, by hashes of 12 bits.
    pub mta: Vec<u32>,
    /// Addresses: low and high word of each.
    pub ra: Vec<u32>,
    pub vfta: Vec<u32>,
    pub statistics: Vec<u32>,
    plain: Vec<u32>,
    pub eerd: u32,
    pub microwire: Microwire,
    pub mdic: u32,
    pub phy: Phy,
    pub context: Context,
    pub partial: Partial,
}

impl Registers {
    /// As after power-on, with the address that the EEPROM has.
    pub fn new(address: Mac) -> Self {
        let [a, b, c, d, e, f] = address.0;
        let mut ra = vec![0; 32];
        ra[0] = u32::from_le_bytes([a, b, c, d]);
        ra[1] = u32::from_le_bytes([e, f, 0, 0x80]);
        let mut registers = Self {
            ctrl: ctrl::FULL_DUPLEX | ctrl::LINK_UP,
            icr: 0,
            ims: 0,
            rctl: 0,
            tctl: 0,
            rx: Ring::default(),
            tx: Ring::default(),
            mta: vec![0; 128],
            ra,
            vfta: vec![0; 128],
            statistics: vec![0; 64],
            plain: vec![0; PLAIN.len()],
            eerd: 0,
            microwire: Microwire::default(),
            mdic: 0,
            phy: Phy::default(),
            context: Context::default(),
            partial: Partial::default(),
        };
        registers.write_plain(at::VET, 0x8100);
        // Buffers for frames: 48 KiB to receive, the rest of 64 to send.
        registers.write_plain(0x1000, 0x30);
        registers
    }

    /// Whether a saved state can be a card's.
    pub fn possible(&self) -> bool {
        self.mta.len() == 128
            && self.ra.len() == 32
            && self.vfta.len() == 128
            && self.statistics.len() == 64
            && self.plain.len() == PLAIN.len()
            && self.partial.bytes.len() <= vireo_frame::FRAME_MAX
            && self.microwire.possible()
            && self.phy.possible()
    }

    /// The address of the card: the first of its table, if it is in use.
    pub fn address(&self) -> Option<Mac> {
        self.station(0)
    }

    /// Address `n` of the table.
    pub fn station(&self, n: usize) -> Option<Mac> {
        let (low, high) = (self.ra.get(n * 2)?.to_le_bytes(), self.ra.get(n * 2 + 1)?.to_le_bytes());
        let [a, b, c, d] = low;
        (high[3] & 0x80 != 0).then_some(Mac([a, b, c, d, high[0], high[1]]))
    }

    pub fn vlan_type(&self) -> u16 {
        self.read_plain(at::VET) as u16
    }

    pub fn receive_sums(&self) -> u32 {
        self.read_plain(at::RXCSUM)
    }

    /// Counts what the register at this offset counts.
    pub fn count(&mut self, register: u32, by: u64) {
        let index = ((register - at::STATISTICS) / 4) as usize;
        // Octets have 64 bits, and start again at zero; all else stays at its end.
        if matches!(register, 0x4088 | 0x4090 | 0x40c0 | 0x40c8) {
            let sum = (u64::from(self.statistics[index]) | u64::from(self.statistics[index + 1]) << 32)
                .wrapping_add(by);
            (self.statistics[index], self.statistics[index + 1]) = (sum as u32, (sum >> 32) as u32);
        } else {
            self.statistics[index] = self.statistics[index].saturating_add(by as u32);
        }
    }

    fn plain_index(register: u32) -> Option<usize> {
        PLAIN.iter().position(|(at, _)| *at == register)
    }

    fn read_plain(&self, register: u32) -> u32 {
        Self::plain_index(register).map_or(0, |n| self.plain[n])
    }

    fn write_plain(&mut self, register: u32, value: u32) {
        if let Some(n) = Self::plain_index(register) {
            self.plain[n] = value & PLAIN[n].1;
        }
    }

    /// Reads a register that has no effect when it is read, but for statistics, which start anew.
    pub fn read(&mut self, register: u32) -> u32 {
        let word =
            |base: u32, words: &[u32]| words.get(((register - base) / 4) as usize).copied().unwrap_or(0);
        match register {
            at::CTRL | at::CTRL_COPY => self.ctrl,
            at::EECD => self.microwire.register(),
            at::EERD => self.eerd,
            at::MDIC => self.mdic,
            at::ICS | at::IMC => 0,
            at::IMS => self.ims,
            at::RCTL => self.rctl,
            at::TCTL => self.tctl,
            at::RDBAL..0x281c => self.rx.read(register - at::RDBAL),
            at::TDBAL..0x381c => self.tx.read(register - at::TDBAL),
            at::STATISTICS..at::STATISTICS_END => {
                let n = ((register - at::STATISTICS) / 4) as usize;
                self.statistics.get_mut(n).map_or(0, std::mem::take)
            }
            at::MTA..at::RA => word(at::MTA, &self.mta),
            at::RA..0x5480 => word(at::RA, &self.ra),
            at::VFTA..0x5800 => word(at::VFTA, &self.vfta),
            _ => self.read_plain(register),
        }
    }

    /// Writes a register that has no effect beyond itself.
    pub fn write(&mut self, register: u32, value: u32) {
        let n = |base: u32| ((register - base) / 4) as usize;
        match register {
            at::RCTL => self.rctl = value & 0x0fff_ffff,
            at::TCTL => self.tctl = value & 0x03ff_ffff,
            at::RDBAL..0x281c => self.rx.write(register - at::RDBAL, value),
            at::TDBAL..0x381c => self.tx.write(register - at::TDBAL, value),
            at::MTA..at::RA => self.mta[n(at::MTA)] = value,
            // Of the high words the upper half has but the bit that says whether the address is in use, and two of its kind.
            at::RA..0x5480 => {
                let kept = if n(at::RA) % 2 == 1 { 0x8003_ffff } else { 0xffff_ffff };
                self.ra[n(at::RA)] = value & kept;
            }
            at::VFTA..0x5800 => self.vfta[n(at::VFTA)] = value,
            _ => self.write_plain(register, value),
        }
    }
}
