//! Where a machine's virtio devices are on PCI. Guests name devices by it, so it never changes.

use std::ops::Range;
use std::sync::Arc;

use vireo_board::{Attach, BoardError};
use vireo_chipset::pci::PciSlot;
use vireo_virtio::{Device, VirtioPci};

/// Device number of the random number generator. Those below are the chipset's.
pub const RNG: u8 = 2;
/// Device number of the frame buffer: machines with one have VMBus, and no such generator.
pub const VIDEO: u8 = RNG;
/// Device numbers of disks.
pub const DISKS: Range<u8> = 3..23;
/// Device numbers of network adapters.
pub const NICS: Range<u8> = 23..31;
/// Device number of the console.
pub const CONSOLE: u8 = 31;

/// The slot of a device number.
pub fn slot(device: u8, name: &str) -> Result<PciSlot, BoardError> {
    PciSlot::new(device, 0).ok_or_else(|| BoardError::Device(format!("there is no PCI slot for {name}")))
}

/// Puts a virtio device at a device number.
pub fn attach(device: u8, name: &str, model: Arc<dyn Device>) -> Attach {
    let name = name.to_string();
    Box::new(move |seat| Ok(VirtioPci::attach(seat, slot(device, &name)?, &name, Arc::clone(&model))?))
}
