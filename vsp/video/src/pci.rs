//! The PCI function by which drivers of Generation 1 machines find that there is a frame buffer, and where it may be.

use vireo_board::{BoardError, Seat};
use vireo_chipset::pci::{Bar, ConfigSpace, PassiveFunction, PciIdentity, PciSlot};

/// Puts it into `slot`, with a BAR for `size` bytes: a power of two. Nothing is there until the driver asks for it by a message.
pub fn attach(seat: &mut Seat, slot: PciSlot, size: u64) -> Result<(), BoardError> {
    let identity = PciIdentity {
        vendor: 0x1414,
        device: 0x5353,
        revision: 0,
        class: 0x03_00_00,
        subsystem_vendor: 0,
        subsystem: 0,
        multi_function: false,
        interrupt_pin: 0,
    };
    let none = |e: &dyn std::fmt::Display| BoardError::Device(format!("the frame buffer: {e}"));
    let mut space = ConfigSpace::new(identity);
    let size = u32::try_from(size).map_err(|e| none(&e))?;
    space.add_bar(0, Bar::Memory32 { size, prefetchable: true }).map_err(|e| none(&e))?;
    seat.chipset.add_pci(slot, std::sync::Arc::new(PassiveFunction::new(space)))?;
    Ok(())
}
