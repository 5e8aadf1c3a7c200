//! A PCI IDE controller, as in a PIIX3, with ATA disks and ATAPI CD drives: for guests that know neither VMBus nor
//! virtio, and for firmware.
//!
//! Owns the controller's and the drives' registers, and the protocol of both kinds of drive. The commands of a CD drive
//! are those of every bus ([`vireo_scsi::cd`]), the data is the disks' ([`vireo_block`]): a vCPU that gives a command never
//! waits for one, and by bus master they read and write guest memory themselves. It never opens a file, and knows no engine.
//!
//! # Who calls whom
//! vCPUs come through the ports into `channel`, which locks the channel's state (`cable`) and has it decide. A device
//! answers each event with the next `Step`: data for the host, work for a disk, a transfer by bus master, or an end.
//! Work is submitted unlocked; when it completes, the same way leads back in. A channel has one command at a time, and
//! one buffer of 64 KiB: that is all the memory that a guest can make it use, beside the lists of a transfer's regions
//! (at most 8192).
//!
//! # Resets, and disks at work
//! A request cannot be called back. So a reset waits for it (the device says it is busy), a pause waits for it, and so
//! does a vCPU that stops a bus master in the middle of a transfer, because the memory is the guest's again afterwards.
//!
//! # Where it differs from a PIIX3
//! A list of regions that is too short is found before anything is moved, not after what had room. The controller has
//! no timings, its ports cannot be switched off, and the mode that a guest sets for transfers is only told back. Of two
//! interrupts of different devices of a channel the selected device's counts, as by the standard.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod address;
mod bus_master;
mod cable;
mod channel;
mod command;
mod controller;
mod disk;
mod drive;
mod identify;
mod packet;
mod registers;
mod settings;
mod state;
mod step;
#[cfg(test)]
mod tests;

pub use controller::{Drives, IdeController, IdeDrive, Place, attach};
pub use state::IdeState;

/// A controller cannot be made, or changed, so.
#[derive(Debug, thiserror::Error)]
pub enum IdeError {
    /// A disk or medium with sectors that its drive cannot have.
    #[error(
        "IDE drive {place} cannot have sectors of {sector} bytes, only of 512; attach the disk by VMBus or virtio"
    )]
    SectorSize {
        /// Channel and device.
        place: &'static str,
        /// The disk's sector size in bytes.
        sector: u32,
    },
    /// A disk that is empty, or too large to be addressed.
    #[error(
        "IDE drive {place}: a disk of {size} bytes is not possible; it has 1 to 2^48 sectors of 512 bytes"
    )]
    Size {
        /// Channel and device.
        place: &'static str,
        /// The disk's size in bytes.
        size: u64,
    },
    /// There is no CD drive.
    #[error("IDE drive {place} is no CD drive: it has no medium that can be changed")]
    NoCd {
        /// Channel and device.
        place: &'static str,
    },
    /// The guest does not give its medium back.
    #[error("IDE drive {place}: {source}")]
    Locked {
        /// Channel and device.
        place: &'static str,
        /// Why.
        source: vireo_scsi::cd::Locked,
    },
    /// The board has no such interrupt.
    #[error("the board has no interrupt {0} for an IDE channel")]
    NoLine(u8),
    /// The controller's place is taken.
    #[error(transparent)]
    Chipset(#[from] vireo_chipset::ChipsetError),
    /// Its registers cannot be laid out.
    #[error(transparent)]
    Layout(#[from] vireo_chipset::pci::PciLayoutError),
}
