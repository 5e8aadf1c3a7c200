//! The registers of a device as the host sees them: their bits, and the task file (ATA/ATAPI-6, "interface register
//! definitions").

use serde::{Deserialize, Serialize};

/// Bits of the status register (ATA/ATAPI-6).
pub mod status {
    /// An error: the error register says which. CHK for packet devices.
    pub const ERR: u8 = 0x01;
    /// The data register has, or wants, data.
    pub const DRQ: u8 = 0x08;
    /// Seek complete: not defined any more, but old drivers wait for it.
    pub const DSC: u8 = 0x10;
    /// Device fault.
    pub const DF: u8 = 0x20;
    /// The device takes commands.
    pub const DRDY: u8 = 0x40;
    /// The device works, no other register counts.
    pub const BSY: u8 = 0x80;
    /// Ready for a command.
    pub const READY: u8 = DRDY | DSC;
}

/// Bits of the error register (ATA/ATAPI-6).
pub mod error {
    /// The command is unknown, or one of its parameters.
    pub const ABRT: u8 = 0x04;
    /// There is no such sector.
    pub const IDNF: u8 = 0x10;
    /// The sector cannot be read.
    pub const UNC: u8 = 0x40;
    /// After a reset: the device's diagnostic passed ("diagnostic codes").
    pub const PASSED: u8 = 0x01;
}

/// Bits of the device control register (ATA/ATAPI-6).
pub mod control {
    /// Interrupts are off.
    pub const NIEN: u8 = 0x02;
    /// Software reset, while set.
    pub const SRST: u8 = 0x04;
    /// Reads show the previous content of the task file's registers.
    pub const HOB: u8 = 0x80;
}

/// Bits of the device register (ATA/ATAPI-6).
pub mod device {
    /// Device 1 is selected.
    pub const DEV: u8 = 0x10;
    /// Addresses are LBAs.
    pub const LBA: u8 = 0x40;
    /// Read as ones: not defined any more.
    pub const OBSOLETE: u8 = 0xA0;
}

/// Of an interrupt's reason, which packet devices put where ATA has its sector count (ATA/ATAPI-6, "PACKET").
pub mod reason {
    /// A command (not data) is moved.
    pub const COMMAND: u8 = 0x01;
    /// To the host.
    pub const TO_HOST: u8 = 0x02;
}

/// A register that remembers what was in it before (48-bit addresses, ATA/ATAPI-6, "48-bit Address feature set").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deep {
    /// Written last.
    pub now: u8,
    /// Written before.
    pub before: u8,
}

impl Deep {
    /// As the host writes it.
    pub fn write(&mut self, value: u8) {
        *self = Self { now: value, before: self.now };
    }

    /// As the host reads it, with HOB set or not.
    pub const fn read(self, hob: bool) -> u8 {
        if hob { self.before } else { self.now }
    }

    /// Both, as 16 bits.
    pub const fn both(self) -> u16 {
        u16::from_be_bytes([self.before, self.now])
    }
}

/// A device's copy of the registers between data and command. Both devices of a channel take what the host writes; what
/// a device puts into its own, the other does not see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskFile {
    /// Written by the host only.
    pub features: Deep,
    /// Sectors, or the reason of an interrupt.
    pub count: Deep,
    /// LBA low, mid, high. Mid and high are the byte count of packet devices.
    pub lba: [Deep; 3],
    /// Read by the host only.
    pub status: u8,
    /// Read by the host only.
    pub error: u8,
}

impl TaskFile {
    /// The byte count of packet devices (LBA mid and high).
    pub const fn byte_count(&self) -> u16 {
        u16::from_le_bytes([self.lba[1].now, self.lba[2].now])
    }

    /// Sets it.
    pub const fn set_byte_count(&mut self, bytes: u16) {
        let [low, high] = bytes.to_le_bytes();
        self.lba[1].now = low;
        self.lba[2].now = high;
    }

    /// What tells a disk from a packet device after a reset (ATA/ATAPI-6, "signature and persistence").
    pub fn sign(&mut self, packet: bool) {
        let (mid, high) = if packet { (0x14, 0xEB) } else { (0, 0) };
        let fresh = |now| Deep { now, before: 0 };
        self.count = fresh(1);
        self.lba = [fresh(1), fresh(mid), fresh(high)];
    }
}
