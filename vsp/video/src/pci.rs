//! The PCI function by which drivers of Generation 1 machines find that there is a frame buffer, and where it may be.

use std::sync::Arc;
use std::time::Instant;

use vireo_board::{Attachment, BoardError, Seat};
use vireo_chipset::pci::{Bar, ConfigSpace, PassiveFunction, PciIdentity, PciSlot};

/// Puts it into `slot`, with a BAR for `size` bytes: a power of two. Nothing is there until the driver asks for it by a message.
pub fn attach(seat: &mut Seat, slot: PciSlot, size: u64) -> Result<Arc<dyn Attachment>, BoardError> {
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
    seat.chipset.add_pci(slot, Arc::new(PassiveFunction::new(space)))?;
    Ok(Arc::new(Function))
}

/// The function: what it has to do, the device on VMBus does.
struct Function;

impl Attachment for Function {
    fn name(&self) -> &str {
        "frame buffer"
    }

    fn pause(&self, _deadline: Instant) -> bool {
        true
    }

    fn resume(&self) {}
}
