//! Where everything of a function is: its BAR and the capabilities that say so.
//!
//! Source: virtio 1.2 §4.1.2 and §4.1.4.

use std::sync::Arc;

use super::common;
use crate::device::Identity;
use vireo_chipset::lines::MsiSink;
use vireo_chipset::pci::{Bar, ConfigSpace, Msix, PciIdentity, PciLayoutError};

/// Red Hat, who lends virtio its vendor ID; modern devices are 0x1040 and their type.
const VENDOR: u16 = 0x1AF4;
const DEVICE_BASE: u16 = 0x1040;
/// Modern alone: no transitional driver takes it (§4.1.2.1).
const REVISION: u8 = 1;
/// INTA, where there is no MSI-X.
pub(super) const INTERRUPT_PIN: u8 = 1;

/// Capability ID "vendor-specific".
const CAPABILITY: u8 = 0x09;

/// Structures that capabilities point to (§4.1.4); `virtio-bindings` does not have them.
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// The one BAR.
pub(super) const BAR: u8 = 0;
/// Its size in bytes. Each part starts on a page of its own, so that a guest can map it alone.
pub(super) const BAR_SIZE: u64 = 0x8000;
const PAGE: u64 = 0x1000;
const ISR: u64 = 0x1000;
const DEVICE_CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;

/// Bytes from one queue's doorbell to the next.
pub(super) const NOTIFY_STEP: u64 = 4;

/// A part of the BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Common,
    Isr,
    Device,
    Notify,
    MsixTable,
    MsixPending,
}

/// The part that has all `len` bytes from `offset` on, and where they are in it.
pub(super) fn part(offset: u64, len: usize) -> Option<(Part, u64)> {
    let at = offset % PAGE;
    let part = match offset - at {
        0 => Part::Common,
        ISR => Part::Isr,
        DEVICE_CONFIG => Part::Device,
        NOTIFY => Part::Notify,
        MSIX_TABLE => Part::MsixTable,
        MSIX_PENDING => Part::MsixPending,
        _ => return None,
    };
    (len > 0 && at + len as u64 <= PAGE).then_some((part, at))
}

/// A capability after its ID and link: length, what it is, where.
fn capability(kind: u8, offset: u64, len: u64, more: &[u8]) -> Vec<u8> {
    let mut body = vec![16 + more.len() as u8, kind, BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more);
    body
}

/// Configuration space of a device with `vectors` interrupt messages, its MSI-X, and where the capability for accesses by
/// configuration space is.
pub(super) fn configuration(
    identity: Identity,
    vectors: u16,
    sink: Arc<dyn MsiSink>,
) -> Result<(ConfigSpace, Msix, u8), PciLayoutError> {
    let mut space = ConfigSpace::new(PciIdentity {
        vendor: VENDOR,
        device: DEVICE_BASE + identity.kind,
        revision: REVISION,
        class: identity.class,
        subsystem_vendor: VENDOR,
        // Any from 0x40 on (§4.1.2.1).
        subsystem: DEVICE_BASE + identity.kind,
        multi_function: false,
        interrupt_pin: INTERRUPT_PIN,
    });
    space.add_bar(BAR.into(), Bar::Memory32 { size: BAR_SIZE as u32, prefetchable: false })?;
    let msix = Msix::new(&mut space, vectors, BAR, MSIX_TABLE as u32, MSIX_PENDING as u32, sink)?;
    let mut add = |body: &[u8], writable: &[u8]| space.add_capability(CAPABILITY, body, writable);
    let doorbells = u64::from(vectors - 1) * NOTIFY_STEP;
    add(&capability(COMMON_CFG, 0, common::SIZE, &[]), &[])?;
    add(&capability(ISR_CFG, ISR, 1, &[]), &[])?;
    add(&capability(DEVICE_CFG, DEVICE_CONFIG, PAGE, &[]), &[])?;
    let step = (NOTIFY_STEP as u32).to_le_bytes();
    add(&capability(NOTIFY_CFG, NOTIFY, doorbells, &step), &[])?;
    // BAR, offset and length are the driver's to set, and so is the data.
    let mut writable = [0; 18];
    writable[2] = 0xFF;
    writable[6..].fill(0xFF);
    let cfg_access = add(&capability(PCI_CFG, 0, 0, &[0; 4]), &writable)?;
    Ok((space, msix, cfg_access))
}
