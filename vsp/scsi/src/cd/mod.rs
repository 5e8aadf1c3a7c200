//! A CD or DVD drive as SCSI sees it: a command goes in; data, a range of the medium, or a sense comes out. It knows no
//! transport: IDE is one, a SCSI controller another ([`ScsiCd`]).
//!
//! Sources: SPC-3 (T10/1416-D) for commands of all devices, MMC-5 (T10/1675-D) for those of such drives.

mod answers;
mod unit;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vireo_block::BlockDevice;

use crate::Sense;
use crate::opcode::{
    INQUIRY, MODE_SENSE_10, PREVENT_ALLOW_REMOVAL, READ_10, READ_12, READ_CAPACITY_10, REQUEST_SENSE,
    START_STOP_UNIT, TEST_UNIT_READY,
};
pub use unit::ScsiCd;

/// Bytes of a block of a CD or DVD with data.
pub const BLOCK: u64 = 2048;
/// Blocks that a CD can have (a little over 80 minutes); what is longer is a DVD.
const CD_BLOCKS: u64 = 450_000;

/// What a command comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done.
    Good,
    /// Done, with data for the host: no more than it asked for, and never more than 64 KiB.
    Data(Vec<u8>),
    /// A part of the medium goes to the host. When it cannot be read, [`Cd::unreadable`] wants to know.
    Read {
        /// Start in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
    /// It failed; [`Cd::sense`] says why (status CHECK CONDITION).
    Check,
}

/// What happened to the medium, for GET EVENT STATUS NOTIFICATION (MMC-5, "media event codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Event {
    None = 0,
    /// The user wants it out.
    EjectRequest = 1,
    New = 2,
    Removed = 3,
}

/// Saved state of a [`Cd`]. Its medium is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CdState {
    open: bool,
    /// The host does not want the medium to be taken out.
    locked: bool,
    sense: Sense,
    /// To be told before anything else (unit attention).
    attention: Option<Sense>,
    event: Event,
}

impl CdState {
    const POWER_ON: Self = Self {
        open: false,
        locked: false,
        sense: Sense::NONE,
        attention: Some(Sense::POWER_ON),
        event: Event::None,
    };
}

/// The medium cannot be taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest uses the medium and has locked it in; it was asked to give it back")]
pub struct Locked;

/// See the module.
pub struct Cd {
    medium: Option<Arc<dyn BlockDevice>>,
    state: CdState,
}

/// Commands that do not report a unit attention (SAM-3 and MMC-5, "unit attention condition"): REQUEST SENSE tells it
/// itself.
const CALM: [u8; 4] = [REQUEST_SENSE, INQUIRY, GET_CONFIGURATION, GET_EVENT_STATUS];

const SEEK_10: u8 = 0x2B;
const READ_SUB_CHANNEL: u8 = 0x42;
const READ_TOC: u8 = 0x43;
const GET_CONFIGURATION: u8 = 0x46;
const GET_EVENT_STATUS: u8 = 0x4A;
const READ_DISC_INFORMATION: u8 = 0x51;
const SET_CD_SPEED: u8 = 0xBB;
const MECHANISM_STATUS: u8 = 0xBD;

/// A command's bytes; those that the transport did not bring are 0.
type Cdb = [u8; 16];

fn be16(cdb: &Cdb, at: usize) -> usize {
    u16::from_be_bytes([cdb[at], cdb[at + 1]]).into()
}

fn be32(cdb: &Cdb, at: usize) -> u32 {
    u32::from_be_bytes([cdb[at], cdb[at + 1], cdb[at + 2], cdb[at + 3]])
}

/// As much of an answer as the host has room for.
fn cut(mut answer: Vec<u8>, room: usize) -> Reply {
    answer.truncate(room);
    if answer.is_empty() { Reply::Good } else { Reply::Data(answer) }
}

impl Cd {
    /// With a medium in it, or none.
    pub fn new(medium: Option<Arc<dyn BlockDevice>>) -> Self {
        Self { medium, state: CdState::POWER_ON }
    }

    /// As after power-on; the medium stays.
    pub fn power_on(&mut self) {
        self.state = CdState::POWER_ON;
    }

    /// Why the last command failed.
    pub const fn sense(&self) -> Sense {
        self.state.sense
    }

    /// The medium that [`Reply::Read`] is about.
    pub const fn medium(&self) -> Option<&Arc<dyn BlockDevice>> {
        self.medium.as_ref()
    }

    /// A medium is put in, in place of one that may be there.
    pub fn insert(&mut self, medium: Arc<dyn BlockDevice>) {
        self.medium = Some(medium);
        self.state.open = false;
        self.state.attention = Some(Sense::MEDIUM_CHANGED);
        self.state.event = Event::New;
    }

    /// The medium is taken out.
    ///
    /// # Errors
    /// The guest has locked it in and `force` is not set. It learns of the wish.
    pub fn remove(&mut self, force: bool) -> Result<(), Locked> {
        if self.state.locked && !force {
            self.state.event = Event::EjectRequest;
            return Err(Locked);
        }
        if self.medium.take().is_some() {
            self.state.locked = false;
            self.state.event = Event::Removed;
            self.state.attention = Some(Sense::MEDIUM_CHANGED);
        }
        Ok(())
    }

    /// The part of the medium that a [`Reply::Read`] named could not be read.
    pub const fn unreadable(&mut self) {
        self.state.sense = Sense::UNREADABLE;
    }

    /// Executes a command.
    pub fn execute(&mut self, command: &[u8]) -> Reply {
        let mut cdb = [0; 16];
        for (to, from) in cdb.iter_mut().zip(command) {
            *to = *from;
        }
        let attention = if CALM.contains(&cdb[0]) { None } else { self.state.attention.take() };
        let result = match attention {
            Some(attention) => Err(attention),
            None => self.run(&cdb),
        };
        match result {
            Ok(reply) => {
                self.state.sense = Sense::NONE;
                reply
            }
            Err(sense) => {
                self.state.sense = sense;
                Reply::Check
            }
        }
    }

    fn run(&mut self, cdb: &Cdb) -> Result<Reply, Sense> {
        match cdb[0] {
            TEST_UNIT_READY | SET_CD_SPEED => self.blocks().map(|_| Reply::Good),
            REQUEST_SENSE => Ok(self.request_sense(cdb)),
            INQUIRY => answers::inquiry(cdb[1]).map(|a| cut(a, be16(cdb, 3))),
            START_STOP_UNIT => self.start_stop(cdb[4]),
            PREVENT_ALLOW_REMOVAL => {
                self.state.locked = cdb[4] & 1 != 0;
                Ok(Reply::Good)
            }
            READ_CAPACITY_10 => {
                let last = self.blocks()?.saturating_sub(1).min(u32::MAX.into()) as u32;
                Ok(cut([last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat(), 8))
            }
            READ_10 => self.read(be32(cdb, 2), be16(cdb, 7) as u32),
            READ_12 => self.read(be32(cdb, 2), be32(cdb, 6)),
            SEEK_10 => self.read(be32(cdb, 2), 1).map(|_| Reply::Good),
            READ_SUB_CHANNEL => {
                self.blocks()?;
                answers::sub_channel(cdb).map(|a| cut(a, be16(cdb, 7)))
            }
            READ_TOC => answers::toc(self.blocks()?, cdb).map(|a| cut(a, be16(cdb, 7))),
            GET_CONFIGURATION => answers::configuration(self.profile(), cdb).map(|a| cut(a, be16(cdb, 7))),
            GET_EVENT_STATUS => self.event_status(cdb),
            READ_DISC_INFORMATION => {
                self.blocks()?;
                answers::disc_information(cdb[1]).map(|a| cut(a, be16(cdb, 7)))
            }
            MODE_SENSE_10 => {
                let medium = answers::medium_type(self.state.open, self.medium.is_some());
                answers::mode_sense(medium, self.state.locked, cdb[2]).map(|a| cut(a, be16(cdb, 7)))
            }
            MECHANISM_STATUS => {
                let door = u8::from(self.state.open) << 4;
                Ok(cut(vec![0, door, 0, 0, 0, 1, 0, 0], be16(cdb, 8)))
            }
            _ => Err(Sense::INVALID_COMMAND),
        }
    }

    /// Blocks of the medium.
    fn blocks(&self) -> Result<u64, Sense> {
        match &self.medium {
            _ if self.state.open => Err(Sense::NO_MEDIUM_OPEN),
            None => Err(Sense::NO_MEDIUM),
            Some(medium) => Ok(medium.info().size / BLOCK),
        }
    }

    fn read(&self, first: u32, count: u32) -> Result<Reply, Sense> {
        let (first, count) = (u64::from(first), u64::from(count));
        if first + count > self.blocks()? {
            return Err(Sense::OUT_OF_RANGE);
        }
        if count == 0 {
            return Ok(Reply::Good);
        }
        Ok(Reply::Read { at: first * BLOCK, len: count * BLOCK })
    }

    fn request_sense(&mut self, cdb: &Cdb) -> Reply {
        let told = match self.state.sense {
            Sense::NONE => self.state.attention.take().unwrap_or(Sense::NONE),
            sense => sense,
        };
        cut(told.bytes().to_vec(), cdb[4].into())
    }

    /// START STOP UNIT (MMC-5).
    fn start_stop(&mut self, bits: u8) -> Result<Reply, Sense> {
        let (start, load_eject, power) = (bits & 1 != 0, bits & 2 != 0, bits >> 4);
        match (power, load_eject, start) {
            (0, true, false) if self.state.open => {}
            (0, true, false) if self.state.locked => return Err(Sense::REMOVAL_PREVENTED),
            (0, true, false) => {
                self.state.open = true;
                self.state.event = Event::Removed;
            }
            (0, true, true) if self.state.open => {
                self.state.open = false;
                // The medium is the one that the guest has put out itself: no attention is called to it, or a driver
                // that closes the tray in order to read gives its first read up.
                if self.medium.is_some() {
                    self.state.event = Event::New;
                }
            }
            _ => {}
        }
        Ok(Reply::Good)
    }

    /// GET EVENT STATUS NOTIFICATION (MMC-5), of events of the medium, and at once: nobody waits for one.
    fn event_status(&mut self, cdb: &Cdb) -> Result<Reply, Sense> {
        const MEDIA: u8 = 4;
        if cdb[1] & 1 == 0 {
            return Err(Sense::INVALID_FIELD);
        }
        let supported = 1 << MEDIA;
        if cdb[4] & supported == 0 {
            // None of those that were asked for.
            return Ok(cut(vec![0, 2, 0x80, supported], be16(cdb, 7)));
        }
        let present = self.medium.is_some() && !self.state.open;
        let status = u8::from(self.state.open) | u8::from(present) << 1;
        let answer = vec![0, 6, MEDIA, supported, self.state.event as u8, status, 0, 0];
        // An event counts as told when its code is.
        if be16(cdb, 7) > 4 {
            self.state.event = Event::None;
        }
        Ok(cut(answer, be16(cdb, 7)))
    }

    fn profile(&self) -> answers::Profile {
        match self.blocks() {
            Err(_) => answers::Profile::None,
            Ok(n) if n <= CD_BLOCKS => answers::Profile::Cd,
            Ok(_) => answers::Profile::Dvd,
        }
    }

    /// The state.
    pub const fn save(&self) -> CdState {
        self.state
    }

    /// Takes over a saved state; the medium is the owner's to put in before.
    pub const fn restore(&mut self, state: &CdState) {
        self.state = *state;
    }
}

#[cfg(test)]
mod tests;
