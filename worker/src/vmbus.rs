//! The machine's VMBus, and what is plugged into it.

use std::sync::Arc;

use vireo_board::{Attach, BoardError, Seat};
use vireo_vmbus::VmBus;

/// Puts a device on the bus of a board that is being built.
pub type Plug = Box<dyn Fn(&Arc<VmBus>, &mut Seat) -> Result<(), BoardError> + Send + Sync>;

/// How a bus with these devices comes onto a board.
pub fn attach(plugs: Vec<Plug>) -> Attach {
    Box::new(move |seat| {
        let hyperv =
            seat.hyperv.ok_or_else(|| BoardError::Device("VMBus needs the interface of Hyper-V".into()))?;
        let bus = VmBus::new(hyperv, seat.memory);
        plugs.iter().try_for_each(|plug| plug(&bus, seat))?;
        Ok(bus)
    })
}
