//! All services of one machine: what the guest has opened, and the thread that serves it.
//!
//! One lock is over all of it, and is held for moments: what a guest says is copied out of its ring, and nobody is waited for with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;
use vireo_memory::GuestMemory;
use vireo_vmbus::{Channel, Device, Offer, OpenError, VmBus};

use crate::error::ServiceError;
use crate::heartbeat::Heartbeat;
use crate::link::{Job, Link, Phase, Quiet, Routine};
use crate::memory::{self, Balloon};
use crate::port::{Bell, Port};
use crate::time::{TimeSource, TimeSync};
use crate::vss::Thaw;
use crate::{Asked, ServiceState, ServiceStatus, copy, heartbeat, kvp, shutdown, time, vss};

/// Packets of a channel that are looked at before it is another's turn.
const ROUND: usize = 64;

/// Names of a machine's services: guests know them again by these, so they never change.
const INSTANCES: Uuid = uuid::uuid!("8f0d3a52-6c1e-4b0e-a7c4-2d9b5e6f1000");

/// What speaks with a driver.
trait Endpoint: Send {
    fn open(&mut self, now: Instant);
    fn close(&mut self, now: Instant);
    fn reset(&mut self) {}
    fn resumed(&mut self, _now: Instant) {}
    fn receive(&mut self, packet: &[u8], memory: &Arc<GuestMemory>, now: Instant);
    fn next(&mut self, now: Instant) -> Option<Vec<u8>>;
    fn due(&self) -> Option<Instant>;
    /// The guest has no room for what it would be asked: tells those whose time is over; when that of others is.
    fn starve(&mut self, _now: Instant) -> Option<Instant> {
        None
    }
    fn interface(&self) -> Uuid;
    fn status(&self) -> ServiceStatus;
}

impl<R: Routine> Endpoint for Link<R> {
    fn open(&mut self, now: Instant) {
        Link::open(self, now);
    }
    fn close(&mut self, now: Instant) {
        Link::close(self, now);
    }
    fn resumed(&mut self, now: Instant) {
        Link::resumed(self, now);
    }
    fn receive(&mut self, packet: &[u8], _: &Arc<GuestMemory>, now: Instant) {
        Link::receive(self, packet, now);
    }
    fn next(&mut self, now: Instant) -> Option<Vec<u8>> {
        Link::next(self, now)
    }
    fn due(&self) -> Option<Instant> {
        Link::due(self)
    }
    fn starve(&mut self, now: Instant) -> Option<Instant> {
        self.expire(now);
        self.patience()
    }
    fn interface(&self) -> Uuid {
        self.service().interface
    }
    fn status(&self) -> ServiceStatus {
        let (state, version) = match self.phase() {
            Phase::Absent => (ServiceState::Absent, None),
            Phase::Negotiating => (ServiceState::Negotiating, None),
            Phase::Refused => (ServiceState::Refused, None),
            Phase::Ready { version, .. } => (ServiceState::Ready, Some(version.to_string())),
        };
        ServiceStatus { name: self.service().name.into(), state, version }
    }
}

impl Endpoint for Balloon {
    fn open(&mut self, _: Instant) {
        Balloon::open(self);
    }
    fn close(&mut self, _: Instant) {
        Balloon::close(self);
    }
    fn reset(&mut self) {
        Balloon::reset(self);
    }
    fn receive(&mut self, packet: &[u8], memory: &Arc<GuestMemory>, now: Instant) {
        Balloon::receive(self, packet, memory, now);
    }
    fn next(&mut self, now: Instant) -> Option<Vec<u8>> {
        Balloon::next(self, now)
    }
    fn due(&self) -> Option<Instant> {
        Balloon::due(self)
    }
    fn interface(&self) -> Uuid {
        memory::INTERFACE
    }
    fn status(&self) -> ServiceStatus {
        let state = match (self.is_open(), self.ready()) {
            (false, _) => ServiceState::Absent,
            (true, false) => ServiceState::Negotiating,
            (true, true) => ServiceState::Ready,
        };
        let version = self.version().filter(|_| self.ready()).map(|v| v.to_string());
        ServiceStatus { name: memory::NAME.into(), state, version }
    }
}

/// What speaks with a driver, and the channel to it while there is one.
struct Seat<E> {
    endpoint: E,
    port: Option<Port>,
}

impl<E> Seat<E> {
    fn new(endpoint: E) -> Self {
        Self { endpoint, port: None }
    }
}

/// A seat, whatever is on it.
trait Place {
    fn endpoint(&mut self) -> &mut dyn Endpoint;
    fn port(&mut self) -> &mut Option<Port>;
    /// Takes in and sends what there is; when there is something to do again.
    fn turn(&mut self, now: Instant, bell: &Bell) -> Option<Instant>;
}

impl<E: Endpoint> Place for Seat<E> {
    fn endpoint(&mut self) -> &mut dyn Endpoint {
        &mut self.endpoint
    }

    fn port(&mut self) -> &mut Option<Port> {
        &mut self.port
    }

    fn turn(&mut self, now: Instant, bell: &Bell) -> Option<Instant> {
        let Self { endpoint, port } = self;
        let port = port.as_mut()?;
        if port.receive(ROUND, |packet, memory| endpoint.receive(packet, memory, now)) {
            bell.ring();
        }
        let mut room = port.can_send();
        while room && let Some(packet) = endpoint.next(now) {
            room = port.send(packet);
        }
        // Room is signalled: what is due until then is not looked at again and again.
        if room { endpoint.due() } else { endpoint.starve(now) }
    }
}

/// The services.
pub struct State {
    shutdown: Seat<Link<Quiet>>,
    heartbeat: Seat<Link<Heartbeat>>,
    time: Seat<Link<TimeSync>>,
    kvp: Seat<Link<Quiet>>,
    vss: Seat<Link<Thaw>>,
    copy: Seat<Link<Quiet>>,
    memory: Seat<Balloon>,
    /// The machine stands still: nothing touches its memory.
    paused: bool,
    ended: bool,
}

impl State {
    fn new(balloon: Balloon) -> Self {
        let now = Instant::now();
        Self {
            shutdown: Seat::new(Link::new(&shutdown::SERVICE, Quiet)),
            heartbeat: Seat::new(Link::new(&heartbeat::SERVICE, Heartbeat::new(now))),
            time: Seat::new(Link::new(&time::SERVICE, TimeSync::new(now))),
            kvp: Seat::new(Link::new(&kvp::SERVICE, Quiet)),
            vss: Seat::new(Link::new(&vss::SERVICE, Thaw::default())),
            copy: Seat::new(Link::new(&copy::SERVICE, Quiet)),
            memory: Seat::new(balloon),
            paused: false,
            ended: false,
        }
    }

    /// All of them. The order is that of their names on the bus, so it never changes.
    fn places(&mut self) -> [&mut dyn Place; 7] {
        let Self { shutdown, heartbeat, time, kvp, vss, copy, memory, .. } = self;
        [shutdown, heartbeat, time, kvp, vss, copy, memory]
    }

    /// How far each is.
    pub fn status(&mut self) -> Vec<ServiceStatus> {
        self.places().map(|place| place.endpoint().status()).into()
    }

    /// Takes a question in.
    pub fn ask(&mut self, asked: Asked, job: Job) -> Result<(), ServiceError> {
        match asked {
            Asked::Shutdown => self.shutdown.endpoint.ask(job),
            Asked::Kvp => self.kvp.endpoint.ask(job),
            Asked::Vss => self.vss.endpoint.ask(job),
            Asked::Copy => self.copy.endpoint.ask(job),
        }
    }

    pub fn heartbeat(&self) -> &Link<Heartbeat> {
        &self.heartbeat.endpoint
    }

    pub fn vss_routine(&mut self) -> &mut Thaw {
        self.vss.endpoint.routine_mut()
    }

    pub fn balloon(&self) -> &Balloon {
        &self.memory.endpoint
    }

    pub fn balloon_mut(&mut self) -> &mut Balloon {
        &mut self.memory.endpoint
    }
}

/// See the [module](self).
pub struct Hub {
    state: Mutex<State>,
    bell: Arc<Bell>,
}

impl Hub {
    /// Services that nobody has opened.
    pub fn new(balloon: Balloon) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State::new(balloon)), bell: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the services, or changes them. What is to be done now is done after [`Self::ring`].
    pub fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.lock())
    }

    /// Wakes the thread.
    pub fn ring(&self) {
        self.bell.ring();
    }

    /// Puts the services on a bus; `None`: it has no room.
    pub fn attach(self: &Arc<Self>, bus: &Arc<VmBus>, source: Arc<dyn TimeSource>) -> Option<()> {
        let interfaces = self.change(|state| {
            state.time.endpoint.routine_mut().set_source(source);
            state.places().map(|place| place.endpoint().interface())
        });
        for (which, interface) in interfaces.into_iter().enumerate() {
            let instance = Uuid::from_u128(INSTANCES.as_u128() + which as u128);
            let offer = Offer { interface, instance, memory: 0, user_data: [0; 120] };
            bus.add(offer, |_| self.device(which))?;
        }
        Some(())
    }

    /// A service as a device.
    pub fn device(self: &Arc<Self>, which: usize) -> Arc<dyn Device> {
        Arc::new(ServiceDevice { hub: Arc::clone(self), which })
    }

    /// One round of the thread; when there is something to do again. `None`: the services have ended.
    pub fn turn(&self, now: Instant) -> Option<Option<Instant>> {
        let mut state = self.lock();
        if state.ended {
            return None;
        }
        if state.paused {
            return Some(None);
        }
        Some(state.places().into_iter().filter_map(|place| place.turn(now, &self.bell)).min())
    }

    /// Serves until [`Self::end`].
    pub fn run(&self) {
        while let Some(due) = self.turn(Instant::now()) {
            self.bell.wait(due);
        }
    }

    /// Ends the thread.
    pub fn end(&self) {
        self.lock().ended = true;
        self.bell.ring();
    }
}

/// A service as the bus has it.
struct ServiceDevice {
    hub: Arc<Hub>,
    which: usize,
}

impl Device for ServiceDevice {
    fn open(&self, subchannel: u16, channel: Arc<Channel>) -> Result<(), OpenError> {
        if subchannel != 0 {
            return Err(OpenError("services have one channel".into()));
        }
        let port = Port::open(channel, &self.hub.bell)?;
        let mut state = self.hub.lock();
        let place = &mut state.places()[self.which];
        *place.port() = Some(port);
        place.endpoint().open(Instant::now());
        drop(state);
        self.hub.ring();
        Ok(())
    }

    fn close(&self, _: u16) {
        let mut state = self.hub.lock();
        let place = &mut state.places()[self.which];
        *place.port() = None;
        place.endpoint().close(Instant::now());
    }

    fn pause(&self, _: Instant) -> bool {
        // Who has the lock is at work; nobody is, now.
        self.hub.lock().paused = true;
        true
    }

    fn resume(&self) {
        let mut state = self.hub.lock();
        state.paused = false;
        state.places()[self.which].endpoint().resumed(Instant::now());
        drop(state);
        self.hub.ring();
    }

    fn reset(&self) {
        self.hub.lock().places()[self.which].endpoint().reset();
    }
}
