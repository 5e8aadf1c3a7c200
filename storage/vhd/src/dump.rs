//! What an image's structures say, right or wrong, as they are in the file.

use vireo_vdisk::{Fact, Medium, Runs, SECTOR};

use crate::bitmap::Bitmap;
use crate::create::NOWHERE;
use crate::footer::{self, Footer};
use crate::header::Header;
use crate::image::find_footer;
use crate::{DiskType, Result, VhdError, checksum, field};

/// Entries of the table that are read at once.
const ENTRIES: u64 = 256 << 10;

/// Tells what an image's structures say; `table`: each block as well.
///
/// # Errors
/// It is none; those of the medium.
pub fn dump(medium: &dyn Medium, table: bool) -> Result<Fact> {
    let (footer, at) = find_footer(medium)?;
    let len = medium.len().map_err(VhdError::io("find the end of the VHD"))?;
    let mut facts = vec![
        ("file", Fact::Group(vec![("length", len.into())])),
        ("footer", told_footer(medium, len.saturating_sub(footer::SIZE as u64))?),
        ("footer_at_the_end", at.is_some().into()),
    ];
    if footer.disk_type == DiskType::Fixed {
        return Ok(Fact::Group(facts));
    }
    facts.push(("footer_copy", told_footer(medium, 0)?));
    let differencing = footer.disk_type == DiskType::Differencing;
    let header = match footer.header_at {
        Some(at) => Header::read(medium, at, differencing),
        None => Err(VhdError::Damaged("it has no header".into())),
    };
    let told = |found: Result<Fact>| found.unwrap_or_else(|e| e.to_string().into());
    match header {
        Ok(header) => {
            facts.push(("header", told_header(&header)));
            facts.push(("block_table", told(told_table(medium, &footer, &header, table))));
        }
        Err(e) => facts.push(("header", e.to_string().into())),
    }
    Ok(Fact::Group(facts))
}

fn hex(bytes: &[u8]) -> Fact {
    bytes.iter().map(|b| format!("{b:02x}")).collect::<String>().into()
}

fn told_footer(medium: &dyn Medium, at: u64) -> Result<Fact> {
    let mut b = [0; footer::SIZE];
    medium.read(at, &mut b).map_err(VhdError::io("read a footer"))?;
    let number = |at| u32::from_be_bytes(field(&b, at));
    let mut facts = vec![
        ("at", at.into()),
        ("cookie", (b[..8] == *b"conectix").into()),
        ("checksum", (number(64) == checksum(&b, 64)).into()),
        ("features", number(8).into()),
        ("version", number(12).into()),
    ];
    match Footer::parse(&b) {
        Ok(Some(f)) => facts.extend([
            ("type", format!("{:?}", f.disk_type).to_lowercase().into()),
            ("size", f.size.into()),
            ("original_size", f.original_size.into()),
            ("created", f.created.into()),
            ("creator", String::from_utf8_lossy(&f.creator).into_owned().into()),
            ("cylinders", u32::from(f.geometry.cylinders).into()),
            ("heads", u32::from(f.geometry.heads).into()),
            ("sectors", u32::from(f.geometry.sectors).into()),
            ("id", hex(&f.id)),
            ("saved_state", (b[84] != 0).into()),
        ]),
        Ok(None) => {}
        Err(e) => facts.push(("error", e.to_string().into())),
    }
    Ok(Fact::Group(facts))
}

fn told_header(h: &Header) -> Fact {
    let mut facts =
        vec![("table_at", h.table_at.into()), ("entries", h.entries.into()), ("block", h.block.into())];
    if let Some(p) = &h.parent {
        let text = |t: &Option<String>| Fact::from(t.clone().unwrap_or_default());
        let parent = vec![
            ("id", hex(&p.id)),
            ("changed", p.changed.into()),
            ("name", p.name.as_str().into()),
            ("relative", text(&p.relative)),
            ("absolute", text(&p.absolute)),
        ];
        facts.push(("parent", Fact::Group(parent)));
    }
    Fact::Group(facts)
}

fn told_table(medium: &dyn Medium, footer: &Footer, h: &Header, all: bool) -> Result<Fact> {
    let blocks = footer.size.div_ceil(u64::from(h.block).max(SECTOR)).min(h.entries.into());
    let step = Bitmap::size(h.block) + u64::from(h.block);
    let mut runs = Runs::new(step.next_multiple_of(4096), all);
    for first in (0..blocks).step_by(ENTRIES as usize) {
        let mut bytes = vec![0; 4 * ENTRIES.min(blocks - first) as usize];
        let at = h.table_at.saturating_add(4 * first);
        medium.read(at, &mut bytes).map_err(VhdError::io("read the block table"))?;
        for (n, entry) in (first..).zip(bytes.as_chunks().0.iter().map(|b| u32::from_be_bytes(*b))) {
            match entry {
                NOWHERE => runs.add(n, "not present", None),
                _ => runs.add(n, "present", Some(u64::from(entry) * SECTOR)),
            }
        }
    }
    let mut facts = vec![("blocks", blocks.into())];
    facts.extend(runs.facts());
    Ok(Fact::Group(facts))
}
