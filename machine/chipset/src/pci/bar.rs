//! From an access on a bus to the BAR of a function.

use std::sync::{Arc, Mutex, PoisonError};

use super::PciFunction;
use crate::bus::{MmioDevice, MovingRanges, PioDevice};

/// The functions' windows as ranges of both buses.
pub(super) struct BarRoutes {
    ports: Arc<MovingRanges<dyn PioDevice>>,
    memory: Arc<MovingRanges<dyn MmioDevice>>,
    /// Held while the functions are asked and the ranges replaced: what was asked first must not be stored last.
    updating: Mutex<()>,
}

impl BarRoutes {
    pub(super) fn new(
        ports: Arc<MovingRanges<dyn PioDevice>>,
        memory: Arc<MovingRanges<dyn MmioDevice>>,
    ) -> Self {
        Self { ports, memory, updating: Mutex::new(()) }
    }

    /// Asks all functions what they decode. Where two decode the same, the one with the lower number does.
    pub(super) fn update(&self, functions: &[Option<Arc<dyn PciFunction>>]) {
        let _one_at_a_time = self.updating.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ports: Vec<(_, _, Arc<dyn PioDevice>)> = Vec::new();
        let mut memory: Vec<(_, _, Arc<dyn MmioDevice>)> = Vec::new();
        for (slot, function) in functions.iter().enumerate() {
            for window in function.iter().flat_map(|function| function.windows()) {
                let Some(function) = function.clone() else { continue };
                let name = format!("00:{:02x}.{} BAR {}", slot >> 3, slot & 7, window.bar);
                let base = window.range.start;
                let routed = Arc::new(RoutedBar { function, bar: window.bar, base });
                if window.ports {
                    ports.push((window.range, name, routed));
                } else {
                    memory.push((window.range, name, routed));
                }
            }
        }
        self.ports.replace(ports);
        self.memory.replace(memory);
    }
}

/// A BAR where it was when the functions were asked.
struct RoutedBar {
    function: Arc<dyn PciFunction>,
    bar: u8,
    base: u64,
}

impl PioDevice for RoutedBar {
    fn read(&self, port: u16, data: &mut [u8]) {
        self.function.bar_read(self.bar, u64::from(port) - self.base, data);
    }

    fn write(&self, port: u16, data: &[u8]) {
        self.function.bar_write(self.bar, u64::from(port) - self.base, data);
    }
}

impl MmioDevice for RoutedBar {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.bar_read(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(self.bar, offset, data);
    }
}
