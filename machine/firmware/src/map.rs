//! The physical map of what firmware puts into guest memory, and the memory map the guest is told (E820).
//!
//! | from      | to        | what                                            | told to the guest |
//! |-----------|-----------|-------------------------------------------------|-------------------|
//! | `0x01000` | `0x02000` | GDT of the boot entry                           | RAM               |
//! | `0x02000` | `0x04000` | PVH start info, module list, memory map         | RAM               |
//! | `0x04000` | `0x07000` | boot stack, growing down                        | RAM               |
//! | `0x07000` | `0x08000` | Linux `boot_params` (the "zero page")           | RAM               |
//! | `0x09000` | `0x0f000` | page tables: the first 4 GiB, identity          | RAM               |
//! | `0x20000` | `0x30000` | kernel command line                             | RAM               |
//! | `0x9f000` | `0xa0000` | where a PC has its extended BIOS data: zeros    | reserved          |
//! | `0xa0000` | `0xc0000` | frame buffer of a VGA: no RAM                   | not listed        |
//! | `0xc0000` | `0xe0000` | where a PC has option ROMs: zeros               | not listed        |
//! | `0xe0000` | `0xf0000` | ACPI tables, the RSDP first                     | reserved          |
//! | `0xf0000` | `0x100000`| SMBIOS, its entry point first                   | reserved          |
//!
//! What is told as RAM is the guest's once its kernel has taken its copies. From `0xc0000` up it is writable RAM, as a
//! PC's shadow RAM may be, because ACPI's FACS must be.

use std::ops::Range;

use vireo_chipset::layout;
use vireo_memory::{Holes, MemoryError, RamLayout};

/// GDT of the boot entry.
pub(crate) const GDT: u64 = 0x1000;
/// PVH start info, followed by the module list and the memory map.
pub(crate) const PVH_INFO: Range<u64> = 0x2000..0x4000;
/// Initial stack pointer.
pub(crate) const STACK_TOP: u64 = 0x7000;
/// Linux `boot_params`.
pub(crate) const BOOT_PARAMS: u64 = 0x7000;
/// Page tables: a PML4, a PDPT and four page directories.
pub(crate) const PAGE_TABLES: u64 = 0x9000;
/// The command line with its terminating zero.
pub(crate) const COMMAND_LINE: Range<u64> = 0x2_0000..0x3_0000;
/// Where a PC has its extended BIOS data area.
const EBDA: Range<u64> = 0x9_f000..layout::LEGACY_HOLE_START;
/// End of the frame buffer window of a VGA, where RAM can be seen again.
const VGA_END: u64 = 0xc_0000;
/// ACPI tables. The RSDP is at the start: the range is one that operating systems search (ACPI 6.5, 5.2.5.1).
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_0000;
/// SMBIOS. The entry point is at the start: the range is the one that is searched (SMBIOS 3.0, 5.2.1).
pub const SMBIOS: Range<u64> = 0xf_0000..layout::LEGACY_HOLE_END;
/// Kernels and initrds are loaded from here on.
pub(crate) const LOAD_START: u64 = layout::LEGACY_HOLE_END;

/// Lays out `size` bytes of RAM as this board has them.
pub fn ram_layout(size: u64) -> Result<RamLayout, MemoryError> {
    let holes = Holes {
        legacy: layout::LEGACY_HOLE_START..VGA_END,
        pci: layout::PCI_HOLE_START..layout::HIGH_RAM_START,
    };
    RamLayout::new(size, &holes)
}

/// What a range of the memory map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// Usable memory (ACPI 6.5, table 15.2, AddressRangeMemory; the same value in PVH).
    Ram = 1,
    /// Not to be used (AddressRangeReserved).
    Reserved = 2,
}

/// One range of the memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What is there.
    pub kind: RegionKind,
}

/// The memory map of a machine, by rising address. `reserved` adds ranges outside RAM (an ECAM window).
pub fn memory_map(ram: &RamLayout, reserved: &[Range<u64>]) -> Vec<Region> {
    let region = |range, kind| Region { range, kind };
    let mut map = vec![
        region(0..EBDA.start, RegionKind::Ram),
        region(EBDA, RegionKind::Reserved),
        region(ACPI_TABLES.start..SMBIOS.end, RegionKind::Reserved),
        region(LOAD_START..ram.low_end(), RegionKind::Ram),
    ];
    if ram.limit() > ram.low_end() {
        map.push(region(layout::HIGH_RAM_START..ram.limit(), RegionKind::Ram));
    }
    map.extend(reserved.iter().map(|r| region(r.clone(), RegionKind::Reserved)));
    map.sort_by_key(|r| r.range.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_is_sorted_disjoint_and_its_ram_is_ram() {
        let ram = ram_layout(4 << 30).unwrap();
        let ecam = 0xe000_0000..0xf000_0000;
        let map = memory_map(&ram, std::slice::from_ref(&ecam));
        assert!(map.windows(2).all(|w| w[0].range.end <= w[1].range.start), "{map:?}");
        for r in map.iter().filter(|r| r.kind == RegionKind::Ram) {
            assert!(ram.spans().iter().any(|s| s.gpa <= r.range.start && r.range.end <= s.end()), "{r:?}");
        }
        assert_eq!(map.last().unwrap().range, 4 << 30..5 << 30);
        assert_eq!(map[4].range, ecam);
    }
}
