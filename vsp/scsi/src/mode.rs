//! Mode pages (SPC-4, 7.5; SBC-3, 6.4): what a driver can ask of a disk's ways, and that it cannot change.

use vireo_block::BlockInfo;

use crate::opcode::{MODE_SELECT_10, MODE_SENSE_10};
use crate::{Command, Sense};

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const ALL: u8 = 0x3f;

/// Header bits of a disk: writes are refused; FUA is known.
const WRITE_PROTECTED: u8 = 1 << 7;
const DPO_FUA: u8 = 1 << 4;
/// Caching page: there is a write cache.
const WRITE_CACHE: u8 = 1 << 2;

fn page(code: u8) -> Vec<u8> {
    let (length, byte2) = if code == CACHING { (18, WRITE_CACHE) } else { (10, 0) };
    let mut page = vec![0; 2 + length];
    page[..3].copy_from_slice(&[code, length as u8, byte2]);
    page
}

/// The answer to MODE SENSE, and how much of it the driver allows for.
pub fn sense(c: &Command, disk: &BlockInfo) -> Result<(Vec<u8>, usize), Sense> {
    let long = c.cdb[0] == MODE_SENSE_10;
    let (control, code) = (c.cdb[2] >> 6, c.cdb[2] & 0x3f);
    if c.cdb[3] != 0 && c.cdb[3] != 0xff {
        return Err(Sense::INVALID_FIELD);
    }
    let mut pages: Vec<u8> = match code {
        CACHING | CONTROL => page(code),
        ALL => [page(CACHING), page(CONTROL)].concat(),
        _ => return Err(Sense::INVALID_FIELD),
    };
    match control {
        // Those that can be changed: none.
        1 => clear_values(&mut pages),
        // Those that are saved: there is no such thing.
        3 => return Err(Sense::NOT_SAVED),
        _ => {}
    }
    let specific = if disk.read_only { WRITE_PROTECTED | DPO_FUA } else { DPO_FUA };
    let mut bytes = match long {
        true => [((pages.len() + 6) as u16).to_be_bytes(), [0, specific], [0, 0], [0, 0]].concat(),
        false => vec![pages.len() as u8 + 3, 0, specific, 0],
    };
    bytes.append(&mut pages);
    Ok((bytes, if long { c.be16(7).into() } else { c.cdb[4].into() }))
}

fn clear_values(pages: &mut [u8]) {
    let mut at = 0;
    while at < pages.len() {
        let end = at + 2 + usize::from(pages[at + 1]);
        pages[at + 2..end].fill(0);
        at = end;
    }
}

/// MODE SELECT: whatever says what is so already is taken.
pub fn select(c: &Command) -> Result<(), Sense> {
    let long = c.cdb[0] == MODE_SELECT_10;
    // The pages are to be saved.
    if c.cdb[1] & 1 != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    let list = c.list(if long { c.be16(7).into() } else { c.cdb[4].into() })?;
    if list.is_empty() {
        return Ok(());
    }
    let (header, descriptors) = match long {
        true => (8, list.get(6..8).map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))),
        false => (4, list.get(3).map(|&b| b.into())),
    };
    let mut rest = descriptors.and_then(|d| list.get(header + d..)).ok_or(Sense::PARAMETER_LENGTH)?;
    while let [code, length, ..] = *rest {
        let one = rest.get(..2 + usize::from(length)).ok_or(Sense::PARAMETER_LENGTH)?;
        if !matches!(code, CACHING | CONTROL) || one != page(code) {
            return Err(Sense::INVALID_PARAMETER);
        }
        rest = &rest[one.len()..];
    }
    Ok(())
}
