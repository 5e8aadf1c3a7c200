//! What is on a machine's VMBus.

use std::sync::Arc;

use vireo_board::{Attach, BoardError};
use vireo_hyperv::Hyperv;
use vireo_vmbus::VmBus;

/// Puts something on the bus.
pub type Synthetic = Box<dyn Fn(&Arc<VmBus>, &Arc<Hyperv>) -> Result<(), BoardError> + Send + Sync>;

/// A bus with all of these, in this order: guests find them by it.
pub fn attach(providers: Vec<Synthetic>) -> Attach {
    Box::new(move |seat| {
        let none = || BoardError::Device("VMBus needs the interface of Hyper-V".into());
        let hyperv = seat.hyperv.ok_or_else(none)?;
        let bus = VmBus::new(hyperv, seat.memory);
        providers.iter().try_for_each(|put| put(&bus, hyperv))?;
        Ok(bus)
    })
}
