//! A machine's integration services: made from its spec, put on its bus.

use std::sync::Arc;

use vireo_firmware::map::ram_layout;
use vireo_services::{HostTime, MemoryLimits, PAGE, Services};

use crate::RunError;
use crate::vmbus::{Plug, no_room};

/// The services of a machine with this memory.
pub fn open(limits: MemoryLimits) -> Result<Arc<Services>, RunError> {
    let fail = |e: &dyn std::fmt::Display| RunError::Machine(e.to_string());
    let layout = |size| ram_layout(size).map_err(|e| fail(&e));
    let (startup, all) = (layout(limits.startup)?, layout(limits.maximum)?);
    let reserve = all.beyond(&startup).into_iter().map(|r| r.start / PAGE..r.end / PAGE).collect();
    let services = Services::start(limits, reserve, all.limit() / PAGE);
    services.map(Arc::new).map_err(|e| fail(&format!("the host refuses a thread: {e}")))
}

/// How they come onto the bus.
pub fn plug(services: &Arc<Services>) -> Plug {
    let services = Arc::clone(services);
    Box::new(move |bus| {
        let hyperv = Arc::clone(bus.hyperv());
        let time = Arc::new(HostTime(move || hyperv.reference_time()));
        services.attach(bus, time).ok_or_else(|| no_room("the integration services"))
    })
}
