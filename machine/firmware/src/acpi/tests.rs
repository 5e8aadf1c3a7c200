//! The tables against the reference implementation's tools, and byte for byte where that says nothing.

use std::path::PathBuf;
use std::process::Command;

use super::*;

fn small() -> AcpiSpec {
    AcpiSpec {
        vcpus: 4,
        serial_ports: vec![SerialPort::com1()],
        keyboard: false,
        pci_mmio64: None,
        ecam: None,
        vmbus: false,
    }
}

fn large() -> AcpiSpec {
    AcpiSpec {
        vcpus: 300,
        serial_ports: vec![SerialPort::com1(), SerialPort { base: 0x2f8, irq: 3 }],
        keyboard: true,
        pci_mmio64: Some(0x80_0000_0000..0xc0_0000_0000),
        ecam: Some(Ecam { window: 0xe000_0000..0xf000_0000 }),
        vmbus: true,
    }
}

fn find<'a>(tables: &'a [Table], signature: &[u8; 4]) -> &'a Table {
    tables.iter().find(|t| &t.signature == signature).unwrap()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn every_table_sums_to_zero_has_its_length_and_is_linked_and_apart() {
    for spec in [small(), large()] {
        let tables = build(&spec).unwrap();
        for t in &tables {
            if &t.signature != b"FACS" {
                assert_eq!(t.bytes.iter().fold(0u8, |s, b| s.wrapping_add(*b)), 0, "{:?}", t.signature);
            }
            if &t.signature != b"RSD " {
                assert_eq!(u32_at(&t.bytes, 4) as usize, t.bytes.len());
                assert_eq!(t.bytes[..4], t.signature);
            }
        }
        let mut ranges: Vec<_> = tables.iter().map(|t| t.address..t.address + t.bytes.len() as u64).collect();
        ranges.sort_by_key(|r| r.start);
        assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start));
        assert!(
            ranges[0].start == map::ACPI_TABLES.start && ranges.last().unwrap().end <= map::ACPI_TABLES.end
        );

        let xsdt = find(&tables, b"XSDT");
        assert_eq!(u64_at(&tables[0].bytes, 24), xsdt.address);
        let listed: Vec<_> = xsdt.bytes[36..].chunks(8).map(|c| u64_at(c, 0)).collect();
        let mut expected = vec![find(&tables, b"FACP").address, find(&tables, b"APIC").address];
        expected.extend(spec.ecam.is_some().then(|| find(&tables, b"MCFG").address));
        assert_eq!(listed, expected);
        let fadt = &find(&tables, b"FACP").bytes;
        assert_eq!(u64::from(u32_at(fadt, 36)), find(&tables, b"FACS").address);
        assert_eq!(u64_at(fadt, 140), find(&tables, b"DSDT").address);
    }
}

#[test]
fn madt_of_one_vcpu_is_this() {
    let madt = find(&build(&AcpiSpec { vcpus: 1, ..small() }).unwrap(), b"APIC").bytes.clone();
    #[rustfmt::skip]
    let expected = [
        0x00, 0x00, 0xe0, 0xfe, 1, 0, 0, 0,
        0, 8, 0, 0, 1, 0, 0, 0,
        1, 12, 0, 0, 0x00, 0x00, 0xc0, 0xfe, 0, 0, 0, 0,
        2, 10, 0, 0, 2, 0, 0, 0, 0, 0,
        2, 10, 0, 9, 9, 0, 0, 0, 0x0d, 0,
        4, 6, 0xff, 0, 0, 1,
    ];
    assert_eq!(madt[36..], expected);
    assert_eq!(madt[..9], *b"APIC\x5a\0\0\0\x05");
}

#[test]
fn madt_names_each_vcpu_once_and_the_large_ones_by_x2apic() {
    let madt = find(&build(&large()).unwrap(), b"APIC").bytes.clone();
    let (mut at, mut ids, mut kinds) = (44, Vec::new(), Vec::new());
    while at < madt.len() {
        match madt[at] {
            0 => ids.push(u32::from(madt[at + 3])),
            9 => ids.push(u32_at(&madt, at + 4)),
            other => kinds.push(other),
        }
        at += usize::from(madt[at + 1]);
    }
    assert_eq!(at, madt.len());
    assert_eq!(ids, (0..300).collect::<Vec<_>>());
    assert_eq!(kinds, [1, 2, 2, 4, 10]);
}

#[test]
fn impossible_specs_are_refused() {
    let refused = |change: fn(&mut AcpiSpec)| {
        let mut spec = small();
        change(&mut spec);
        build(&spec).unwrap_err().to_string()
    };
    assert_eq!(refused(|s| s.vcpus = 0), "0 vCPUs: a machine has 1 to 1024");
    assert_eq!(refused(|s| s.vcpus = 1025), "1025 vCPUs: a machine has 1 to 1024");
    assert!(refused(|s| s.serial_ports = vec![SerialPort::com1(); 5]).contains("at most 4"));
    assert!(refused(|s| s.serial_ports[0].irq = 16).contains("below 16"));
    assert!(refused(|s| s.serial_ports[0].base = 0xfff9).contains("fff9"));
    assert!(refused(|s| s.pci_mmio64 = Some(0..1 << 33)).contains("above 4 GiB"));
    for window in [0..1 << 28, 0xe000_0000..0xe000_0000, 0xe000_0000..0xe008_0000, 0xf000_0000..0x1_0000_0000]
    {
        let spec = AcpiSpec { ecam: Some(Ecam { window }), ..small() };
        assert!(matches!(build(&spec), Err(AcpiError::Window { .. })));
    }
    build(&AcpiSpec { vcpus: VCPUS_MAX, ..large() }).unwrap();
}

/// A folder of its own for a test, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn with_tables(name: &str, tables: &[Table]) -> Self {
        let path = std::env::temp_dir().join(format!("vireo-acpi-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        for t in tables.iter().filter(|t| &t.signature != b"RSD ") {
            let file = format!("{}.dat", String::from_utf8_lossy(&t.signature));
            std::fs::write(path.join(file), &t.bytes).unwrap();
        }
        Self(path)
    }

    /// Runs a tool of ACPICA here; all it says, or `None` (and a loud word) if it is not installed.
    fn run(&self, tool: &str, arguments: &[&str]) -> Option<String> {
        match Command::new(tool).args(arguments).current_dir(&self.0).output() {
            Ok(output) => {
                let said = [output.stdout, output.stderr].concat();
                let said = String::from_utf8_lossy(&said).into_owned();
                assert!(output.status.success(), "{tool} {arguments:?}:\n{said}");
                Some(said)
            }
            Err(_) => {
                eprintln!("SKIPPED: {tool} is not installed (acpica-tools; scripts/install-deps.sh test)");
                None
            }
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Disassembles every table, and compiles the DSDT again: no errors, no warnings.
#[test]
fn iasl_takes_all_tables_without_complaint() {
    for (name, spec) in [("small", small()), ("large", large())] {
        let tables = build(&spec).unwrap();
        let folder = Folder::with_tables(name, &tables);
        for table in tables.iter().filter(|t| &t.signature != b"RSD ") {
            let signature = String::from_utf8_lossy(&table.signature);
            let Some(said) = folder.run("iasl", &["-d", &format!("{signature}.dat")]) else { return };
            let source = std::fs::read_to_string(folder.0.join(format!("{signature}.dsl"))).unwrap();
            for word in ["Error", "Warning", "**** ", "Invalid", "Unknown", "incorrect"] {
                assert!(!said.contains(word), "{signature}: {said}");
                assert!(!source.contains(word), "{signature}: {word} in {source}");
            }
        }
        // 6033: the id "VMBus", which guests look for, is shorter than ACPI has it.
        if let Some(said) = folder.run("iasl", &["-oa", "-vw", "6033", "-p", "again", "DSDT.dsl"]) {
            assert!(said.contains("Compilation successful. 0 Errors, 0 Warnings"), "{said}");
        }
    }
}

/// What iasl reads out of the fixed tables, field by field: our offsets against those of the reference.
#[test]
fn iasl_reads_the_chipset_out_of_the_fadt() {
    let folder = Folder::with_tables("fadt", &build(&small()).unwrap());
    if folder.run("iasl", &["-d", "FACP.dat"]).is_none() {
        return;
    }
    let source = std::fs::read_to_string(folder.0.join("FACP.dsl")).unwrap();
    // "[02Eh 0046   2]  SCI Interrupt : 0009", and for bits "32-bit PM Timer (V1) : 1".
    let values = |name: &str| -> Vec<&str> {
        let fields = source.lines().filter_map(|l| l.split_once(" : "));
        let of_name = fields.filter(|(field, _)| field.rsplit(']').next().is_some_and(|f| f.trim() == name));
        of_name.map(|(_, value)| value.trim()).collect()
    };
    for (name, value) in [
        ("SCI Interrupt", "0009"),
        ("SMI Command Port", "00000000"),
        ("PM1A Event Block Address", "00000600"),
        ("PM1A Control Block Address", "00000604"),
        ("PM Timer Block Address", "00000608"),
        ("GPE0 Block Address", "00000620"),
        ("RTC Century Index", "32"),
        ("Value to cause reset", "06"),
        ("Control Method Power Button (V1)", "0"),
        ("Control Method Sleep Button (V1)", "1"),
        ("32-bit PM Timer (V1)", "1"),
        ("Reset Register Supported (V2)", "1"),
        ("Hardware Reduced (V5)", "0"),
        ("8042 Present on ports 60/64 (V2)", "0"),
    ] {
        assert!(values(name).iter().any(|v| v.starts_with(value)), "{name}: {:?} in {source}", values(name));
    }
    // Reset register, PM1a event, PM1b event, PM1a control, ...: the 64-bit forms, by order of their offsets.
    let addresses = values("Address").into_iter().filter(|a| !a.starts_with("0000000000000000"));
    assert_eq!(addresses.map(|a| &a[12..]).collect::<Vec<_>>(), ["0CF9", "0600", "0604", "0608", "0620"]);
}

/// The reference interpreter loads the tables and evaluates what an operating system does.
#[test]
fn acpiexec_loads_the_tables_and_evaluates_their_objects() {
    let tables = build(&large()).unwrap();
    let folder = Folder::with_tables("exec", &tables);
    let commands = "evaluate \\_S5; evaluate \\_SB.PCI0._PRT; resources \\_SB.PCI0; resources \\_SB.PCI0.COM2; \
                    evaluate \\_SB.C12B._UID; quit";
    let files = ["DSDT.dat", "FACP.dat", "APIC.dat", "FACS.dat"];
    let Some(said) = folder.run("acpiexec", &[&["-b", commands][..], &files[..]].concat()) else { return };
    assert!(
        ["ACPI Error", "ACPI Warning", "ACPI BIOS", "Firmware"].iter().all(|w| !said.contains(w)),
        "{said}"
    );
    // What the resources command prints of COM2, and _UID 299.
    for expected in ["Address Minimum : 02F8", "Interrupt List : 3", "[Integer] = 000000000000012B"] {
        assert!(said.contains(expected), "no {expected} in {said}");
    }
}

#[test]
fn pci_interrupts_stay_off_the_isa_inputs_and_spread() {
    let all: Vec<u8> = (0..32).flat_map(|d| (0..4).map(move |p| pci_gsi(d, p))).collect();
    assert!(all.iter().all(|g| (16..24).contains(g)));
    assert_ne!(pci_gsi(1, 0), pci_gsi(2, 0));
}
