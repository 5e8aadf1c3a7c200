//! The tables with a fixed form: RSDP, XSDT, FADT, FACS, MADT, MCFG.

use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use vireo_chipset::layout;

use super::{AcpiSpec, Ecam};

pub(super) const OEM_ID: [u8; 6] = *b"VIREO ";
pub(super) const OEM_TABLE_ID: [u8; 8] = *b"VIREOPC ";
pub(super) const OEM_REVISION: u32 = 1;
/// Bytes of a table's header (ACPI 6.5, 5.2.6).
const HEADER: u32 = 36;
/// Bytes of an RSDP of revision 2 (5.2.5.3).
pub(super) const RSDP_SIZE: u64 = 36;
/// The processor id that stands for all of them (5.2.12.7).
const ALL_PROCESSORS: u8 = 0xff;
const ALL_PROCESSORS_X2APIC: u32 = 0xffff_ffff;
/// Local APIC ids from here on need x2APIC entries (5.2.12.12).
const X2APIC_FIRST_ID: u32 = 255;

fn table(signature: &[u8; 4], length: u32, revision: u8) -> Sdt {
    Sdt::new(*signature, length, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

fn finished(mut table: Sdt) -> Vec<u8> {
    table.update_checksum();
    table.as_slice().to_vec()
}

/// 5.2.5.3.
pub(super) fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut bytes);
    bytes
}

/// 5.2.8.
pub(super) fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = table(b"XSDT", HEADER, 1);
    for &address in tables {
        xsdt.append(address);
    }
    finished(xsdt)
}

/// 5.2.10: all zero but for signature, length and version.
pub(super) fn facs() -> Vec<u8> {
    let mut bytes = Vec::new();
    FACS::new().to_aml_bytes(&mut bytes);
    bytes
}

/// Offsets of the fields of the FADT that are not zero here (5.2.9, table 5.9).
mod fadt_field {
    pub const FIRMWARE_CTRL: usize = 36;
    pub const DSDT: usize = 40;
    pub const PREFERRED_PM_PROFILE: usize = 45;
    pub const SCI_INT: usize = 46;
    pub const PM1A_EVT_BLK: usize = 56;
    pub const PM1A_CNT_BLK: usize = 64;
    pub const PM_TMR_BLK: usize = 76;
    pub const GPE0_BLK: usize = 80;
    pub const PM1_EVT_LEN: usize = 88;
    pub const PM1_CNT_LEN: usize = 89;
    pub const PM_TMR_LEN: usize = 91;
    pub const GPE0_BLK_LEN: usize = 92;
    pub const P_LVL2_LAT: usize = 96;
    pub const P_LVL3_LAT: usize = 98;
    pub const CENTURY: usize = 108;
    pub const IAPC_BOOT_ARCH: usize = 109;
    pub const FLAGS: usize = 112;
    pub const RESET_REG: usize = 116;
    pub const RESET_VALUE: usize = 128;
    pub const MINOR_VERSION: usize = 131;
    pub const X_DSDT: usize = 140;
    pub const X_PM1A_EVT_BLK: usize = 148;
    pub const X_PM1A_CNT_BLK: usize = 172;
    pub const X_PM_TMR_BLK: usize = 208;
    pub const X_GPE0_BLK: usize = 220;
    pub const END: u32 = 276;
}

/// FADT flags (5.2.9, table 5.10).
mod fadt_flag {
    /// WBINVD works.
    pub const WBINVD: u32 = 1 << 0;
    /// Every processor has C1.
    pub const PROC_C1: u32 = 1 << 2;
    /// There is no fixed-feature sleep button. (No flag for the power button: there is one.)
    pub const SLP_BUTTON: u32 = 1 << 5;
    /// The RTC's alarm is no fixed-feature wake event.
    pub const FIX_RTC: u32 = 1 << 6;
    /// The PM timer has 32 bits.
    pub const TMR_VAL_EXT: u32 = 1 << 8;
    /// The reset register works.
    pub const RESET_REG_SUP: u32 = 1 << 10;
}

/// IAPC_BOOT_ARCH (5.2.9.3).
mod boot_arch {
    /// There are devices on an ISA bus.
    pub const LEGACY_DEVICES: u16 = 1 << 0;
    /// There is a keyboard controller.
    pub const KEYBOARD_8042: u16 = 1 << 1;
    /// Do not look for a VGA.
    pub const VGA_NOT_PRESENT: u16 = 1 << 2;
}

const PROFILE_ENTERPRISE_SERVER: u8 = 4;
/// A latency beyond 100 µs or 1000 µs says that C2 or C3 does not exist.
const NO_C2: u16 = 0xfff;
const NO_C3: u16 = 0xfff;

/// 5.2.9, revision 6.5.
pub(super) fn fadt(spec: &AcpiSpec, facs: u64, dsdt: u64) -> Vec<u8> {
    use fadt_field as at;
    let mut t = table(b"FACP", at::END, 6);
    t.write_u8(at::MINOR_VERSION, 5);
    // Both are below 4 GiB. The 64-bit FACS field stays zero, as the specification wants if the other is set.
    t.write_u32(at::FIRMWARE_CTRL, facs as u32);
    t.write_u32(at::DSDT, dsdt as u32);
    t.write_u64(at::X_DSDT, dsdt);
    t.write_u8(at::PREFERRED_PM_PROFILE, PROFILE_ENTERPRISE_SERVER);
    t.write_u16(at::SCI_INT, layout::IRQ_SCI.into());
    t.write_u16(at::P_LVL2_LAT, NO_C2);
    t.write_u16(at::P_LVL3_LAT, NO_C3);
    t.write_u8(at::CENTURY, vireo_chipset::rtc::CENTURY);
    let keyboard = if spec.keyboard { boot_arch::KEYBOARD_8042 } else { 0 };
    t.write_u16(at::IAPC_BOOT_ARCH, boot_arch::LEGACY_DEVICES | boot_arch::VGA_NOT_PRESENT | keyboard);
    let flags = fadt_flag::WBINVD
        | fadt_flag::PROC_C1
        | fadt_flag::SLP_BUTTON
        | fadt_flag::FIX_RTC
        | fadt_flag::TMR_VAL_EXT
        | fadt_flag::RESET_REG_SUP;
    t.write_u32(at::FLAGS, flags);
    t.write_bytes(at::RESET_REG, &io_register(layout::RESET_CONTROL, 1, 1));
    t.write_u8(at::RESET_VALUE, layout::RESET_VALUE);
    // (32-bit field, 64-bit field, length field, port, length, bytes per access)
    let blocks = [
        (at::PM1A_EVT_BLK, at::X_PM1A_EVT_BLK, at::PM1_EVT_LEN, layout::PM1A_EVT, layout::PM1_EVT_LEN, 2),
        (at::PM1A_CNT_BLK, at::X_PM1A_CNT_BLK, at::PM1_CNT_LEN, layout::PM1A_CNT, layout::PM1_CNT_LEN, 2),
        (at::PM_TMR_BLK, at::X_PM_TMR_BLK, at::PM_TMR_LEN, layout::PM_TIMER, layout::PM_TIMER_LEN, 4),
        (at::GPE0_BLK, at::X_GPE0_BLK, at::GPE0_BLK_LEN, layout::GPE0, layout::GPE0_LEN, 1),
    ];
    for (field, extended, length_field, port, length, access) in blocks {
        t.write_u32(field, port.into());
        t.write_u8(length_field, length);
        t.write_bytes(extended, &io_register(port, length, access));
    }
    finished(t)
}

/// A generic address structure (5.2.3.2) in I/O space; `length` in bytes, `access` 1, 2 or 4.
fn io_register(port: u16, length: u8, access: u8) -> [u8; 12] {
    const SYSTEM_IO: u8 = 1;
    let access_size = access.ilog2() as u8 + 1;
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&[SYSTEM_IO, length * 8, 0, access_size]);
    bytes[4..6].copy_from_slice(&port.to_le_bytes());
    bytes
}

/// 5.2.12.
pub(super) fn madt(spec: &AcpiSpec) -> Vec<u8> {
    /// There are 8259As too.
    const PCAT_COMPAT: u32 = 1;
    let mut t = table(b"APIC", HEADER, 5);
    t.dword(layout::LAPIC_BASE as u32);
    t.dword(PCAT_COMPAT);
    for id in 0..spec.vcpus {
        processor(&mut t, id);
    }
    io_apic(&mut t);
    source_override(&mut t, layout::IRQ_PIT, CONFORMS);
    source_override(&mut t, layout::IRQ_SCI, LEVEL_ACTIVE_HIGH);
    nmi_on_lint1(&mut t, spec.vcpus);
    finished(t)
}

/// A processor, enabled: local APIC (5.2.12.2) or x2APIC (5.2.12.12).
fn processor(t: &mut Sdt, id: u32) {
    const ENABLED: u32 = 1;
    if id < X2APIC_FIRST_ID {
        t.vec(&[0, 8, id as u8, id as u8]);
        t.dword(ENABLED);
    } else {
        t.vec(&[9, 16, 0, 0]);
        t.dword(id);
        t.dword(ENABLED);
        t.dword(id);
    }
}

/// 5.2.12.3.
fn io_apic(t: &mut Sdt) {
    const ID: u8 = 0;
    const FIRST_GSI: u32 = 0;
    t.vec(&[1, 12, ID, 0]);
    t.dword(layout::IOAPIC_BASE as u32);
    t.dword(FIRST_GSI);
}

/// Polarity and trigger mode as the ISA bus has them: high, edge.
const CONFORMS: u16 = 0;
const LEVEL_ACTIVE_HIGH: u16 = 0b11 << 2 | 0b01;

/// Interrupt source override (5.2.12.5).
fn source_override(t: &mut Sdt, irq: u8, flags: u16) {
    const ISA_BUS: u8 = 0;
    t.vec(&[2, 10, ISA_BUS, irq]);
    t.dword(layout::ioapic_pin(irq).into());
    t.word(flags);
}

/// Local APIC NMI (5.2.12.7), and its x2APIC form (5.2.12.13).
fn nmi_on_lint1(t: &mut Sdt, vcpus: u32) {
    const LINT1: u8 = 1;
    t.vec(&[4, 6, ALL_PROCESSORS]);
    t.word(CONFORMS);
    t.byte(LINT1);
    if vcpus > X2APIC_FIRST_ID {
        t.vec(&[10, 12]);
        t.word(CONFORMS);
        t.dword(ALL_PROCESSORS_X2APIC);
        t.vec(&[LINT1, 0, 0, 0]);
    }
}

/// PCI Firmware Specification 3.3, 4.1.2.
pub(super) fn mcfg(ecam: &Ecam) -> Vec<u8> {
    const SEGMENT: u16 = 0;
    const FIRST_BUS: u8 = 0;
    let mut t = table(b"MCFG", HEADER, 1);
    t.qword(0);
    t.qword(ecam.window.start);
    t.word(SEGMENT);
    t.vec(&[FIRST_BUS, ecam.last_bus()]);
    t.dword(0);
    finished(t)
}
