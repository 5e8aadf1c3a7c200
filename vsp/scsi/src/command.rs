//! A command and its end.

use std::sync::Arc;

use vireo_block::{Buffer, Executor, Request};

use crate::Sense;

/// Operation codes (SPC-4 and SBC-3, annexes).
#[allow(missing_docs)]
pub mod opcode {
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SELECT_6: u8 = 0x15;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const PREVENT_ALLOW_REMOVAL: u8 = 0x1e;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const WRITE_VERIFY_10: u8 = 0x2e;
    pub const VERIFY_10: u8 = 0x2f;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const MODE_SELECT_10: u8 = 0x55;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8a;
    pub const WRITE_VERIFY_16: u8 = 0x8e;
    pub const VERIFY_16: u8 = 0x8f;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const REPORT_LUNS: u8 = 0xa0;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const WRITE_VERIFY_12: u8 = 0xae;
    pub const VERIFY_12: u8 = 0xaf;
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// `None`: good. Else why not (status: check condition).
    pub sense: Option<Sense>,
    /// Bytes moved, either way.
    pub moved: u32,
}

impl Outcome {
    /// It went well.
    pub const fn good(moved: u32) -> Self {
        Self { sense: None, moved }
    }

    /// It failed.
    pub const fn failed(sense: Sense) -> Self {
        Self { sense: Some(sense), moved: 0 }
    }
}

/// A command for a logical unit.
pub struct Command {
    /// Command descriptor block, filled up with zeros.
    pub cdb: [u8; 16],
    /// Memory that data goes to or comes from, as the command has it.
    pub data: Vec<Buffer>,
    /// Told how it ended, once, on any thread.
    pub done: Box<dyn FnOnce(Outcome) + Send>,
}

impl Command {
    /// Bytes of its memory.
    pub fn room(&self) -> u64 {
        self.data.iter().map(|b| b.len() as u64).sum()
    }

    pub(crate) fn fail(self, sense: Sense) {
        (self.done)(Outcome::failed(sense));
    }

    /// Bytes of the block.
    pub(crate) fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.cdb[at], self.cdb[at + 1]])
    }

    pub(crate) fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.cdb[at], self.cdb[at + 1], self.cdb[at + 2], self.cdb[at + 3]])
    }

    pub(crate) fn be64(&self, at: usize) -> u64 {
        u64::from(self.be32(at)) << 32 | u64::from(self.be32(at + 4))
    }
}

/// What every logical unit is.
pub trait LogicalUnit: Send + Sync {
    /// Starts a command. What it needs of the unit's disk is added to `requests`, to be handed to [`LogicalUnit::submit`]; what
    /// needs nothing is done at once.
    fn start(&self, command: Command, requests: &mut Vec<Request>);

    /// Hands the requests of started commands to the disk.
    fn submit(&self, requests: &mut Vec<Request>);

    /// The thread of its disk that may serve who uses the unit: see `vireo_block::BlockDevice::executor`.
    fn executor(&self) -> Option<Arc<dyn Executor>> {
        None
    }

    /// The bus or the machine was reset.
    fn reset(&self);

    /// Looks whether something is to be told to the guest that it does not know yet (a disk's size): its next command ends with
    /// that (unit attention).
    fn look(&self) -> bool {
        false
    }
}
