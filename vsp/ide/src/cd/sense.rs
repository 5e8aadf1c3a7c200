//! Why a command failed (SPC-3 §4.5).

use serde::{Deserialize, Serialize};

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sense {
    /// 0 to 15.
    pub key: u8,
    /// Additional sense code.
    pub code: u8,
    /// Its qualifier.
    pub qualifier: u8,
}

const NOT_READY: u8 = 2;
const MEDIUM_ERROR: u8 = 3;
const ILLEGAL_REQUEST: u8 = 5;
const UNIT_ATTENTION: u8 = 6;

impl Sense {
    /// Nothing failed.
    pub const NONE: Self = Self::of(0, 0, 0);
    /// The drive is empty.
    pub const NO_MEDIUM: Self = Self::of(NOT_READY, 0x3A, 1);
    /// The tray is open.
    pub const NO_MEDIUM_OPEN: Self = Self::of(NOT_READY, 0x3A, 2);
    /// The medium could not be read.
    pub const UNREADABLE: Self = Self::of(MEDIUM_ERROR, 0x11, 0);
    /// No such command.
    pub const UNKNOWN_COMMAND: Self = Self::of(ILLEGAL_REQUEST, 0x20, 0);
    /// No such block.
    pub const OUT_OF_RANGE: Self = Self::of(ILLEGAL_REQUEST, 0x21, 0);
    /// A field of the command has a value that it cannot have here.
    pub const INVALID_FIELD: Self = Self::of(ILLEGAL_REQUEST, 0x24, 0);
    /// Mode pages are not saved.
    pub const NOT_SAVED: Self = Self::of(ILLEGAL_REQUEST, 0x39, 0);
    /// The host has locked the medium in.
    pub const REMOVAL_PREVENTED: Self = Self::of(ILLEGAL_REQUEST, 0x53, 2);
    /// Another medium may be there.
    pub const MEDIUM_CHANGED: Self = Self::of(UNIT_ATTENTION, 0x28, 0);
    /// The drive was switched on, or reset.
    pub const POWER_ON: Self = Self::of(UNIT_ATTENTION, 0x29, 0);

    const fn of(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier }
    }

    /// As data of fixed format (SPC-3 §4.5.3).
    pub const fn fixed(self) -> [u8; 18] {
        let mut data = [0; 18];
        data[0] = 0x70;
        data[2] = self.key;
        data[7] = 10;
        data[12] = self.code;
        data[13] = self.qualifier;
        data
    }
}
