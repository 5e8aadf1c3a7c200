//! All that a machine of the standard board starts Linux from.

use vireo_memory::{GuestMemory, MemoryError};

use crate::acpi::{self, AcpiError, AcpiSpec, SerialPort};
use crate::linux::{File, LinuxBoot, LoadError, LoadedKernel, load};
use crate::smbios::{self, SmbiosSpec, SystemNames};

/// What a guest starts from.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Whether there is a VMBus.
    pub vmbus: bool,
    /// Kernel.
    pub kernel: File<'a>,
    /// Initial RAM disk.
    pub initrd: Option<File<'a>>,
    /// Kernel command line.
    pub command_line: &'a str,
}

/// It cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Guest memory refused a write.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initrd or command line.
    #[error(transparent)]
    Linux(#[from] LoadError),
}

/// Writes tables and kernel into memory.
///
/// # Errors
/// The kernel or the initrd is none, or something has no place.
pub fn start(memory: &GuestMemory, start: &Start<'_>) -> Result<LoadedKernel, StartError> {
    let &Start { vcpus, vmbus, kernel, initrd, command_line } = start;
    let serial_ports = vec![SerialPort::com1()];
    let tables = AcpiSpec { vcpus, serial_ports, keyboard: false, pci_mmio64: None, ecam: None, vmbus };
    let rsdp = Some(acpi::install(memory, &tables)?);
    let names = SystemNames::default();
    smbios::install(memory, &SmbiosSpec { names, uuid: [0; 16], vcpus, ram: memory.startup() })?;
    Ok(load(memory, &LinuxBoot { kernel, initrd, command_line, rsdp, reserved: &[] })?)
}
