//! A controller: which units there are. They may come and go while the guest runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use vireo_block::{Executor, Request};
use vireo_scsi::LogicalUnit;

/// Units of a controller, at most: as Hyper-V has it.
pub const LUNS: u8 = 64;

/// A unit cannot be added or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// There is no such number.
    #[error("unit {0} is none: a controller has units 0 to {last}", last = LUNS - 1)]
    NoSuchNumber(u8),
    /// It is there already.
    #[error("unit {0} is in use: choose another one")]
    InUse(u8),
    /// The guest still takes it for the disk that was there.
    #[error(
        "unit {0} was taken away just now, and the guest has not let go of it: choose another one, or wait"
    )]
    Leaving(u8),
    /// All numbers are in use.
    #[error("the controller has {LUNS} units already")]
    Full,
    /// Those that are not are of units that the guest still takes to be there.
    #[error("the controller's free places are of units that were taken away just now: wait a minute")]
    AllLeaving,
    /// There is none.
    #[error("there is no unit {0}")]
    Absent(u8),
}

/// Told that units have come, gone, or changed.
type Watcher = Box<dyn Fn() + Send + Sync>;

/// Numbers and who has them.
#[derive(Default)]
struct Units {
    present: BTreeMap<u8, Arc<dyn LogicalUnit>>,
    /// Taken away, and perhaps not forgotten by the guest: when, and when it first found that.
    leaving: BTreeMap<u8, (Instant, Option<Instant>)>,
    /// Where the search for a free number goes on: one that was in use is given again as late as can be.
    next: u8,
}

/// A guest that has found that a unit is gone has forgotten it after so long.
const FORGOTTEN: Duration = Duration::from_secs(3);
/// One that never looked for it did not know it, or never will.
const GIVEN_UP: Duration = Duration::from_secs(60);

impl Units {
    /// Whether a number may be given to another disk. A guest that has not seen the old one go would write what it kept of that
    /// to the new one.
    fn is_free(&mut self, lun: u8) -> bool {
        self.leaving.retain(|_, (since, missed)| {
            since.elapsed() < GIVEN_UP && missed.is_none_or(|missed| missed.elapsed() < FORGOTTEN)
        });
        !self.present.contains_key(&lun) && !self.leaving.contains_key(&lun)
    }
}

/// The units of a controller, all at path 0 and target 0.
#[derive(Default)]
pub struct Controller {
    units: RwLock<Units>,
    watcher: Mutex<Option<Watcher>>,
}

impl Controller {
    /// One without units.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds a unit at a number, or at the first one free; where it is.
    ///
    /// # Errors
    /// There is none free, or it is not.
    pub fn add(&self, lun: Option<u8>, unit: Arc<dyn LogicalUnit>) -> Result<u8, UnitError> {
        let mut units = self.units.write().unwrap_or_else(PoisonError::into_inner);
        let lun = match lun {
            Some(lun) if lun >= LUNS => return Err(UnitError::NoSuchNumber(lun)),
            Some(lun) if units.present.contains_key(&lun) => return Err(UnitError::InUse(lun)),
            Some(lun) if !units.is_free(lun) => return Err(UnitError::Leaving(lun)),
            Some(lun) => lun,
            None => {
                let from = units.next;
                let free = (0..LUNS).map(|n| (from + n) % LUNS).find(|&lun| units.is_free(lun));
                let full = units.present.len() == usize::from(LUNS);
                free.ok_or(if full { UnitError::Full } else { UnitError::AllLeaving })?
            }
        };
        units.next = (lun + 1) % LUNS;
        units.present.insert(lun, unit);
        drop(units);
        self.changed();
        Ok(lun)
    }

    /// Takes a unit away. Requests in flight still end.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, lun: u8) -> Result<Arc<dyn LogicalUnit>, UnitError> {
        let mut units = self.units.write().unwrap_or_else(PoisonError::into_inner);
        let unit = units.present.remove(&lun).ok_or(UnitError::Absent(lun))?;
        units.leaving.insert(lun, (Instant::now(), None));
        drop(units);
        self.changed();
        Ok(unit)
    }

    /// The guest has been told that a unit is not there.
    pub(crate) fn missed(&self, lun: u8) {
        let is_leaving = |units: &Units| units.leaving.get(&lun).is_some_and(|(_, missed)| missed.is_none());
        if is_leaving(&self.units.read().unwrap_or_else(PoisonError::into_inner)) {
            let mut units = self.units.write().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, missed)) = units.leaving.get_mut(&lun) {
                missed.get_or_insert_with(Instant::now);
            }
        }
    }

    /// There is no driver that would know a unit.
    pub(crate) fn forget_leaving(&self) {
        self.units.write().unwrap_or_else(PoisonError::into_inner).leaving.clear();
    }

    /// Looks whether there is something that the guest does not know yet, as a disk's size or a CD.
    pub fn look(&self) {
        let units: Vec<_> = self.units().into_iter().map(|(_, unit)| unit).collect();
        // All of them, not just the first that has.
        if units.iter().filter(|u| u.look()).count() > 0 {
            self.changed();
        }
    }

    /// The units by number.
    pub fn units(&self) -> Vec<(u8, Arc<dyn LogicalUnit>)> {
        let units = self.units.read().unwrap_or_else(PoisonError::into_inner);
        units.present.iter().map(|(lun, unit)| (*lun, Arc::clone(unit))).collect()
    }

    pub(crate) fn unit(&self, lun: u8) -> Option<Arc<dyn LogicalUnit>> {
        self.units.read().unwrap_or_else(PoisonError::into_inner).present.get(&lun).cloned()
    }

    pub(crate) fn reset(&self) {
        self.units().iter().for_each(|(_, unit)| unit.reset());
    }

    /// The thread that is to serve the channels: that of the only unit, if it can. Where there are several, none of them, so that
    /// one whose thread is held up (by a file system that does not answer) holds up no other.
    pub(crate) fn executor(&self) -> Option<Arc<dyn Executor>> {
        match &*self.units() {
            [(_, unit)] => unit.executor(),
            _ => None,
        }
    }

    pub(crate) fn watch(&self, watcher: Watcher) {
        *self.watcher() = Some(watcher);
    }

    fn watcher(&self) -> MutexGuard<'_, Option<Watcher>> {
        self.watcher.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        if let Some(watcher) = &*self.watcher() {
            watcher();
        }
    }

    /// The answer to REPORT LUNS of a target (SPC-4, 6.33): its list's length in bytes, reserved, units of one level.
    pub(crate) fn list(&self, present: bool) -> Vec<u8> {
        let units = if present { self.units() } else { Vec::new() };
        let mut bytes = vec![0; 8];
        bytes[..4].copy_from_slice(&(units.len() as u32 * 8).to_be_bytes());
        for (lun, _) in units {
            bytes.extend([0, lun, 0, 0, 0, 0, 0, 0]);
        }
        bytes
    }
}

/// Requests of one round, by the unit they are for.
#[derive(Default)]
pub struct Batches(Vec<(Arc<dyn LogicalUnit>, Vec<Request>)>);

impl Batches {
    /// Those for a unit.
    pub fn of(&mut self, unit: &Arc<dyn LogicalUnit>) -> &mut Vec<Request> {
        let at = self.0.iter().position(|(u, _)| Arc::ptr_eq(u, unit)).unwrap_or_else(|| {
            self.0.push((Arc::clone(unit), Vec::new()));
            self.0.len() - 1
        });
        &mut self.0[at].1
    }

    /// Hands them over.
    pub fn submit(&mut self) {
        for (unit, requests) in &mut self.0 {
            if !requests.is_empty() {
                unit.submit(requests);
            }
        }
        self.0.clear();
    }
}
