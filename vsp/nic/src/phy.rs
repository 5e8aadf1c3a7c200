//! The PHY: a Marvell 88E1011, as far as drivers ask it anything.
//!
//! Sources: IEEE 802.3 clause 22 and 40; the manual named in `registers.rs`, 13.4.7 and its chapter on the PHY.

use serde::{Deserialize, Serialize};

/// The only one behind the card's wires.
const ADDRESS: u32 = 1;
const ERROR: u32 = 1 << 30;
const INTERRUPT: u32 = 1 << 29;
const READY: u32 = 1 << 28;

const CONTROL: usize = 0;
const STATUS: usize = 1;
const PARTNER: usize = 5;
const EXPANSION: usize = 6;
const GIGABIT_STATUS: usize = 10;
const SPECIFIC_STATUS: usize = 17;
/// Bits of the control register that come back as zero: reset, and "negotiate again".
const CONTROL_DONE: u16 = 1 << 15 | 1 << 9;

/// Registers that can be written.
const WRITABLE: [usize; 7] = [CONTROL, 4, 7, 9, 16, 18, 20];

/// Registers of the PHY.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Phy(Vec<u16>);

impl Default for Phy {
    fn default() -> Self {
        let mut words = vec![0; 32];
        let set = [
            // Negotiate; full duplex, a gigabit.
            (CONTROL, 0x1140),
            (2, 0x0141),
            (3, 0x0c20),
            // What is offered: all speeds, and pauses.
            (4, 0x0de1),
            (7, 0x2001),
            (9, 0x0e00),
            (15, 0x3000),
            (16, 0x0360),
            (20, 0x0d60),
        ];
        for (register, value) in set {
            words[register] = value;
        }
        Self(words)
    }
}

impl Phy {
    pub fn possible(&self) -> bool {
        self.0.len() == 32
    }

    fn read(&self, register: usize, carrier: bool) -> u16 {
        match (register, carrier) {
            // All kinds of 10 and 100 Mbit/s, extended status, negotiation; that it is done, and the link is up.
            (STATUS, true) => 0x796d,
            (STATUS, false) => 0x7949,
            (PARTNER, true) => 0x4de1,
            (EXPANSION, true) => 0x0003,
            // The partner can do a gigabit; both receivers are fine.
            (GIGABIT_STATUS, true) => 0x3c00,
            // A gigabit, full duplex, resolved, up.
            (SPECIFIC_STATUS, true) => 0xac00,
            (PARTNER | EXPANSION | GIGABIT_STATUS | SPECIFIC_STATUS, false) => 0,
            _ => self.0.get(register).copied().unwrap_or(0),
        }
    }

    fn write(&mut self, register: usize, value: u16) {
        if register == CONTROL && value & 1 << 15 != 0 {
            *self = Self::default();
        } else if WRITABLE.contains(&register) {
            self.0[register] = if register == CONTROL { value & !CONTROL_DONE } else { value };
        }
    }

    /// The guest writes the register by which it reaches the PHY. What it reads there next; whether it wants an interrupt.
    pub fn access(&mut self, value: u32, carrier: bool) -> (u32, bool) {
        let register = (value >> 16 & 0x1f) as usize;
        let asked = value & !(ERROR | READY) & 0x3fff_ffff;
        let answer = match (value >> 21 & 0x1f, value >> 26 & 3) {
            (ADDRESS, 1) => {
                self.write(register, value as u16);
                asked | READY
            }
            (ADDRESS, 2) => asked & !0xffff | u32::from(self.read(register, carrier)) | READY,
            _ => asked | READY | ERROR,
        };
        (answer, value & INTERRUPT != 0)
    }
}
