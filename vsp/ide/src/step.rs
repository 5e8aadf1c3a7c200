//! What a device does next: the language between devices and the channel that they share.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vireo_block::{BlockDevice, Buffer, HostBuffer, Operation};

use crate::address::SECTOR;
use crate::registers::TaskFile;

/// What a device sees of its channel while it decides.
pub struct Io<'a> {
    /// Its own registers.
    pub task: &'a mut TaskFile,
    /// The device register, which both share.
    pub device: &'a mut u8,
    /// What the host moves word by word; [`BUFFER`] bytes.
    pub buffer: &'a Arc<HostBuffer>,
}

/// Length in bytes of a channel's buffer: all that the host ever moves between two looks at a disk.
pub const BUFFER: usize = 64 << 10;

/// Sectors of a read or write that are still to be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// The first one.
    pub lba: u64,
    /// How many.
    pub left: u32,
    /// Sectors that the host moves between two interrupts (PIO).
    pub block: u32,
    /// To the disk.
    pub write: bool,
    /// The write is durable when it ends.
    pub fua: bool,
    /// The command's address has 48 bits.
    pub ext: bool,
}

impl Run {
    /// Length in bytes of its next block.
    pub fn block_len(&self) -> usize {
        (u64::from(self.block.min(self.left)) * SECTOR) as usize
    }

    /// Without its first block.
    pub fn next(self) -> Self {
        let block = self.block.min(self.left);
        Self { lba: self.lba + u64::from(block), left: self.left - block, ..self }
    }
}

/// What a device is in the middle of, while the host, the bus master or a disk has its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Task {
    /// Nothing follows.
    Plain,
    /// Sectors through the buffer.
    Pio(Run),
    /// Sectors by bus master.
    Dma(Run),
    /// A block of ranges that are not needed any more, by bus master.
    Trim,
    /// A packet is coming; its data goes by bus master, or not.
    Packet {
        /// By bus master.
        dma: bool,
    },
    /// The buffer's first bytes, by bus master.
    Reply {
        /// How many.
        len: u64,
    },
    /// A part of a medium, by bus master.
    Medium {
        /// Its start in bytes.
        at: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A part of a medium, through the buffer, as many bytes at once as the host said.
    Pieces {
        /// Most bytes between two interrupts.
        limit: u16,
        /// The buffer's bytes up to here have been given to the host.
        sent: usize,
        /// The buffer is filled up to here.
        filled: usize,
        /// Start of what is not in the buffer yet, in bytes.
        at: u64,
        /// Its length.
        left: u64,
    },
}

impl Task {
    /// Bytes that the bus master moves; none if it has no part in the task.
    pub fn by_bus_master(&self) -> Option<u64> {
        match *self {
            Self::Dma(run) => Some(u64::from(run.left) * SECTOR),
            Self::Trim => Some(SECTOR),
            Self::Reply { len } | Self::Medium { len, .. } => Some(len),
            Self::Plain | Self::Pio(_) | Self::Packet { .. } | Self::Pieces { .. } => None,
        }
    }
}

/// One request to a disk.
pub struct Part {
    /// What.
    pub operation: Operation,
    /// Where, in bytes.
    pub at: u64,
    /// How much, in bytes.
    pub len: u64,
    /// With which memory.
    pub buffers: Vec<Buffer>,
}

/// Requests to a disk that belong together.
pub struct Work {
    /// Which disk.
    pub disk: Arc<dyn BlockDevice>,
    /// At least one.
    pub parts: Vec<Part>,
}

impl Work {
    /// A single request.
    pub fn one(
        disk: &Arc<dyn BlockDevice>,
        operation: Operation,
        at: u64,
        len: u64,
        buffers: Vec<Buffer>,
    ) -> Self {
        Self { disk: Arc::clone(disk), parts: vec![Part { operation, at, len, buffers }] }
    }
}

/// What a device does next.
pub enum Step {
    /// Its command ended well: it interrupts.
    Done,
    /// Its command ended well when the host took the last of its data, and was told before.
    Taken,
    /// Its command failed: status bits beside ERR, and the error register. It interrupts.
    Failed {
        /// Beside ERR.
        status: u8,
        /// The error register.
        error: u8,
    },
    /// The host moves a part of the buffer.
    Data {
        /// Reads it, rather than writes it.
        to_host: bool,
        /// Which part.
        part: Range<usize>,
        /// It is interrupted for that.
        interrupt: bool,
        /// What it is for.
        task: Task,
    },
    /// The disk has work.
    Work(Work, Task),
    /// The bus master's turn.
    BusMaster(Task),
}

impl Step {
    /// A command that fails with these bits in the error register.
    pub const fn failed(error: u8) -> Self {
        Self::Failed { status: 0, error }
    }
}
