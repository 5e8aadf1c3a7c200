//! The header of a sparse image ("Dynamic Disk Header Format"), with what it says of a parent.

use vireo_vdisk::Medium;

use crate::{Result, VhdError, checksum, field};

/// Size in bytes.
pub const SIZE: usize = 1024;
const COOKIE: &[u8; 8] = b"cxsparse";
const CHECKSUM: usize = 36;
const VERSION: u32 = 0x0001_0000;
const LOCATORS: usize = 576;
const LOCATOR: usize = 24;
/// Paths relative to the image, and from a root, both in UTF-16 of little endian.
const RELATIVE: &[u8; 4] = b"W2ru";
const ABSOLUTE: &[u8; 4] = b"W2ku";
/// Longest path that is read, in bytes.
const MOST_PATH: u32 = 64 << 10;
/// Bytes of the name in the header.
const NAME: usize = 512;

/// Who the parent of a differencing image is. Paths are as the image has them, with backslashes perhaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentLink {
    /// Identity in the parent's footer.
    pub id: [u8; 16],
    /// When the parent was changed last, as its child saw it: seconds since the start of 2000.
    pub changed: u32,
    /// Its name.
    pub name: String,
    /// Its path from the child's folder.
    pub relative: Option<String>,
    /// Its path from a root.
    pub absolute: Option<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Offset of the block table.
    pub table_at: u64,
    /// How many entries it has.
    pub entries: u32,
    /// Size of a block's data, in bytes.
    pub block: u32,
    /// The parent, of a differencing image.
    pub parent: Option<ParentLink>,
    /// Where its paths are, with those that are not known: offsets and lengths, in bytes.
    pub locators: Vec<(u64, u64)>,
}

fn utf16(path: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    path.encode_utf16().flat_map(bytes).collect()
}

fn text(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> String {
    let units = bytes.as_chunks().0.iter().map(|b| unit(*b)).take_while(|u| *u != 0);
    char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
}

impl Header {
    /// Reads the one at an offset; `differencing`: with the parent.
    pub fn read(medium: &dyn Medium, at: u64, differencing: bool) -> Result<Self> {
        let mut b = [0; SIZE];
        medium.read(at, &mut b).map_err(VhdError::io("read the header"))?;
        let u32_at = |at| u32::from_be_bytes(field(&b, at));
        if b[..8] != *COOKIE || u32_at(CHECKSUM) != checksum(&b, CHECKSUM) {
            return Err(VhdError::Damaged("its header has a wrong checksum, or is none".into()));
        }
        if u32_at(24) >> 16 != VERSION >> 16 {
            return Err(VhdError::Unsupported(format!("a header of version {:#x}", u32_at(24))));
        }
        let parent = match differencing {
            true => Some(ParentLink {
                id: field(&b, 40),
                changed: u32_at(56),
                name: text(&b[64..64 + NAME], u16::from_be_bytes),
                relative: path(medium, &b, RELATIVE)?,
                absolute: path(medium, &b, ABSOLUTE)?,
            }),
            false => None,
        };
        let table_at = u64::from_be_bytes(field(&b, 16));
        let locators = if differencing { locators(&b) } else { Vec::new() };
        Ok(Self { table_at, entries: u32_at(28), block: u32_at(32), parent, locators })
    }

    /// Has the one at an offset lead to another block table; the rest of it stays as it is.
    pub fn set_table(medium: &dyn Medium, at: u64, table_at: u64, entries: u32) -> Result<()> {
        let mut b = [0; SIZE];
        medium.read(at, &mut b).map_err(VhdError::io("read the header"))?;
        b[16..24].copy_from_slice(&table_at.to_be_bytes());
        b[28..32].copy_from_slice(&entries.to_be_bytes());
        let sum = checksum(&b, CHECKSUM);
        b[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
        medium.write(at, &b[..512]).map_err(VhdError::io("write the header"))
    }

    /// Its bytes, and those of the paths, which are to be written at an offset.
    pub fn bytes(&self, paths_at: u64) -> Result<([u8; SIZE], Vec<u8>)> {
        let mut b = [0; SIZE];
        let mut put = |at: usize, v: &[u8]| b[at..at + v.len()].copy_from_slice(v);
        put(0, COOKIE);
        put(8, &u64::MAX.to_be_bytes());
        put(16, &self.table_at.to_be_bytes());
        put(24, &VERSION.to_be_bytes());
        put(28, &self.entries.to_be_bytes());
        put(32, &self.block.to_be_bytes());
        let mut paths = Vec::new();
        if let Some(parent) = &self.parent {
            let name = utf16(&parent.name, u16::to_be_bytes);
            if name.len() > NAME {
                return Err(VhdError::LongPath(parent.name.clone()));
            }
            put(40, &parent.id);
            put(56, &parent.changed.to_be_bytes());
            put(64, &name);
            let all = [(ABSOLUTE, &parent.absolute), (RELATIVE, &parent.relative)];
            let known = all.into_iter().filter_map(|(code, path)| Some((code, path.as_ref()?)));
            for (n, (code, path)) in known.enumerate() {
                let bytes = utf16(path, u16::to_le_bytes);
                if bytes.len() as u32 > MOST_PATH {
                    return Err(VhdError::LongPath(path.clone()));
                }
                let at = LOCATORS + n * LOCATOR;
                let space = bytes.len().next_multiple_of(512);
                put(at, code);
                put(at + 4, &(space as u32).to_be_bytes());
                put(at + 8, &(bytes.len() as u32).to_be_bytes());
                put(at + 16, &(paths_at + paths.len() as u64).to_be_bytes());
                paths.extend(bytes);
                paths.resize(paths.len().next_multiple_of(512), 0);
            }
        }
        let sum = checksum(&b, CHECKSUM);
        b[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum.to_be_bytes());
        Ok((b, paths))
    }
}

/// Where the paths are that a header's locators lead to. Some writers count their space in sectors, which the
/// specification's table of fields has, others in bytes, as its text.
fn locators(header: &[u8; SIZE]) -> Vec<(u64, u64)> {
    let number = |l: &[u8], at| u64::from(u32::from_be_bytes(field(l, at)));
    let used = header[LOCATORS..].chunks_exact(LOCATOR).take(8).filter(|l| l[..4] != [0; 4]);
    used.map(|l| {
        let (space, len) = (number(l, 4), number(l, 8));
        let bytes = if space >= len { space } else { space * 512 };
        (u64::from_be_bytes(field(l, 16)), bytes.max(len).next_multiple_of(512))
    })
    .filter(|(at, len)| at.checked_add(*len).is_some())
    .collect()
}

/// The path that a header's locator of this kind leads to.
fn path(medium: &dyn Medium, header: &[u8; SIZE], code: &[u8; 4]) -> Result<Option<String>> {
    let locators = header[LOCATORS..].chunks_exact(LOCATOR).take(8);
    let Some(l) = locators.into_iter().find(|l| l[..4] == *code) else { return Ok(None) };
    let len = u32::from_be_bytes(field(l, 8));
    if len > MOST_PATH {
        return Err(VhdError::Damaged(format!("the path of its parent has {len} bytes")));
    }
    let mut bytes = vec![0; len as usize];
    let at = u64::from_be_bytes(field(l, 16));
    medium.read(at, &mut bytes).map_err(VhdError::io("read the path of the parent"))?;
    Ok(Some(text(&bytes, u16::from_le_bytes)))
}
