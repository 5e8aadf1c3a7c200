//! Saved state. A request never is in it: whoever saves waits for the disk first.

use serde::{Deserialize, Serialize};
use vireo_chipset::RestoreError;
use vireo_chipset::pci::ConfigSpaceState;

use crate::address::LIMIT_48;
use crate::bus_master::BusMaster;
use crate::cable::{Cable, Phase};
use crate::disk::DiskState;
use crate::drive::Device;
use crate::packet::PacketState;
use crate::registers::{TaskFile, control, device};
use crate::step::{BUFFER, Task};

const VERSION: u32 = 1;
const DEVICE: &str = "IDE controller";

/// Saved state of an [`crate::IdeController`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdeState {
    version: u32,
    config: ConfigSpaceState,
    channels: [ChannelState; 2],
}

impl IdeState {
    pub(crate) const fn new(config: ConfigSpaceState, channels: [ChannelState; 2]) -> Self {
        Self { version: VERSION, config, channels }
    }

    /// Its parts, if it is of this version.
    pub(crate) fn parts(&self) -> Result<(&ConfigSpaceState, &[ChannelState; 2]), RestoreError> {
        if self.version != VERSION {
            let (found, supported) = (self.version, VERSION);
            return Err(RestoreError::Version { device: DEVICE, found, supported });
        }
        Ok((&self.config, &self.channels))
    }
}

/// Of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelState {
    device: u8,
    control: u8,
    phase: Phase,
    owner: usize,
    bus_master: BusMaster,
    /// As much of the buffer as the phase needs.
    buffer: Vec<u8>,
    drives: [Option<DriveState>; 2],
}

/// Of a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct DriveState {
    task: TaskFile,
    interrupt: bool,
    device: DeviceState,
}

/// Of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum DeviceState {
    Disk(DiskState),
    Packet(PacketState),
}

/// Refuses a state that breaks `valid`.
const fn check(valid: bool, reason: &'static str) -> Result<(), RestoreError> {
    if valid { Ok(()) } else { Err(RestoreError::Invalid { device: DEVICE, reason }) }
}

/// How much of the buffer a phase needs.
fn needed(phase: &Phase) -> usize {
    match *phase {
        Phase::Data { task: Task::Pieces { filled, .. }, .. } => filled,
        Phase::Data { end, .. } => end,
        Phase::BusMaster(Task::Reply { len }) => len as usize,
        Phase::Idle | Phase::BusMaster(_) | Phase::Work(_) => 0,
    }
}

/// Whether a task has only numbers that a command can have led to. (A range that is on no disk fails later.)
const fn task_valid(task: &Task) -> bool {
    // Beyond every medium, and far from an overflow.
    const FAR: u64 = 1 << 50;
    match *task {
        Task::Plain | Task::Trim | Task::Packet { .. } => true,
        Task::Pio(run) | Task::Dma(run) => {
            let few = run.left <= 1 << 16 && run.block >= 1 && run.block as usize <= BUFFER / 512;
            few && run.lba < LIMIT_48
        }
        Task::Reply { len } => len <= BUFFER as u64,
        Task::Medium { at, len } => at < FAR && len < FAR,
        Task::Pieces { limit, sent, filled, at, left } => {
            limit >= 2 && sent <= filled && filled <= BUFFER && at < FAR && left < FAR
        }
    }
}

fn phase_valid(phase: &Phase) -> bool {
    match phase {
        Phase::Idle => true,
        Phase::Data { at, end, task, .. } => {
            at < end
                && *end <= needed(phase)
                && *end <= BUFFER
                && task_valid(task)
                && task.by_bus_master().is_none()
        }
        Phase::BusMaster(task) => task_valid(task) && task.by_bus_master().is_some(),
        Phase::Work(_) => false,
    }
}

impl Cable {
    /// The state; no disk is at work.
    pub fn save(&self) -> ChannelState {
        let mut buffer = vec![0; needed(&self.phase)];
        self.buffer.read(0, &mut buffer);
        let drives = self.drives.each_ref().map(|drive| {
            let drive = drive.as_ref()?;
            let device = match &drive.device {
                Device::Disk(d) => DeviceState::Disk(d.state),
                Device::Packet(p) => {
                    DeviceState::Packet(PacketState { settings: p.settings, cd: p.cd.save() })
                }
            };
            Some(DriveState { task: drive.task, interrupt: drive.interrupt, device })
        });
        ChannelState {
            device: self.device,
            control: self.control,
            phase: self.phase,
            owner: self.owner,
            bus_master: self.bus_master,
            buffer,
            drives,
        }
    }

    /// Takes over a saved state; no disk is at work.
    ///
    /// # Errors
    /// See [`crate::IdeController::restore`]; nothing was changed.
    pub fn restore(&mut self, state: &ChannelState) -> Result<(), RestoreError> {
        check(state.device & device::OBSOLETE == device::OBSOLETE, "impossible device register")?;
        let known = control::NIEN | control::SRST | control::HOB;
        check(state.control & !known == 0, "impossible device control register")?;
        check(state.bus_master.valid(), "impossible bus master registers")?;
        check(phase_valid(&state.phase), "impossible transfer")?;
        check(state.buffer.len() == needed(&state.phase), "data of another length than the transfer")?;
        let owner = state.drives.get(state.owner);
        check(owner.is_some(), "no such device")?;
        check(
            state.phase == Phase::Idle || owner.is_some_and(Option::is_some),
            "a device that is absent has a transfer",
        )?;
        for (drive, state) in self.drives.iter().zip(&state.drives) {
            let (same, valid) = match (drive.as_ref().map(|d| &d.device), state.map(|s| s.device)) {
                (None, None) => (true, true),
                (Some(Device::Disk(_)), Some(DeviceState::Disk(s))) => (true, s.valid()),
                (Some(Device::Packet(_)), Some(DeviceState::Packet(s))) => (true, s.settings.valid()),
                _ => (false, true),
            };
            check(same, "other drives are attached")?;
            check(valid, "impossible settings of a drive")?;
        }
        for (drive, state) in self.drives.iter_mut().zip(&state.drives) {
            let (Some(drive), Some(state)) = (drive, state) else { continue };
            (drive.task, drive.interrupt) = (state.task, state.interrupt);
            match (&mut drive.device, state.device) {
                (Device::Disk(d), DeviceState::Disk(s)) => d.state = s,
                (Device::Packet(p), DeviceState::Packet(s)) => {
                    p.settings = s.settings;
                    p.cd.restore(&s.cd);
                }
                _ => {}
            }
        }
        self.buffer.write(0, &state.buffer);
        self.take_over(state.device, state.control, state.phase, state.owner, state.bus_master);
        Ok(())
    }
}
