//! The EEPROM: 64 words, read by a register, or bit by bit over its four wires.
//!
//! Sources: the manual named in `registers.rs`, chapter 5 and 13.4.3 f.; Microchip, 93C46 datasheet.

use serde::{Deserialize, Serialize};
use vireo_frame::Mac;

const WORDS: usize = 64;
/// All words together.
const SUM: u16 = 0xbaba;

const CLOCK: u32 = 1;
const SELECT: u32 = 1 << 1;
const IN: u32 = 1 << 2;
const OUT: u32 = 1 << 3;
const REQUEST: u32 = 1 << 6;
const GRANT: u32 = 1 << 7;
const PRESENT: u32 = 1 << 8;
const WRITABLE: u32 = CLOCK | SELECT | IN | 3 << 4 | REQUEST;

/// A start bit, the operation "read", six bits of address.
const COMMAND_BITS: u8 = 9;
const READ: u16 = 0b110;

/// Word `index`, of a card with this address.
pub(crate) fn word(address: Mac, index: usize) -> u16 {
    let [a, b, c, d, e, f] = address.0;
    let fixed = |index: usize| match index {
        0 => u16::from_le_bytes([a, b]),
        1 => u16::from_le_bytes([c, d]),
        2 => u16::from_le_bytes([e, f]),
        // Initialization: nothing beyond the defaults; the signature of a valid EEPROM.
        0x0a => 0x4000,
        0x0b => crate::SUBSYSTEM,
        0x0c | 0x0e => crate::VENDOR,
        0x0d => crate::DEVICE,
        // No management, no boot agent.
        0x30.. => 0xffff,
        _ => 0,
    };
    match index % WORDS {
        0x3f => (0..0x3f).fold(SUM, |sum, n| sum.wrapping_sub(fixed(n))),
        n => fixed(n),
    }
}

/// The register by which a word is read: start and address in, data and "done" out.
pub(crate) fn read_register(address: Mac, value: u32) -> u32 {
    if value & 1 == 0 {
        return value & 0xff00;
    }
    let index = (value >> 8 & 0xff) as usize;
    u32::from(word(address, index)) << 16 | value & 0xff00 | 1 << 4
}

/// The four wires.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Microwire {
    wires: u32,
    /// Bits of a command that came in, and how many.
    command: u16,
    bits: u8,
    /// The next bit that goes out: word and bit.
    next: Option<u16>,
    out: bool,
}

impl Microwire {
    pub fn possible(&self) -> bool {
        self.wires & !WRITABLE == 0
            && self.bits <= COMMAND_BITS
            && self.next.is_none_or(|n| usize::from(n) < WORDS * 16)
    }

    /// As the guest reads it.
    pub fn register(&self) -> u32 {
        let granted = if self.wires & REQUEST != 0 { GRANT } else { 0 };
        // Nothing is ever being written: it is ready.
        let out = if self.next.is_none() || self.out { OUT } else { 0 };
        self.wires | granted | out | PRESENT
    }

    /// The guest moves the wires.
    pub fn write(&mut self, value: u32, address: Mac) {
        let before = std::mem::replace(&mut self.wires, value & WRITABLE);
        if value & SELECT == 0 || before & SELECT == 0 {
            (self.command, self.bits, self.next, self.out) = (0, 0, None, false);
        }
        let rises = value & CLOCK != 0 && before & CLOCK == 0;
        if value & SELECT == 0 || !rises {
            return;
        }
        if let Some(next) = self.next {
            self.out = word(address, usize::from(next / 16)) >> (15 - next % 16) & 1 != 0;
            self.next = Some((next + 1) % (WORDS as u16 * 16));
            return;
        }
        let bit = u16::from(value & IN != 0);
        // Zeroes before the start bit are nothing; what follows a command that is not "read" (it would write) is nothing either.
        if (self.bits == 0 && bit == 0) || self.bits == COMMAND_BITS {
            return;
        }
        self.command = self.command << 1 | bit;
        self.bits += 1;
        if self.bits == COMMAND_BITS && self.command >> 6 == READ {
            self.next = Some((self.command & 0x3f) * 16);
        }
    }
}
