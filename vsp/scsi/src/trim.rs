//! Giving blocks back, and writing zeros: UNMAP and WRITE SAME (SBC-3, 5.28 and 5.44).
//!
//! A command has one request under way at a time, so a guest has no more of them than it has commands, whatever ranges these name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vireo_block::{BlockDevice, BlockError, BlockInfo, Operation, Request};

use crate::address::Blocks;
use crate::inquiry::{UNMAP_BLOCKS, UNMAP_RANGES};
use crate::opcode::WRITE_SAME_10;
use crate::{Command, Outcome, Sense};

/// The disk of a unit, as those use it who are told of an end: only while there is the unit. So they are never the ones who drop
/// the disk, and whoever drops it after the unit can wait for its end.
pub struct Target(Mutex<Option<Arc<dyn BlockDevice>>>);

impl Target {
    /// The disk of a unit that is there.
    pub fn new(disk: &Arc<dyn BlockDevice>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Arc::clone(disk)))))
    }

    fn disk(&self) -> MutexGuard<'_, Option<Arc<dyn BlockDevice>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The unit goes: nobody uses the disk by this any more.
    pub fn close(&self) {
        let disk = self.disk().take();
        drop(disk);
    }

    fn submit(&self, request: Request) {
        if let Some(disk) = &*self.disk() {
            return disk.submit(&mut vec![request]);
        }
        request.complete(Err(BlockError::Gone));
    }
}

/// A command of several ranges.
struct Series {
    target: Arc<Target>,
    operation: Operation,
    state: Mutex<State>,
}

struct State {
    /// Those that nothing was asked of yet.
    left: std::vec::IntoIter<(u64, u64)>,
    failed: Option<Sense>,
    /// Requests that ended and were not followed up yet: whoever makes it one does that.
    ended: usize,
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
pub fn unmap(c: Command, disk: &BlockInfo, target: &Arc<Target>, requests: &mut Vec<Request>) {
    match ranges(&c, disk) {
        Ok(_) if disk.read_only => c.fail(Sense::WRITE_PROTECTED),
        Ok(ranges) => start(c, Operation::Unmap, ranges, target, requests),
        Err(sense) => c.fail(sense),
    }
}

/// WRITE SAME, of zeros only. With its UNMAP bit they may be given back, which the disk does as it finds best.
pub fn write_same(c: Command, disk: &BlockInfo, target: &Arc<Target>, requests: &mut Vec<Request>) {
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
        (Ok(true), Ok(range)) => start(c, Operation::WriteZeroes, vec![range], target, requests),
    }
}

fn start(
    c: Command,
    operation: Operation,
    mut ranges: Vec<(u64, u64)>,
    target: &Arc<Target>,
    requests: &mut Vec<Request>,
) {
    ranges.retain(|(_, len)| *len > 0);
    let (moved, left) = (c.room() as u32, ranges.into_iter());
    let state = State { left, failed: None, ended: 0, done: Some(c.done), moved };
    let series = Arc::new(Series { target: Arc::clone(target), operation, state: Mutex::new(state) });
    requests.extend(series.next());
}

impl Series {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request. When all is done, or after the first failure, the command ends instead.
    fn next(self: &Arc<Self>) -> Option<Request> {
        let mut s = self.state();
        let next = if s.failed.is_none() { s.left.next() } else { None };
        let Some((at, len)) = next else {
            let (done, outcome) = (s.done.take(), s.failed.map_or(Outcome::good(s.moved), Outcome::failed));
            drop(s);
            done.into_iter().for_each(|done| done(outcome));
            return None;
        };
        let series = Arc::clone(self);
        let done = Box::new(move |result| series.ended(result));
        Some(Request { operation: self.operation, at, len, buffers: Vec::new(), done })
    }

    /// A request has ended: the next is submitted. Some disks end that within the call, which then leaves it to the loop that
    /// is running already: so the stack does not grow with the number of ranges.
    fn ended(self: &Arc<Self>, result: Result<(), BlockError>) {
        let mut s = self.state();
        if let Err(e) = result {
            s.failed.get_or_insert(Sense::of(&e, self.operation));
        }
        s.ended += 1;
        if s.ended > 1 {
            return;
        }
        drop(s);
        while let Some(request) = self.next() {
            self.target.submit(request);
            let mut s = self.state();
            s.ended -= 1;
            if s.ended == 0 {
                return;
            }
        }
    }
}
