//! The bzImage format: setup header and code.

use std::ops::Range;

use crate::fields::Fields;
use crate::map;

/// A checked bzImage.
pub(crate) struct BzImage<'a> {
    /// The setup header, from [`HEADER_START`] to its end.
    pub header: &'a [u8],
    /// The protected-mode (and 64-bit) part.
    pub code: &'a [u8],
    /// Boot protocol version, major in the upper byte.
    pub version: u16,
    /// Whether it has the 64-bit entry.
    pub is_64_bit: bool,
    /// Highest address a byte of the initrd may have.
    pub initrd_max: u32,
    /// Most bytes of the command line, without the terminating zero.
    pub command_line_max: u32,
    relocatable: bool,
    alignment: u64,
    pref_address: u64,
    init_size: u64,
}

/// Where the setup header is, in the file and in `boot_params`.
pub(crate) const HEADER_START: usize = 0x1f1;
/// Where it must end at the latest: `boot_params` has other things from there on.
const HEADER_LIMIT: usize = 0x290;
/// Offset of the 64-bit entry point in the code.
pub(crate) const ENTRY_64: u64 = 0x200;

const MAGIC: u32 = 0x5372_6448; // "HdrS"
const MAGIC_AT: usize = 0x202;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
/// `pref_address` and `init_size` exist from here on.
const VERSION_INIT_SIZE: u16 = 0x20a;
/// `xloadflags` exists from here on.
const VERSION_XLOADFLAGS: u16 = 0x20c;
/// A larger alignment than this is damage, not a wish.
const ALIGNMENT_MAX: u64 = 1 << 30;

impl<'a> BzImage<'a> {
    /// Whether the file has the magic number of a Linux setup header.
    pub fn is_bzimage(file: &[u8]) -> bool {
        Fields(file).u32(MAGIC_AT) == Some(MAGIC) && Fields(file).u16(0x1fe) == Some(0xaa55)
    }

    /// Checks the header of a file for which [`Self::is_bzimage`] holds; the error is a sentence for the user.
    pub fn parse(file: &'a [u8]) -> Result<Self, String> {
        Self::read_header(file)
            .ok_or_else(|| "damaged bzImage: it ends inside its setup header".to_string())?
    }

    /// `None`: the file ends too early.
    fn read_header(file: &'a [u8]) -> Option<Result<Self, String>> {
        let field = Fields(file);
        let version = field.u16(0x206)?;
        if version < 0x206 {
            let (major, minor) = (version >> 8, version & 0xff);
            return Some(Err(format!(
                "its boot protocol is {major}.{minor:02}, older than 2.06 (Linux 2.6.22)"
            )));
        }
        if field.u8(0x211)? & LOADED_HIGH == 0 {
            return Some(Err("it is a zImage, loaded below 1 MiB; only bzImage is supported".into()));
        }
        let header_end = (MAGIC_AT + usize::from(field.u8(0x201)?)).min(HEADER_LIMIT);
        let header = file.get(HEADER_START..header_end)?;
        let code = match Self::code(field) {
            Ok(code) => code,
            Err(reason) => return Some(Err(reason)),
        };
        let has = |since: u16| version >= since;
        let image = Self {
            header,
            code,
            version,
            is_64_bit: has(VERSION_XLOADFLAGS) && field.u16(0x236)? & XLF_KERNEL_64 != 0,
            initrd_max: field.u32(0x22c)?,
            command_line_max: field.u32(0x238)?,
            relocatable: field.u8(0x234)? != 0,
            alignment: field.u32(0x230)?.into(),
            pref_address: if has(VERSION_INIT_SIZE) { field.u64(0x258)? } else { map::LOAD_START },
            init_size: if has(VERSION_INIT_SIZE) { field.u32(0x260)?.into() } else { 0 },
        };
        Some(image.check())
    }

    /// The part of the file after the real-mode code, as long as the header says; what follows it (a signature) is not
    /// loaded.
    fn code(field: Fields<'a>) -> Result<&'a [u8], String> {
        // 0 means 4, for the sake of very old kernels.
        let sectors = match field.u8(0x1f1).unwrap_or(0) {
            0 => 4,
            n => usize::from(n),
        };
        let after = field.0.get((sectors + 1) * 512..).unwrap_or(&[]);
        let stated = u64::from(field.u32(0x1f4).unwrap_or(0)) * 16;
        // The size is in units of 16 bytes, and the file's last unit may be partial.
        if stated == 0 || (after.len() as u64).saturating_add(15) < stated {
            let (has, needs) = (after.len(), stated);
            return Err(format!(
                "damaged bzImage: its header says {needs} bytes of code, the file has {has}"
            ));
        }
        let len = usize::try_from(stated).map_or(after.len(), |n| n.min(after.len()));
        Ok(&after[..len])
    }

    fn check(self) -> Result<Self, String> {
        if self.relocatable && !(self.alignment.is_power_of_two() && self.alignment <= ALIGNMENT_MAX) {
            return Err(format!("damaged bzImage: kernel_alignment is {:#x}", self.alignment));
        }
        if self.pref_address >= 1 << 32 {
            return Err(format!("it wants to be loaded at {:#x}, above 4 GiB", self.pref_address));
        }
        if self.is_64_bit && self.code.len() as u64 <= ENTRY_64 {
            return Err("damaged bzImage: it ends before its 64-bit entry point".into());
        }
        Ok(self)
    }

    /// Where [`Self::code`] goes.
    pub fn load_address(&self) -> u64 {
        if self.relocatable {
            self.pref_address.max(map::LOAD_START).next_multiple_of(self.alignment)
        } else {
            map::LOAD_START
        }
    }

    /// All memory that the kernel uses from its load until it knows the memory map: what is loaded, and `init_size`
    /// from where it runs (a kernel that is not relocatable moves itself to `pref_address`).
    pub fn placement(&self) -> Range<u64> {
        let load = self.load_address();
        let runs_at = if self.relocatable { load } else { self.pref_address };
        let end = (load + self.code.len() as u64).max(runs_at + self.init_size);
        load.min(runs_at)..end
    }
}
