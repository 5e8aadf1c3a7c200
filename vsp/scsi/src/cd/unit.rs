//! A CD drive as a logical unit of a SCSI controller.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vireo_block::{BlockDevice, BlockError, Operation, Request};

use super::{BLOCK, Cd, Locked, Reply};
use crate::data::{cut, request};
use crate::opcode::INQUIRY;
use crate::{Command, LogicalUnit, Outcome, Sense};

/// A logical unit that is a CD drive.
pub struct ScsiCd(Mutex<Cd>);

/// The medium has sectors that a drive cannot read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("sectors of {0} bytes are not possible on a CD, which has blocks of {BLOCK}")]
pub struct WrongSectors(pub u32);

fn check(medium: &dyn BlockDevice) -> Result<(), WrongSectors> {
    let sector = medium.info().sector;
    if BLOCK.is_multiple_of(sector.into()) { Ok(()) } else { Err(WrongSectors(sector)) }
}

impl ScsiCd {
    /// With a medium in it, or none.
    ///
    /// # Errors
    /// The medium's sectors are larger than its blocks.
    pub fn new(medium: Option<Arc<dyn BlockDevice>>) -> Result<Self, WrongSectors> {
        medium.as_deref().map_or(Ok(()), check)?;
        Ok(Self(Mutex::new(Cd::new(medium))))
    }

    /// Puts a medium in, in place of one that may be there.
    ///
    /// # Errors
    /// Its sectors are larger than its blocks.
    pub fn insert(&self, medium: Arc<dyn BlockDevice>) -> Result<(), WrongSectors> {
        check(&*medium)?;
        self.cd().insert(medium);
        Ok(())
    }

    /// Takes the medium out.
    ///
    /// # Errors
    /// The guest has locked it in and `force` is not set. It learns of the wish.
    pub fn remove(&self, force: bool) -> Result<(), Locked> {
        self.cd().remove(force)
    }

    fn cd(&self) -> MutexGuard<'_, Cd> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogicalUnit for ScsiCd {
    fn start(&self, c: Command, requests: &mut Vec<Request>) {
        let mut cd = self.cd();
        let reply = cd.execute(&c.cdb);
        let sense = cd.sense();
        drop(cd);
        match reply {
            Reply::Good => (c.done)(Outcome::good(0)),
            Reply::Check => c.fail(sense),
            Reply::Data(mut bytes) => {
                if c.cdb[0] == INQUIRY && bytes.len() > 3 {
                    // On ATA it is of no standard; here of SPC-3, with that response format.
                    (bytes[2], bytes[3]) = (5, 2);
                }
                let allowed = bytes.len();
                c.answer(&bytes, allowed);
            }
            Reply::Read { at, len } => match cut(c.data, len) {
                None => (c.done)(Outcome::failed(Sense::INVALID_FIELD)),
                Some(buffers) => requests.push(request(Operation::Read, at, len, buffers, c.done)),
            },
        }
    }

    fn submit(&self, requests: &mut Vec<Request>) {
        let medium = self.cd().medium().cloned();
        match medium {
            Some(medium) => medium.submit(requests),
            // It was taken out meanwhile.
            None => requests.drain(..).for_each(|r| r.complete(Err(BlockError::Gone))),
        }
    }

    fn reset(&self) {
        self.cd().power_on();
    }
}
