//! What hosts set in every device alike: transfer mode, power, write cache.

use serde::{Deserialize, Serialize};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// As SET FEATURES gave it (ATA/ATAPI-6, "set transfer mode"). It changes nothing but what IDENTIFY says.
    mode: u8,
    /// Writes may end before they are durable.
    pub write_cache: bool,
    /// In standby: the next access ends it.
    pub standby: bool,
}

/// Kinds of transfer modes, in bits 7:3, and the highest of each.
const PIO: u8 = 0x08;
const MULTIWORD: u8 = 0x20;
const ULTRA: u8 = 0x40;
const HIGHEST_PIO: u8 = 4;
const HIGHEST_MULTIWORD: u8 = 2;
/// Ultra DMA 100.
const HIGHEST_ULTRA: u8 = 5;

impl Settings {
    /// Multiword DMA 2 is what firmware leaves behind for this controller.
    pub const POWER_ON: Self =
        Self { mode: MULTIWORD | HIGHEST_MULTIWORD, write_cache: true, standby: false };

    /// Sets the transfer mode, if it exists.
    pub const fn set_mode(&mut self, mode: u8) -> bool {
        let exists = mode_ok(mode);
        // PIO modes and DMA modes are set one beside the other.
        if exists && mode >= MULTIWORD {
            self.mode = mode;
        }
        exists
    }

    /// As CHECK POWER MODE has it (ATA/ATAPI-6).
    pub const fn power_mode(self) -> u8 {
        if self.standby { 0x00 } else { 0xFF }
    }

    /// Word 63 of IDENTIFY: which multiword DMA modes there are, and which is set.
    pub const fn multiword_word(self) -> u16 {
        modes_word(self.mode, MULTIWORD, HIGHEST_MULTIWORD)
    }

    /// Word 88: the same of Ultra DMA.
    pub const fn ultra_word(self) -> u16 {
        modes_word(self.mode, ULTRA, HIGHEST_ULTRA)
    }

    /// Whether a host can have set this.
    pub const fn valid(&self) -> bool {
        mode_ok(self.mode) && self.mode >= MULTIWORD
    }
}

const fn mode_ok(mode: u8) -> bool {
    match mode & 0xF8 {
        0 => mode <= 1,
        PIO => mode & 7 <= HIGHEST_PIO,
        MULTIWORD => mode & 7 <= HIGHEST_MULTIWORD,
        ULTRA => mode & 7 <= HIGHEST_ULTRA,
        _ => false,
    }
}

const fn modes_word(mode: u8, kind: u8, highest: u8) -> u16 {
    let there = (1 << (highest + 1)) - 1;
    if mode & 0xF8 == kind { there | 0x100 << (mode & 7) } else { there }
}
