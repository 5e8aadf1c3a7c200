//! Why a command failed, as SCSI says it (SPC-4, 4.5).

use serde::{Deserialize, Serialize};
use vireo_block::{BlockError, Operation};

/// Bytes of fixed-format sense data.
pub const LENGTH: usize = 18;

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sense {
    /// Kind of trouble.
    pub key: u8,
    /// What it is.
    pub code: u8,
    /// More of what it is.
    pub qualifier: u8,
}

impl Sense {
    /// There is nothing.
    pub const NONE: Self = Self::new(0, 0, 0);
    /// It cannot be used yet.
    pub const NOT_READY: Self = Self::new(2, 4, 0);
    /// No medium is there.
    pub const NO_MEDIUM: Self = Self::new(2, 0x3a, 1);
    /// None, since the tray is open.
    pub const NO_MEDIUM_OPEN: Self = Self::new(2, 0x3a, 2);
    /// The medium cannot be read.
    pub const UNREADABLE: Self = Self::new(3, 0x11, 0);
    /// A command that there is not.
    pub const INVALID_COMMAND: Self = Self::new(5, 0x20, 0);
    /// Beyond the end of the disk.
    pub const OUT_OF_RANGE: Self = Self::new(5, 0x21, 0);
    /// A value in the command that it cannot have.
    pub const INVALID_FIELD: Self = Self::new(5, 0x24, 0);
    /// The same in the data that comes with it.
    pub const INVALID_PARAMETER: Self = Self::new(5, 0x26, 0);
    /// Fewer bytes than the list says.
    pub const PARAMETER_LENGTH: Self = Self::new(5, 0x1a, 0);
    /// Mode pages are not saved.
    pub const NOT_SAVED: Self = Self::new(5, 0x39, 0);
    /// The guest has locked the medium in.
    pub const REMOVAL_PREVENTED: Self = Self::new(5, 0x53, 2);
    /// Another medium may be there.
    pub const MEDIUM_CHANGED: Self = Self::new(6, 0x28, 0);
    /// The disk has been there since power-on or reset.
    pub const POWER_ON: Self = Self::new(6, 0x29, 0);
    /// The disk has another size.
    pub const CAPACITY_CHANGED: Self = Self::new(6, 0x2a, 9);
    /// Writing is not allowed.
    pub const WRITE_PROTECTED: Self = Self::new(7, 0x27, 0);
    /// There is no space below the disk.
    pub const NO_SPACE: Self = Self::new(7, 0x27, 7);

    /// By its numbers.
    pub const fn new(key: u8, code: u8, qualifier: u8) -> Self {
        Self { key, code, qualifier }
    }

    /// Of a request that failed.
    pub fn of(error: &BlockError, operation: Operation) -> Self {
        match error {
            BlockError::OutOfRange { .. } => Self::OUT_OF_RANGE,
            BlockError::Buffers { .. } => Self::INVALID_FIELD,
            BlockError::ReadOnly => Self::WRITE_PROTECTED,
            BlockError::NoSpace => Self::NO_SPACE,
            BlockError::Gone => Self::NO_MEDIUM,
            BlockError::Io(_) if operation == Operation::Read => Self::UNREADABLE,
            // Write error.
            BlockError::Io(_) => Self::new(3, 0x0c, 0),
            // Internal target failure.
            BlockError::Image(_) => Self::new(4, 0x44, 0),
        }
    }

    /// In fixed format, of a current error (4.5.3).
    pub const fn bytes(self) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[0] = 0x70;
        bytes[2] = self.key;
        bytes[7] = LENGTH as u8 - 8;
        bytes[12] = self.code;
        bytes[13] = self.qualifier;
        bytes
    }
}
