//! What a drive answers: data in the layouts of SPC-3 and MMC-5. One session with one track of data is on each medium.

use super::{BLOCK, Cdb, Sense, be16};

/// Kind of medium (MMC-5, "profile list feature").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// There is none.
    None = 0x00,
    Cd = 0x08,
    Dvd = 0x10,
}

/// INQUIRY (SPC-3 §6.4), the standard data; there are no pages of vital product data.
pub fn inquiry(flags: u8) -> Result<Vec<u8>, Sense> {
    if flags & 3 != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    // A CD drive, removable; of no standard, with data of format 1 and the ATAPI version that drivers expect
    // (SFF-8020i).
    let mut data = vec![0x05, 0x80, 0x00, 0x21, 31, 0, 0, 0];
    data.extend_from_slice(b"Vireo   Virtual CD/DVD  1.0 ");
    Ok(data)
}

/// Medium type of mode data (SFF-8020i, "medium type codes"): data on 120 mm, no disc, or door open.
pub const fn medium_type(open: bool, present: bool) -> u8 {
    match (open, present) {
        (true, _) => 0x71,
        (false, false) => 0x70,
        (false, true) => 0x01,
    }
}

/// MODE SENSE(10) (SPC-3 §6.10) of error recovery (page 01h) and capabilities (2Ah, MMC-3). `which` is its page and
/// page control. Nothing can be changed.
pub fn mode_sense(medium_type: u8, locked: bool, which: u8) -> Result<Vec<u8>, Sense> {
    const RECOVERY: u8 = 0x01;
    const CAPABILITIES: u8 = 0x2A;
    const ALL: u8 = 0x3F;
    let (control, page) = (which >> 6, which & 0x3F);
    if control == 3 {
        return Err(Sense::NOT_SAVED);
    }
    if ![RECOVERY, CAPABILITIES, ALL].contains(&page) {
        return Err(Sense::INVALID_FIELD);
    }
    let mut pages = Vec::new();
    let mut add = |code: u8, body: &[u8]| {
        if page == code || page == ALL {
            pages.extend_from_slice(&[code, body.len() as u8]);
            pages.extend(body.iter().map(|b| if control == 1 { 0 } else { *b }));
        }
    };
    add(RECOVERY, &[0, 5, 0, 0, 0, 0]);
    // Reads CD-R, CD-RW, DVD-ROM, DVD-R, DVD-RAM; mode 2 and sessions; tray, eject, lock; 706 kB/s, a buffer of 512
    // KiB.
    let lock = 0x29 | u8::from(locked) << 1;
    add(CAPABILITIES, &[0x3B, 0, 0x70, 0, lock, 0, 2, 0xC2, 0, 2, 2, 0, 2, 0xC2, 0, 0, 0, 0]);
    let mut data = vec![0, 0, medium_type, 0, 0, 0, 0, 0];
    data.append(&mut pages);
    Ok(with_length(data))
}

/// Puts the number of bytes that follow into the first two.
fn with_length(mut data: Vec<u8>) -> Vec<u8> {
    let len = (data.len() - 2) as u16;
    data[..2].copy_from_slice(&len.to_be_bytes());
    data
}

/// The address of a block: its number, or minute, second and frame.
fn address(msf: bool, block: u64) -> [u8; 4] {
    if !msf {
        return (block.min(u32::MAX.into()) as u32).to_be_bytes();
    }
    let frames = block + 150;
    [0, (frames / (75 * 60)).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

/// A data track, recorded without interruption, that says where it is (ADR and CONTROL).
const DATA_TRACK: u8 = 0x14;
const LEAD_OUT: u8 = 0xAA;

/// READ TOC/PMA/ATIP (MMC-5): the tracks, the sessions, or all that is recorded of them.
pub fn toc(blocks: u64, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    let msf = cdb[1] & 2 != 0;
    // Old drivers (SFF-8020i) say the format in the control byte.
    let format = if cdb[2] & 0xF == 0 { cdb[9] >> 6 } else { cdb[2] & 0xF };
    let mut data = vec![0, 0, 1, 1];
    let mut track = |number: u8, block: u64| {
        data.extend_from_slice(&[0, DATA_TRACK, number, 0]);
        data.extend_from_slice(&address(msf, block));
    };
    match format {
        0 => {
            let from = cdb[6];
            if from > 1 && from != LEAD_OUT {
                return Err(Sense::INVALID_FIELD);
            }
            if from <= 1 {
                track(1, 0);
            }
            track(LEAD_OUT, blocks);
        }
        1 => track(1, 0),
        2 => {
            let mut point = |number: u8, position: [u8; 3]| {
                data.extend_from_slice(&[1, DATA_TRACK, 0, number, 0, 0, 0, 0]);
                data.extend_from_slice(&position);
            };
            let at = |block| {
                let [_, m, s, f] = address(true, block);
                [m, s, f]
            };
            point(0xA0, [1, 0, 0]);
            point(0xA1, [1, 0, 0]);
            point(0xA2, at(blocks));
            point(1, at(0));
        }
        _ => return Err(Sense::INVALID_FIELD),
    }
    Ok(with_length(data))
}

/// GET CONFIGURATION (MMC-5): the features of a drive that reads.
pub fn configuration(profile: Profile, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    let (request, start) = (cdb[1] & 3, be16(cdb, 2));
    if request == 3 {
        return Err(Sense::INVALID_FIELD);
    }
    let is = |p: Profile| u8::from(profile == p);
    let present = u8::from(profile != Profile::None);
    let [_, _, high, low] = (BLOCK as u32).to_be_bytes();
    // Code; version, "persistent" and "current"; data.
    let features: [(u16, u8, &[u8]); 7] = [
        (0x0000, 3, &[0, 0x10, is(Profile::Dvd), 0, 0, 0x08, is(Profile::Cd), 0]),
        // Core: ATAPI.
        (0x0001, 0x0B, &[0, 0, 0, 2, 1, 0, 0, 0]),
        // Morphing, by events of operational change: none ever comes.
        (0x0002, 0x07, &[2, 0, 0, 0]),
        // Removable medium: tray, eject, lock.
        (0x0003, 0x03, &[0x29, 0, 0, 0]),
        (0x0010, present, &[0, 0, high, low, 0, 1, 0, 0]),
        (0x001E, 0x08 | is(Profile::Cd), &[0, 0, 0, 0]),
        (0x001F, is(Profile::Dvd), &[]),
    ];
    let mut data = vec![0, 0, 0, 0, 0, 0, 0, profile as u8];
    for (code, flags, body) in features {
        let wanted = match request {
            0 => usize::from(code) >= start,
            1 => usize::from(code) >= start && flags & 1 != 0,
            _ => usize::from(code) == start,
        };
        if wanted {
            data.extend_from_slice(&code.to_be_bytes());
            data.extend_from_slice(&[flags, body.len() as u8]);
            data.extend_from_slice(body);
        }
    }
    let len = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&len.to_be_bytes());
    Ok(data)
}

/// READ DISC INFORMATION (MMC-5): a finished disc of one track, for any use.
pub fn disc_information(kind: u8) -> Result<Vec<u8>, Sense> {
    if kind & 7 != 0 {
        return Err(Sense::INVALID_FIELD);
    }
    let mut data = vec![0; 34];
    data[2..8].copy_from_slice(&[0x0E, 1, 1, 1, 1, 0x20]);
    Ok(with_length(data))
}

/// READ SUB-CHANNEL (MMC-3): nothing plays, and there is neither catalogue number nor ISRC.
pub fn sub_channel(cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    const NO_AUDIO: u8 = 0x15;
    let (msf, wants_q, format) = (cdb[1] & 2 != 0, cdb[2] & 0x40 != 0, cdb[3]);
    let mut data = vec![0, NO_AUDIO, 0, 0];
    match (wants_q, format) {
        (false, _) => {}
        (true, 1) => {
            data.extend_from_slice(&[1, DATA_TRACK, 1, 1]);
            data.extend_from_slice(&address(msf, 0));
            data.extend_from_slice(&if msf { [0; 4] } else { address(false, 0) });
        }
        (true, 2 | 3) => {
            data.extend_from_slice(&[
                format,
                if format == 3 { DATA_TRACK } else { 0 },
                u8::from(format == 3),
                0,
            ]);
            data.extend_from_slice(&[0; 16]);
        }
        _ => return Err(Sense::INVALID_FIELD),
    }
    let len = (data.len() - 4) as u16;
    data[2..4].copy_from_slice(&len.to_be_bytes());
    Ok(data)
}
