//! The VMBus of a machine: made with its board, with the devices that the machine starts with; others come and go while it runs.

use std::sync::{Arc, OnceLock};

use vireo_board::{Attach, Attachment, BoardError};
use vireo_vmbus::VmBus;

/// Puts a device onto the bus of a board that is being built.
pub type Plug = Box<dyn Fn(&Arc<VmBus>) -> Result<(), BoardError> + Send + Sync>;

/// A machine's bus, once its board is built.
#[derive(Clone, Default)]
pub struct Bus(Arc<OnceLock<Arc<VmBus>>>);

impl Bus {
    /// The bus; `None`: the guest has none, or its board is not built yet.
    pub fn get(&self) -> Option<&Arc<VmBus>> {
        self.0.get()
    }

    /// How it comes onto a board, with these devices.
    pub fn attach(&self, devices: Vec<Plug>) -> Attach {
        let slot = Arc::clone(&self.0);
        Box::new(move |seat| {
            let hyperv = seat
                .hyperv
                .ok_or_else(|| BoardError::Device("VMBus needs the interface of Hyper-V".into()))?;
            let bus = VmBus::new(hyperv, seat.memory);
            devices.iter().try_for_each(|plug| plug(&bus))?;
            _ = slot.set(Arc::clone(&bus));
            Ok(bus as Arc<dyn Attachment>)
        })
    }
}

/// There are more devices than the bus has numbers for.
pub fn no_room(what: &str) -> BoardError {
    BoardError::Device(format!("VMBus has no room for {what}"))
}
