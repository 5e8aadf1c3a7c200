//! A PCI function's configuration space: what can be written, BAR sizing, the capability list.
//!
//! Source: PCI Local Bus Specification 3.0, chapter 6.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::state::{RestoreError, check, check_version};

const VERSION: u32 = 1;
const DEVICE: &str = "PCI configuration space";
const SIZE: usize = 256;

const VENDOR_ID: usize = 0x00;
const DEVICE_ID: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const HEADER_TYPE: usize = 0x0E;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2C;
const SUBSYSTEM_ID: usize = 0x2E;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3C;
const INTERRUPT_PIN: usize = 0x3D;
const FIRST_CAPABILITY: usize = 0x40;

/// I/O, memory, bus master, parity, SERR, interrupt disable.
const COMMAND_WRITABLE: u16 = 0x0547;
const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Interrupt status: read-only, and no part of the state, because the function knows it.
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const MULTI_FUNCTION: u8 = 0x80;
const BARS: usize = 6;

/// Who a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class in bits 23:16, subclass in 15:8, programming interface in 7:0.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// More functions share this device number.
    pub multi_function: bool,
    /// INTA# is 1, INTD# is 4, none is 0.
    pub interrupt_pin: u8,
}

/// What a base address register decodes. Sizes are in bytes and powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// Ports; at least 4 and at most 256.
    Io {
        /// Bytes decoded.
        size: u32,
    },
    /// Memory with a 32-bit address; at least 16.
    Memory32 {
        /// Bytes decoded.
        size: u32,
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory with a 64-bit address; at least 16. Takes the next register too.
    Memory64 {
        /// Bytes decoded.
        size: u64,
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

/// Where a base address register decodes now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarWindow {
    /// Which register: 0 to 5.
    pub bar: u8,
    /// Ports, rather than memory.
    pub ports: bool,
    /// The addresses; ports are below 0x1_0000.
    pub range: Range<u64>,
}

/// Why a configuration space cannot be laid out so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PciLayoutError {
    /// The register does not exist, is taken, or (64 bits) has no neighbour free.
    #[error("BAR {0} is not available; choose one of the free ones from 0 to 5")]
    BarUnavailable(usize),
    /// Not a power of two, or out of range.
    #[error("BAR {0} has an impossible size; it must be a power of two in the range of its kind")]
    BarSize(usize),
    /// No such table of messages.
    #[error(
        "{0} MSI-X vectors are not possible here: there are 1 to 2048, in tables on multiples of 8 bytes"
    )]
    Vectors(u16),
    /// The capabilities together need more than 192 bytes.
    #[error("no room for capability {0:#x} in the configuration space")]
    CapabilitySpace(u8),
}

/// The 256 bytes, and which of their bits the guest can write.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Status bits cleared by writing 1.
    clearable: [u8; SIZE],
    initial: [u8; SIZE],
    bars: [Option<Bar>; BARS],
    next_capability: usize,
    /// Where the offset of the next capability goes.
    capability_link: usize,
}

/// Saved state of a [`ConfigSpace`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpaceState {
    version: u32,
    bytes: Vec<u8>,
}

impl ConfigSpace {
    /// A function of header type 0 with the usual command bits writable.
    pub fn new(identity: PciIdentity) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            clearable: [0; SIZE],
            initial: [0; SIZE],
            bars: [None; BARS],
            next_capability: FIRST_CAPABILITY,
            capability_link: CAPABILITIES,
        };
        space.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(DEVICE_ID, &identity.device.to_le_bytes());
        space.set(REVISION, &[identity.revision]);
        space.set(CLASS, &identity.class.to_le_bytes()[..3]);
        space.set(HEADER_TYPE, &[if identity.multi_function { MULTI_FUNCTION } else { 0 }]);
        space.set(SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        space.set(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        space.set(INTERRUPT_PIN, &[identity.interrupt_pin]);
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xFF]);
        // Parity, SERR, aborts.
        space.clearable[STATUS + 1] = 0xF9;
        space
    }

    /// Sets the value after reset of a device-specific register and the bits the guest can write.
    #[must_use]
    pub fn with_register(mut self, offset: u8, value: u8, writable: u8) -> Self {
        self.set(offset.into(), &[value]);
        self.allow(offset.into(), &[writable]);
        self
    }

    /// Adds base address register `index`.
    ///
    /// # Errors
    /// The register is taken or the size impossible.
    pub fn add_bar(&mut self, index: usize, bar: Bar) -> Result<(), PciLayoutError> {
        let wide = matches!(bar, Bar::Memory64 { .. });
        let previous_wide = index > 0 && matches!(self.bars.get(index - 1), Some(Some(Bar::Memory64 { .. })));
        let free = |i: usize| self.bars.get(i).is_some_and(Option::is_none);
        if !free(index) || previous_wide || (wide && !free(index + 1)) {
            return Err(PciLayoutError::BarUnavailable(index));
        }
        let (size, smallest, largest, flags) = match bar {
            Bar::Io { size } => (u64::from(size), 4, 256, 1),
            Bar::Memory32 { size, prefetchable } => (size.into(), 16, 1 << 31, u8::from(prefetchable) << 3),
            Bar::Memory64 { size, prefetchable } => (size, 16, 1 << 63, 4 | u8::from(prefetchable) << 3),
        };
        if !size.is_power_of_two() || !(smallest..=largest).contains(&size) {
            return Err(PciLayoutError::BarSize(index));
        }
        let offset = BAR0 + index * 4;
        // Sizing writes ones and reads back which bits can be set: those above the size.
        let mask = (!(size - 1)).to_le_bytes();
        let width = if wide { 8 } else { 4 };
        self.allow(offset, &mask[..width]);
        self.set(offset, &[flags]);
        self.bars[index] = Some(bar);
        Ok(())
    }

    /// Adds a capability: `body` follows the ID and the link, `writable` tells the bits of it the guest can
    /// write (missing bytes are read-only). Returns its offset.
    ///
    /// # Errors
    /// No room left.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, PciLayoutError> {
        let offset = self.next_capability;
        let end = offset + 2 + body.len();
        if end > SIZE || writable.len() > body.len() {
            return Err(PciLayoutError::CapabilitySpace(id));
        }
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        self.allow(offset + 2, writable);
        self.set(self.capability_link, &[offset as u8]);
        self.capability_link = offset + 1;
        self.next_capability = end.next_multiple_of(4);
        let status =
            u16::from_le_bytes([self.initial[STATUS], self.initial[STATUS + 1]]) | STATUS_CAPABILITIES;
        self.set(STATUS, &status.to_le_bytes());
        Ok(offset as u8)
    }

    /// Reads from `offset` on; what lies beyond the space reads as ones.
    pub fn read(&self, offset: u8, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(usize::from(offset) + i).copied().unwrap_or(0xFF);
        }
    }

    /// Writes what can be written from `offset` on.
    pub fn write(&mut self, offset: u8, data: &[u8]) {
        for (at, value) in (usize::from(offset)..SIZE).zip(data) {
            let kept = self.bytes[at] & !self.writable[at] & !(self.clearable[at] & value);
            self.bytes[at] = kept | value & self.writable[at];
        }
    }

    /// Where BAR `index` decodes now: `None` when it does not exist, decoding is off, or it holds 0.
    pub fn bar_address(&self, index: usize) -> Option<u64> {
        let bar = (*self.bars.get(index)?)?;
        let offset = BAR0 + index * 4;
        let dword = |at: usize| -> u32 {
            u32::from_le_bytes([self.bytes[at], self.bytes[at + 1], self.bytes[at + 2], self.bytes[at + 3]])
        };
        let (enable, address) = match bar {
            Bar::Io { .. } => (COMMAND_IO, u64::from(dword(offset) & !0x3)),
            Bar::Memory32 { .. } => (COMMAND_MEMORY, u64::from(dword(offset) & !0xF)),
            Bar::Memory64 { .. } => {
                (COMMAND_MEMORY, u64::from(dword(offset) & !0xF) | u64::from(dword(offset + 4)) << 32)
            }
        };
        (self.command() & enable != 0 && address != 0).then_some(address)
    }

    /// All that decodes now. A register that holds an address where nothing can be (guests find the size of a BAR by writing
    /// ones) decodes nothing.
    pub fn windows(&self) -> Vec<BarWindow> {
        let window = |index: usize| {
            let start = self.bar_address(index)?;
            let (ports, size) = match self.bars[index]? {
                Bar::Io { size } => (true, size.into()),
                Bar::Memory32 { size, .. } => (false, size.into()),
                Bar::Memory64 { size, .. } => (false, size),
            };
            let end = start.checked_add(size).filter(|end| !ports || *end <= 1 << 16)?;
            Some(BarWindow { bar: index as u8, ports, range: start..end })
        };
        (0..BARS).filter_map(window).collect()
    }

    /// Whether a write of `len` bytes at `offset` may change what [`ConfigSpace::windows`] tells.
    pub fn may_move_bars(offset: u8, len: usize) -> bool {
        let range = usize::from(offset)..usize::from(offset) + len;
        [COMMAND..COMMAND + 1, BAR0..BAR0 + 4 * BARS]
            .iter()
            .any(|r| range.start < r.end && r.start < range.end)
    }

    /// Whether the guest has forbidden the INTx pin.
    pub fn intx_disabled(&self) -> bool {
        self.command() & COMMAND_INTX_DISABLE != 0
    }

    /// Tells the guest whether the function wants to interrupt by its INTx pin, be it disabled or not.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        let status = &mut self.bytes[STATUS];
        *status = *status & !STATUS_INTERRUPT | if pending { STATUS_INTERRUPT } else { 0 };
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]])
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// The state.
    pub fn save(&self) -> ConfigSpaceState {
        let mut bytes = self.bytes.to_vec();
        bytes[STATUS] &= !STATUS_INTERRUPT;
        ConfigSpaceState { version: VERSION, bytes }
    }

    /// Takes over a saved state. The interrupt status is not in it: the function sets it anew.
    ///
    /// # Errors
    /// Another version, or read-only bits that differ: the state is another device's.
    pub fn restore(&mut self, state: &ConfigSpaceState) -> Result<(), RestoreError> {
        check_version(DEVICE, state.version, VERSION)?;
        let Ok(bytes) = <[u8; SIZE]>::try_from(state.bytes.as_slice()) else {
            return check(DEVICE, false, "not 256 bytes");
        };
        let same = (0..SIZE)
            .all(|at| (bytes[at] ^ self.initial[at]) & !self.writable[at] & !self.clearable[at] == 0);
        check(DEVICE, same, "read-only bits differ from this device's")?;
        self.bytes = bytes;
        Ok(())
    }

    /// Sets bytes and what they are after reset.
    fn set(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..offset + value.len()].copy_from_slice(value);
        self.initial[offset..offset + value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, offset: usize, writable: &[u8]) {
        self.writable[offset..offset + writable.len()].copy_from_slice(writable);
    }
}
