//! The metadata (2.6): what the disk is like, and who its parent is.

use vireo_vdisk::{Fact, Medium};

use crate::bytes::{Fields, put};
use crate::create::{BLOCKS, MAX_SIZE};
use crate::error::damaged;
use crate::region::Region;
use crate::{Guid, Result, VhdxError};

const SIGNATURE: &[u8; 8] = b"metadata";
const ENTRY: usize = 32;
/// Size of the table in front of the items.
const TABLE: u64 = 64 << 10;
const MOST_ITEMS: u16 = 2047;
/// Longest item that is read, in bytes: two paths.
const MOST_ITEM: u32 = 256 << 10;

const FILE_PARAMETERS: Guid = Guid::new(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const DISK_SIZE: Guid = Guid::new(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const DISK_ID: Guid = Guid::new(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL_SECTOR: Guid = Guid::new(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR: Guid = Guid::new(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PARENT: Guid = Guid::new(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);
/// The only kind of locator.
const LOCATOR: Guid = Guid::new(0xb04a_efb7, 0xd19e, 0x4a81, 0xb789_25b8_e944_5913);

/// Flags of an item's entry: it belongs to the user; it is about the disk, not the file; it must be understood.
const USER: u32 = 1;
const DISK: u32 = 2;
const REQUIRED: u32 = 4;

/// Who the parent of a differencing image is. Paths are as the image has them, with backslashes perhaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentLink {
    /// [`crate::Vhdx::data_write`] of the parent when the child was made: another one now means that it was changed
    /// since.
    pub linkage: Guid,
    /// Another one that is right as well: a merge was under way.
    pub linkage2: Option<Guid>,
    /// Its path from the child's folder.
    pub relative: Option<String>,
    /// Its path from the volume.
    pub volume: Option<String>,
    /// Its path from a root.
    pub absolute: Option<String>,
}

/// What the metadata says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Bytes of a block.
    pub block: u32,
    /// Blocks stay where they are: the image is fixed.
    pub fixed: bool,
    /// Size of the disk, in bytes.
    pub size: u64,
    /// The disk's identity, for its VPD page 83.
    pub id: Guid,
    /// Size of a sector, in bytes: 512 or 4096.
    pub sector: u32,
    /// Size of a sector of the disk below, in bytes: 512 or 4096.
    pub physical_sector: u32,
    /// The parent, of a differencing image.
    pub parent: Option<ParentLink>,
}

/// Where in the file items are that may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemPlaces {
    /// The disk's size.
    pub size: u64,
    /// The entry of the parent locator in the table, of a differencing image.
    pub parent_entry: Option<u64>,
    /// The parent locator itself, and its length.
    pub parent: u64,
    /// See above.
    pub parent_len: u64,
    /// Behind the last item.
    pub end: u64,
}

impl ItemPlaces {
    /// The parent locator is elsewhere now.
    pub fn is_moved(&mut self, at: u64, len: u64) {
        (self.parent, self.parent_len) = (at, len);
        self.end = self.end.max(at + len);
    }
}

impl Metadata {
    /// That of an image.
    pub fn read(medium: &dyn Medium, region: Region) -> Result<(Self, ItemPlaces)> {
        let table = read_table(medium, region)?;
        let mut items = Items::default();
        let mut places = ItemPlaces { end: region.at + TABLE, ..ItemPlaces::default() };
        for n in 0..usize::from(table.u16(10)) {
            let e = &table[32 + n * ENTRY..][..ENTRY];
            let (id, at, len, flags) = (Guid(e.array(0)), e.u32(16), e.u32(20), e.u32(24));
            places.end = places.end.max(region.at + u64::from(at) + u64::from(len));
            let Some(slot) = items.slot(id).filter(|_| flags & USER == 0) else {
                if flags & REQUIRED != 0 {
                    return Err(VhdxError::Required { kind: "metadata item", id });
                }
                continue;
            };
            if u64::from(at) + u64::from(len) > region.len || len > MOST_ITEM {
                return damaged(format!("metadata item {id} is {len} bytes at {at}"));
            }
            let item = region.at + u64::from(at);
            match id {
                DISK_SIZE => places.size = item,
                PARENT => {
                    places.parent_entry = Some(region.at + (32 + n * ENTRY) as u64);
                    (places.parent, places.parent_len) = (item, len.into());
                }
                _ => {}
            }
            let mut bytes = vec![0; len as usize];
            medium.read(item, &mut bytes).map_err(VhdxError::io("read a metadata item"))?;
            *slot = Some(bytes);
        }
        Ok((items.understand()?, places))
    }

    /// The bytes of the region, to be written at its start.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let parent = self.parent.as_ref().map(locator).transpose()?;
        let flags = u32::from(self.fixed) | u32::from(parent.is_some()) << 1;
        let parameters = [self.block.to_le_bytes(), flags.to_le_bytes()].concat();
        let items = [
            (FILE_PARAMETERS, REQUIRED, Some(parameters)),
            (DISK_SIZE, REQUIRED | DISK, Some(self.size.to_le_bytes().to_vec())),
            (DISK_ID, REQUIRED | DISK, Some(self.id.0.to_vec())),
            (LOGICAL_SECTOR, REQUIRED | DISK, Some(self.sector.to_le_bytes().to_vec())),
            (PHYSICAL_SECTOR, REQUIRED | DISK, Some(self.physical_sector.to_le_bytes().to_vec())),
            (PARENT, REQUIRED, parent),
        ];
        let mut b = vec![0; TABLE as usize];
        put(&mut b, 0, SIGNATURE);
        let mut count = 0u16;
        for (id, flags, item) in items {
            let Some(item) = item else { continue };
            let (entry, at) = (32 + usize::from(count) * ENTRY, b.len() as u32);
            put(&mut b, entry, &id.0);
            put(&mut b, entry + 16, &at.to_le_bytes());
            put(&mut b, entry + 20, &(item.len() as u32).to_le_bytes());
            put(&mut b, entry + 24, &flags.to_le_bytes());
            b.extend(item);
            count += 1;
        }
        put(&mut b, 10, &count.to_le_bytes());
        Ok(b)
    }
}

fn read_table(medium: &dyn Medium, region: Region) -> Result<Vec<u8>> {
    let mut table = vec![0; TABLE as usize];
    medium.read(region.at, &mut table).map_err(VhdxError::io("read the metadata"))?;
    if table[..8] != *SIGNATURE || table.u16(10) > MOST_ITEMS {
        return damaged("its metadata has no table");
    }
    Ok(table)
}

/// What the table of items says.
pub fn dump(medium: &dyn Medium, region: Region) -> Result<Fact> {
    let table = read_table(medium, region)?;
    let item = |n: usize| {
        let e = &table[32 + n * ENTRY..][..ENTRY];
        let (id, flags) = (Guid(e.array(0)), e.u32(24));
        let name = match id {
            FILE_PARAMETERS => "file parameters",
            DISK_SIZE => "disk size",
            DISK_ID => "disk identity",
            LOGICAL_SECTOR => "sector size",
            PHYSICAL_SECTOR => "physical sector size",
            PARENT => "parent locator",
            _ => "unknown",
        };
        Fact::Group(vec![
            ("id", id.to_string().into()),
            ("name", name.into()),
            ("offset", e.u32(16).into()),
            ("length", e.u32(20).into()),
            ("user", (flags & USER != 0).into()),
            ("disk", (flags & DISK != 0).into()),
            ("required", (flags & REQUIRED != 0).into()),
        ])
    };
    Ok(Fact::List((0..usize::from(table.u16(10))).map(item).collect()))
}

/// The items that are known, as they are read.
#[derive(Default)]
struct Items {
    parameters: Option<Vec<u8>>,
    size: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
    sector: Option<Vec<u8>>,
    physical: Option<Vec<u8>>,
    parent: Option<Vec<u8>>,
}

impl Items {
    fn slot(&mut self, id: Guid) -> Option<&mut Option<Vec<u8>>> {
        match id {
            FILE_PARAMETERS => Some(&mut self.parameters),
            DISK_SIZE => Some(&mut self.size),
            DISK_ID => Some(&mut self.id),
            LOGICAL_SECTOR => Some(&mut self.sector),
            PHYSICAL_SECTOR => Some(&mut self.physical),
            PARENT => Some(&mut self.parent),
            _ => None,
        }
    }

    fn understand(&self) -> Result<Metadata> {
        let long = |item: &Option<Vec<u8>>, len: usize, name: &str| match item {
            Some(b) if b.len() >= len => Ok(b.clone()),
            _ => damaged(format!("its metadata has no {name}")),
        };
        let parameters = long(&self.parameters, 8, "file parameters")?;
        let (block, flags) = (parameters.u32(0), parameters.u32(4));
        let m = Metadata {
            block,
            fixed: flags & 1 != 0,
            size: long(&self.size, 8, "disk size")?.u64(0),
            id: Guid(long(&self.id, 16, "disk identity")?.array(0)),
            sector: long(&self.sector, 4, "sector size")?.u32(0),
            physical_sector: long(&self.physical, 4, "physical sector size")?.u32(0),
            parent: match flags & 2 != 0 {
                true => Some(parse_locator(&long(&self.parent, 20, "parent locator")?)?),
                false => None,
            },
        };
        if !BLOCKS.contains(&m.block) || !m.block.is_power_of_two() {
            return damaged(format!("its blocks have {} bytes", m.block));
        }
        if ![512, 4096].contains(&m.sector) {
            return damaged(format!("its sectors have {} bytes", m.sector));
        }
        if m.size == 0 || !m.size.is_multiple_of(m.sector.into()) || m.size > MAX_SIZE {
            return damaged(format!("its disk has {} bytes", m.size));
        }
        Ok(m)
    }
}

fn utf16(s: &str) -> Vec<u8> {
    s.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// UTF-16 of little endian.
pub fn text(b: &[u8]) -> String {
    let units = b.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

/// The bytes of a parent locator (2.6.2.6).
pub fn locator(link: &ParentLink) -> Result<Vec<u8>> {
    let braces = |g: &Guid| format!("{{{g}}}");
    let pairs: Vec<(&str, String)> = [
        ("parent_linkage", Some(braces(&link.linkage))),
        ("parent_linkage2", link.linkage2.as_ref().map(braces)),
        ("relative_path", link.relative.clone()),
        ("volume_path", link.volume.clone()),
        ("absolute_win32_path", link.absolute.clone()),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect();
    let mut b = vec![0; 20 + 12 * pairs.len()];
    put(&mut b, 0, &LOCATOR.0);
    put(&mut b, 18, &(pairs.len() as u16).to_le_bytes());
    for (n, (key, value)) in pairs.iter().enumerate() {
        let (key, value) = (utf16(key), utf16(value));
        let at = b.len();
        let too_long = |len: usize| VhdxError::LongLink(len);
        let key_len = u16::try_from(key.len()).map_err(|_| too_long(key.len()))?;
        let value_len = u16::try_from(value.len()).map_err(|_| too_long(value.len()))?;
        put(&mut b, 20 + 12 * n, &(at as u32).to_le_bytes());
        put(&mut b, 24 + 12 * n, &((at + key.len()) as u32).to_le_bytes());
        put(&mut b, 28 + 12 * n, &key_len.to_le_bytes());
        put(&mut b, 30 + 12 * n, &value_len.to_le_bytes());
        b.extend(key);
        b.extend(value);
    }
    Ok(b)
}

fn parse_locator(b: &[u8]) -> Result<ParentLink> {
    if Guid(b.array(0)) != LOCATOR {
        return Err(VhdxError::Unsupported(format!("a parent locator of type {}", Guid(b.array(0)))));
    }
    let mut link = ParentLink::default();
    let part = |at: u32, len: u16| b.get(at as usize..(at as usize).checked_add(len.into())?).map(text);
    let mut linked = false;
    for n in 0..usize::from(b.u16(18)) {
        let Some(e) = b.get(20 + 12 * n..32 + 12 * n) else {
            return damaged("its parent locator is too short");
        };
        let pair = part(e.u32(0), e.u16(8)).zip(part(e.u32(4), e.u16(10)));
        let Some((key, value)) = pair else { return damaged("its parent locator leads out of itself") };
        let guid = || value.parse().or_else(|_| damaged(format!("its {key} is \"{value}\"")));
        match key.as_str() {
            "parent_linkage" => (link.linkage, linked) = (guid()?, true),
            "parent_linkage2" => link.linkage2 = Some(guid()?),
            "relative_path" => link.relative = Some(value),
            "volume_path" => link.volume = Some(value),
            "absolute_win32_path" => link.absolute = Some(value),
            _ => {}
        }
    }
    if linked { Ok(link) } else { damaged("it does not say who its parent is") }
}
