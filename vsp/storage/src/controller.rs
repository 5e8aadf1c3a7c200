//! A controller: which units there are. They may come and go while the guest runs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use vireo_block::Request;
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
    /// All numbers are in use.
    #[error("the controller has {LUNS} units already: use another controller")]
    Full,
    /// There is none.
    #[error("there is no unit {0}")]
    Absent(u8),
}

/// Told that units have come, gone, or changed.
type Watcher = Box<dyn Fn() + Send + Sync>;

/// The units of a controller, all at path 0 and target 0.
#[derive(Default)]
pub struct Controller {
    units: RwLock<BTreeMap<u8, Arc<dyn LogicalUnit>>>,
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
            Some(lun) if units.contains_key(&lun) => return Err(UnitError::InUse(lun)),
            Some(lun) => lun,
            None => (0..LUNS).find(|lun| !units.contains_key(lun)).ok_or(UnitError::Full)?,
        };
        units.insert(lun, unit);
        drop(units);
        self.changed();
        Ok(lun)
    }

    /// Takes a unit away. Requests in flight still end.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, lun: u8) -> Result<Arc<dyn LogicalUnit>, UnitError> {
        let unit = self.units.write().unwrap_or_else(PoisonError::into_inner).remove(&lun);
        let unit = unit.ok_or(UnitError::Absent(lun))?;
        self.changed();
        Ok(unit)
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
        units.iter().map(|(lun, unit)| (*lun, Arc::clone(unit))).collect()
    }

    pub(crate) fn unit(&self, lun: u8) -> Option<Arc<dyn LogicalUnit>> {
        self.units.read().unwrap_or_else(PoisonError::into_inner).get(&lun).cloned()
    }

    pub(crate) fn reset(&self) {
        self.units().iter().for_each(|(_, unit)| unit.reset());
    }

    pub(crate) fn watch(&self, watcher: Option<Watcher>) {
        *self.watcher() = watcher;
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
