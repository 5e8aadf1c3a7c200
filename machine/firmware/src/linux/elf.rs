//! ELF kernels with a PVH entry (ELF specification 1.2; Xen `xen/include/public/elfnote.h`).

use std::ops::Range;

use crate::fields::Fields;

/// A checked ELF kernel.
pub(crate) struct PvhElf<'a> {
    /// What is loaded, by rising address, disjoint, never empty.
    pub segments: Vec<Segment<'a>>,
    /// Physical address of the 32-bit entry point, inside a segment.
    pub entry: u32,
    is_64_bit: bool,
}

/// A `PT_LOAD` segment.
pub(crate) struct Segment<'a> {
    /// Content; the rest of `memory` is zero.
    pub bytes: &'a [u8],
    /// Physical addresses, below 4 GiB.
    pub memory: Range<u64>,
}

/// Offsets that differ between the two classes, as the file's header (`e_`) and program headers (`p_`) have them.
struct Class {
    is_64_bit: bool,
    e_phoff: usize,
    e_phentsize: usize,
    p_offset: usize,
    p_paddr: usize,
    p_filesz: usize,
    p_memsz: usize,
    p_align: usize,
    p_size: usize,
}

const ELF32: Class = Class {
    is_64_bit: false,
    e_phoff: 28,
    e_phentsize: 42,
    p_offset: 4,
    p_paddr: 12,
    p_filesz: 16,
    p_memsz: 20,
    p_align: 28,
    p_size: 32,
};
const ELF64: Class = Class {
    is_64_bit: true,
    e_phoff: 32,
    e_phentsize: 54,
    p_offset: 8,
    p_paddr: 24,
    p_filesz: 32,
    p_memsz: 40,
    p_align: 48,
    p_size: 56,
};

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const ET_EXEC: u16 = 2;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
/// Real kernels have fewer than ten; without a limit, a small file could name thousands.
const SEGMENTS_MAX: u16 = 64;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
/// What a bzImage of a 32-bit Linux says in `initrd_addr_max`.
const INITRD_MAX_32: u64 = 0x7fff_ffff;

impl Class {
    /// A field that is an address or offset: 4 or 8 bytes by class.
    fn word(&self, fields: Fields<'_>, at: usize) -> Option<u64> {
        if self.is_64_bit { fields.u64(at) } else { fields.u32(at).map(u64::from) }
    }
}

impl<'a> PvhElf<'a> {
    /// Whether the file has ELF's magic number.
    pub fn is_elf(file: &[u8]) -> bool {
        file.starts_with(b"\x7fELF")
    }

    /// Checks a file for which [`Self::is_elf`] holds; the error is a sentence for the user.
    pub fn parse(file: &'a [u8]) -> Result<Self, String> {
        let fields = Fields(file);
        let class = match (fields.u8(4), fields.u8(5), fields.u16(18)) {
            (Some(1), Some(1), Some(EM_386)) => &ELF32,
            (Some(2), Some(1), Some(EM_X86_64)) => &ELF64,
            _ => return Err("it is an ELF file, but not for x86".into()),
        };
        if fields.u16(16) != Some(ET_EXEC) {
            return Err("it is an ELF file, but not an executable kernel (ET_EXEC)".into());
        }
        let headers =
            program_headers(fields, class).ok_or("damaged ELF file: its program headers are cut off")?;
        let mut segments = Vec::new();
        let mut entry = None;
        for header in headers {
            match header.u32(0) {
                Some(PT_LOAD) => segments.extend(load_segment(fields, header, class)?),
                Some(PT_NOTE) if entry.is_none() => entry = find_entry(fields, header, class),
                _ => {}
            }
        }
        let entry =
            entry.ok_or("an ELF file without a PVH entry note: build the kernel with CONFIG_PVH=y")?;
        let image = Self { segments: sorted_disjoint(segments)?, entry, is_64_bit: class.is_64_bit };
        if !image.segments.iter().any(|s| s.memory.contains(&u64::from(entry))) {
            return Err(format!("damaged ELF file: its PVH entry {entry:#x} is in no segment"));
        }
        Ok(image)
    }

    /// From the lowest to the highest address of any segment.
    pub fn placement(&self) -> Range<u64> {
        let start = self.segments.first().map_or(0, |s| s.memory.start);
        start..self.segments.last().map_or(start, |s| s.memory.end)
    }

    /// Highest address a byte of the initrd may have.
    pub fn initrd_max(&self) -> u64 {
        if self.is_64_bit { u32::MAX.into() } else { INITRD_MAX_32 }
    }
}

fn program_headers<'a>(file: Fields<'a>, class: &Class) -> Option<Vec<Fields<'a>>> {
    let start = class.word(file, class.e_phoff)?;
    let entry_size = u64::from(file.u16(class.e_phentsize)?);
    let count = file.u16(class.e_phentsize + 2)?;
    if entry_size < class.p_size as u64 || count > SEGMENTS_MAX {
        return None;
    }
    (0..u64::from(count))
        .map(|i| file.slice(start.checked_add(i * entry_size)?, entry_size).map(Fields))
        .collect()
}

/// `None` for a segment without memory.
fn load_segment<'a>(
    file: Fields<'a>,
    header: Fields<'_>,
    class: &Class,
) -> Result<Option<Segment<'a>>, String> {
    const CUT: &str = "damaged ELF file: a segment is cut off";
    let word = |at| class.word(header, at).ok_or(CUT);
    let bytes = file.slice(word(class.p_offset)?, word(class.p_filesz)?).ok_or(CUT)?;
    let (address, size) = (word(class.p_paddr)?, word(class.p_memsz)?);
    if size < bytes.len() as u64 {
        return Err("damaged ELF file: a segment has more bytes than memory".into());
    }
    match address.checked_add(size) {
        Some(end) if end <= 1 << 32 => Ok((size != 0).then_some(Segment { bytes, memory: address..end })),
        _ => Err(format!("damaged ELF file: a segment is at {address:#x}, above 4 GiB")),
    }
}

/// Segments that shared memory would overwrite each other, and let a small file cost much copying.
fn sorted_disjoint(mut segments: Vec<Segment<'_>>) -> Result<Vec<Segment<'_>>, String> {
    segments.sort_by_key(|s| s.memory.start);
    match segments.windows(2).find(|w| w[0].memory.end > w[1].memory.start) {
        Some(w) => Err(format!("damaged ELF file: two segments share memory at {:#x}", w[1].memory.start)),
        None => Ok(segments),
    }
}

/// The entry point, if this `PT_NOTE` segment has the note. Notes: name size, descriptor size, type, name, descriptor,
/// the latter two padded to the segment's alignment (4 unless it says 8).
fn find_entry(file: Fields<'_>, header: Fields<'_>, class: &Class) -> Option<u32> {
    let notes = file.slice(class.word(header, class.p_offset)?, class.word(header, class.p_filesz)?)?;
    let alignment = if class.word(header, class.p_align)? == 8 { 8 } else { 4 };
    let mut at = 0u64;
    loop {
        let note = Fields(notes.get(usize::try_from(at).ok()?..)?);
        let (name_size, size, kind) = (u64::from(note.u32(0)?), u64::from(note.u32(4)?), note.u32(8)?);
        let descriptor_at = (12 + name_size).next_multiple_of(alignment);
        let descriptor = Fields(note.slice(descriptor_at, size)?);
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && note.slice(12, name_size)? == b"Xen\0" {
            return descriptor.u64(0).map_or_else(|| descriptor.u32(0), |entry| u32::try_from(entry).ok());
        }
        at += descriptor_at + size.next_multiple_of(alignment);
    }
}
