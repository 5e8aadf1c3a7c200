//! Where everything is: guest-physical windows, I/O ports and interrupt numbers of the standard board.
//!
//! This is the only place that holds such numbers. The firmware tables (MADT, FADT, DSDT) must be made from
//! these constants, so that what the guest is told is what the board does.

use std::ops::Range;

// ---- Guest-physical address space ----------------------------------------------------------------------

/// First address of the legacy VGA and option ROM window, where no RAM is.
pub const LEGACY_HOLE_START: u64 = 0x000A_0000;
/// First address above the legacy window: RAM again.
pub const LEGACY_HOLE_END: u64 = 0x0010_0000;
/// First address of the 32-bit hole for PCI memory; RAM below 4 GiB ends here at the latest.
pub const PCI_HOLE_START: u64 = 0xC000_0000;
/// First address above the 32-bit PCI hole.
pub const PCI_HOLE_END: u64 = IOAPIC_BASE;
/// Where the board puts memory BARs at reset: the upper part of the PCI hole, so that the lower is free for large ones that the
/// guest places itself.
pub const PCI_BAR_MEMORY: Range<u64> = 0xF000_0000..PCI_HOLE_END;
/// I/O APIC registers (82093AA datasheet §3.0).
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Size of the I/O APIC window in bytes.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Local APIC registers (Intel SDM vol. 3 §11.4.1). Owned by the engine, never by a bus of this crate.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;
/// Size of the local APIC window in bytes.
pub const LAPIC_SIZE: u64 = 0x1000;
/// RAM that does not fit below [`PCI_HOLE_START`] continues here.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

// ---- I/O ports -----------------------------------------------------------------------------------------

/// Master 8259A: command and data port.
pub const PIC_MASTER: Range<u16> = 0x20..0x22;
/// Slave 8259A: command and data port.
pub const PIC_SLAVE: Range<u16> = 0xA0..0xA2;
/// Edge/level control registers of both interrupt controllers (PIIX3 datasheet §2.5.8).
pub const ELCR: Range<u16> = 0x4D0..0x4D2;
/// 8254: counters 0 to 2 and the control word.
pub const PIT: Range<u16> = 0x40..0x44;
/// NMI status and control, speaker and gate of counter 2 ("port B").
pub const PORT_B: Range<u16> = 0x61..0x62;
/// Keyboard controller: data port.
pub const I8042_DATA: Range<u16> = 0x60..0x61;
/// Keyboard controller: command and status port.
pub const I8042_COMMAND: Range<u16> = 0x64..0x65;
/// RTC/CMOS: index and data.
pub const RTC: Range<u16> = 0x70..0x72;
/// Power-on self-test code.
pub const POST: Range<u16> = 0x80..0x81;
/// The other port that kernels write to for a short delay (`io_delay=0xed`).
pub const IO_DELAY: Range<u16> = 0xED..0xEE;
/// Fast A20 and INIT ("port A").
pub const PORT_A: Range<u16> = 0x92..0x93;
/// IDE: command block of the primary channel (PIIX3 datasheet, compatibility mode; so the next three).
pub const IDE_PRIMARY: Range<u16> = 0x1F0..0x1F8;
/// IDE: alternate status and device control of the primary channel.
pub const IDE_PRIMARY_CONTROL: Range<u16> = 0x3F6..0x3F7;
/// IDE: command block of the secondary channel.
pub const IDE_SECONDARY: Range<u16> = 0x170..0x178;
/// IDE: alternate status and device control of the secondary channel.
pub const IDE_SECONDARY_CONTROL: Range<u16> = 0x376..0x377;
/// First serial port.
pub const COM1: Range<u16> = 0x3F8..0x400;
/// PCI configuration mechanism #1: address at 0xCF8, data at 0xCFC (PCI 3.0 §3.2.2.3).
pub const PCI_CONFIG: Range<u16> = 0xCF8..0xD00;
/// Reset control register: byte accesses here, inside [`PCI_CONFIG`] (PIIX3 datasheet §2.5.5.1).
pub const RESET_CONTROL: u16 = 0xCF9;
/// Value the firmware names in FADT.RESET_VALUE: full reset through [`RESET_CONTROL`].
pub const RESET_VALUE: u8 = 0x06;

/// Where the board puts I/O BARs at reset: beyond all that ISA decodes with 10 address lines or less.
pub const PCI_BAR_PORTS: Range<u16> = 0xC000..0xD000;

/// Base of the ACPI fixed hardware block.
pub const PM_BASE: u16 = 0x600;
/// The whole ACPI fixed hardware block.
pub const PM_BLOCK: Range<u16> = PM_BASE..PM_BASE + 0x40;
/// FADT.PM1a_EVT_BLK: status (16 bits) and enable (16 bits).
pub const PM1A_EVT: u16 = PM_BASE;
/// FADT.PM1_EVT_LEN.
pub const PM1_EVT_LEN: u8 = 4;
/// FADT.PM1a_CNT_BLK.
pub const PM1A_CNT: u16 = PM_BASE + 0x04;
/// FADT.PM1_CNT_LEN.
pub const PM1_CNT_LEN: u8 = 2;
/// FADT.PM_TMR_BLK: 32 bits, so the TMR_VAL_EXT flag must be set.
pub const PM_TIMER: u16 = PM_BASE + 0x08;
/// FADT.PM_TMR_LEN.
pub const PM_TIMER_LEN: u8 = 4;
/// FADT.GPE0_BLK: status (16 bits) and enable (16 bits).
pub const GPE0: u16 = PM_BASE + 0x20;
/// FADT.GPE0_BLK_LEN.
pub const GPE0_LEN: u8 = 4;
/// The SLP_TYP value of `\_S5` (soft off). No other sleep state exists.
pub const SLP_TYP_S5: u8 = 5;

// ---- Interrupts ----------------------------------------------------------------------------------------

/// Inputs of the two 8259A together.
pub const ISA_IRQS: u8 = 16;
/// Inputs of the I/O APIC; also its count of global system interrupts, which start at 0.
pub const IOAPIC_PINS: u8 = 24;
/// Counter 0 of the 8254.
pub const IRQ_PIT: u8 = 0;
/// Keyboard controller.
pub const IRQ_KEYBOARD: u8 = 1;
/// The slave 8259A's input on the master; no device may use it.
pub const IRQ_CASCADE: u8 = 2;
/// First serial port.
pub const IRQ_COM1: u8 = 4;
/// Real-time clock.
pub const IRQ_RTC: u8 = 8;
/// ACPI system control interrupt: level triggered, active high.
pub const IRQ_SCI: u8 = 9;
/// IDE, primary channel.
pub const IRQ_IDE_PRIMARY: u8 = 14;
/// IDE, secondary channel.
pub const IRQ_IDE_SECONDARY: u8 = 15;
/// Where ISA interrupt 0 arrives on the I/O APIC; the MADT needs an interrupt source override for it.
pub const PIT_IOAPIC_PIN: u8 = 2;

/// The I/O APIC input (global system interrupt) that carries ISA interrupt `irq`.
pub const fn ioapic_pin(irq: u8) -> u8 {
    if irq == IRQ_PIT { PIT_IOAPIC_PIN } else { irq }
}

/// First global system interrupt of PCI functions: those that ISA does not use.
pub const PCI_FIRST_GSI: u8 = ISA_IRQS;
const PCI_GSIS: u8 = IOAPIC_PINS - PCI_FIRST_GSI;

/// The global system interrupt of pin 0 to 3 (INTA to INTD) of a device of bus 0, as `_PRT` tells it. Level triggered, active
/// low. There is no route to the 8259As.
pub const fn pci_gsi(device: u8, pin: u8) -> u8 {
    PCI_FIRST_GSI + device.wrapping_add(pin) % PCI_GSIS
}

// ---- Frequencies ---------------------------------------------------------------------------------------

/// Input clock of the 8254 in Hz (14.31818 MHz / 12).
pub const PIT_HZ: u64 = 1_193_182;
/// ACPI PM timer in Hz (ACPI 6.5 §4.8.3.3).
pub const PM_TIMER_HZ: u64 = 3_579_545;
