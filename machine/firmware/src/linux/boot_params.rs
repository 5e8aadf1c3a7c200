//! `struct boot_params`, the "zero page" (Linux `Documentation/arch/x86/zero-page.rst`).

use std::ops::Range;

use vireo_memory::RamLayout;

use super::LinuxBoot;
use super::bzimage::{BzImage, HEADER_START};
use crate::map::{self, Region};

/// Its size: a page.
pub(crate) const SIZE: usize = 4096;

const ACPI_RSDP_ADDR: usize = 0x070;
const E820_ENTRIES: usize = 0x1e8;
const TYPE_OF_LOADER: usize = 0x210;
const CODE32_START: usize = 0x214;
const RAMDISK_IMAGE: usize = 0x218;
const RAMDISK_SIZE: usize = 0x21c;
const CMD_LINE_PTR: usize = 0x228;
const E820_TABLE: usize = 0x2d0;
const E820_ENTRY: usize = 20;
const E820_MAX: usize = 128;
/// A boot loader without an id of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// The video mode field that means "as it is".
const VID_MODE: usize = 0x1fa;
const VID_MODE_NORMAL: u16 = 0xffff;

/// Zeros, the image's own setup header, and what a boot loader fills in.
pub(crate) fn build(
    image: &BzImage<'_>,
    boot: &LinuxBoot<'_>,
    ram: &RamLayout,
    initrd: Option<&Range<u64>>,
) -> Box<[u8; SIZE]> {
    let mut page = Box::new([0u8; SIZE]);
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(HEADER_START, image.header);
    put(VID_MODE, &VID_MODE_NORMAL.to_le_bytes());
    put(TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    put(CODE32_START, &low32(image.load_address()));
    put(CMD_LINE_PTR, &low32(map::COMMAND_LINE.start));
    if let Some(initrd) = initrd {
        put(RAMDISK_IMAGE, &low32(initrd.start));
        put(RAMDISK_SIZE, &low32(initrd.end - initrd.start));
    }
    // The field exists since 2.14; older kernels find the RSDP by its signature.
    if let Some(rsdp) = boot.rsdp.filter(|_| image.version >= 0x20e) {
        put(ACPI_RSDP_ADDR, &rsdp.to_le_bytes());
    }
    let regions = map::memory_map(ram, boot.reserved);
    let regions = &regions[..regions.len().min(E820_MAX)];
    put(E820_ENTRIES, &[regions.len() as u8]);
    for (i, region) in regions.iter().enumerate() {
        put(E820_TABLE + i * E820_ENTRY, &e820_entry(region));
    }
    page
}

/// All addresses here are below 4 GiB: load addresses and initrds were placed there.
fn low32(address: u64) -> [u8; 4] {
    (address as u32).to_le_bytes()
}

fn e820_entry(region: &Region) -> [u8; E820_ENTRY] {
    let mut entry = [0; E820_ENTRY];
    entry[..8].copy_from_slice(&region.range.start.to_le_bytes());
    entry[8..16].copy_from_slice(&(region.range.end - region.range.start).to_le_bytes());
    entry[16..].copy_from_slice(&(region.kind as u32).to_le_bytes());
    entry
}
