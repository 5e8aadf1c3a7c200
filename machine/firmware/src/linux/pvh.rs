//! `struct hvm_start_info`, version 1 (Xen `xen/include/public/arch-x86/hvm/start_info.h`).

use std::ops::Range;

use vireo_memory::{GuestMemory, MemoryError};

use super::LinuxBoot;
use crate::map;

/// Most bytes of the command line: Linux's `COMMAND_LINE_SIZE` less the terminating zero. The protocol has no limit.
pub(crate) const COMMAND_LINE_MAX: u64 = 2047;

const MAGIC: u32 = 0x336e_c578;
const MODULE_LIST: u64 = map::PVH_INFO.start + 0x100;
const MEMORY_MAP: u64 = map::PVH_INFO.start + 0x200;
const MEMORY_MAP_ENTRY: u64 = 24;
const MEMORY_MAP_MAX: u64 = (map::PVH_INFO.end - MEMORY_MAP) / MEMORY_MAP_ENTRY;

/// Writes the start info with its lists, for EBX to point to.
pub(crate) fn write_start_info(
    memory: &GuestMemory,
    boot: &LinuxBoot<'_>,
    initrd: Option<&Range<u64>>,
) -> Result<(), MemoryError> {
    if let Some(initrd) = initrd {
        // Address, size, command line, reserved.
        write_words(memory, MODULE_LIST, &[initrd.start, initrd.end - initrd.start, 0, 0])?;
    }
    let regions = map::memory_map(memory.startup(), boot.reserved);
    let count = (regions.len() as u64).min(MEMORY_MAP_MAX);
    for (region, at) in
        regions.iter().zip((MEMORY_MAP..).step_by(MEMORY_MAP_ENTRY as usize)).take(count as usize)
    {
        // Address, size, type (E820's values) with 32 reserved bits.
        let size = region.range.end - region.range.start;
        write_words(memory, at, &[region.range.start, size, region.kind as u64])?;
    }
    const VERSION: u64 = 1;
    let modules = u64::from(initrd.is_some());
    write_words(
        memory,
        map::PVH_INFO.start,
        &[
            u64::from(MAGIC) | VERSION << 32,
            modules << 32, // no flags
            if modules == 0 { 0 } else { MODULE_LIST },
            map::COMMAND_LINE.start,
            boot.rsdp.unwrap_or(0),
            MEMORY_MAP,
            count,
        ],
    )
}

fn write_words(memory: &GuestMemory, at: u64, words: &[u64]) -> Result<(), MemoryError> {
    words.iter().zip((at..).step_by(8)).try_for_each(|(&word, at)| memory.write_obj(at, word))
}
