//! The differentiated system description table: the devices that cannot be enumerated, in AML.

use std::ops::Range;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, Package, PackageBuilder,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use vireo_chipset::layout;

use super::fixed::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use super::{AcpiSpec, Ecam, SerialPort};

/// Legacy frame buffer window: a VGA on PCI would decode it.
const VGA_MEMORY: Range<u32> = 0xa_0000..0xc_0000;

/// The whole table. Revision 2: integers have 64 bits.
pub(super) fn build(spec: &AcpiSpec) -> Vec<u8> {
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.vec(&scope("\\_SB_", [processors(spec.vcpus), host_bridge(spec)].concat()));
    table.vec(&soft_off());
    table.update_checksum();
    table.as_slice().to_vec()
}

/// `\_S5`: PM1a and PM1b values; the only sleep state.
fn soft_off() -> Vec<u8> {
    let value = layout::SLP_TYP_S5;
    aml(&Name::new(path("\\_S5_"), &Package::new(vec![&value, &0u8, &0u8, &0u8])))
}

/// A device object for each vCPU, matched to the MADT by `_UID` (ACPI 6.5, 8.4).
fn processors(count: u32) -> Vec<u8> {
    (0..count)
        .flat_map(|id| device(&format!("C{id:03X}"), &[name("_HID", &"ACPI0007"), name("_UID", &id)]))
        .collect()
}

fn host_bridge(spec: &AcpiSpec) -> Vec<u8> {
    let mut children = match spec.ecam {
        Some(_) => vec![name("_HID", &EISAName::new("PNP0A08")), name("_CID", &EISAName::new("PNP0A03"))],
        None => vec![name("_HID", &EISAName::new("PNP0A03"))],
    };
    children.extend([name("_UID", &0u8), name("_BBN", &0u8), resources(&bridge_windows(spec)), routing()]);
    children.push(isa_devices(spec));
    if spec.vmbus {
        // Linux takes the windows of its parent for memory of synthetic devices, and wants resources, even if none.
        children.push(device("VMBS", &[name("_HID", &"VMBus"), name("_UID", &0u8), resources(&[])]));
    }
    device("PCI0", &children)
}

/// What the bridge passes to its buses: all ports but its own, all of the PCI hole but configuration space.
fn bridge_windows(spec: &AcpiSpec) -> Vec<Box<dyn Aml>> {
    const NOT_CACHEABLE: AddressSpaceCacheable = AddressSpaceCacheable::NotCacheable;
    let memory = |r: Range<u32>| -> Box<dyn Aml> {
        Box::new(AddressSpace::<u32>::new_memory(NOT_CACHEABLE, true, r.start, r.end - 1, None))
    };
    let last_bus = spec.ecam.as_ref().map_or(0xff, Ecam::last_bus);
    let config = &layout::PCI_CONFIG;
    let mut windows: Vec<Box<dyn Aml>> = vec![
        Box::new(AddressSpace::<u16>::new_bus_number(0, last_bus.into())),
        Box::new(IO::new(config.start, config.start, 1, config.len() as u8)),
        Box::new(AddressSpace::<u16>::new_io(0, config.start - 1, None)),
        Box::new(AddressSpace::<u16>::new_io(config.end, u16::MAX, None)),
        memory(VGA_MEMORY),
    ];
    // Both ends are below 4 GiB.
    let hole = layout::PCI_HOLE_START as u32..layout::PCI_HOLE_END as u32;
    let ecam = spec.ecam.as_ref().map_or(hole.end..hole.end, |e| e.window.start as u32..e.window.end as u32);
    for part in [hole.start..ecam.start, ecam.end..hole.end] {
        if !part.is_empty() {
            windows.push(memory(part));
        }
    }
    if let Some(r) = &spec.pci_mmio64 {
        windows.push(Box::new(AddressSpace::<u64>::new_memory(
            NOT_CACHEABLE,
            true,
            r.start,
            r.end - 1,
            None,
        )));
    }
    windows
}

/// `_PRT` (6.2.13): four pins of every device, wired straight to the I/O APIC.
fn routing() -> Vec<u8> {
    const DEVICES: u8 = 32;
    const PINS: u8 = 4;
    const ANY_FUNCTION: u32 = 0xffff;
    let mut table = PackageBuilder::new();
    for device in 0..DEVICES {
        for pin in 0..PINS {
            let address = u32::from(device) << 16 | ANY_FUNCTION;
            table.add_element(&Package::new(vec![&address, &pin, &0u8, &layout::pci_gsi(device, pin)]));
        }
    }
    name("_PRT", &table)
}

/// The devices at fixed ports, below an ISA bridge that has no PCI function of its own.
fn isa_devices(spec: &AcpiSpec) -> Vec<u8> {
    let mut devices = vec![
        isa_device(
            "PIC_",
            "PNP0000",
            &[
                ports(&layout::PIC_MASTER),
                ports(&layout::PIC_SLAVE),
                ports(&layout::ELCR),
                irq(layout::IRQ_CASCADE),
            ],
        ),
        isa_device("TMR_", "PNP0100", &[ports(&layout::PIT), irq(layout::IRQ_PIT)]),
        isa_device("SPKR", "PNP0800", &[ports(&layout::PORT_B)]),
        isa_device("RTC_", "PNP0B00", &[ports(&layout::RTC), irq(layout::IRQ_RTC)]),
        motherboard(spec),
    ];
    if spec.keyboard {
        let keyboard = [ports(&layout::I8042_DATA), ports(&layout::I8042_COMMAND), irq(layout::IRQ_KEYBOARD)];
        devices.push(isa_device("KBD_", "PNP0303", &keyboard));
        devices.push(isa_device("MOU_", "PNP0F13", &[irq(IRQ_MOUSE)]));
    }
    devices.extend(spec.serial_ports.iter().zip(1u8..).map(|(port, number)| serial_port(port, number)));
    devices.concat()
}

/// Auxiliary device of the keyboard controller, on every PC.
const IRQ_MOUSE: u8 = 12;

/// Ports of the board that no driver claims, so that none is given to a PCI device.
fn motherboard(spec: &AcpiSpec) -> Vec<u8> {
    let mut used: Vec<Box<dyn Aml>> =
        [&layout::POST, &layout::PORT_A, &layout::IO_DELAY, &layout::PM_BLOCK].map(ports).into();
    if let Some(Ecam { window: r }) = &spec.ecam {
        used.push(Box::new(Memory32Fixed::new(true, r.start as u32, (r.end - r.start) as u32)));
    }
    isa_device("MBRD", "PNP0C02", &used)
}

fn serial_port(port: &SerialPort, number: u8) -> Vec<u8> {
    let used = resources(&[Box::new(IO::new(port.base, port.base, 1, 8)), irq(port.irq)]);
    let id = name("_HID", &EISAName::new("PNP0501"));
    device(&format!("COM{number:X}"), &[id, name("_UID", &number), used])
}

fn isa_device(object: &str, id: &str, used: &[Box<dyn Aml>]) -> Vec<u8> {
    device(object, &[name("_HID", &EISAName::new(id)), resources(used)])
}

fn ports(range: &Range<u16>) -> Box<dyn Aml> {
    Box::new(IO::new(range.start, range.start, 1, range.len() as u8))
}

fn irq(number: u8) -> Box<dyn Aml> {
    Box::new(IsaInterrupt(number))
}

/// IRQ descriptor without flags: edge triggered, active high, exclusive (6.4.2.1).
struct IsaInterrupt(u8);

impl Aml for IsaInterrupt {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << (self.0 & 15));
    }
}

/// AML that is already bytes.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn aml(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn path(name: &str) -> Path {
    Path::new(name)
}

fn name(object: &str, value: &dyn Aml) -> Vec<u8> {
    aml(&Name::new(path(object), value))
}

fn resources(descriptors: &[Box<dyn Aml>]) -> Vec<u8> {
    name("_CRS", &ResourceTemplate::new(descriptors.iter().map(AsRef::as_ref).collect()))
}

fn device(object: &str, children: &[Vec<u8>]) -> Vec<u8> {
    aml(&Device::new(path(object), vec![&Raw(children.concat())]))
}

fn scope(object: &str, children: Vec<u8>) -> Vec<u8> {
    aml(&Scope::new(path(object), vec![&Raw(children)]))
}
