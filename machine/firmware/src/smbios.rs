//! SMBIOS 2.8 with the 32-bit entry point, which every operating system finds by search (DMTF DSP0134, 5.2.1).
//!
//! The names are the machine's: guests choose drivers by them.

use vireo_memory::{GuestMemory, MemoryError, RamLayout};

use crate::map;

/// The strings of the system (DSP0134, 7.2). Only printable ASCII is told to the guest, at most 64 bytes of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemNames {
    /// Manufacturer.
    pub manufacturer: String,
    /// Product name.
    pub product: String,
    /// Version.
    pub version: String,
    /// Serial number.
    pub serial: String,
    /// Stock keeping unit.
    pub sku: String,
    /// Family.
    pub family: String,
}

impl Default for SystemNames {
    /// Vireo's own names, without a serial number.
    fn default() -> Self {
        Self {
            manufacturer: "Vireo".into(),
            product: "Virtual Machine".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            serial: String::new(),
            sku: String::new(),
            family: "Virtual Machine".into(),
        }
    }
}

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct SmbiosSpec<'a> {
    /// Names of the system.
    pub names: SystemNames,
    /// UUID of the system in the order in which it is written (RFC 9562); all zeros: none.
    pub uuid: [u8; 16],
    /// Number of vCPUs.
    pub vcpus: u32,
    /// The memory.
    pub ram: &'a RamLayout,
}

/// Bytes of the entry point, and the alignment of what follows.
const ENTRY_POINT: usize = 31;
const TABLE: u64 = map::SMBIOS.start + 0x20;
const BIOS_DATE: &str = "01/01/2026";
/// "No such handle" and "no error information" (7.17.4, 7.5).
const NO_HANDLE: u16 = 0xffff;
const NO_ERROR_HANDLE: u16 = 0xfffe;

/// Writes entry point and structures into `memory`.
pub fn install(memory: &GuestMemory, spec: &SmbiosSpec<'_>) -> Result<(), MemoryError> {
    let (entry_point, structures) = build(spec);
    memory.write(map::SMBIOS.start, &entry_point)?;
    memory.write(TABLE, &structures)
}

/// Makes the entry point (for [`map::SMBIOS`]'s start) and the structures (for 32 bytes later).
pub fn build(spec: &SmbiosSpec<'_>) -> (Vec<u8>, Vec<u8>) {
    let mut table = Structures::default();
    bios(&mut table);
    system(&mut table, spec);
    chassis(&mut table, &spec.names);
    processor(&mut table, spec);
    memory(&mut table, spec.ram);
    boot_status(&mut table);
    table.add(127, |_| {});
    (entry_point(&table), table.bytes)
}

/// 5.2.1.
fn entry_point(table: &Structures) -> Vec<u8> {
    let mut e = Vec::with_capacity(ENTRY_POINT);
    e.extend(b"_SM_\0");
    e.extend([ENTRY_POINT as u8, 2, 8]);
    e.extend(table.longest.to_le_bytes());
    e.extend([0; 6]);
    e.extend(b"_DMI_\0");
    e.extend((table.bytes.len() as u16).to_le_bytes());
    e.extend((TABLE as u32).to_le_bytes());
    e.extend(table.count.to_le_bytes());
    e.push(0x28);
    // The second half has a sum of its own, which must be right before the whole is summed.
    e[0x15] = checksum(&e[0x10..]);
    e[4] = checksum(&e);
    e
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)).wrapping_neg()
}

/// BIOS information (7.1).
fn bios(table: &mut Structures) {
    /// Byte 0: "characteristics are not supported".
    const CHARACTERISTICS: u64 = 1 << 3;
    /// Extension byte 2: this is a virtual machine.
    const VIRTUAL_MACHINE: u8 = 1 << 4;
    const NOT_KNOWN: u8 = 0xff;
    table.add(0, |s| {
        s.string("Vireo");
        s.string(env!("CARGO_PKG_VERSION"));
        s.word((map::ACPI_TABLES.start >> 4) as u16);
        s.string(BIOS_DATE);
        s.byte(1); // ROM of 128 KiB, where the tables are
        s.qword(CHARACTERISTICS);
        s.bytes(&[0, VIRTUAL_MACHINE, NOT_KNOWN, NOT_KNOWN, NOT_KNOWN, NOT_KNOWN]);
    });
}

/// System information (7.2).
fn system(table: &mut Structures, spec: &SmbiosSpec<'_>) {
    const WOKEN_BY_POWER_SWITCH: u8 = 6;
    table.add(1, |s| {
        for name in [&spec.names.manufacturer, &spec.names.product, &spec.names.version, &spec.names.serial] {
            s.string(name);
        }
        // The first three fields of a UUID are little-endian here (7.2.1).
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        s.bytes(&ORDER.map(|i| spec.uuid[i]));
        s.byte(WOKEN_BY_POWER_SWITCH);
        s.string(&spec.names.sku);
        s.string(&spec.names.family);
    });
}

/// System enclosure (7.4).
fn chassis(table: &mut Structures, names: &SystemNames) {
    const OTHER: u8 = 1;
    const SAFE: u8 = 3;
    const SECURITY_NONE: u8 = 3;
    table.add(3, |s| {
        s.string(&names.manufacturer);
        s.byte(OTHER);
        s.string(&names.version);
        s.string(&names.serial);
        s.string("");
        s.bytes(&[SAFE, SAFE, SAFE, SECURITY_NONE]);
        s.dword(0);
        s.bytes(&[0, 1, 0, 0]); // height, power cords, no contained elements
        s.string(&names.sku);
    });
}

/// Processor information (7.5): one socket with all vCPUs.
fn processor(table: &mut Structures, spec: &SmbiosSpec<'_>) {
    const CENTRAL: u8 = 3;
    const OTHER: u8 = 1;
    const POPULATED_ENABLED: u8 = 0x41;
    const CAPABLE_64_BIT: u16 = 1 << 2;
    // 0xff stands for 255 and more.
    let cores = spec.vcpus.min(0xff) as u8;
    table.add(4, |s| {
        s.string("CPU 0");
        s.bytes(&[CENTRAL, OTHER]);
        s.string(&spec.names.manufacturer);
        s.qword(0); // CPUID has what would be here
        s.string("Virtual Processor");
        s.bytes(&[0; 7]); // voltage, clocks: unknown
        s.bytes(&[POPULATED_ENABLED, OTHER]);
        for _ in 0..3 {
            s.word(NO_HANDLE); // caches
        }
        s.bytes(&[0, 0, 0]); // serial, asset tag, part number
        s.bytes(&[cores, cores, cores]);
        s.word(CAPABLE_64_BIT);
        s.word(OTHER.into());
    });
}

/// Physical memory array (7.17), its one device (7.18), and where it is mapped (7.20).
fn memory(table: &mut Structures, ram: &RamLayout) {
    let array = memory_array(table, ram.size());
    memory_device(table, array, ram.size());
    let above_hole = ram.limit() - (ram.size() - ram.low_end())..ram.limit();
    let above_hole = (ram.limit() > ram.low_end()).then_some(above_hole);
    for range in std::iter::once(0..ram.low_end()).chain(above_hole) {
        let kib = |address: u64| u32::try_from(address >> 10).ok().filter(|&k| k != u32::MAX);
        let short = kib(range.start).zip(kib(range.end - 1));
        table.add(19, |s| {
            s.dword(short.map_or(u32::MAX, |(start, _)| start));
            s.dword(short.map_or(u32::MAX, |(_, end)| end));
            s.word(array);
            s.byte(1);
            s.qword(if short.is_some() { 0 } else { range.start });
            s.qword(if short.is_some() { 0 } else { range.end - 1 });
        });
    }
}

fn memory_array(table: &mut Structures, size: u64) -> u16 {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_ECC: u8 = 3;
    /// Says that the extended field counts, which has bytes instead of KiB.
    const EXTENDED: u32 = 0x8000_0000;
    let kib = u32::try_from(size >> 10).ok().filter(|&k| k < EXTENDED);
    table.add(16, |s| {
        s.bytes(&[SYSTEM_BOARD, SYSTEM_MEMORY, NO_ECC]);
        s.dword(kib.unwrap_or(EXTENDED));
        s.word(NO_ERROR_HANDLE);
        s.word(1);
        s.qword(if kib.is_some() { 0 } else { size });
    })
}

fn memory_device(table: &mut Structures, array: u16, size: u64) {
    const WIDTH_UNKNOWN: u16 = 0xffff;
    const DIMM: u8 = 9;
    const TYPE_RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    /// Says that the extended field counts.
    const EXTENDED: u16 = 0x7fff;
    let mib = size >> 20;
    let short = u16::try_from(mib).ok().filter(|&m| m < EXTENDED);
    table.add(17, |s| {
        s.word(array);
        s.word(NO_ERROR_HANDLE);
        s.word(WIDTH_UNKNOWN);
        s.word(WIDTH_UNKNOWN);
        s.word(short.unwrap_or(EXTENDED));
        s.bytes(&[DIMM, 0]);
        s.string("DIMM 0");
        s.string("");
        s.byte(TYPE_RAM);
        s.word(DETAIL_OTHER);
        s.word(0); // speed unknown
        s.string("Vireo");
        s.bytes(&[0, 0, 0, 0]); // serial, asset tag, part number, rank
        s.dword(if short.is_some() { 0 } else { mib.min(0x7fff_ffff) as u32 });
        s.bytes(&[0; 8]); // configured speed, voltages: unknown
    });
}

/// System boot information (7.33): no errors.
fn boot_status(table: &mut Structures) {
    table.add(32, |s| s.bytes(&[0; 7]));
}

/// The structures so far, one after the other.
#[derive(Default)]
struct Structures {
    bytes: Vec<u8>,
    count: u16,
    longest: u16,
}

impl Structures {
    /// Adds a structure of this type; `fill` writes what follows the header. Returns its handle.
    fn add(&mut self, kind: u8, fill: impl FnOnce(&mut Structure)) -> u16 {
        let mut s = Structure::default();
        fill(&mut s);
        let (start, handle) = (self.bytes.len(), self.count);
        self.bytes.extend([kind, s.formatted.len() as u8 + 4]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(s.formatted);
        // A set of strings ends with an empty one; a structure without strings has two zeros (6.1.3).
        if s.strings.is_empty() {
            s.strings.push(0);
        }
        self.bytes.extend(s.strings);
        self.bytes.push(0);
        self.count += 1;
        self.longest = self.longest.max((self.bytes.len() - start) as u16);
        handle
    }
}

/// One structure: its formatted area after the header, and its strings, each ended by a zero.
#[derive(Default)]
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    string_count: u8,
}

impl Structure {
    fn byte(&mut self, value: u8) {
        self.formatted.push(value);
    }
    fn bytes(&mut self, values: &[u8]) {
        self.formatted.extend(values);
    }
    fn word(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }
    fn dword(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }
    fn qword(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
    /// Adds a string and the field with its number; an empty one has number 0.
    fn string(&mut self, text: &str) {
        let text: Vec<u8> = text.bytes().filter(|b| (0x20..0x7f).contains(b)).take(64).collect();
        if text.is_empty() {
            return self.byte(0);
        }
        self.string_count += 1;
        self.strings.extend(text);
        self.strings.push(0);
        self.byte(self.string_count);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::Command;

    use super::*;

    fn spec(ram: &RamLayout) -> SmbiosSpec<'_> {
        let names = SystemNames { serial: "0001-é\n\0-x".into(), ..SystemNames::default() };
        let uuid = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
        SmbiosSpec { names, uuid, vcpus: 4, ram }
    }

    /// (type, formatted area with header, strings), by the walk every operating system does (6.1).
    fn walk(mut table: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
        let mut found = Vec::new();
        while !table.is_empty() {
            let (formatted, rest) = table.split_at(table[1].into());
            let end = rest.windows(2).position(|w| w == [0, 0]).unwrap();
            let strings = rest[..end].split(|&b| b == 0).filter(|s| !s.is_empty());
            let strings = strings.map(|s| String::from_utf8(s.to_vec()).unwrap()).collect();
            found.push((formatted[0], formatted.to_vec(), strings));
            table = &rest[end + 2..];
        }
        found
    }

    #[test]
    fn structures_have_the_lengths_of_version_2_8_and_their_strings() {
        let ram = map::ram_layout(4 << 30).unwrap();
        let (entry, table) = build(&spec(&ram));
        let found = walk(&table);
        let lengths: Vec<_> = found.iter().map(|(kind, f, _)| (*kind, f.len())).collect();
        let expected = [
            (0, 0x18),
            (1, 0x1b),
            (3, 0x16),
            (4, 0x2a),
            (16, 0x17),
            (17, 0x28),
            (19, 0x1f),
            (19, 0x1f),
            (32, 0xb),
            (127, 4),
        ];
        assert_eq!(lengths, expected);
        assert_eq!(
            found[1].2,
            ["Vireo", "Virtual Machine", env!("CARGO_PKG_VERSION"), "0001--x", "Virtual Machine"]
        );
        assert_eq!(found[1].1[8..24], *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
        assert_eq!(found[7].1[4..12], [0, 0, 0x40, 0, 0xff, 0xff, 0x4f, 0]);
        assert_eq!(entry.len(), ENTRY_POINT);
        assert_eq!(u16::from_le_bytes([entry[0x1c], entry[0x1d]]), 10);
        assert_eq!((checksum(&entry), checksum(&entry[0x10..])), (0, 0));
    }

    #[test]
    fn huge_memory_uses_the_extended_fields() {
        let ram = map::ram_layout(5 << 40).unwrap();
        let found = walk(&build(&spec(&ram)).1);
        assert_eq!(found[4].1[7..11], 0x8000_0000u32.to_le_bytes());
        assert_eq!(found[4].1[15..23], (5u64 << 40).to_le_bytes());
        assert_eq!(found[5].1[0xc..0xe], [0xff, 0x7f]);
        assert_eq!(found[5].1[0x1c..0x20], (5u32 << 20).to_le_bytes());
        assert_eq!(found[7].1[4..12], [0xff; 8]);
        assert_eq!(found[7].1[15..23], (1u64 << 32).to_le_bytes());
    }

    /// dmidecode reads what we made, from a file in its dump format: entry point at 0, structures at 32.
    #[test]
    fn dmidecode_understands_it() {
        let ram = map::ram_layout(512 << 20).unwrap();
        let (mut entry, table) = build(&spec(&ram));
        entry[0x18..0x1c].copy_from_slice(&32u32.to_le_bytes());
        (entry[0x15], entry[4]) = (0, 0);
        entry[0x15] = checksum(&entry[0x10..]);
        entry[4] = checksum(&entry);
        entry.resize(32, 0);
        let path = std::env::temp_dir().join(format!("vireo-smbios-{}.bin", std::process::id()));
        std::fs::File::create(&path).unwrap().write_all(&[entry, table].concat()).unwrap();
        let run = ["dmidecode", "/usr/sbin/dmidecode"]
            .iter()
            .find_map(|tool| Command::new(tool).arg("--from-dump").arg(&path).output().ok());
        std::fs::remove_file(&path).unwrap();
        let Some(run) = run else {
            eprintln!(
                "SKIPPED dmidecode_understands_it: dmidecode is not installed (scripts/install-deps.sh test)"
            );
            return;
        };
        let text = String::from_utf8_lossy(&run.stdout);
        for line in [
            "SMBIOS 2.8 present.",
            "UUID: 00112233-4455-6677-8899-aabbccddeeff",
            "Serial Number: 0001--x",
            "Core Count: 4",
            "Size: 512 MB",
            "System is a virtual machine",
            "End Of Table",
        ] {
            assert!(text.contains(line), "no {line:?} in:\n{text}");
        }
        for complaint in ["OUT OF SPEC", "broken", "Wrong", "Invalid", "truncated"] {
            assert!(!text.contains(complaint), "{complaint:?} in:\n{text}");
        }
    }
}
