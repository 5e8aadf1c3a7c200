//! A channel's state: two devices, whose turn it is, and what each access to a register does. It calls nobody: what it
//! wants of a disk it puts down for [`crate::channel`].

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vireo_block::{BlockError, HostBuffer};
use vireo_memory::GuestMemory;

use crate::bus_master::{BusMaster, Effect, ListError};
use crate::command;
use crate::drive::Drive;
use crate::registers::{control, device, error, status};
use crate::step::{BUFFER, Io, Step, Task, Work};

/// Ports of the command block, from its base on (ATA/ATAPI-6, "interface register definitions").
pub mod port {
    pub const DATA: usize = 0;
    /// Error when read.
    pub const FEATURES: usize = 1;
    pub const COUNT: usize = 2;
    pub const LBA_LOW: usize = 3;
    pub const LBA_HIGH: usize = 5;
    pub const DEVICE: usize = 6;
    /// Status when read.
    pub const COMMAND: usize = 7;
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// The host's: it may give a command.
    Idle,
    /// The host's: it moves a part of the buffer.
    Data {
        /// Reads it.
        to_host: bool,
        /// What comes next.
        at: usize,
        /// End of the part.
        end: usize,
        /// What it is for.
        task: Task,
    },
    /// The bus master's, once the host starts it.
    BusMaster(Task),
    /// The disk's.
    Work(Task),
}

/// A reset that is to happen once the disk is done with what it has: what it reads must not come after the reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    /// Both devices (SRST).
    Both,
    /// The one that is in the middle of something.
    Owner,
}

/// See above.
pub struct Cable {
    pub drives: [Option<Drive>; 2],
    pub device: u8,
    pub control: u8,
    pub phase: Phase,
    /// The device whose phase it is.
    pub owner: usize,
    pub bus_master: BusMaster,
    pub buffer: Arc<HostBuffer>,
    memory: Arc<GuestMemory>,
    reset: Option<Reset>,
    /// Work for a disk, to be taken out and submitted.
    outbox: Option<Work>,
    /// Requests of the disk's work that have not completed.
    outstanding: usize,
    failure: Option<BlockError>,
    /// A device has asked for an interrupt that the line does not know of yet.
    raised: bool,
    /// Counts works: tells one from the next.
    serial: u64,
}

impl Cable {
    pub fn new(drives: [Option<Drive>; 2], memory: Arc<GuestMemory>) -> Self {
        let mut cable = Self {
            drives,
            device: device::OBSOLETE,
            control: 0,
            phase: Phase::Idle,
            owner: 0,
            bus_master: BusMaster::default(),
            buffer: HostBuffer::new(BUFFER),
            memory,
            reset: None,
            outbox: None,
            outstanding: 0,
            failure: None,
            raised: false,
            serial: 0,
        };
        cable.power_on();
        cable
    }

    /// As after power-on or a bus reset. No disk may be at work.
    pub fn power_on(&mut self) {
        self.control = 0;
        self.bus_master = BusMaster::default();
        self.reset = None;
        for drive in self.drives.iter_mut().flatten() {
            drive.power_on();
        }
        self.ready(None);
    }

    /// Whether a disk has work, and which.
    pub fn at_work(&self) -> Option<u64> {
        matches!(self.phase, Phase::Work(_)).then_some(self.serial)
    }

    /// Whether the bus master has a part in what is under way.
    pub fn moves_by_bus_master(&self) -> bool {
        matches!(self.phase, Phase::BusMaster(t) | Phase::Work(t) if t.by_bus_master().is_some())
    }

    /// Level of the interrupt line: that of the selected device, unless the host switched it off.
    pub fn interrupt(&self) -> bool {
        let pending = self.drives[self.selected()].as_ref().is_some_and(|d| d.interrupt);
        pending && self.control & control::NIEN == 0
    }

    /// Whether a device has asked for an interrupt since this was last asked.
    pub const fn take_raised(&mut self) -> bool {
        std::mem::replace(&mut self.raised, false)
    }

    /// Work to be submitted now, with the channel unlocked.
    pub const fn take_work(&mut self) -> Option<Work> {
        self.outbox.take()
    }

    pub const fn selected(&self) -> usize {
        (self.device & device::DEV != 0) as usize
    }

    /// Reads one port of the command block, the data register excepted. Where no device is, all is 0 (ATA/ATAPI-6,
    /// "single device configurations", has device 0 say so of its status; old drivers look at the others).
    pub fn read(&mut self, at: usize) -> u8 {
        let (hob, device) = (self.control & control::HOB != 0, self.device);
        if at == port::COMMAND {
            let value = self.status();
            if let Some(drive) = &mut self.drives[self.selected()] {
                drive.interrupt = false;
            }
            return value;
        }
        let Some(drive) = &self.drives[self.selected()] else { return 0 };
        match at {
            port::FEATURES => drive.task.error,
            port::COUNT => drive.task.count.read(hob),
            port::LBA_LOW..=port::LBA_HIGH => drive.task.lba[at - port::LBA_LOW].read(hob),
            port::DEVICE => device,
            _ => 0,
        }
    }

    /// The status of the selected device; the alternate status register is this and no more.
    pub fn status(&self) -> u8 {
        match &self.drives[self.selected()] {
            None => 0,
            // The other device has the channel: a host that waits, as it must, sees that.
            Some(_) if matches!(self.phase, Phase::Work(_)) => status::BSY,
            Some(drive) => drive.task.status,
        }
    }

    /// Writes one port of the command block, the data register excepted.
    pub fn write(&mut self, at: usize, value: u8) {
        self.control &= !control::HOB;
        match at {
            port::COMMAND => return self.command(value),
            port::DEVICE => {
                self.device = value | device::OBSOLETE;
                return;
            }
            _ => {}
        }
        for drive in self.drives.iter_mut().flatten().filter(|d| d.task.status & status::BSY == 0) {
            match at {
                port::FEATURES => drive.task.features.write(value),
                port::COUNT => drive.task.count.write(value),
                port::LBA_LOW..=port::LBA_HIGH => drive.task.lba[at - port::LBA_LOW].write(value),
                _ => {}
            }
        }
    }

    /// Writes the device control register.
    pub fn write_control(&mut self, value: u8) {
        let rises = value & !self.control & control::SRST != 0;
        self.control = value & (control::NIEN | control::SRST | control::HOB);
        if rises {
            self.reset = Some(Reset::Both);
            for drive in self.drives.iter_mut().flatten() {
                drive.interrupt = false;
                drive.task.status = status::BSY;
            }
            if self.at_work().is_none() {
                self.phase = Phase::Idle;
            }
        }
        self.settle();
    }

    /// Does the reset that is due, if nothing stands against it.
    fn settle(&mut self) {
        if self.at_work().is_some() || self.control & control::SRST != 0 {
            return;
        }
        match self.reset.take() {
            Some(Reset::Both) => self.ready(None),
            Some(Reset::Owner) => self.ready(Some(self.owner)),
            None => {}
        }
    }

    /// One device (DEVICE RESET), or both, say who they are, and that they are ready (ATA/ATAPI-6, "signature and
    /// persistence").
    fn ready(&mut self, only: Option<usize>) {
        self.phase = Phase::Idle;
        self.device &= if only.is_none() { device::OBSOLETE } else { device::OBSOLETE | device::DEV };
        for (n, drive) in self.drives.iter_mut().enumerate() {
            if let Some(drive) = drive
                && only.is_none_or(|o| o == n)
            {
                drive.sign();
            }
        }
    }

    /// A command is given. EXECUTE DEVICE DIAGNOSTIC is the one that both devices obey, whichever is selected; DEVICE
    /// RESET the one that a busy device obeys, if it is a packet device (ATA/ATAPI-6).
    fn command(&mut self, code: u8) {
        let (selected, at_work) = (self.selected(), self.at_work().is_some());
        let Some(drive) = &mut self.drives[selected] else {
            // Device 0 answers for an absent device 1 (ATA/ATAPI-6, the same).
            if code == command::EXECUTE_DEVICE_DIAGNOSTIC {
                self.diagnose();
            }
            return;
        };
        if code == command::DEVICE_RESET && drive.is_packet() && self.reset.is_none() {
            return self.reset_device(selected);
        }
        if at_work || drive.task.status & (status::BSY | status::DRQ) != 0 {
            return;
        }
        if code == command::EXECUTE_DEVICE_DIAGNOSTIC {
            return self.diagnose();
        }
        self.abandon();
        self.owner = selected;
        let Some((drive, mut io)) = self.owner() else { return };
        *drive.interrupt = false;
        io.task.error = 0;
        let step = drive.device.command(code, &mut io);
        self.take(step);
    }

    /// DEVICE RESET of the selected device; a disk that works for it may end first, one that works for the other device
    /// has the channel.
    fn reset_device(&mut self, selected: usize) {
        if self.at_work().is_none() {
            self.abandon();
            self.owner = selected;
        } else if self.owner != selected {
            return;
        }
        if let Some(drive) = &mut self.drives[selected] {
            drive.task.status = status::BSY;
            drive.interrupt = false;
        }
        self.reset = Some(Reset::Owner);
        self.settle();
    }

    fn diagnose(&mut self) {
        if self.at_work().is_some() || self.reset.is_some() {
            return;
        }
        self.ready(None);
        self.raise(0);
    }

    /// A device that was in the middle of something, while the host turned to the other one, leaves it.
    fn abandon(&mut self) {
        if self.phase != Phase::Idle
            && let Some(drive) = &mut self.drives[self.owner]
        {
            drive.task.status = status::READY;
        }
        self.phase = Phase::Idle;
    }

    /// The device whose phase it is, without its registers, and those.
    fn owner(&mut self) -> Option<(Owner<'_>, Io<'_>)> {
        let drive = self.drives[self.owner].as_mut()?;
        let Drive { task, interrupt, device } = drive;
        Some((Owner { interrupt, device }, Io { task, device: &mut self.device, buffer: &self.buffer }))
    }

    fn raise(&mut self, n: usize) {
        if let Some(drive) = &mut self.drives[n] {
            drive.interrupt = true;
            self.raised = true;
        }
    }

    /// Does what a device wants next.
    fn take(&mut self, step: Step) {
        let by_bus_master = self.moves_by_bus_master();
        let Some(drive) = &mut self.drives[self.owner] else { return };
        let task = &mut drive.task;
        match step {
            Step::Done | Step::Taken => {
                task.status = status::READY;
                self.phase = Phase::Idle;
                if matches!(step, Step::Done) {
                    self.raise(self.owner);
                }
            }
            Step::Failed { status: more, error } => {
                task.status = status::READY | status::ERR | more;
                task.error = error;
                self.phase = Phase::Idle;
                self.raise(self.owner);
            }
            Step::Data { to_host, part, interrupt, task: then } => {
                task.status = status::READY | status::DRQ;
                self.phase = Phase::Data { to_host, at: part.start, end: part.end, task: then };
                if interrupt {
                    self.raise(self.owner);
                }
            }
            Step::Work(work, then) => {
                task.status = status::BSY;
                self.phase = Phase::Work(then);
                self.outstanding = work.parts.len();
                self.failure = None;
                self.serial += 1;
                self.outbox = Some(work);
            }
            Step::BusMaster(then) => {
                task.status = status::READY | status::DRQ;
                self.phase = Phase::BusMaster(then);
                self.start_bus_master();
            }
        }
        if by_bus_master && self.phase == Phase::Idle {
            self.bus_master.end(false);
        }
    }

    /// Starts the transfer that device and host have both asked for.
    fn start_bus_master(&mut self) {
        let Phase::BusMaster(task) = self.phase else { return };
        let (true, Some(len)) = (self.bus_master.active(), task.by_bus_master()) else { return };
        match self.bus_master.memory(&self.memory, len) {
            Ok(buffers) => {
                let Some((drive, mut io)) = self.owner() else { return };
                let step = drive.device.by_bus_master(task, buffers, &mut io);
                self.take(step);
            }
            // Neither error nor interrupt nor activity: the bus master's way to say so (its specification, "Status
            // Bits"). The device is ready for the host's next try.
            Err(ListError::Short) => {
                self.bus_master.end(false);
                self.abandon();
            }
            Err(ListError::Unreachable) => {
                self.bus_master.end(true);
                self.take(Step::failed(error::ABRT));
            }
        }
    }

    /// Registers and phase of a saved state, checked before. A reset was due if the host holds it.
    pub fn take_over(&mut self, device: u8, control: u8, phase: Phase, owner: usize, bus_master: BusMaster) {
        self.device = device;
        self.control = control;
        self.phase = phase;
        self.owner = owner;
        self.bus_master = bus_master;
        self.reset = (control & control::SRST != 0).then_some(Reset::Both);
    }

    /// Writes one port of the bus master. True: it was stopped.
    pub fn write_bus_master(&mut self, at: usize, value: u8) -> bool {
        let effect = self.bus_master.write(at, value);
        if effect == Effect::Start {
            self.start_bus_master();
        }
        effect == Effect::Stop
    }

    /// Reads the data register, a word for each two bytes (or the one).
    pub fn read_data(&mut self, data: &mut [u8]) {
        for word in data.chunks_mut(2) {
            word.fill(0);
            let Phase::Data { to_host: true, at, end, .. } = self.phase else { continue };
            if self.owner == self.selected() {
                let len = (end - at).min(word.len());
                self.buffer.read(at, &mut word[..len]);
                self.moved();
            }
        }
    }

    /// Writes the data register, as above.
    pub fn write_data(&mut self, data: &[u8]) {
        for word in data.chunks(2) {
            let Phase::Data { to_host: false, at, end, .. } = self.phase else { continue };
            if self.owner == self.selected() {
                let len = (end - at).min(word.len());
                self.buffer.write(at, &word[..len]);
                self.moved();
            }
        }
    }

    /// The host has moved a word.
    fn moved(&mut self) {
        let Phase::Data { at, end, task, .. } = &mut self.phase else { return };
        *at = (*at + 2).min(*end);
        if at < end {
            return;
        }
        let task = *task;
        let Some((drive, mut io)) = self.owner() else { return };
        let step = drive.device.moved(task, &mut io);
        self.take(step);
    }

    /// One of the disk's requests has completed.
    pub fn completed(&mut self, result: Result<(), BlockError>) {
        if let Err(e) = result {
            self.failure.get_or_insert(e);
        }
        self.outstanding = self.outstanding.saturating_sub(1);
        let Phase::Work(task) = self.phase else { return };
        if self.outstanding > 0 {
            return;
        }
        if self.reset.is_some() {
            self.phase = Phase::Idle;
            if task.by_bus_master().is_some() {
                self.bus_master.end(false);
            }
            return self.settle();
        }
        let failure = self.failure.take();
        let Some((drive, mut io)) = self.owner() else { return };
        let step = drive.device.worked(task, failure.as_ref(), &mut io);
        self.take(step);
    }
}

/// The parts of a drive beside its registers.
struct Owner<'a> {
    interrupt: &'a mut bool,
    device: &'a mut crate::drive::Device,
}
