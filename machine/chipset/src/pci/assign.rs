//! Base addresses after reset, as a PC's firmware gives them: the same every time for the same functions.
//!
//! Done by configuration accesses alone, as firmware does it (PCI Local Bus Specification 3.0 §6.2.5.1), so it needs nothing
//! of a function that a guest does not need.

use std::ops::Range;

use super::PciFunction;
use crate::layout::{PCI_BAR_MEMORY, PCI_BAR_PORTS};

const COMMAND: u8 = 0x04;
const BAR0: u8 = 0x10;
const BARS: u8 = 6;

const COMMAND_IO: u8 = 1;
const COMMAND_MEMORY: u8 = 2;
const BAR_IO: u32 = 1;
/// Bits 2:1 of a memory BAR: 64 bits wide.
const BAR_TYPE: u32 = 6;
const BAR_64: u32 = 4;
/// No two memory BARs share a page: guests map pages.
const PAGE: u64 = 0x1000;

fn read(function: &dyn PciFunction, offset: u8) -> u32 {
    let mut data = [0; 4];
    function.config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(function: &dyn PciFunction, offset: u8, value: u32) {
    function.config_write(offset, &value.to_le_bytes());
}

/// What can be decoded where, as sizing finds it.
enum Found {
    Ports { size: u64 },
    Memory { size: u64, wide: bool },
}

/// Sizes the BAR at `offset` and leaves it 0. `None`: there is none.
fn size(function: &dyn PciFunction, offset: u8) -> Option<Found> {
    let mask = |offset| {
        write(function, offset, u32::MAX);
        let mask = read(function, offset);
        write(function, offset, 0);
        mask
    };
    let low = mask(offset);
    if low == 0 {
        return None;
    }
    if low & BAR_IO != 0 {
        // The upper half may be wired to 0.
        let size = u64::from(!(low & !0x3) & 0xFFFF) + 1;
        return Some(Found::Ports { size });
    }
    let wide = low & BAR_TYPE == BAR_64;
    let high = if wide { mask(offset + 4) } else { u32::MAX };
    let size = (!(u64::from(high) << 32 | u64::from(low & !0xF))).checked_add(1)?;
    Some(Found::Memory { size, wide })
}

/// Takes `size` bytes, on a multiple of `size`.
fn take(free: &mut Range<u64>, size: u64) -> Option<u64> {
    let start = free.start.checked_next_multiple_of(size)?;
    let end = start.checked_add(size).filter(|end| *end <= free.end)?;
    free.start = end;
    Some(start)
}

/// Gives every BAR of the functions, which decode nothing yet, an address from the board's windows, and has them decode. One
/// that finds no room stays 0: the guest may place it, in the larger windows that ACPI tells it.
pub(super) fn assign<'a>(functions: impl Iterator<Item = &'a dyn PciFunction>) {
    let mut memory = PCI_BAR_MEMORY;
    let mut ports = u64::from(PCI_BAR_PORTS.start)..u64::from(PCI_BAR_PORTS.end);
    for function in functions {
        let mut decode = 0;
        let mut index = 0;
        while index < BARS {
            let offset = BAR0 + 4 * index;
            let (address, command) = match size(function, offset) {
                Some(Found::Ports { size }) => (take(&mut ports, size), COMMAND_IO),
                Some(Found::Memory { size, wide }) => {
                    index += u8::from(wide);
                    (take(&mut memory, size.max(PAGE)), COMMAND_MEMORY)
                }
                None => (None, 0),
            };
            index += 1;
            if let Some(address) = address {
                // All windows are below 4 GiB.
                write(function, offset, address as u32);
                decode |= command;
            }
        }
        if decode != 0 {
            function.config_write(COMMAND, &[decode]);
        }
    }
}
