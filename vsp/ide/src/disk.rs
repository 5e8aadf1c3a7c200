//! An ATA disk: what its commands do (ATA/ATAPI-6, "command descriptions"; for what came later, ATA8-ACS).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vireo_block::{BlockDevice, BlockError, Buffer, Operation};

use crate::IdeError;
use crate::address::{self, Geometry, LIMIT_28, LIMIT_48, SECTOR};
use crate::command::{self, feature};
use crate::identify;
use crate::registers::{error, status};
use crate::settings::Settings;
use crate::step::{BUFFER, Io, Part, Run, Step, Task, Work};

/// Most sectors that the host moves between two interrupts (READ and WRITE MULTIPLE).
pub const MAX_MULTIPLE: u8 = 16;
/// Ranges in a block of DATA SET MANAGEMENT (ATA8-ACS).
const RANGES: usize = 64;

/// What the host has set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// Transfer mode, power and write cache.
    pub settings: Settings,
    /// As INITIALIZE DEVICE PARAMETERS set it.
    pub geometry: Geometry,
    /// Sectors between two interrupts of READ and WRITE MULTIPLE; 0: these are refused.
    pub multiple: u8,
}

impl DiskState {
    /// After power-on. MULTIPLE is ready for use, as drivers expect which never set it.
    pub const POWER_ON: Self =
        Self { settings: Settings::POWER_ON, geometry: Geometry::DEFAULT, multiple: MAX_MULTIPLE };

    /// Whether a host can have set this.
    pub const fn valid(&self) -> bool {
        let geometry = matches!(self.geometry.heads, 1..=16) && self.geometry.sectors != 0;
        geometry && (self.multiple == 0 || multiple_ok(self.multiple)) && self.settings.valid()
    }
}

const fn multiple_ok(sectors: u8) -> bool {
    sectors.is_power_of_two() && sectors <= MAX_MULTIPLE
}

/// See the module.
pub struct Disk {
    backing: Arc<dyn BlockDevice>,
    serial: String,
    pub state: DiskState,
}

/// How a read or write command says what it wants.
struct Access {
    ext: bool,
    write: bool,
    fua: bool,
    how: How,
}

enum How {
    Pio {
        multiple: bool,
    },
    Dma,
    /// Nothing is moved.
    Verify,
}

impl Access {
    const fn read(how: How) -> Self {
        Self { ext: false, write: false, fua: false, how }
    }

    const fn write(how: How) -> Self {
        Self { write: true, ..Self::read(how) }
    }

    /// Its address has 48 bits.
    const fn ext(self) -> Self {
        Self { ext: true, ..self }
    }

    /// It is durable when it ends.
    const fn fua(self) -> Self {
        Self { fua: true, ..self }
    }

    /// The command's meaning, if it is a read or a write.
    const fn of(code: u8) -> Option<Self> {
        let pio = How::Pio { multiple: false };
        let multiple = How::Pio { multiple: true };
        Some(match code {
            command::READ_SECTORS | command::READ_SECTORS_OLD => Self::read(pio),
            command::READ_SECTORS_EXT => Self::read(pio).ext(),
            command::WRITE_SECTORS | command::WRITE_SECTORS_OLD => Self::write(pio),
            command::WRITE_SECTORS_EXT => Self::write(pio).ext(),
            command::READ_MULTIPLE => Self::read(multiple),
            command::READ_MULTIPLE_EXT => Self::read(multiple).ext(),
            command::WRITE_MULTIPLE => Self::write(multiple),
            command::WRITE_MULTIPLE_EXT => Self::write(multiple).ext(),
            command::WRITE_MULTIPLE_FUA_EXT => Self::write(multiple).ext().fua(),
            command::READ_DMA | command::READ_DMA_OLD => Self::read(How::Dma),
            command::READ_DMA_EXT => Self::read(How::Dma).ext(),
            command::WRITE_DMA | command::WRITE_DMA_OLD => Self::write(How::Dma),
            command::WRITE_DMA_EXT => Self::write(How::Dma).ext(),
            command::WRITE_DMA_FUA_EXT => Self::write(How::Dma).ext().fua(),
            command::READ_VERIFY | command::READ_VERIFY_OLD => Self::read(How::Verify),
            command::READ_VERIFY_EXT => Self::read(How::Verify).ext(),
            _ => return None,
        })
    }
}

impl Disk {
    /// `place` names it when the disk has no identity of its own.
    ///
    /// # Errors
    /// Its sectors are not of 512 bytes, or more than 48 bits can count.
    pub fn new(backing: Arc<dyn BlockDevice>, place: &'static str) -> Result<Self, IdeError> {
        let info = backing.info();
        if u64::from(info.sector) != SECTOR {
            return Err(IdeError::SectorSize { place, sector: info.sector });
        }
        if info.size / SECTOR == 0 || info.size / SECTOR > LIMIT_48 {
            return Err(IdeError::Size { place, size: info.size });
        }
        let serial = identify::serial(Some(&info), place);
        Ok(Self { backing, serial, state: DiskState::POWER_ON })
    }

    pub fn power_on(&mut self) {
        self.state = DiskState::POWER_ON;
    }

    /// The host gives a command.
    pub fn command(&mut self, code: u8, io: &mut Io) -> Step {
        if let Some(access) = Access::of(code) {
            return self.access(&access, io);
        }
        match code {
            command::DATA_SET_MANAGEMENT => self.data_set_management(io),
            // RECALIBRATE and SEEK, for systems from before LBA.
            command::RECALIBRATE..=command::RECALIBRATE_LAST => Step::Done,
            command::SEEK => self.sectors(io, false, true).map_or_else(|s| s, |_| Step::Done),
            command::INITIALIZE_DEVICE_PARAMETERS => self.initialize_device_parameters(io),
            command::SET_MULTIPLE_MODE => self.set_multiple(io),
            // Standby and sleep: what was written is safe (ATA8-ACS, "STANDBY IMMEDIATE").
            command::STANDBY_IMMEDIATE
            | command::STANDBY
            | command::SLEEP
            | command::STANDBY_IMMEDIATE_OLD
            | command::STANDBY_OLD
            | command::SLEEP_OLD => {
                self.state.settings.standby = true;
                self.flush()
            }
            command::IDLE_IMMEDIATE | command::IDLE | command::IDLE_IMMEDIATE_OLD | command::IDLE_OLD => {
                self.state.settings.standby = false;
                Step::Done
            }
            command::CHECK_POWER_MODE | command::CHECK_POWER_MODE_OLD => {
                io.task.count.now = self.state.settings.power_mode();
                Step::Done
            }
            command::FLUSH_CACHE | command::FLUSH_CACHE_EXT => self.flush(),
            command::IDENTIFY_DEVICE => {
                let info = self.backing.info();
                io.buffer.write(0, &identify::disk(&info, &self.serial, &self.state));
                Step::Data { to_host: true, part: 0..SECTOR as usize, interrupt: true, task: Task::Plain }
            }
            command::SET_FEATURES => self.set_features(io),
            // NOP fails by definition; so do SMART, security, packets and all else that a disk may lack.
            _ => Step::failed(error::ABRT),
        }
    }

    fn total(&self) -> u64 {
        self.backing.info().size / SECTOR
    }

    /// The sectors that a command means; or that it fails.
    fn sectors(&self, io: &Io, ext: bool, only_first: bool) -> Result<(u64, u32), Step> {
        let idnf = || Step::failed(error::IDNF);
        let found = if ext {
            Some(address::long(io.task))
        } else {
            address::short(io.task, *io.device, self.state.geometry)
        };
        let (lba, count) = found.ok_or_else(idnf)?;
        let end = lba + if only_first { 1 } else { u64::from(count) };
        let reach = if ext { LIMIT_48 } else { LIMIT_28 };
        if end > self.total().min(reach) { Err(idnf()) } else { Ok((lba, count)) }
    }

    fn access(&mut self, access: &Access, io: &mut Io) -> Step {
        if access.write && self.backing.info().read_only {
            return Step::failed(error::ABRT);
        }
        let multiple = self.state.multiple;
        if matches!(access.how, How::Pio { multiple: true }) && multiple == 0 {
            return Step::failed(error::ABRT);
        }
        let (lba, count) = match self.sectors(io, access.ext, false) {
            Ok(sectors) => sectors,
            Err(step) => return step,
        };
        self.state.settings.standby = false;
        let block = if matches!(access.how, How::Pio { multiple: true }) { multiple.into() } else { 1 };
        let fua = access.fua || !self.state.settings.write_cache;
        let run = Run { lba, left: count, block, write: access.write, fua, ext: access.ext };
        match access.how {
            How::Dma => Step::BusMaster(Task::Dma(run)),
            How::Verify => self.verify(run, io),
            How::Pio { .. } if run.write => host_writes(run, false),
            How::Pio { .. } => self.pio(run, io),
        }
    }

    /// One block of a run between buffer and disk.
    fn pio(&self, run: Run, io: &Io) -> Step {
        let buffer = Buffer::Host(Arc::clone(io.buffer), 0, run.block_len());
        let work =
            Work::one(&self.backing, operation(&run), run.lba * SECTOR, run.block_len() as u64, vec![buffer]);
        Step::Work(work, Task::Pio(run))
    }

    /// Reads, into the same memory again and again: nobody wants the data.
    fn verify(&self, run: Run, io: &Io) -> Step {
        let len = u64::from(run.left) * SECTOR;
        let piece = |at: u64| Buffer::Host(Arc::clone(io.buffer), 0, (len - at).min(BUFFER as u64) as usize);
        let buffers = (0..len).step_by(BUFFER).map(piece).collect();
        let work = Work::one(&self.backing, Operation::Read, run.lba * SECTOR, len, buffers);
        Step::Work(work, Task::Pio(Run { left: 0, ..run }))
    }

    fn flush(&self) -> Step {
        Step::Work(Work::one(&self.backing, Operation::Flush, 0, 0, Vec::new()), Task::Plain)
    }

    /// The host has moved a part of the buffer.
    pub fn moved(&mut self, task: Task, io: &mut Io) -> Step {
        match task {
            Task::Pio(run) if run.write => self.pio(run, io),
            Task::Pio(run) if run.next().left > 0 => self.pio(run.next(), io),
            _ => Step::Taken,
        }
    }

    /// The bus master moves.
    pub fn by_bus_master(&mut self, task: Task, memory: Vec<Buffer>) -> Step {
        match task {
            Task::Dma(run) => {
                let len = u64::from(run.left) * SECTOR;
                let work = Work::one(&self.backing, operation(&run), run.lba * SECTOR, len, memory);
                Step::Work(work, task)
            }
            Task::Trim => self.trim(&memory),
            _ => Step::failed(error::ABRT),
        }
    }

    /// The disk is done.
    pub fn worked(&mut self, task: Task, failure: Option<&BlockError>, io: &mut Io) -> Step {
        if let Some(failure) = failure {
            return self.failed(task, failure, io);
        }
        match task {
            Task::Pio(run) if run.write && run.next().left > 0 => host_writes(run.next(), true),
            Task::Pio(run) if !run.write && run.left > 0 => {
                Step::Data { to_host: true, part: 0..run.block_len(), interrupt: true, task }
            }
            _ => Step::Done,
        }
    }

    /// The disk could not do it. Which of the sectors it was, it does not say: the first one is told.
    fn failed(&self, task: Task, failure: &BlockError, io: &mut Io) -> Step {
        let (Task::Pio(run) | Task::Dma(run)) = task else {
            return Step::Failed { status: status::DF, error: error::ABRT };
        };
        address::tell(io.task, io.device, self.state.geometry, run.ext, run.lba);
        match failure {
            BlockError::OutOfRange { .. } => Step::failed(error::IDNF),
            BlockError::ReadOnly => Step::failed(error::ABRT),
            _ if run.write => Step::Failed { status: status::DF, error: error::ABRT },
            _ => Step::failed(error::UNC),
        }
    }

    /// DATA SET MANAGEMENT (ATA8-ACS): TRIM, of one block of ranges.
    fn data_set_management(&self, io: &Io) -> Step {
        let info = self.backing.info();
        let trim = io.task.features.now & 1 != 0;
        if trim && info.unmap && !info.read_only && io.task.count.both() == 1 {
            Step::BusMaster(Task::Trim)
        } else {
            Step::failed(error::ABRT)
        }
    }

    fn trim(&self, memory: &[Buffer]) -> Step {
        let mut block = [0; RANGES * 8];
        let mut at = 0;
        for buffer in memory {
            let end = (at + buffer.len()).min(block.len());
            buffer.read(0, &mut block[at..end]);
            at = end;
        }
        let total = self.total();
        let mut parts = Vec::new();
        for entry in block.as_chunks::<8>().0 {
            let entry = u64::from_le_bytes(*entry);
            let (lba, count) = (entry & (LIMIT_48 - 1), entry >> 48);
            if lba + count > total {
                return Step::failed(error::IDNF);
            }
            if count > 0 {
                let (at, len) = (lba * SECTOR, count * SECTOR);
                parts.push(Part { operation: Operation::Unmap, at, len, buffers: Vec::new() });
            }
        }
        if parts.is_empty() {
            return Step::Done;
        }
        Step::Work(Work { disk: Arc::clone(&self.backing), parts }, Task::Trim)
    }

    /// INITIALIZE DEVICE PARAMETERS (ATA/ATAPI-5): how a BIOS wants sectors counted.
    fn initialize_device_parameters(&mut self, io: &Io) -> Step {
        let sectors = io.task.count.now;
        if sectors == 0 {
            return Step::failed(error::ABRT);
        }
        self.state.geometry = Geometry { heads: (*io.device & 0x0F) + 1, sectors };
        Step::Done
    }

    /// SET MULTIPLE MODE (ATA/ATAPI-6).
    fn set_multiple(&mut self, io: &Io) -> Step {
        let sectors = io.task.count.now;
        if sectors != 0 && !multiple_ok(sectors) {
            return Step::failed(error::ABRT);
        }
        self.state.multiple = sectors;
        Step::Done
    }

    /// SET FEATURES (ATA/ATAPI-6).
    fn set_features(&mut self, io: &Io) -> Step {
        match io.task.features.now {
            feature::WRITE_CACHE_ON => self.state.settings.write_cache = true,
            // What is in the cache is written out first.
            feature::WRITE_CACHE_OFF => {
                self.state.settings.write_cache = false;
                return self.flush();
            }
            feature::TRANSFER_MODE if self.state.settings.set_mode(io.task.count.now) => {}
            // Nothing changes.
            feature::LOOK_AHEAD_ON
            | feature::LOOK_AHEAD_OFF
            | feature::KEEP_SETTINGS
            | feature::REVERT_SETTINGS => {}
            _ => return Step::failed(error::ABRT),
        }
        Step::Done
    }
}

const fn operation(run: &Run) -> Operation {
    if run.write { Operation::Write { fua: run.fua } } else { Operation::Read }
}

/// The host's turn to write a block; it is interrupted for all but the first.
fn host_writes(run: Run, interrupt: bool) -> Step {
    Step::Data { to_host: false, part: 0..run.block_len(), interrupt, task: Task::Pio(run) }
}
