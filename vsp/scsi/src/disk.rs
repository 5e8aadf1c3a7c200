//! A disk as a logical unit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vireo_block::{BlockDevice, BlockInfo, Executor, Operation, Request};

use crate::address::{Blocks, asks_for_protection, forces_unit_access};
use crate::data::{cut, request};
use crate::opcode::*;
use crate::trim::{self, Target};
use crate::{Command, LogicalUnit, Outcome, Sense, inquiry, mode};

/// A logical unit that is a disk.
pub struct ScsiDisk {
    disk: Arc<dyn BlockDevice>,
    /// The same, for commands that ask several things of it one after the other.
    target: Arc<Target>,
    /// What commands that can be told are told of, one each.
    attentions: Mutex<Attentions>,
    /// The size that the guest knows, in bytes.
    known_size: AtomicU64,
}

/// What the guest is not told of yet.
#[derive(Clone, Copy)]
struct Attentions {
    power_on: bool,
    size: bool,
}

impl Attentions {
    fn take(&mut self) -> Option<Sense> {
        if std::mem::take(&mut self.power_on) {
            return Some(Sense::POWER_ON);
        }
        std::mem::take(&mut self.size).then_some(Sense::CAPACITY_CHANGED)
    }
}

impl ScsiDisk {
    /// On this disk.
    pub fn new(disk: Arc<dyn BlockDevice>) -> Self {
        let known_size = AtomicU64::new(disk.info().size);
        let attentions = Mutex::new(Attentions { power_on: true, size: false });
        Self { target: Target::new(&disk), disk, attentions, known_size }
    }

    /// The disk.
    pub fn disk(&self) -> &Arc<dyn BlockDevice> {
        &self.disk
    }

    fn attentions(&self) -> std::sync::MutexGuard<'_, Attentions> {
        self.attentions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The attention that a command ends with instead of being done (SAM-5, 5.14): not those that ask who is there.
    fn take_attention(&self, code: u8) -> Option<Sense> {
        match code {
            INQUIRY | REPORT_LUNS | REQUEST_SENSE => None,
            _ => self.attentions().take(),
        }
    }

    fn read_write(c: Command, info: &BlockInfo, operation: Operation, requests: &mut Vec<Request>) {
        let (at, len) = match Blocks::of(&c).bytes(info.sector, info.size) {
            Ok(range) => range,
            Err(sense) => return c.fail(sense),
        };
        if operation != Operation::Read && info.read_only {
            return c.fail(Sense::WRITE_PROTECTED);
        }
        // A driver that gives less memory than the blocks need has made a mistake; more is left alone.
        match cut(c.data, len) {
            None => (c.done)(Outcome::failed(Sense::INVALID_FIELD)),
            Some(_) if len == 0 => (c.done)(Outcome::good(0)),
            Some(buffers) => requests.push(request(operation, at, len, buffers, c.done)),
        }
    }

    /// VERIFY: the blocks are there, and can be read for all we know. Comparing is not offered.
    fn verify(c: Command, info: &BlockInfo) {
        const BYTE_CHECK: u8 = 0b110;
        match Blocks::of(&c).bytes(info.sector, info.size) {
            _ if c.cdb[1] & BYTE_CHECK != 0 => c.fail(Sense::INVALID_FIELD),
            Ok(_) => (c.done)(Outcome::good(0)),
            Err(sense) => c.fail(sense),
        }
    }

    fn capacity_10(c: Command, info: &BlockInfo) {
        let last = (info.size / u64::from(info.sector)).saturating_sub(1);
        let last = u32::try_from(last).unwrap_or(u32::MAX);
        c.answer(&[last.to_be_bytes(), info.sector.to_be_bytes()].concat(), 8);
    }

    fn capacity_16(c: Command, info: &BlockInfo) {
        let last = (info.size / u64::from(info.sector)).saturating_sub(1);
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&last.to_be_bytes());
        bytes[8..12].copy_from_slice(&info.sector.to_be_bytes());
        bytes[13] = (info.physical_sector / info.sector).max(1).ilog2() as u8;
        // Thin provisioning; what is unmapped need not read as zeros.
        bytes[14] = if info.unmap { 0x80 } else { 0 };
        let allowed = c.be32(10) as usize;
        c.answer(&bytes, allowed);
    }
}

/// Service action of READ CAPACITY (16).
const CAPACITY_16: u8 = 0x10;

impl LogicalUnit for ScsiDisk {
    fn start(&self, c: Command, requests: &mut Vec<Request>) {
        let code = c.cdb[0];
        if let Some(sense) = self.take_attention(code) {
            return c.fail(sense);
        }
        if asks_for_protection(&c) {
            return c.fail(Sense::INVALID_FIELD);
        }
        let info = self.disk.info();
        match code {
            READ_6 | READ_10 | READ_12 | READ_16 => Self::read_write(c, &info, Operation::Read, requests),
            WRITE_6 | WRITE_10 | WRITE_12 | WRITE_16 | WRITE_VERIFY_10 | WRITE_VERIFY_12
            | WRITE_VERIFY_16 => {
                let fua = forces_unit_access(&c);
                Self::read_write(c, &info, Operation::Write { fua }, requests);
            }
            SYNCHRONIZE_CACHE_10 | SYNCHRONIZE_CACHE_16 => {
                requests.push(request(Operation::Flush, 0, 0, Vec::new(), c.done));
            }
            UNMAP => trim::unmap(c, &info, &self.target, requests),
            WRITE_SAME_10 | WRITE_SAME_16 => trim::write_same(c, &info, &self.target, requests),
            VERIFY_10 | VERIFY_12 | VERIFY_16 => Self::verify(c, &info),
            TEST_UNIT_READY | START_STOP_UNIT | PREVENT_ALLOW_REMOVAL => (c.done)(Outcome::good(0)),
            REQUEST_SENSE => {
                let sense = self.attentions().take().unwrap_or(Sense::NONE);
                let allowed = c.cdb[4].into();
                c.answer(&sense.bytes(), allowed);
            }
            INQUIRY => {
                let allowed = c.be16(3).into();
                match inquiry::inquiry(&c, &info) {
                    Ok(bytes) => c.answer(&bytes, allowed),
                    Err(sense) => c.fail(sense),
                }
            }
            MODE_SENSE_6 | MODE_SENSE_10 => match mode::sense(&c, &info) {
                Ok((bytes, allowed)) => c.answer(&bytes, allowed),
                Err(sense) => c.fail(sense),
            },
            MODE_SELECT_6 | MODE_SELECT_10 => match mode::select(&c) {
                Ok(()) => {
                    let moved = c.room() as u32;
                    (c.done)(Outcome::good(moved));
                }
                Err(sense) => c.fail(sense),
            },
            READ_CAPACITY_10 => Self::capacity_10(c, &info),
            SERVICE_ACTION_IN_16 if c.cdb[1] & 0x1f == CAPACITY_16 => Self::capacity_16(c, &info),
            _ => c.fail(Sense::INVALID_COMMAND),
        }
    }

    fn submit(&self, requests: &mut Vec<Request>) {
        self.disk.submit(requests);
    }

    fn executor(&self) -> Option<Arc<dyn Executor>> {
        self.disk.executor()
    }

    fn reset(&self) {
        self.attentions().power_on = true;
    }

    /// Whether the disk has another size than the guest knows.
    fn look(&self) -> bool {
        let size = self.disk.info().size;
        let changed = self.known_size.swap(size, Ordering::SeqCst) != size;
        if changed {
            self.attentions().size = true;
        }
        changed
    }
}

impl Drop for ScsiDisk {
    fn drop(&mut self) {
        self.target.close();
    }
}
