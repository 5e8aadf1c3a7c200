//! The provider: a controller as a device on VMBus.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use uuid::{Uuid, uuid};
use vireo_vmbus::{Channel, Device, Offer, OpenError, VmBus};

use crate::channel::{Control, Port, Worker};
use crate::controller::Controller;
use crate::protocol::{
    INSUFFICIENT_RESOURCES, INVALID_PARAMETER, REVISION_MISMATCH, StorPacket, TRANSFER_MAX, VERSIONS,
    operation,
};

/// What drivers look for: synthetic SCSI controllers.
const INTERFACE: Uuid = uuid!("ba6163d9-04a1-4d29-b605-72e2ffb1dc7f");

/// A SCSI controller on VMBus.
pub struct Provider {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    /// Of channels that are closed and whose requests have not all ended.
    closing: Mutex<Vec<Arc<Port>>>,
}

/// Channels that are served, by number. They end by removal.
#[derive(Default)]
struct Workers(Mutex<HashMap<u16, Worker>>);

impl Workers {
    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Worker>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has all channels served by who is to do it, with the units that the controller has now.
    fn settle(&self, controller: &Controller) {
        let workers = self.lock();
        let executor = controller.executor();
        workers.values().for_each(|w| w.settle(executor.clone()));
    }

    /// Tells the driver, by the device's first channel, that units have come, gone, or changed.
    fn announce(&self) {
        if let Some(worker) = self.lock().get(&0) {
            worker.port().announce(operation::ENUMERATE_BUS);
        }
    }
}

/// What the provider's channels share.
struct Shared {
    bus: Weak<VmBus>,
    /// Its number on the bus.
    number: u64,
    controller: Arc<Controller>,
    /// Further channels that the driver may have.
    subchannels: u16,
    /// The version agreed on; 0: none yet.
    version: AtomicU32,
    ready: AtomicBool,
}

impl Provider {
    /// Puts a controller on a bus, as the instance of this name. The driver may ask for `subchannels` further channels: one for
    /// each vCPU beyond the first is of use.
    ///
    /// Returns its number on the bus, or `None` if that has no room for it.
    pub fn attach(
        bus: &Arc<VmBus>,
        instance: Uuid,
        controller: Arc<Controller>,
        subchannels: u16,
    ) -> Option<u64> {
        let offer = Offer { interface: INTERFACE, instance, memory: 0, user_data: [0; 120] };
        bus.add(offer, |number| Arc::new(Self::new(Arc::downgrade(bus), number, controller, subchannels)))
    }

    /// A controller that is device `number` of a bus. Where there is no bus, there are no further channels.
    pub fn new(bus: Weak<VmBus>, number: u64, controller: Arc<Controller>, subchannels: u16) -> Self {
        let (version, ready) = (AtomicU32::new(0), AtomicBool::new(false));
        let shared = Arc::new(Shared { bus, number, controller, subchannels, version, ready });
        let workers = Arc::new(Workers::default());
        // The controller must not keep those alive who keep it.
        let (told, of) = (Arc::downgrade(&workers), Arc::downgrade(&shared));
        shared.controller.watch(Box::new(move || {
            let (Some(workers), Some(shared)) = (told.upgrade(), of.upgrade()) else { return };
            workers.settle(&shared.controller);
            // A driver that is not ready yet will look for itself.
            if shared.ready() {
                workers.announce();
            }
        }));
        Self { shared, workers, closing: Mutex::default() }
    }

    fn closing(&self) -> MutexGuard<'_, Vec<Arc<Port>>> {
        self.closing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_driver(&self) {
        self.shared.controller.forget_leaving();
        self.shared.ready.store(false, Ordering::SeqCst);
        self.shared.version.store(0, Ordering::SeqCst);
    }
}

impl Device for Provider {
    fn open(&self, subchannel: u16, channel: Arc<Channel>) -> Result<(), OpenError> {
        let control = Arc::clone(&self.shared) as _;
        let worker = Worker::start(channel, Arc::clone(&self.shared.controller), control, subchannel == 0)
            .map_err(OpenError)?;
        self.workers.lock().insert(subchannel, worker);
        self.workers.settle(&self.shared.controller);
        Ok(())
    }

    fn close(&self, subchannel: u16) {
        if subchannel == 0 {
            self.forget_driver();
        }
        let Some(worker) = self.workers.lock().remove(&subchannel) else { return };
        let port = Arc::clone(worker.port());
        drop(worker);
        let mut closing = self.closing();
        closing.retain(|p| !p.is_idle());
        closing.push(port);
    }

    fn pause(&self, deadline: Instant) -> bool {
        let workers = self.workers.lock();
        let rests =
            workers.values().all(|w| w.pause(deadline)) && self.closing().iter().all(|p| p.rests(deadline));
        if !rests {
            workers.values().for_each(Worker::resume);
        }
        rests
    }

    fn resume(&self) {
        self.workers.lock().values().for_each(Worker::resume);
    }

    fn reset(&self) {
        self.forget_driver();
        self.shared.controller.reset();
    }
}

impl Control for Shared {
    fn ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    fn serve(&self, packet: StorPacket, first: bool) -> StorPacket {
        match packet.operation() {
            operation::BEGIN_INITIALIZATION => packet.answered(0),
            operation::QUERY_PROTOCOL_VERSION if VERSIONS.contains(&packet.number()) => {
                self.version.store(packet.number().into(), Ordering::SeqCst);
                packet.answered(0)
            }
            operation::QUERY_PROTOCOL_VERSION => packet.answered(REVISION_MISMATCH),
            operation::QUERY_PROPERTIES => packet.with_properties(self.subchannels, TRANSFER_MAX),
            operation::END_INITIALIZATION => {
                let known = self.version.load(Ordering::SeqCst) != 0;
                self.ready.store(known, Ordering::SeqCst);
                packet.answered(if known { 0 } else { REVISION_MISMATCH })
            }
            operation::CREATE_SUBCHANNELS if first => self.create_subchannels(packet),
            operation::RESET_LUN | operation::RESET_ADAPTER | operation::RESET_BUS => {
                self.controller.reset();
                packet.answered(0)
            }
            _ => packet.answered(INVALID_PARAMETER),
        }
    }
}

impl Shared {
    fn create_subchannels(&self, packet: StorPacket) -> StorPacket {
        let (count, most) = (packet.number(), self.subchannels);
        if count > most {
            return packet.answered(INVALID_PARAMETER);
        }
        let offered =
            self.bus.upgrade().is_some_and(|bus| bus.offer_subchannels(self.number, count, most).is_ok());
        packet.answered(if offered { 0 } else { INSUFFICIENT_RESOURCES })
    }
}
