//! A device on its cable.

use vireo_block::{BlockError, Buffer};

use crate::disk::Disk;
use crate::packet::PacketDevice;
use crate::registers::{TaskFile, error, status};
use crate::step::{Io, Step, Task};

/// A device and its registers.
pub struct Drive {
    pub task: TaskFile,
    /// It wants to interrupt.
    pub interrupt: bool,
    pub device: Device,
}

/// What kind it is.
pub enum Device {
    Disk(Disk),
    Packet(PacketDevice),
}

impl Drive {
    pub fn new(device: Device) -> Self {
        Self { task: TaskFile::default(), interrupt: false, device }
    }

    pub const fn is_packet(&self) -> bool {
        matches!(self.device, Device::Packet(_))
    }

    /// All settings are the first ones again.
    pub fn power_on(&mut self) {
        self.task = TaskFile::default();
        match &mut self.device {
            Device::Disk(d) => d.power_on(),
            Device::Packet(p) => p.power_on(),
        }
    }

    /// Says who it is, after a reset. A packet device is not ready until it is given a command (ATA/ATAPI-6, "signature
    /// and persistence").
    pub fn sign(&mut self) {
        self.interrupt = false;
        self.task.sign(self.is_packet());
        self.task.error = error::PASSED;
        self.task.status = if self.is_packet() { 0 } else { status::READY };
    }
}

impl Device {
    /// The host gives a command.
    pub fn command(&mut self, code: u8, io: &mut Io) -> Step {
        match self {
            Self::Disk(d) => d.command(code, io),
            Self::Packet(p) => p.command(code, io),
        }
    }

    /// The host has moved the part of the buffer that it was to move.
    pub fn moved(&mut self, task: Task, io: &mut Io) -> Step {
        match self {
            Self::Disk(d) => d.moved(task, io),
            Self::Packet(p) => p.moved(task, io),
        }
    }

    /// The host has started the bus master, which moves from or to this memory.
    pub fn by_bus_master(&mut self, task: Task, memory: Vec<Buffer>, io: &mut Io) -> Step {
        match self {
            Self::Disk(d) => d.by_bus_master(task, memory),
            Self::Packet(p) => p.by_bus_master(task, memory, io),
        }
    }

    /// The disk is done.
    pub fn worked(&mut self, task: Task, failure: Option<&BlockError>, io: &mut Io) -> Step {
        match self {
            Self::Disk(d) => d.worked(task, failure, io),
            Self::Packet(p) => p.worked(task, failure, io),
        }
    }
}
