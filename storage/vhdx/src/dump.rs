//! What an image's structures say, right or wrong, as they are in the file: nothing of the log is done.

use vireo_vdisk::{Fact, Medium, Runs};

use crate::bytes::{Fields, checksum};
use crate::header::{self, FILE, Header};
use crate::log::{self, Entry};
use crate::metadata::{self, Metadata};
use crate::region::{self, Regions};
use crate::table::Layout;
use crate::{Guid, MIB, Result, VhdxError};

/// Entries of the table that are read at once.
const ENTRIES: u64 = 128 << 10;
const STATES: [&str; 8] = [
    "not present",
    "undefined",
    "zero",
    "unmapped",
    "reserved 4",
    "reserved 5",
    "present",
    "partially present",
];

/// Tells what an image's structures say; `table`: each block as well.
///
/// # Errors
/// It is none; those of the medium.
pub fn dump(medium: &dyn Medium, table: bool) -> Result<Fact> {
    let len = medium.len().map_err(VhdxError::io("find the end of the VHDX"))?;
    let mut start = [0; 512];
    if len < MIB {
        return Err(VhdxError::NotVhdx);
    }
    medium.read(0, &mut start).map_err(VhdxError::io("read the start of the VHDX"))?;
    if start[..8] != *FILE {
        return Err(VhdxError::NotVhdx);
    }
    let creator = metadata::text(&start[8..]);
    let mut facts = vec![
        (
            "file",
            Fact::Group(vec![("length", len.into()), ("creator", creator.trim_end_matches('\0').into())]),
        ),
        ("headers", headers(medium)?),
        ("region_tables", region_tables(medium)?),
    ];
    let told = |found: Result<Fact>| found.unwrap_or_else(|e| e.to_string().into());
    let regions = Regions::read(medium);
    facts.push(("metadata", told(regions.as_ref().map_err(clone).and_then(|r| items(medium, r)))));
    facts.push(("block_table", told(regions.and_then(|r| blocks(medium, &r, table)))));
    facts.push(("log", told(Header::read(medium).and_then(|h| log_entries(medium, &h)))));
    Ok(Fact::Group(facts))
}

fn clone(e: &VhdxError) -> VhdxError {
    VhdxError::Damaged(e.to_string())
}

fn guid(g: Guid) -> Fact {
    g.to_string().into()
}

fn headers(medium: &dyn Medium) -> Result<Fact> {
    let current = Header::read(medium).ok();
    let mut list = Vec::new();
    for at in header::PLACES {
        let mut b = [0; header::SIZE];
        medium.read(at, &mut b).map_err(VhdxError::io("read a header"))?;
        let right = Header::parse(&b);
        list.push(Fact::Group(vec![
            ("at", at.into()),
            ("signature", (b[..4] == *b"head").into()),
            ("checksum", (b.u32(4) == checksum(&b, 4)).into()),
            ("current", (right.is_some() && right == current).into()),
            ("sequence", b.u64(8).into()),
            ("file_write", guid(Guid(b.array(16)))),
            ("data_write", guid(Guid(b.array(32)))),
            ("log", guid(Guid(b.array(48)))),
            ("log_version", u32::from(b.u16(64)).into()),
            ("version", u32::from(b.u16(66)).into()),
            ("log_length", b.u32(68).into()),
            ("log_at", b.u64(72).into()),
        ]));
    }
    Ok(Fact::List(list))
}

fn region_tables(medium: &dyn Medium) -> Result<Fact> {
    let mut list = Vec::new();
    for at in region::PLACES {
        let mut b = vec![0; region::SIZE];
        medium.read(at, &mut b).map_err(VhdxError::io("read the region table"))?;
        let entry = |n: usize| {
            let e = &b[16 + n * region::ENTRY..][..region::ENTRY];
            let id = Guid(e.array(0));
            Fact::Group(vec![
                ("id", guid(id)),
                ("name", region::name(id).into()),
                ("at", e.u64(16).into()),
                ("length", e.u32(24).into()),
                ("required", (e.u32(28) & 1 != 0).into()),
            ])
        };
        list.push(Fact::Group(vec![
            ("at", at.into()),
            ("signature", (b[..4] == *b"regi").into()),
            ("checksum", (b.u32(4) == checksum(&b, 4)).into()),
            ("entries", Fact::List((0..b.u32(8).min(region::MOST) as usize).map(entry).collect())),
        ]));
    }
    Ok(Fact::List(list))
}

fn items(medium: &dyn Medium, regions: &Regions) -> Result<Fact> {
    let mut facts = vec![("items", metadata::dump(medium, regions.metadata)?)];
    let m = Metadata::read(medium, regions.metadata)?.0;
    facts.extend([
        ("block", m.block.into()),
        ("fixed", m.fixed.into()),
        ("size", m.size.into()),
        ("id", guid(m.id)),
        ("sector", m.sector.into()),
        ("physical_sector", m.physical_sector.into()),
    ]);
    if let Some(p) = m.parent {
        let text = |t: Option<String>| Fact::from(t.unwrap_or_default());
        let parent = vec![
            ("linkage", guid(p.linkage)),
            ("linkage2", text(p.linkage2.map(|g| g.to_string()))),
            ("relative", text(p.relative)),
            ("volume", text(p.volume)),
            ("absolute", text(p.absolute)),
        ];
        facts.push(("parent", Fact::Group(parent)));
    }
    Ok(Fact::Group(facts))
}

fn blocks(medium: &dyn Medium, regions: &Regions, all: bool) -> Result<Fact> {
    let m = Metadata::read(medium, regions.metadata)?.0;
    let layout = Layout::of(&m);
    let room = regions.table.len / 8;
    let mut runs = Runs::new(layout.block, all);
    let mut bitmaps = 0u64;
    let entries = layout.entries().min(room);
    for first in (0..entries).step_by(ENTRIES as usize) {
        let mut bytes = vec![0; 8 * ENTRIES.min(entries - first) as usize];
        let read = medium.read(regions.table.at + 8 * first, &mut bytes);
        read.map_err(VhdxError::io("read the block table"))?;
        for (n, entry) in (first..).zip(bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b))) {
            let state = (entry & 7) as usize;
            match layout.block_of(n).filter(|block| *block < layout.blocks()) {
                Some(block) => {
                    let place = (state >= 6).then_some(entry & !(MIB - 1));
                    runs.add(block, STATES[state], place);
                }
                None => bitmaps += u64::from(state == 6),
            }
        }
    }
    let mut facts = vec![
        ("at", regions.table.at.into()),
        ("length", regions.table.len.into()),
        ("room", room.into()),
        ("entries", layout.entries().into()),
        ("blocks", layout.blocks().into()),
        ("bitmaps", bitmaps.into()),
    ];
    facts.extend(runs.facts());
    Ok(Fact::Group(facts))
}

fn log_entries(medium: &dyn Medium, h: &Header) -> Result<Fact> {
    let (entries, active) = log::entries(medium, h)?;
    let entry = |e: &Entry| {
        let range = |(at, len, data): &(u64, u64, bool)| {
            let what = if *data { "data" } else { "zero" };
            Fact::Group(vec![("what", what.into()), ("at", (*at).into()), ("length", (*len).into())])
        };
        Fact::Group(vec![
            ("at", e.at.into()),
            ("length", e.len.into()),
            ("tail", e.tail.into()),
            ("sequence", e.number.into()),
            ("flushed_length", e.flushed.into()),
            ("last_length", e.last.into()),
            ("active", active.contains(&e.number).into()),
            ("changes", e.count.into()),
            ("ranges", Fact::List(e.ranges.iter().map(range).collect())),
        ])
    };
    Ok(Fact::Group(vec![
        ("replay_needed", (!active.is_empty()).into()),
        ("entries", Fact::List(entries.iter().map(entry).collect())),
    ]))
}
