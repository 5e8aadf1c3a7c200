//! How a device interrupts: by MSI-X where the guest uses it, by its INTx pin and the interrupt status otherwise.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vireo_chipset::lines::IrqLine;
use vireo_chipset::pci::{ConfigSpace, Msix};

use crate::queue::NO_VECTOR;

/// Bits of the interrupt status (virtio 1.2 §4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Configuration space, for it says which interrupts are used, and the interrupt status.
pub(crate) struct Pci {
    pub(crate) space: ConfigSpace,
    isr: u8,
}

/// The interrupts of a device.
pub(crate) struct Interrupts {
    pci: Mutex<Pci>,
    pub(crate) msix: Msix,
    pin: Arc<dyn IrqLine>,
}

impl Interrupts {
    pub(crate) fn new(space: ConfigSpace, msix: Msix, pin: Arc<dyn IrqLine>) -> Self {
        Self { pci: Mutex::new(Pci { space, isr: 0 }), msix, pin }
    }

    pub(crate) fn pci(&self) -> MutexGuard<'_, Pci> {
        self.pci.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue with this vector has something for the driver.
    pub(crate) fn queue(&self, vector: u16) {
        self.raise(vector, ISR_QUEUE);
    }

    /// The configuration has.
    pub(crate) fn config(&self, vector: u16) {
        self.raise(vector, ISR_CONFIG);
    }

    fn raise(&self, vector: u16, status: u8) {
        if !self.msix.enabled() {
            let mut pci = self.pci();
            pci.isr |= status;
            self.drive_pin(&mut pci);
        } else if vector != NO_VECTOR {
            self.msix.raise(vector);
        }
    }

    /// The driver reads the interrupt status, which is gone by that.
    pub(crate) fn take_status(&self) -> u8 {
        let mut pci = self.pci();
        let status = std::mem::take(&mut pci.isr);
        self.drive_pin(&mut pci);
        status
    }

    /// The interrupt status, to be saved.
    pub(crate) fn status(&self) -> u8 {
        self.pci().isr
    }

    /// Takes over a saved interrupt status; configuration space and MSI-X are restored already.
    pub(crate) fn restore_status(&self, status: u8) {
        let mut pci = self.pci();
        pci.isr = status & (ISR_QUEUE | ISR_CONFIG);
        self.drive_pin(&mut pci);
    }

    /// Nothing is pending any more.
    pub(crate) fn forget(&self) {
        self.restore_status(0);
    }

    /// Configuration space was written: MSI-X may be switched, the pin allowed or not.
    pub(crate) fn follow(&self, pci: &mut Pci) {
        self.msix.follow(&pci.space);
        self.drive_pin(pci);
    }

    fn drive_pin(&self, pci: &mut Pci) {
        let pending = pci.isr != 0 && !self.msix.enabled();
        pci.space.set_interrupt_status(pending);
        self.pin.set(pending && !pci.space.intx_disabled());
    }
}
