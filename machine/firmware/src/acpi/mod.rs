//! ACPI tables (ACPI specification 6.5), made from the chipset's own constants.
//!
//! A PC with fixed hardware: always in ACPI mode (no SMI command), PM1a event and control blocks, PM timer, one GPE
//! block, a fixed-feature power button, reset register; both interrupt models (8259A and I/O APIC).

mod dsdt;
mod fixed;
#[cfg(test)]
mod tests;

use std::ops::Range;

use vireo_chipset::layout;
use vireo_memory::{GuestMemory, MemoryError};

use crate::map;
pub use layout::pci_gsi;

/// What the tables describe besides what every board has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiSpec {
    /// Number of vCPUs, with APIC ids from 0: 1 to [`VCPUS_MAX`].
    pub vcpus: u32,
    /// 16550s at ISA addresses: at most four.
    pub serial_ports: Vec<SerialPort>,
    /// Whether there is a keyboard controller with a keyboard and a mouse port, not just its reset command.
    pub keyboard: bool,
    /// A window for PCI memory above all RAM, if any.
    pub pci_mmio64: Option<Range<u64>>,
    /// Memory-mapped configuration space, if the host bridge is PCI Express.
    pub ecam: Option<Ecam>,
    /// Whether there is a VMBus.
    pub vmbus: bool,
}

/// A 16550.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialPort {
    /// Its first I/O port; it has eight.
    pub base: u16,
    /// Its ISA interrupt.
    pub irq: u8,
}

impl SerialPort {
    /// The first serial port of a PC.
    pub fn com1() -> Self {
        Self { base: layout::COM1.start, irq: layout::IRQ_COM1 }
    }
}

/// A window of 1 MiB for each bus, inside the 32-bit PCI hole. List it as reserved in the memory map too
/// ([`crate::linux::LinuxBoot::reserved`]), or Linux does not believe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ecam {
    /// Guest-physical addresses, from the configuration space of bus 0.
    pub window: Range<u64>,
}

impl Ecam {
    /// Bytes of configuration space per bus (PCI Express base specification, 7.2.2).
    const BUS: u64 = 1 << 20;

    fn last_bus(&self) -> u8 {
        ((self.window.end - self.window.start) / Self::BUS).clamp(1, 256).wrapping_sub(1) as u8
    }
}

/// Most vCPUs that the tables have room for.
pub const VCPUS_MAX: u32 = 1024;

/// Why the tables cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// No such number of vCPUs.
    #[error("{0} vCPUs: a machine has 1 to {VCPUS_MAX}")]
    Vcpus(u32),
    /// More serial ports than a PC has, or one where none can be.
    #[error("serial ports {0:x?}: there are at most 4, each with an ISA interrupt (below 16)")]
    SerialPorts(Vec<SerialPort>),
    /// An address range that is empty, not aligned or not where it must be.
    #[error("PCI window {:#x} to {:#x}: {reason}", range.start, range.end)]
    Window {
        /// The range.
        range: Range<u64>,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// More tables than place for them.
    #[error("ACPI tables take {needs} bytes, there is place for {has}")]
    TooLarge {
        /// Bytes they take.
        needs: u64,
        /// Bytes there are.
        has: u64,
    },
    /// Guest memory refused a write.
    #[error("cannot write ACPI tables to guest memory: {0}")]
    Memory(#[from] MemoryError),
}

/// One table and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its signature, as in its header.
    pub signature: [u8; 4],
    /// Guest-physical address.
    pub address: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Writes all tables into `memory` and returns the address of the RSDP.
pub fn install(memory: &GuestMemory, spec: &AcpiSpec) -> Result<u64, AcpiError> {
    let tables = build(spec)?;
    for table in &tables {
        memory.write(table.address, &table.bytes)?;
    }
    Ok(map::ACPI_TABLES.start)
}

/// Makes all tables, the RSDP first.
pub fn build(spec: &AcpiSpec) -> Result<Vec<Table>, AcpiError> {
    check(spec)?;
    let mut place = Placement { next: map::ACPI_TABLES.start + fixed::RSDP_SIZE, tables: Vec::new() };
    let facs = place.add(*b"FACS", fixed::facs());
    let dsdt = place.add(*b"DSDT", dsdt::build(spec));
    let mut listed = vec![place.add(*b"FACP", fixed::fadt(spec, facs, dsdt))];
    listed.push(place.add(*b"APIC", fixed::madt(spec)));
    if let Some(ecam) = &spec.ecam {
        listed.push(place.add(*b"MCFG", fixed::mcfg(ecam)));
    }
    let xsdt = place.add(*b"XSDT", fixed::xsdt(&listed));
    let (needs, has) = (place.next - map::ACPI_TABLES.start, map::ACPI_TABLES.end - map::ACPI_TABLES.start);
    if needs > has {
        return Err(AcpiError::TooLarge { needs, has });
    }
    let rsdp = Table { signature: *b"RSD ", address: map::ACPI_TABLES.start, bytes: fixed::rsdp(xsdt) };
    place.tables.insert(0, rsdp);
    Ok(place.tables)
}

/// Places tables one after the other, each on 64 bytes as the FACS needs it (ACPI 6.5, 5.2.10).
struct Placement {
    next: u64,
    tables: Vec<Table>,
}

impl Placement {
    fn add(&mut self, signature: [u8; 4], bytes: Vec<u8>) -> u64 {
        let address = self.next.next_multiple_of(64);
        self.next = address + bytes.len() as u64;
        self.tables.push(Table { signature, address, bytes });
        address
    }
}

fn check(spec: &AcpiSpec) -> Result<(), AcpiError> {
    if !(1..=VCPUS_MAX).contains(&spec.vcpus) {
        return Err(AcpiError::Vcpus(spec.vcpus));
    }
    let possible = |p: &SerialPort| p.irq < layout::ISA_IRQS && p.base <= u16::MAX - 7;
    if spec.serial_ports.len() > 4 || !spec.serial_ports.iter().all(possible) {
        return Err(AcpiError::SerialPorts(spec.serial_ports.clone()));
    }
    let window = |range: &Range<u64>, reason| Err(AcpiError::Window { range: range.clone(), reason });
    if let Some(r) = &spec.pci_mmio64
        && (r.is_empty() || r.start < layout::HIGH_RAM_START)
    {
        return window(r, "a 64-bit window is above 4 GiB");
    }
    if let Some(Ecam { window: r }) = &spec.ecam {
        if r.start < layout::PCI_HOLE_START || r.end > layout::PCI_HOLE_END || r.is_empty() {
            return window(r, "configuration space is inside the 32-bit PCI hole");
        }
        if (r.start | r.end) % Ecam::BUS != 0 || r.end - r.start > 256 * Ecam::BUS {
            return window(r, "configuration space is 1 MiB for each of at most 256 buses");
        }
    }
    Ok(())
}
