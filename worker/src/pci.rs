//! Where a machine's virtio devices are on PCI. Guests name devices by it, so it never changes.

use std::ops::Range;
use std::sync::Arc;

use vireo_board::{Attach, BoardError};
use vireo_chipset::pci::PciSlot;
use vireo_virtio::{Device, VirtioPci};

/// Device number of the random number generator. Those below are the chipset's.
pub const RNG: u8 = 2;
/// Device numbers of disks.
pub const DISKS: Range<u8> = 3..31;
/// Device number of the console.
pub const CONSOLE: u8 = 31;

/// Puts a virtio device at a device number.
pub fn attach(device: u8, name: &str, model: Arc<dyn Device>) -> Attach {
    let name = name.to_string();
    Box::new(move |seat| {
        let none = || BoardError::Device(format!("there is no PCI slot for {name}"));
        let slot = PciSlot::new(device, 0).ok_or_else(none)?;
        Ok(VirtioPci::attach(seat, slot, &name, Arc::clone(&model))?)
    })
}
