//! Loads a Linux (or other PVH) kernel into guest memory.
//!
//! | file                                        | entry                                                  |
//! |---------------------------------------------|--------------------------------------------------------|
//! | bzImage with `XLF_KERNEL_64`                | 64-bit Linux boot protocol                             |
//! | other bzImage, boot protocol 2.06 and later | 32-bit Linux boot protocol                             |
//! | ELF with a `XEN_ELFNOTE_PHYS32_ENTRY` note  | PVH, 32-bit protected mode (Xen `docs/misc/pvh.pandoc`)|
//!
//! Source of all about bzImage: Linux `Documentation/arch/x86/boot.rst` and `zero-page.rst`.

mod boot_params;
mod bzimage;
mod elf;
mod entry;
mod error;
mod file;
mod pvh;
#[cfg(test)]
mod tests;

use std::ops::Range;

use vireo_core::VcpuState;
use vireo_memory::GuestMemory;

use crate::map;
use bzimage::BzImage;
use elf::PvhElf;
pub use entry::waiting;
pub use error::LoadError;
pub use file::{BootFile, File};

/// What to boot.
#[derive(Clone, Debug)]
pub struct LinuxBoot<'a> {
    /// A bzImage, or an ELF file with a PVH entry.
    pub kernel: File<'a>,
    /// Initial RAM disk.
    pub initrd: Option<File<'a>>,
    /// Kernel command line, without zero bytes.
    pub command_line: &'a str,
    /// Where the RSDP is ([`crate::acpi::install`]), if the machine has ACPI.
    pub rsdp: Option<u64>,
    /// Ranges outside RAM to list as reserved (an ECAM window).
    pub reserved: &'a [Range<u64>],
}

/// By which protocol a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Linux boot protocol, 64-bit entry.
    Linux64,
    /// Linux boot protocol, 32-bit entry.
    Linux32,
    /// PVH.
    Pvh,
}

/// A kernel in memory, ready to run.
#[derive(Clone, Debug)]
pub struct LoadedKernel {
    /// State of vCPU 0. All others are [`waiting`] for their start-up IPI.
    pub entry: VcpuState,
    /// How it is entered.
    pub protocol: Protocol,
    /// Memory the kernel occupies until it has set itself up.
    pub kernel: Range<u64>,
    /// Where the initrd is.
    pub initrd: Option<Range<u64>>,
}

/// Writes the kernel, its initrd and what its boot protocol wants into `memory`.
///
/// Everything is checked before the first byte is written, and nothing left in memory from an earlier run matters, so
/// a reset calls this again.
pub fn load(memory: &GuestMemory, boot: &LinuxBoot<'_>) -> Result<LoadedKernel, LoadError> {
    let file = boot.kernel.bytes;
    if BzImage::is_bzimage(file) {
        let image = BzImage::parse(file).map_err(|reason| boot.bad_kernel(reason))?;
        load_bzimage(memory, boot, &image)
    } else if PvhElf::is_elf(file) {
        let image = PvhElf::parse(file).map_err(|reason| boot.bad_kernel(reason))?;
        load_pvh(memory, boot, &image)
    } else {
        Err(LoadError::NotAKernel { name: boot.kernel.name.into(), found: what_it_is(file) })
    }
}

fn load_bzimage(
    memory: &GuestMemory,
    boot: &LinuxBoot<'_>,
    image: &BzImage<'_>,
) -> Result<LoadedKernel, LoadError> {
    let kernel = image.placement();
    boot.check_kernel_fits(memory, &kernel)?;
    boot.check_command_line(u64::from(image.command_line_max))?;
    let initrd = boot.place_initrd(memory, &kernel, u64::from(image.initrd_max))?;
    let load_address = image.load_address();
    let params = boot_params::build(image, boot, memory.startup(), initrd.as_ref());

    memory.write(load_address, image.code)?;
    boot.write_initrd(memory, initrd.as_ref())?;
    boot.write_command_line(memory)?;
    memory.write(map::BOOT_PARAMS, &params[..])?;
    let (entry, protocol) = if image.is_64_bit {
        (entry::linux64(memory, load_address)?, Protocol::Linux64)
    } else {
        (entry::linux32(memory, load_address)?, Protocol::Linux32)
    };
    Ok(LoadedKernel { entry, protocol, kernel, initrd })
}

fn load_pvh(
    memory: &GuestMemory,
    boot: &LinuxBoot<'_>,
    image: &PvhElf<'_>,
) -> Result<LoadedKernel, LoadError> {
    let kernel = image.placement();
    boot.check_kernel_fits(memory, &kernel)?;
    boot.check_command_line(pvh::COMMAND_LINE_MAX)?;
    let initrd = boot.place_initrd(memory, &kernel, image.initrd_max())?;

    for segment in &image.segments {
        let address = segment.memory.start;
        memory.write(address, segment.bytes)?;
        let end = address + segment.bytes.len() as u64;
        memory.fill(end, segment.memory.end - end, 0)?;
    }
    boot.write_initrd(memory, initrd.as_ref())?;
    boot.write_command_line(memory)?;
    pvh::write_start_info(memory, boot, initrd.as_ref())?;
    Ok(LoadedKernel { entry: entry::pvh(image.entry), protocol: Protocol::Pvh, kernel, initrd })
}

impl LinuxBoot<'_> {
    fn bad_kernel(&self, reason: String) -> LoadError {
        LoadError::BadKernel { name: self.kernel.name.into(), reason }
    }

    fn check_kernel_fits(&self, memory: &GuestMemory, kernel: &Range<u64>) -> Result<(), LoadError> {
        if kernel.start < map::LOAD_START || kernel.end > memory.startup().low_end() {
            return Err(LoadError::KernelDoesNotFit {
                name: self.kernel.name.into(),
                start: kernel.start,
                size: kernel.end - kernel.start,
                free: map::LOAD_START..memory.startup().low_end(),
            });
        }
        Ok(())
    }

    fn check_command_line(&self, kernel_max: u64) -> Result<(), LoadError> {
        if self.command_line.contains('\0') {
            return Err(LoadError::CommandLineHasZero);
        }
        let max = kernel_max.min(map::COMMAND_LINE.end - map::COMMAND_LINE.start - 1);
        let len = self.command_line.len() as u64;
        if len > max { Err(LoadError::CommandLineTooLong { len, max }) } else { Ok(()) }
    }

    /// As high as the kernel can reach and RAM below 4 GiB goes: what a decompressing kernel writes is far below.
    fn place_initrd(
        &self,
        memory: &GuestMemory,
        kernel: &Range<u64>,
        last_address: u64,
    ) -> Result<Option<Range<u64>>, LoadError> {
        let Some(initrd) = &self.initrd else { return Ok(None) };
        if initrd.bytes.is_empty() {
            return Err(LoadError::EmptyInitrd { name: initrd.name.into() });
        }
        let size = initrd.bytes.len() as u64;
        let top = last_address.saturating_add(1).min(memory.startup().low_end());
        match top.checked_sub(size).map(|start| start & !0xfff) {
            Some(start) if start >= kernel.end => Ok(Some(start..start + size)),
            _ => Err(LoadError::InitrdDoesNotFit {
                name: initrd.name.into(),
                size,
                free: kernel.end..top.max(kernel.end),
            }),
        }
    }

    fn write_initrd(&self, memory: &GuestMemory, at: Option<&Range<u64>>) -> Result<(), LoadError> {
        if let (Some(initrd), Some(at)) = (&self.initrd, at) {
            memory.write(at.start, initrd.bytes)?;
        }
        Ok(())
    }

    fn write_command_line(&self, memory: &GuestMemory) -> Result<(), LoadError> {
        let line = self.command_line.as_bytes();
        memory.write(map::COMMAND_LINE.start, line)?;
        Ok(memory.write_obj(map::COMMAND_LINE.start + line.len() as u64, 0u8)?)
    }
}

/// A word on a file that is no kernel, from its first bytes.
fn what_it_is(file: &[u8]) -> &'static str {
    match file {
        [] => "it is empty",
        [0x1f, 0x8b, ..] => "it is gzip data: unpack it first",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "it is xz data: unpack it first",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is zstd data: unpack it first",
        [b'0', b'7', b'0', b'7', b'0', ..] => "it is a cpio archive, perhaps the initrd",
        [b'#', b'!', ..] => "it is a script",
        [b'M', b'Z', ..] => "it is an EFI or DOS program, but without a Linux setup header",
        _ => "unknown format",
    }
}
