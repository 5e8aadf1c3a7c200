//! The controller: a PCI function, the ports of both channels, and the drives at their places.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vireo_block::BlockDevice;
use vireo_board::{Attach, Attachment, BoardError, Seat};
use vireo_chipset::bus::PioDevice;
use vireo_chipset::lines::IrqLine;
use vireo_chipset::pci::{Bar, BarWindow, ConfigSpace, PciFunction, PciIdentity, PciSlot};
use vireo_chipset::{RestoreError, layout};
use vireo_memory::GuestMemory;

use crate::IdeError;
use crate::bus_master;
use crate::cable::Cable;
use crate::channel::Channel;
use crate::disk::Disk;
use crate::drive::{Device, Drive};
use crate::packet::{PacketDevice, check_medium};
use crate::state::IdeState;

/// Where a drive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// Device 0 of the first channel.
    PrimaryMaster,
    /// Device 1 of the first channel.
    PrimarySlave,
    /// Device 0 of the second channel.
    SecondaryMaster,
    /// Device 1 of the second channel.
    SecondarySlave,
}

impl Place {
    /// All of them, in the order of [`Drives`].
    pub const ALL: [Self; 4] =
        [Self::PrimaryMaster, Self::PrimarySlave, Self::SecondaryMaster, Self::SecondarySlave];

    /// Channel and device number.
    pub const fn name(self) -> &'static str {
        ["0.0", "0.1", "1.0", "1.1"][self as usize]
    }

    const fn channel(self) -> usize {
        self as usize / 2
    }

    const fn device(self) -> usize {
        self as usize % 2
    }
}

/// A drive, and what is in it.
#[derive(Clone)]
pub enum IdeDrive {
    /// A fixed disk, of sectors of 512 bytes.
    Disk(Arc<dyn BlockDevice>),
    /// A CD or DVD drive, with a medium or none; a medium's size is rounded down to whole blocks of 2048 bytes.
    Cd(Option<Arc<dyn BlockDevice>>),
}

/// The drives at the places of [`Place::ALL`].
pub type Drives = [Option<IdeDrive>; 4];

/// The register through which the guest finds the bus masters (PIIX3 datasheet, BMIBA).
const BUS_MASTER_BAR: usize = 4;

/// See the crate.
pub struct IdeController {
    config: Mutex<ConfigSpace>,
    channels: [Arc<Channel>; 2],
}

impl IdeController {
    /// With these drives, as after power-on. `lines` are the interrupts of both channels.
    ///
    /// # Errors
    /// A disk or medium that such a drive cannot have.
    pub fn new(
        memory: &Arc<GuestMemory>,
        lines: [Arc<dyn IrqLine>; 2],
        drives: Drives,
    ) -> Result<Arc<Self>, IdeError> {
        let [a, b, c, d] = drives;
        let [primary, secondary] = lines;
        let channel = |first: Place, drives: [Option<IdeDrive>; 2], line| -> Result<_, IdeError> {
            let [device_0, device_1] = drives;
            let second = Place::ALL[first as usize + 1];
            let drives = [drive(first, device_0)?, drive(second, device_1)?];
            Ok(Channel::new(Cable::new(drives, Arc::clone(memory)), line))
        };
        let channels = [
            channel(Place::PrimaryMaster, [a, b], primary)?,
            channel(Place::SecondaryMaster, [c, d], secondary)?,
        ];
        Ok(Arc::new(Self { config: Mutex::new(config_space()?), channels }))
    }

    /// Makes one, and puts it where guests look for it: the ports and interrupts of old, and the function beside the
    /// ISA bridge.
    ///
    /// # Errors
    /// As [`Self::new`]; or there is one already.
    pub fn plug(seat: &mut Seat, drives: Drives) -> Result<Arc<Self>, IdeError> {
        let line = |irq| seat.chipset.irq_line(irq).ok_or(IdeError::NoLine(irq));
        let lines = [line(layout::IRQ_IDE_PRIMARY)?, line(layout::IRQ_IDE_SECONDARY)?];
        let controller = Self::new(seat.memory, lines, drives)?;
        let ports = [
            (0, layout::IDE_PRIMARY, layout::IDE_PRIMARY_CONTROL, "IDE primary"),
            (1, layout::IDE_SECONDARY, layout::IDE_SECONDARY_CONTROL, "IDE secondary"),
        ];
        for (n, command, control, name) in ports {
            let channel = &controller.channels[n];
            let block = CommandBlock { channel: Arc::clone(channel), base: command.start };
            seat.chipset.add_pio(command, name, Arc::new(block))?;
            seat.chipset.add_pio(control, name, Arc::new(ControlBlock(Arc::clone(channel))))?;
        }
        seat.chipset.add_pci(PciSlot::IDE, Arc::clone(&controller) as Arc<dyn PciFunction>)?;
        Ok(controller)
    }

    /// Puts a medium into a CD drive, in place of what may be there.
    ///
    /// # Errors
    /// There is no such drive at the place; or it cannot have such a medium.
    pub fn insert(&self, place: Place, medium: Arc<dyn BlockDevice>) -> Result<(), IdeError> {
        check_medium(&*medium, place.name())?;
        self.cd(place, |p| p.cd.insert(medium))
    }

    /// Takes the medium out of a CD drive.
    ///
    /// # Errors
    /// There is no such drive at the place; or the guest has locked its medium in, and `force` is not set: it has been
    /// told that the user wants it out.
    pub fn remove(&self, place: Place, force: bool) -> Result<(), IdeError> {
        self.cd(place, |p| p.cd.remove(force))?
            .map_err(|source| IdeError::Locked { place: place.name(), source })
    }

    fn cd<R>(&self, place: Place, change: impl FnOnce(&mut PacketDevice) -> R) -> Result<R, IdeError> {
        self.channels[place.channel()].with(|cable| match &mut cable.drives[place.device()] {
            Some(Drive { device: Device::Packet(packet), .. }) => Ok(change(packet)),
            _ => Err(IdeError::NoCd { place: place.name() }),
        })
    }

    /// The state, of the controller and its drives; not of disks and media. The vCPUs must stand still.
    pub fn save(&self) -> IdeState {
        let channels = self.channels.each_ref().map(|c| c.save());
        IdeState::new(self.config().save(), channels)
    }

    /// Takes over a saved state; drives and media are those of the one that was saved. The vCPUs must stand still. The
    /// PCI host does not notice: it has to follow the BARs afterwards (`PciHost::follow_bars`).
    ///
    /// # Errors
    /// Another version, other drives, or values that no controller can hold. Some of it may have been taken over:
    /// discard the machine, or reset it.
    pub fn restore(&self, state: &IdeState) -> Result<(), RestoreError> {
        let (config, channels) = state.parts()?;
        self.config().restore(config)?;
        for (channel, state) in self.channels.iter().zip(channels) {
            channel.restore(state)?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) const fn channel(&self, n: usize) -> &Arc<Channel> {
        &self.channels[n]
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drive(place: Place, attachment: Option<IdeDrive>) -> Result<Option<Drive>, IdeError> {
    let device = match attachment {
        None => return Ok(None),
        Some(IdeDrive::Disk(disk)) => Device::Disk(Disk::new(disk, place.name())?),
        Some(IdeDrive::Cd(medium)) => Device::Packet(PacketDevice::new(medium, place.name())?),
    };
    Ok(Some(Drive::new(device)))
}

/// The IDE function of a PIIX3 (datasheet, "PCI configuration registers, IDE interface"), both channels in
/// compatibility mode and decoded, as firmware leaves them. Switching the decoding off (IDETIM, bit 15) has no effect.
fn config_space() -> Result<ConfigSpace, IdeError> {
    let identity = PciIdentity {
        vendor: 0x8086,
        device: 0x7010,
        revision: 0,
        class: 0x01_01_80,
        subsystem_vendor: 0,
        subsystem: 0,
        multi_function: false,
        interrupt_pin: 0,
    };
    // IDETIM of both channels, and SIDETIM: timings, which the guest may set as it likes.
    let timing = [(0x40, 0, 0xFF), (0x41, 0x80, 0xF3), (0x42, 0, 0xFF), (0x43, 0x80, 0xF3), (0x44, 0, 0xFF)];
    let mut space = timing
        .iter()
        .fold(ConfigSpace::new(identity), |s, (at, value, writable)| s.with_register(*at, *value, *writable));
    space.add_bar(BUS_MASTER_BAR, Bar::Io { size: 2 * bus_master::PORTS as u32 })?;
    Ok(space)
}

/// Puts a controller with these drives onto a board; `made` is given it, for what changes later (media, state).
pub fn attach(drives: Drives, made: impl Fn(&Arc<IdeController>) + Send + Sync + 'static) -> Attach {
    Box::new(move |seat| {
        let controller =
            IdeController::plug(seat, drives.clone()).map_err(|e| BoardError::Device(e.to_string()))?;
        made(&controller);
        Ok(controller)
    })
}

/// It needs no resume: what makes it work is the guest's accesses. Its reset is the PCI function's.
impl Attachment for IdeController {
    fn name(&self) -> &str {
        "IDE"
    }

    fn pause(&self, deadline: Instant) -> bool {
        self.channels.iter().all(|c| c.drain_until(deadline))
    }

    fn resume(&self) {}
}

impl PciFunction for IdeController {
    fn config_read(&self, offset: u8, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: u8, data: &[u8]) {
        self.config().write(offset, data);
    }

    fn windows(&self) -> Vec<BarWindow> {
        self.config().windows()
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            let channel = &self.channels[at / bus_master::PORTS % 2];
            *byte = channel.read_bus_master(at % bus_master::PORTS);
        }
    }

    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            let channel = &self.channels[at / bus_master::PORTS % 2];
            channel.write_bus_master(at % bus_master::PORTS, *byte);
        }
    }

    fn reset(&self) {
        self.config().reset();
        for channel in &self.channels {
            channel.reset();
        }
    }
}

/// The eight ports of a channel's registers.
struct CommandBlock {
    channel: Arc<Channel>,
    base: u16,
}

impl PioDevice for CommandBlock {
    fn read(&self, port: u16, data: &mut [u8]) {
        self.channel.read((port - self.base).into(), data);
    }

    fn write(&self, port: u16, data: &[u8]) {
        self.channel.write((port - self.base).into(), data);
    }
}

/// The one port of alternate status and device control.
struct ControlBlock(Arc<Channel>);

impl PioDevice for ControlBlock {
    fn read(&self, _port: u16, data: &mut [u8]) {
        data.fill(self.0.alternate_status());
    }

    fn write(&self, _port: u16, data: &[u8]) {
        for byte in data {
            self.0.write_control(*byte);
        }
    }
}
