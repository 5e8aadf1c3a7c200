//! The bus of one machine: the server's effects done, on a board.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use vireo_board::Attachment;
use vireo_hyperv::{Hyperv, Message, MessagePort, Status};
use vireo_memory::GuestMemory;

use crate::channel::{Channel, Doorbell};
use crate::device::{Device, Offer, OpenError, SubchannelError};
use crate::protocol::{FromGuest, MESSAGE_CONNECTIONS, MESSAGE_KIND, SINT, ToGuest};
use crate::ring::RingPair;
use crate::server::{Effect, Server};

/// A connection that nobody signals by any more rings here, so that a late guest gets no error.
static NOBODY: std::sync::LazyLock<Arc<Doorbell>> = std::sync::LazyLock::new(Arc::default);

/// The bus. Messages of guests are served on the vCPU that posts them.
///
/// Two locks: `turn` orders all that changes channels, and is held while devices open and close; `state` is held for moments, so
/// that a device's thread can offer further channels while the bus waits for it to end.
pub struct VmBus {
    hyperv: Arc<Hyperv>,
    memory: Arc<GuestMemory>,
    turn: Mutex<()>,
    state: Mutex<State>,
    /// A channel was closed.
    closed: Condvar,
}

#[derive(Default)]
struct State {
    server: Server,
    devices: HashMap<u64, Arc<dyn Device>>,
    next_device: u64,
    open: HashMap<u32, Arc<Channel>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the guest's messages.
struct Port(Weak<VmBus>);

impl MessagePort for Port {
    fn post(&self, _vp: u32, message: &Message) -> Status {
        match (self.0.upgrade(), FromGuest::parse(message.payload())) {
            (Some(bus), Some(said)) if message.kind == MESSAGE_KIND => {
                tracing::debug!(?said, "VMBus");
                let _turn = lock(&bus.turn);
                let another = matches!(said, FromGuest::Contact { .. } | FromGuest::Unload);
                let effects = lock(&bus.state).server.message(said);
                bus.run(effects);
                if another {
                    bus.devices().iter().for_each(|d| d.forget());
                }
            }
            (_, said) => tracing::debug!(kind = message.kind, ?said, "a message that is none of VMBus"),
        }
        Status::Success
    }
}

impl VmBus {
    /// A bus without devices, for the board whose interface and memory these are.
    pub fn new(hyperv: &Arc<Hyperv>, memory: &Arc<GuestMemory>) -> Arc<Self> {
        let bus = Arc::new(Self {
            hyperv: Arc::clone(hyperv),
            memory: Arc::clone(memory),
            turn: Mutex::default(),
            state: Mutex::default(),
            closed: Condvar::new(),
        });
        for connection in MESSAGE_CONNECTIONS {
            hyperv.connect_messages(connection, Arc::new(Port(Arc::downgrade(&bus))));
        }
        bus
    }

    /// The interface whose bus it is.
    pub fn hyperv(&self) -> &Arc<Hyperv> {
        &self.hyperv
    }

    /// Adds a device; its number, or `None` if there is no room for more channels.
    pub fn add(&self, offer: Offer, device: impl FnOnce(u64) -> Arc<dyn Device>) -> Option<u64> {
        let _turn = lock(&self.turn);
        let mut state = lock(&self.state);
        let number = state.next_device;
        let effects = state.server.offer(number, offer)?;
        state.next_device += 1;
        state.devices.insert(number, device(number));
        drop(state);
        self.run(effects);
        Some(number)
    }

    /// Takes a device away. The guest is told, and has so long to end what is under way and close its channels; then they are
    /// closed. Not to be called on a vCPU's thread, nor by what a pause waits for.
    pub fn remove(&self, device: u64, patience: Duration) {
        let turn = lock(&self.turn);
        let effects = lock(&self.state).server.revoke(device);
        self.run(effects);
        drop(turn);
        let state = lock(&self.state);
        let leaving = |state: &mut State| state.server.is_leaving(device);
        drop(self.closed.wait_timeout_while(state, patience, leaving));
        let _turn = lock(&self.turn);
        let effects = lock(&self.state).server.close_revoked(device);
        self.run(effects);
        lock(&self.state).devices.remove(&device);
    }

    /// Offers further channels of a device, which may have `most` in all.
    ///
    /// # Errors
    /// Its first one is not open; they are too many.
    pub fn offer_subchannels(&self, device: u64, count: u16, most: u16) -> Result<(), SubchannelError> {
        let mut state = lock(&self.state);
        // Nothing but messages, and none may come after those of a later change.
        for effect in state.server.offer_subchannels(device, count, most)? {
            if let Effect::Post { vp, message } = effect {
                self.post(vp, &message);
            }
        }
        Ok(())
    }

    /// Addresses of the pages that the guest gave to a device under this name; they may be any.
    pub fn gpadl(&self, device: u64, name: u32) -> Option<Arc<[u64]>> {
        lock(&self.state).server.gpadl(device, name)
    }

    fn run(&self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Post { vp, message } => self.post(vp, &message),
                Effect::Open { relid, .. } => {
                    let opened =
                        self.open(effect).map_err(|e| tracing::debug!("channel {relid}: {e}")).is_ok();
                    let answer = lock(&self.state).server.opened(relid, opened);
                    self.run(answer);
                }
                Effect::Close { relid, device, subchannel } => self.close(relid, device, subchannel),
                Effect::Retarget { relid, vp } => {
                    if let Some(channel) = lock(&self.state).open.get(&relid) {
                        channel.retarget(vp);
                    }
                }
            }
        }
    }

    fn post(&self, vp: u32, message: &ToGuest) {
        let Some(message) = Message::new(MESSAGE_KIND, 0, &message.bytes()) else { return };
        if let Err(e) = self.hyperv.post_message(vp, SINT, message) {
            tracing::debug!("a message of VMBus is lost: {e}");
        }
    }

    fn open(&self, effect: Effect) -> Result<(), OpenError> {
        let Effect::Open { relid, device, subchannel, pages, split, vp, user_data } = effect else {
            return Ok(());
        };
        let rings = RingPair::new(&self.memory, &pages, split)
            .ok_or_else(|| OpenError("its rings are none".into()))?;
        let hyperv = Arc::clone(&self.hyperv);
        let interrupt = Box::new(move |vp| hyperv.signal_event(vp, SINT, relid as u16));
        let channel = Channel::new(&self.memory, rings, user_data, vp, interrupt);
        let device = lock(&self.state).devices.get(&device).cloned();
        let device = device.ok_or_else(|| OpenError("its device is gone".into()))?;
        self.hyperv.connect_events(Server::connection(relid), Arc::clone(channel.doorbell()) as _);
        lock(&self.state).open.insert(relid, Arc::clone(&channel));
        let opened = device.open(subchannel, channel);
        if opened.is_err() {
            self.forget(relid);
        }
        opened
    }

    fn close(&self, relid: u32, device: u64, subchannel: u16) {
        let device = lock(&self.state).devices.get(&device).cloned();
        if let Some(device) = device {
            device.close(subchannel);
        }
        self.forget(relid);
        self.closed.notify_all();
    }

    fn forget(&self, relid: u32) {
        self.hyperv.connect_events(Server::connection(relid), Arc::clone(&NOBODY) as _);
        lock(&self.state).open.remove(&relid);
    }

    fn devices(&self) -> Vec<Arc<dyn Device>> {
        lock(&self.state).devices.values().cloned().collect()
    }
}

impl Attachment for VmBus {
    fn name(&self) -> &str {
        "VMBus"
    }

    fn pause(&self, deadline: Instant) -> bool {
        let _turn = lock(&self.turn);
        let devices = self.devices();
        let restless = devices.iter().position(|d| !d.pause(deadline));
        devices[..restless.unwrap_or(0)].iter().for_each(|d| d.resume());
        restless.is_none()
    }

    fn resume(&self) {
        let _turn = lock(&self.turn);
        self.devices().iter().for_each(|d| d.resume());
    }

    fn reset(&self) {
        let _turn = lock(&self.turn);
        let effects = lock(&self.state).server.reset();
        self.run(effects);
        self.devices().iter().for_each(|d| d.reset());
    }
}
