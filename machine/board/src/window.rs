//! Windows: memory of devices, where the guest wants it in the PCI hole.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use vireo_chipset::layout::{PCI_HOLE_END, PCI_HOLE_START};
use vireo_core::{EngineError, Partition, PauseError, RunGate};
use vireo_memory::DeviceMemory;

/// A window cannot be there.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// The guest asked for a place that is none, or taken.
    #[error("no window can be at {0:#x}: it starts on a page, lies in the PCI hole, and overlaps no other")]
    Place(u64),
    /// The machine is not built yet, or has no room for windows.
    #[error("this machine has no windows")]
    None,
    /// vCPUs did not come to rest.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// How long vCPUs get to come to rest while a window moves.
const PAUSE_DEADLINE: Duration = Duration::from_secs(5);

/// All windows of a board.
#[derive(Default)]
pub struct Windows {
    machine: OnceLock<(Arc<dyn Partition>, Arc<RunGate>)>,
    /// Where they are. Held while one moves.
    places: Mutex<Vec<Option<Range<u64>>>>,
}

impl Windows {
    /// Connects the machine once it is there; later calls change nothing.
    pub(crate) fn connect(&self, partition: Arc<dyn Partition>, gate: Arc<RunGate>) {
        _ = self.machine.set((partition, gate));
    }

    fn places(&self) -> MutexGuard<'_, Vec<Option<Range<u64>>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A window for this memory; the guest does not have it yet.
    pub fn add(self: &Arc<Self>, memory: &Arc<DeviceMemory>) -> Window {
        let mut places = self.places();
        places.push(None);
        Window { windows: Arc::clone(self), memory: Arc::clone(memory), number: places.len() - 1 }
    }
}

/// Where a window of so many bytes is, if it can be at `gpa` beside the others.
fn place(gpa: u64, size: u64, others: impl Iterator<Item = Range<u64>>) -> Option<Range<u64>> {
    const PAGE: u64 = 4096;
    let range = gpa..gpa.checked_add(size)?;
    let inside = range.start >= PCI_HOLE_START && range.end <= PCI_HOLE_END;
    let free = |other: Range<u64>| range.end <= other.start || other.end <= range.start;
    (gpa.is_multiple_of(PAGE) && inside && others.into_iter().all(free)).then_some(range)
}

/// Memory of a device that the guest has at an address of its choice, or does not have.
pub struct Window {
    windows: Arc<Windows>,
    memory: Arc<DeviceMemory>,
    number: usize,
}

impl Window {
    /// The memory.
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Gives the guest the memory at `gpa` and nowhere else, or takes it away. The vCPUs stand still meanwhile; never to be
    /// called by one of their threads, nor by anybody for whom one waits.
    ///
    /// # Errors
    /// It cannot be there; it is where it was then, or nowhere if the engine refused.
    pub fn move_to(&self, gpa: Option<u64>) -> Result<(), WindowError> {
        let mut places = self.windows.places();
        let others = || (0..).zip(&*places).filter(|(n, _)| *n != self.number).filter_map(|(_, p)| p.clone());
        let size = self.memory.size();
        let new = match gpa {
            Some(gpa) => Some(place(gpa, size, others()).ok_or(WindowError::Place(gpa))?),
            None => None,
        };
        if places[self.number] == new {
            return Ok(());
        }
        let (partition, gate) = self.windows.machine.get().ok_or(WindowError::None)?;
        gate.pause_all(PAUSE_DEADLINE)?;
        let old = places[self.number].take();
        let unmapped = old.map_or(Ok(()), |old| partition.unmap_ram(old.start, size));
        let moved = match (unmapped, &new) {
            (Ok(()), Some(new)) => partition.map_ram(self.memory.range(new.start)),
            (unmapped, _) => unmapped,
        };
        if moved.is_ok() {
            places[self.number] = new;
        }
        gate.resume();
        Ok(moved?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_in_the_hole_side_by_side() {
        const SIZE: u64 = 16 << 20;
        let taken = || std::iter::once(0xC100_0000..0xC200_0000_u64);
        let at = |gpa| place(gpa, SIZE, taken()).is_some();
        assert!(at(PCI_HOLE_START) && at(0xC200_0000) && at(PCI_HOLE_END - SIZE));
        for gpa in [
            0,
            PCI_HOLE_START - 4096,
            0xC000_1000,
            0xC1FF_F000,
            0xC200_0001,
            PCI_HOLE_END - SIZE + 4096,
            1 << 32,
            u64::MAX,
            u64::MAX - SIZE,
        ] {
            assert!(!at(gpa), "{gpa:#x}");
        }
    }

    #[test]
    fn before_there_is_a_machine_nothing_moves() {
        let windows = Arc::<Windows>::default();
        let window = windows.add(&DeviceMemory::new(1 << 20).unwrap());
        assert!(matches!(window.move_to(Some(PCI_HOLE_START)), Err(WindowError::None)));
        assert!(window.move_to(None).is_ok());
        assert!(matches!(window.move_to(Some(0)), Err(WindowError::Place(0))));
    }
}
