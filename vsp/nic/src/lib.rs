//! A network card of old: Intel's 82540EM ("e1000"), for guests that know neither VMBus nor virtio, and for firmware.
//!
//! Owns the card's registers, its rings of descriptors, EEPROM and PHY, and a thread that sends. Checksums and cuts of what the guest
//! sends are left to the network ([`vireo_frame::Link`]) where it can; what comes is finished. It never opens a file, and knows no
//! medium.
//!
//! # Who calls whom
//! vCPUs come through the registers, the network's threads through [`vireo_frame::Adapter`]; both work under one lock, which is never
//! held while the network is called. What the guest sends is copied, by the card's thread, into a buffer like the FIFO of the card, and
//! from there put to the network; a frame that it is full for waits there. What comes goes straight into the guest's buffers; where
//! there are none, the network waits.
//!
//! # Whom to trust
//! Nobody. Descriptors are read once; a frame, and the descriptors of one turn, have an upper bound, whatever rings say. What is no RAM
//! is not there, as on a bus.
//!
//! # Where it differs from the card
//! There are no delays and no moderation of interrupts; both are coalesced by what comes together. Check sequences are zero, for no
//! frame is on a wire. Loopback, wake-up and flash do not exist, and the EEPROM cannot be written. A frame that waits for the network is
//! in no saved state: it is lost, as on a wire.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod card;
mod eeprom;
mod phy;
mod receive;
mod registers;
mod sender;
mod transmit;

pub use card::{E1000, E1000State, attach};

/// Intel's.
const VENDOR: u16 = 0x8086;
/// 82540EM.
const DEVICE: u16 = 0x100e;
/// Intel's desktop adapter with it.
const SUBSYSTEM: u16 = 0x001e;

/// A card cannot be put on a board.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The slot is taken.
    #[error(transparent)]
    Chipset(#[from] vireo_chipset::ChipsetError),
    /// Its registers cannot be laid out.
    #[error(transparent)]
    Layout(#[from] vireo_chipset::pci::PciLayoutError),
    /// The slot has no interrupt.
    #[error("the board has no interrupt for a network card")]
    NoPin,
    /// The host refused a thread.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}
