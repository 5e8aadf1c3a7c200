//! Who a unit is (SPC-4, 6.6 and 7.8).

use vireo_block::BlockInfo;

use crate::{Command, Sense};

/// Names that guests of Hyper-V know their disks by; Linux's driver and Windows look at them.
const VENDOR: &[u8; 8] = b"Msft    ";
const PRODUCT: &[u8; 16] = b"Virtual Disk    ";
const REVISION: &[u8; 4] = b"1.0 ";

/// SPC-4.
const VERSION: u8 = 6;

/// Pages of vital product data.
mod page {
    pub const SUPPORTED: u8 = 0x00;
    pub const SERIAL: u8 = 0x80;
    pub const IDENTIFICATION: u8 = 0x83;
    pub const BLOCK_LIMITS: u8 = 0xb0;
    pub const CHARACTERISTICS: u8 = 0xb1;
    pub const PROVISIONING: u8 = 0xb2;
    pub const ALL: [u8; 6] = [SUPPORTED, SERIAL, IDENTIFICATION, BLOCK_LIMITS, CHARACTERISTICS, PROVISIONING];
}

/// Most blocks of one UNMAP or WRITE SAME: 1 GiB of 512 bytes. What a command can ask of a disk has to end.
pub const UNMAP_BLOCKS: u32 = 1 << 21;
/// Most ranges of one UNMAP.
pub const UNMAP_RANGES: u32 = 256;

/// The answer to INQUIRY.
pub fn inquiry(c: &Command, disk: &BlockInfo) -> Result<Vec<u8>, Sense> {
    match (c.cdb[1] & 1 != 0, c.cdb[2]) {
        (true, page) => vital(page, disk),
        (false, 0) => Ok(standard()),
        _ => Err(Sense::INVALID_FIELD),
    }
}

fn standard() -> Vec<u8> {
    // Type 0: disk. Byte 3: response format 2, hierarchical. Byte 7: command queueing.
    let mut bytes = vec![0, 0, VERSION, 0x12, 0, 0, 0, 2];
    bytes.extend(VENDOR);
    bytes.extend(PRODUCT);
    bytes.extend(REVISION);
    bytes.resize(58, 0);
    // Versions: SAM-5, SPC-4, SBC-3.
    for version in [0x00a0_u16, 0x0460, 0x04c0] {
        bytes.extend(version.to_be_bytes());
    }
    bytes.resize(96, 0);
    bytes[4] = bytes.len() as u8 - 5;
    bytes
}

fn hex(id: &[u8]) -> Vec<u8> {
    id.iter().flat_map(|b| format!("{b:02x}").into_bytes()).collect()
}

fn vital(code: u8, disk: &BlockInfo) -> Result<Vec<u8>, Sense> {
    let body = match code {
        page::SUPPORTED => page::ALL.to_vec(),
        page::SERIAL => hex(&disk.id),
        page::IDENTIFICATION => identification(&disk.id),
        page::BLOCK_LIMITS => block_limits(disk),
        // Not rotating.
        page::CHARACTERISTICS => [&[0, 1][..], &[0; 58]].concat(),
        // UNMAP, and WRITE SAME with its bit for 16 and 10 byte commands; thin. What is unmapped need not read as zeros.
        page::PROVISIONING => vec![0, if disk.unmap { 0xe0 } else { 0 }, if disk.unmap { 2 } else { 0 }, 0],
        _ => return Err(Sense::INVALID_FIELD),
    };
    let mut bytes = vec![0, code];
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// Designators of the unit: by vendor in text, and a number of its own (NAA 3).
fn identification(id: &[u8; 16]) -> Vec<u8> {
    let mut text = VENDOR.to_vec();
    text.extend(hex(id));
    let mut number: [u8; 8] = std::array::from_fn(|i| id[i] ^ id[8 + i]);
    number[0] = 0x30 | number[0] & 0xf;
    let mut bytes = Vec::new();
    // Code set (1 binary, 2 ASCII), type (1 by vendor, 3 NAA) of the unit, length.
    for (set, kind, designator) in [(2, 1, &text[..]), (1, 3, &number)] {
        bytes.extend([set, kind, 0, designator.len() as u8]);
        bytes.extend(designator);
    }
    bytes
}

/// WRITE SAME says how many blocks it is about, and not by 0 that it is all to the end.
const WRITE_SAME_NON_ZERO: u32 = 1;

fn block_limits(disk: &BlockInfo) -> Vec<u8> {
    /// Offsets are those of the page, whose head is not in the body.
    const HEAD: usize = 4;
    let mut body = [0_u8; 60];
    let mut put = |at: usize, value: u32| body[at - HEAD..][..4].copy_from_slice(&value.to_be_bytes());
    let granularity = (disk.physical_sector / disk.sector).max(1);
    if disk.unmap {
        put(20, UNMAP_BLOCKS);
        put(24, UNMAP_RANGES);
        put(28, granularity);
    }
    // In its lower half: of transfers.
    put(4, WRITE_SAME_NON_ZERO << 24 | granularity & 0xffff);
    put(40, UNMAP_BLOCKS);
    body.to_vec()
}
