//! A packet device: SCSI commands over ATA registers (ATA/ATAPI-6, "PACKET command feature set" and "PACKET command
//! protocol"), for a CD drive.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vireo_block::{BlockDevice, BlockError, Buffer, Operation};
use vireo_scsi::Sense;
use vireo_scsi::cd::{BLOCK, Cd, CdState, Reply};

use crate::IdeError;
use crate::address::SECTOR;
use crate::command::{self, feature};
use crate::identify;
use crate::registers::{error, reason};
use crate::settings::Settings;
use crate::step::{BUFFER, Io, Step, Task, Work};

/// Bytes of a packet.
const PACKET: usize = 12;

/// Saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketState {
    /// As the host set them.
    pub settings: Settings,
    /// The drive's.
    pub cd: CdState,
}

/// See the module.
pub struct PacketDevice {
    pub cd: Cd,
    pub settings: Settings,
    serial: String,
}

/// Whether a drive can have this medium: its blocks must be whole sectors.
///
/// # Errors
/// They are not.
pub fn check_medium(medium: &dyn BlockDevice, place: &'static str) -> Result<(), IdeError> {
    let sector = medium.info().sector;
    let fits = sector != 0 && BLOCK.is_multiple_of(sector.into());
    if fits { Ok(()) } else { Err(IdeError::SectorSize { place, sector }) }
}

impl PacketDevice {
    /// `place` names it.
    ///
    /// # Errors
    /// The medium's sectors are larger than its blocks.
    pub fn new(medium: Option<Arc<dyn BlockDevice>>, place: &'static str) -> Result<Self, IdeError> {
        if let Some(medium) = &medium {
            check_medium(&**medium, place)?;
        }
        let serial = identify::serial(None, place);
        Ok(Self { cd: Cd::new(medium), settings: Settings::POWER_ON, serial })
    }

    pub fn power_on(&mut self) {
        self.settings = Settings::POWER_ON;
        self.cd.power_on();
    }

    /// The host gives a command.
    pub fn command(&mut self, code: u8, io: &mut Io) -> Step {
        match code {
            // Overlapped commands are not known.
            command::PACKET if io.task.features.now & 2 == 0 => {
                io.task.count.now = reason::COMMAND;
                let task = Task::Packet { dma: io.task.features.now & 1 != 0 };
                Step::Data { to_host: false, part: 0..PACKET, interrupt: false, task }
            }
            command::IDENTIFY_PACKET_DEVICE => {
                io.buffer.write(0, &identify::packet_device(&self.serial, self.settings));
                Step::Data { to_host: true, part: 0..SECTOR as usize, interrupt: true, task: Task::Plain }
            }
            // Those that ask for a disk are told that this is none (ATA/ATAPI-6, "outputs for PACKET
            // command feature set devices" of both).
            command::IDENTIFY_DEVICE | command::READ_SECTORS => {
                io.task.sign(true);
                Step::failed(error::ABRT)
            }
            command::STANDBY_IMMEDIATE | command::STANDBY | command::SLEEP => self.standby(true),
            command::IDLE_IMMEDIATE | command::IDLE => self.standby(false),
            command::CHECK_POWER_MODE => {
                io.task.count.now = self.settings.power_mode();
                Step::Done
            }
            command::SET_FEATURES => match io.task.features.now {
                feature::TRANSFER_MODE if self.settings.set_mode(io.task.count.now) => Step::Done,
                feature::KEEP_SETTINGS | feature::REVERT_SETTINGS => Step::Done,
                _ => Step::failed(error::ABRT),
            },
            _ => Step::failed(error::ABRT),
        }
    }

    const fn standby(&mut self, standby: bool) -> Step {
        self.settings.standby = standby;
        Step::Done
    }

    /// The host has moved a part of the buffer.
    pub fn moved(&mut self, task: Task, io: &mut Io) -> Step {
        match task {
            Task::Packet { dma } => self.execute(dma, io),
            Task::Pieces { .. } => self.piece(task, io),
            _ => Step::Taken,
        }
    }

    fn execute(&mut self, dma: bool, io: &mut Io) -> Step {
        let mut packet = [0; PACKET];
        io.buffer.read(0, &mut packet);
        self.settings.standby = false;
        let reply = self.cd.execute(&packet);
        // With this, old drivers wait for less than there is; it must be even (ATA/ATAPI-6, "PACKET", byte count
        // limit).
        let limit = io.task.byte_count() & !1;
        match reply {
            Reply::Good => done(io),
            Reply::Check => self.check(io),
            Reply::Data(_) | Reply::Read { .. } if !dma && limit == 0 => {
                io.task.count.now = reason::COMMAND | reason::TO_HOST;
                Step::failed(error::ABRT)
            }
            Reply::Data(mut data) => {
                data.truncate(BUFFER);
                io.buffer.write(0, &data);
                if dma {
                    return Step::BusMaster(Task::Reply { len: data.len() as u64 });
                }
                self.piece(Task::Pieces { limit, sent: 0, filled: data.len(), at: 0, left: 0 }, io)
            }
            Reply::Read { at, len } if dma => Step::BusMaster(Task::Medium { at, len }),
            Reply::Read { at, len } => {
                self.piece(Task::Pieces { limit, sent: 0, filled: 0, at, left: len }, io)
            }
        }
    }

    /// The next piece for the host: out of the buffer; or first into it, when it is empty.
    fn piece(&mut self, task: Task, io: &mut Io) -> Step {
        let Task::Pieces { limit, sent, filled, at, left } = task else { return done(io) };
        if sent < filled {
            let len = (filled - sent).min(limit.into());
            io.task.count.now = reason::TO_HOST;
            io.task.set_byte_count(len as u16);
            let task = Task::Pieces { limit, sent: sent + len, filled, at, left };
            return Step::Data { to_host: true, part: sent..sent + len, interrupt: true, task };
        }
        if left == 0 {
            return done(io);
        }
        let len = left.min(BUFFER as u64);
        let buffer = Buffer::Host(Arc::clone(io.buffer), 0, len as usize);
        let task = Task::Pieces { limit, sent: 0, filled: len as usize, at: at + len, left: left - len };
        self.read(at, len, vec![buffer], task, io)
    }

    fn read(&mut self, at: u64, len: u64, memory: Vec<Buffer>, task: Task, io: &mut Io) -> Step {
        match self.cd.medium() {
            Some(medium) => Step::Work(Work::one(medium, Operation::Read, at, len, memory), task),
            // It was taken out in the middle of it.
            None => {
                self.cd.unreadable();
                self.check(io)
            }
        }
    }

    /// The bus master moves.
    pub fn by_bus_master(&mut self, task: Task, memory: Vec<Buffer>, io: &mut Io) -> Step {
        match task {
            Task::Medium { at, len } => self.read(at, len, memory, task, io),
            Task::Reply { .. } => {
                let mut data = vec![0; memory.iter().map(Buffer::len).sum::<usize>().min(BUFFER)];
                io.buffer.read(0, &mut data);
                let mut rest = &data[..];
                for to in &memory {
                    let (now, later) = rest.split_at(to.len().min(rest.len()));
                    to.write(0, now);
                    rest = later;
                }
                done(io)
            }
            _ => Step::failed(error::ABRT),
        }
    }

    /// The medium is done.
    pub fn worked(&mut self, task: Task, failure: Option<&BlockError>, io: &mut Io) -> Step {
        if failure.is_some() {
            self.cd.unreadable();
            return self.check(io);
        }
        self.piece(task, io)
    }

    /// The command failed: the sense key is in the error register, the rest is asked for (ATA/ATAPI-6, "PACKET",
    /// error outputs).
    fn check(&self, io: &mut Io) -> Step {
        let Sense { key, .. } = self.cd.sense();
        io.task.count.now = reason::COMMAND | reason::TO_HOST;
        Step::failed(key << 4 | if key == 5 { error::ABRT } else { 0 })
    }
}

fn done(io: &mut Io) -> Step {
    io.task.count.now = reason::COMMAND | reason::TO_HOST;
    Step::Done
}
