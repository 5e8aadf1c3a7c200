//! Giving blocks back, and writing zeros: UNMAP and WRITE SAME (SBC-3, 5.28 and 5.44).

use std::sync::{Arc, Mutex, PoisonError};

use vireo_block::{BlockError, BlockInfo, Operation, Request};

use crate::address::Blocks;
use crate::inquiry::{UNMAP_BLOCKS, UNMAP_RANGES};
use crate::opcode::WRITE_SAME_10;
use crate::{Command, Outcome, Sense};

/// Ends a command when the last of its requests ends.
struct Join {
    left: usize,
    failed: Option<Sense>,
    done: Option<Box<dyn FnOnce(Outcome) + Send>>,
    moved: u32,
}

/// Ranges of UNMAP: (start, length) in bytes.
fn ranges(c: &Command, disk: &BlockInfo) -> Result<Vec<(u64, u64)>, Sense> {
    const HEADER: usize = 8;
    if !disk.unmap {
        return Err(Sense::INVALID_COMMAND);
    }
    let list = c.list(c.be16(7).into())?;
    if list.is_empty() {
        return Ok(Vec::new());
    }
    let described = list
        .get(2..4)
        .map(|b| usize::from(u16::from_be_bytes([b[0], b[1]])))
        .ok_or(Sense::PARAMETER_LENGTH)?;
    let ranges = list.get(HEADER..).ok_or(Sense::PARAMETER_LENGTH)?;
    let ranges = &ranges[..described.min(ranges.len())];
    if ranges.len() / 16 > UNMAP_RANGES as usize {
        return Err(Sense::INVALID_PARAMETER);
    }
    let ranges: Result<Vec<_>, Sense> = ranges
        .chunks_exact(16)
        .map(|r| {
            let number = |bytes: &[u8]| bytes.iter().fold(0, |n, &b| n << 8 | u64::from(b));
            Blocks { first: number(&r[..8]), count: number(&r[8..12]) }.bytes(disk.sector, disk.size)
        })
        .collect();
    let ranges = ranges?;
    let most = u64::from(UNMAP_BLOCKS) * u64::from(disk.sector);
    let all: u64 = ranges.iter().map(|(_, len)| len).sum();
    if all <= most { Ok(ranges) } else { Err(Sense::INVALID_PARAMETER) }
}

/// UNMAP.
pub fn unmap(c: Command, disk: &BlockInfo, requests: &mut Vec<Request>) {
    match ranges(&c, disk) {
        Ok(_) if disk.read_only => c.fail(Sense::WRITE_PROTECTED),
        Ok(ranges) => start(c, Operation::Unmap, &ranges, requests),
        Err(sense) => c.fail(sense),
    }
}

/// WRITE SAME, of zeros only. With its UNMAP bit they may be given back, which the disk does as it finds best.
pub fn write_same(c: Command, disk: &BlockInfo, requests: &mut Vec<Request>) {
    /// Bit 0 of byte 1: no data comes with it, they are zeros.
    const NO_DATA: u8 = 1;
    let blocks = Blocks::of(&c);
    let no_data = c.cdb[0] != WRITE_SAME_10 && c.cdb[1] & NO_DATA != 0;
    let zeros =
        if no_data { Ok(true) } else { c.list(disk.sector.into()).map(|d| d.iter().all(|b| *b == 0)) };
    // As the page of block limits says.
    if !(1..=u64::from(UNMAP_BLOCKS)).contains(&blocks.count) {
        return c.fail(Sense::INVALID_FIELD);
    }
    match (zeros, blocks.bytes(disk.sector, disk.size)) {
        (Err(sense), _) | (_, Err(sense)) => c.fail(sense),
        _ if disk.read_only => c.fail(Sense::WRITE_PROTECTED),
        (Ok(false), _) => c.fail(Sense::INVALID_FIELD),
        (Ok(true), Ok(range)) => start(c, Operation::WriteZeroes, &[range], requests),
    }
}

fn start(c: Command, operation: Operation, ranges: &[(u64, u64)], requests: &mut Vec<Request>) {
    let ranges: Vec<_> = ranges.iter().filter(|(_, len)| *len > 0).collect();
    let moved = c.room() as u32;
    if ranges.is_empty() {
        return (c.done)(Outcome::good(moved));
    }
    let join = Arc::new(Mutex::new(Join { left: ranges.len(), failed: None, done: Some(c.done), moved }));
    for &&(at, len) in &ranges {
        let join = Arc::clone(&join);
        let done = Box::new(move |result: Result<(), BlockError>| ended(&join, result, operation));
        requests.push(Request { operation, at, len, buffers: Vec::new(), done });
    }
}

fn ended(join: &Mutex<Join>, result: Result<(), BlockError>, operation: Operation) {
    let mut j = join.lock().unwrap_or_else(PoisonError::into_inner);
    j.left -= 1;
    if let Err(e) = result {
        j.failed.get_or_insert(Sense::of(&e, operation));
    }
    let (failed, moved) = (j.failed, j.moved);
    if let Some(done) = (j.left == 0).then(|| j.done.take()).flatten() {
        drop(j);
        done(failed.map_or(Outcome::good(moved), Outcome::failed));
    }
}
