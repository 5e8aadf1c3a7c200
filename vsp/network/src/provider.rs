//! The provider: an adapter as a device on VMBus, plugged into a link.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, ArcSwapOption};
use uuid::{Uuid, uuid};
use vireo_frame::{Adapter, End, Filter, Frame, Full, Link, Mac, fit};
use vireo_memory::GuestSlice;
use vireo_vmbus::ring::{Packet, kind};
use vireo_vmbus::{Channel, Device, Offer, OpenError, VmBus};

use crate::buffer::{Pages, ReceiveBuffer};
use crate::channel::{Port, Taken, Worker};
use crate::control::{Control, Surroundings};
use crate::protocol::{
    FromDriver, NdisConfig, SEND_SECTION, SEND_TABLE, ToDriver, VERSION_5, VERSION_6_1, VERSIONS, status,
};
use crate::receive::{self, Reception, Sections, infos};
use crate::rndis::{self, OVERHEAD_MAX};
use crate::transmit::Sent;

/// What drivers look for: synthetic Ethernet adapters.
const INTERFACE: Uuid = uuid!("f8615163-df3e-46c5-913f-f2d2f965ed0e");

/// Bytes of a section of the receive buffer, for drivers that take a frame in several, as all hosts have it for others.
const SECTION_COALESCED: u32 = 16 << 10;
const SECTION_PLAIN: u32 = 1728;
/// Bytes before a frame's packet: an Ethernet header.
const ETHERNET: u32 = 14;
/// Pieces of memory of one packet from the driver.
const PIECES_MAX: usize = 512;
/// Bytes of the longest request of RNDIS; that for receive side scaling is the longest.
const CONTROL_MAX: usize = 4096;

/// A driver that sends nothing for so long, and owes nothing, rests.
const QUIET: Duration = Duration::from_millis(250);

/// What an adapter is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Its address.
    pub address: Mac,
    /// Further channels that the driver may have: one for each vCPU beyond the first is of use.
    pub subchannels: u16,
}

/// What passed an adapter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames from the guest that the link took.
    pub sent: u64,
    /// Bytes of them.
    pub sent_bytes: u64,
    /// Frames that the guest got.
    pub received: u64,
    /// Bytes of them.
    pub received_bytes: u64,
    /// Messages of the guest's that were no frames.
    pub bad: u64,
    /// Frames for the guest that it did not get.
    pub lost: u64,
}

/// The same, counted by many threads.
#[derive(Default)]
pub(crate) struct Counting([AtomicU64; 6]);

impl Counting {
    fn add(&self, n: usize, count: u64) {
        self.0[n].fetch_add(count, Ordering::Relaxed);
    }

    pub fn sent(&self, sent: &Sent) {
        self.add(0, sent.frames);
        self.add(1, sent.bytes);
        self.add(4, sent.bad);
    }

    pub fn received(&self, bytes: usize) {
        self.add(2, 1);
        self.add(3, bytes as u64);
    }

    pub fn lost(&self) {
        self.add(5, 1);
    }

    fn read(&self) -> Counters {
        let [sent, sent_bytes, received, received_bytes, bad, lost] =
            std::array::from_fn(|n| self.0[n].load(Ordering::Relaxed));
        Counters { sent, sent_bytes, received, received_bytes, bad, lost }
    }
}

/// What an adapter asks its bus for.
pub trait Bus: Send + Sync {
    /// Addresses of the pages that the guest gave the adapter under a name.
    fn gpadl(&self, name: u32) -> Option<Arc<[u64]>>;
    /// Offers further channels, of which there may be `most`; whether it did.
    fn offer_subchannels(&self, count: u16, most: u16) -> bool;
}

/// VMBus, for one of its devices.
struct DeviceOf(Weak<VmBus>, u64);

impl Bus for DeviceOf {
    fn gpadl(&self, name: u32) -> Option<Arc<[u64]>> {
        self.0.upgrade()?.gpadl(self.1, name)
    }

    fn offer_subchannels(&self, count: u16, most: u16) -> bool {
        self.0.upgrade().is_some_and(|bus| bus.offer_subchannels(self.1, count, most).is_ok())
    }
}

/// An Ethernet adapter on VMBus.
pub struct Provider {
    shared: Arc<Shared>,
    workers: Mutex<HashMap<u16, Worker>>,
}

/// What the driver and the adapter have agreed on.
struct Session {
    config: NdisConfig,
    control: Control,
}

/// What the adapter's channels and its link share.
pub(crate) struct Shared {
    bus: Box<dyn Bus>,
    settings: Settings,
    pub link: Arc<dyn Link>,
    /// The version agreed on; 0: none yet.
    version: AtomicU32,
    session: Mutex<Session>,
    receive: ArcSwapOption<ReceiveBuffer>,
    send: ArcSwapOption<Pages>,
    reception: ArcSwap<Reception>,
    pub sections: Sections,
    /// Of open channels, by number.
    ports: ArcSwap<Vec<Option<Arc<Port>>>>,
    /// Further channels that the driver was offered.
    offered: AtomicU32,
    /// The link was told that there is no room.
    waiting: AtomicBool,
    carrier: Mutex<(bool, u64)>,
    pub counters: Counting,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Provider {
    /// Puts an adapter on a bus, as the instance of this name, and plugs it into a link. Returns it and its number on the bus, or
    /// `None` if that has no room for it.
    pub fn attach(
        bus: &Arc<VmBus>,
        instance: Uuid,
        link: Arc<dyn Link>,
        settings: Settings,
    ) -> Option<(Arc<Self>, u64)> {
        let offer = Offer { interface: INTERFACE, instance, memory: 0, user_data: [0; 120] };
        let mut made = None;
        let number = bus.add(offer, |number| {
            let provider = Self::new(Box::new(DeviceOf(Arc::downgrade(bus), number)), link, settings);
            made = Some(Arc::clone(&provider));
            provider
        })?;
        Some((made?, number))
    }

    /// An adapter on a bus, plugged into a link.
    pub fn new(bus: Box<dyn Bus>, link: Arc<dyn Link>, settings: Settings) -> Arc<Self> {
        let session = Session { config: NdisConfig::default(), control: Control::new(settings.address) };
        let shared = Arc::new(Shared {
            bus,
            settings,
            link,
            version: AtomicU32::new(0),
            session: Mutex::new(session),
            receive: ArcSwapOption::empty(),
            send: ArcSwapOption::empty(),
            reception: ArcSwap::from_pointee(Reception::none()),
            sections: Sections::default(),
            ports: ArcSwap::default(),
            offered: AtomicU32::new(0),
            waiting: AtomicBool::new(false),
            carrier: Mutex::new((true, 10_000_000_000)),
            counters: Counting::default(),
        });
        shared.link.plug(Some(Arc::clone(&shared) as _));
        Arc::new(Self { shared, workers: Mutex::default() })
    }

    /// Unplugs it from its link, for good.
    pub fn unplug(&self) {
        self.shared.link.plug(None);
    }

    /// Unplugs it, and waits until the driver has come to rest, or for `patience`: it is told that the network is gone, so that it
    /// sends nothing more. A driver that has something under way when it is told that the device is gone may wait for
    /// that for ever: Linux hears and says nothing more on such a channel (vmbus_chan_sched, hv_ringbuffer_write).
    pub fn take_leave(&self, patience: Duration) {
        self.unplug();
        self.shared.flush();
        let (_, speed) = self.shared.carrier();
        self.shared.set_carrier(false, speed);
        let (deadline, mut before) = (Instant::now() + patience, self.counters());
        while Instant::now() < deadline {
            std::thread::sleep(QUIET);
            let now = self.counters();
            let rests = self.shared.ports.load().iter().flatten().all(|port| port.is_quiet());
            if rests && now.sent == before.sent {
                return;
            }
            before = now;
        }
    }

    /// What passed it.
    pub fn counters(&self) -> Counters {
        self.shared.counters.read()
    }

    /// Its address, which the guest may have changed.
    pub fn address(&self) -> Mac {
        lock(&self.shared.session).control.address
    }
}

impl Device for Provider {
    fn open(&self, subchannel: u16, channel: Arc<Channel>) -> Result<(), OpenError> {
        if subchannel > self.shared.settings.subchannels {
            return Err(OpenError("it is one too many".into()));
        }
        let worker = Worker::start(channel, &self.shared, subchannel).map_err(OpenError)?;
        lock(&self.workers).insert(subchannel, worker);
        self.shared.send_table();
        Ok(())
    }

    fn close(&self, subchannel: u16) {
        let worker = lock(&self.workers).remove(&subchannel);
        if let Some(worker) = worker {
            // Frames that it had not told of are lost, their sections are not.
            let port = Arc::clone(worker.port());
            drop(worker);
            port.give_all(&self.shared.sections);
        }
        // Not before: who takes the receive buffer back has to find all that have sections of it.
        self.shared.set_port(subchannel, None);
        if subchannel == 0 {
            // Not before: what the ring had in it was served until now.
            self.shared.forget_driver();
        }
        self.shared.tell_room();
    }

    fn pause(&self, deadline: Instant) -> bool {
        let workers = lock(&self.workers);
        let rests = workers.values().all(|w| w.pause(deadline));
        if !rests {
            workers.values().for_each(Worker::resume);
        }
        rests
    }

    fn resume(&self) {
        lock(&self.workers).values().for_each(Worker::resume);
    }

    fn forget(&self) {
        // The next driver asks for the permanent one.
        let permanent = self.shared.settings.address;
        let mut session = lock(&self.shared.session);
        if session.control.address != permanent && self.shared.link.set_address(permanent).is_ok() {
            session.control.address = permanent;
            self.shared.settle(&session);
        }
    }

    fn reset(&self) {
        self.shared.forget_driver();
        self.forget();
    }
}

impl Shared {
    /// The version agreed on.
    pub fn version(&self) -> u32 {
        self.version.load(Ordering::Relaxed)
    }

    /// The buffer for frames to the driver.
    pub fn buffer(&self) -> Option<Arc<ReceiveBuffer>> {
        self.receive.load_full()
    }

    /// Whether the driver's buffer is this one still.
    pub fn has(&self, buffer: &Arc<ReceiveBuffer>) -> bool {
        self.receive.load().as_ref().is_some_and(|b| Arc::ptr_eq(b, buffer))
    }

    /// The link is told that there is no room.
    pub fn full(&self) {
        self.waiting.store(true, Ordering::SeqCst);
    }

    /// There may be room again.
    pub fn tell_room(&self) {
        if self.sections.has_for_answer()
            && let Some(Some(first)) = self.ports.load().first()
        {
            // It alone has answers.
            first.channel().doorbell().ring();
        }
        if self.waiting.swap(false, Ordering::SeqCst) {
            self.link.room();
        }
    }

    /// A channel is open, or not any more.
    pub fn set_port(&self, subchannel: u16, port: Option<Arc<Port>>) {
        self.ports.rcu(|ports| {
            let mut ports = Vec::clone(ports);
            let at = usize::from(subchannel);
            if ports.len() <= at {
                ports.resize(at + 1, None);
            }
            ports[at] = port.clone();
            ports
        });
    }

    /// The driver is gone.
    fn forget_driver(&self) {
        self.version.store(0, Ordering::SeqCst);
        self.send.store(None);
        self.forget_receive_buffer();
        let mut session = lock(&self.session);
        session.config = NdisConfig::default();
        session.control.forget();
        self.settle(&session);
    }

    fn forget_receive_buffer(&self) {
        self.receive.store(None);
        // Whoever is writing into it has one of the ports.
        self.ports.load().iter().flatten().for_each(|p| p.forget_buffer());
        self.sections.reset(0);
    }

    /// Has frames go as the driver wants it now.
    fn settle(&self, session: &Session) {
        let control = &session.control;
        let ability = control.offloads.ability();
        let reception = match self.buffer().filter(|_| control.wants_frames()) {
            None => Reception { ability, ..Reception::none() },
            buffer => Reception {
                buffer,
                address: control.address,
                filter: control.filter(),
                promiscuous: control.is_promiscuous(),
                ability,
                steering: control.steering.clone(),
                frame_max: self.frame_max(session.config) as usize,
            },
        };
        let nothing = Filter { directed: false, broadcast: false, groups: Some(Default::default()) };
        let filter = if reception.buffer.is_some() { reception.filter.clone() } else { nothing };
        self.reception.store(Arc::new(reception));
        self.link.set_adapter_ability(ability);
        self.link.set_filter(&filter);
    }

    /// Bytes of the longest frame that the driver takes, without a tag. Drivers of version 1 do not say.
    fn frame_max(&self, config: NdisConfig) -> u32 {
        match config.frame {
            0 => 1500 + ETHERNET,
            frame => frame.clamp(64, 65_535),
        }
    }

    /// Serves a packet of the driver's that came by a channel.
    pub fn take(&self, packet: &Packet, port: &Arc<Port>, first: bool) -> Taken {
        let failed = Taken::Answer(ToDriver::RndisComplete { status: status::FAIL });
        let Some(message) = FromDriver::parse(packet.data()) else { return failed };
        if let FromDriver::Rndis { control, section, bytes } = message {
            let Some(memory) = self.messages(packet, port, section, bytes) else { return failed };
            return match control {
                false => Taken::Frames(memory),
                true if first => Taken::Answer(self.control(&memory, port)),
                true => failed,
            };
        }
        match first {
            true => self.negotiate(message, port),
            false => failed,
        }
    }

    /// Where the messages of a packet are: in a section of the send buffer, then in the pages that it names.
    fn messages(
        &self,
        packet: &Packet,
        port: &Arc<Port>,
        section: Option<u32>,
        bytes: u32,
    ) -> Option<Vec<GuestSlice>> {
        let mut memory = Vec::new();
        if let Some(section) = section {
            let offset = u64::from(section) * u64::from(SEND_SECTION);
            let pages = self.send.load_full().filter(|_| bytes <= SEND_SECTION)?;
            pages.slices(offset, bytes.into(), &mut memory).then_some(())?;
        }
        if packet.kind == kind::GPA_DIRECT {
            memory.extend(packet.gpa_ranges(port.channel().memory(), PIECES_MAX).ok()?);
        }
        Some(memory)
    }

    /// Serves a request of RNDIS.
    fn control(&self, memory: &[GuestSlice], port: &Arc<Port>) -> ToDriver {
        let mut request = Vec::new();
        for piece in memory {
            let from = request.len();
            request.resize(CONTROL_MAX.min(from + piece.len()), 0);
            if piece.read(0, &mut request[from..]).is_err() {
                return ToDriver::RndisComplete { status: status::FAIL };
            }
        }
        let mut session = lock(&self.session);
        session.control.rsc = session.config.rsc;
        let answer = session.control.serve(&request, self);
        // To settle costs links a system call or a message, and drivers ask much.
        if Control::may_change(&request) {
            self.settle(&session);
        }
        drop(session);
        if let Some(answer) = answer {
            port.send_control(self, answer);
        }
        ToDriver::RndisComplete { status: status::SUCCESS }
    }

    /// Serves what is not RNDIS, and came by the first channel.
    fn negotiate(&self, message: FromDriver, port: &Arc<Port>) -> Taken {
        Taken::Answer(match message {
            FromDriver::Init { min, max } => {
                let version = VERSIONS.iter().rev().find(|v| (min..=max).contains(*v));
                self.version.store(version.copied().unwrap_or(0), Ordering::SeqCst);
                let known = if version.is_some() { status::SUCCESS } else { status::UNSUPPORTED };
                ToDriver::InitComplete { status: known }
            }
            FromDriver::NdisConfig(config) => {
                let rsc = config.rsc && self.version() >= VERSION_6_1;
                lock(&self.session).config = NdisConfig { rsc, ..config };
                return Taken::Nothing;
            }
            FromDriver::ReceiveBuffer { gpadl, id } => self.take_receive_buffer(gpadl, id, port),
            FromDriver::SendBuffer { gpadl } => {
                let pages = self.pages(gpadl, port).filter(|p| p.len() >= SEND_SECTION.into());
                let known = if pages.is_some() { status::SUCCESS } else { status::FAIL };
                self.send.store(pages.map(Arc::new));
                ToDriver::SendBufferComplete { status: known }
            }
            FromDriver::RevokeReceiveBuffer => {
                self.forget_receive_buffer();
                self.settle(&lock(&self.session));
                return Taken::Nothing;
            }
            FromDriver::RevokeSendBuffer => {
                self.send.store(None);
                return Taken::Nothing;
            }
            FromDriver::Subchannels { count } => self.offer_subchannels(count),
            FromDriver::NdisVersion => return Taken::Nothing,
            FromDriver::SwitchDataPath => ToDriver::RndisComplete { status: status::SUCCESS },
            FromDriver::Rndis { .. } => return Taken::Nothing,
            FromDriver::Other(crate::protocol::message::OID_QUERY_EX) => ToDriver::OidQueryFailed,
            FromDriver::Other(kind) => {
                tracing::debug!("a network driver says something that nobody knows ({kind})");
                ToDriver::RndisComplete { status: status::FAIL }
            }
        })
    }

    /// What the guest gave under a name.
    fn pages(&self, gpadl: u32, port: &Arc<Port>) -> Option<Pages> {
        Pages::new(port.channel().memory(), self.bus.gpadl(gpadl)?)
    }

    fn take_receive_buffer(&self, gpadl: u32, id: u16, port: &Arc<Port>) -> ToDriver {
        self.forget_receive_buffer();
        let session = lock(&self.session);
        let longest = (self.frame_max(session.config) + 4 + OVERHEAD_MAX).next_multiple_of(64);
        let section = if session.config.rsc { SECTION_COALESCED } else { SECTION_PLAIN.max(longest) };
        let buffer = self.pages(gpadl, port).and_then(|pages| ReceiveBuffer::new(pages, id, section));
        let count = buffer.as_ref().map_or(0, ReceiveBuffer::count);
        self.sections.reset(count);
        self.receive.store(buffer.map(Arc::new));
        self.settle(&session);
        let known = if count > 0 { status::SUCCESS } else { status::FAIL };
        ToDriver::ReceiveBufferComplete { status: known, section, count }
    }

    /// The driver is told of as many as there are, and then where to send by which.
    fn offer_subchannels(&self, count: u32) -> ToDriver {
        let most = self.settings.subchannels;
        let count = if self.version() >= VERSION_5 { count.min(most.into()) as u16 } else { 0 };
        self.offered.store(count.into(), Ordering::SeqCst);
        match self.bus.offer_subchannels(count, most) {
            true => ToDriver::Subchannels { status: status::SUCCESS, count: count.into() },
            false => ToDriver::Subchannels { status: status::FAIL, count: 0 },
        }
    }

    /// Tells the driver by which channels to send, when all that it was offered are open.
    fn send_table(&self) {
        let ports = self.ports.load();
        let (open, offered) = (ports.iter().flatten().count() as u32, self.offered.load(Ordering::SeqCst));
        if let (Some(Some(first)), true) = (ports.first(), offered > 0 && open == offered + 1) {
            let table = std::array::from_fn::<u32, SEND_TABLE, _>(|n| n as u32 % open);
            first.send_table(self, table);
        }
    }

    /// Tells the driver something of RNDIS that it did not ask for.
    fn indicate(&self, what: u32, rest: &[u8]) {
        if let Some(Some(first)) = self.ports.load().first() {
            let offset = if rest.is_empty() { 0 } else { 12 };
            let fields = [what, rest.len() as u32, offset];
            first.send_control(self, rndis::message(rndis::message::INDICATE, &fields, rest));
        }
    }
}

thread_local! {
    /// For frames that are not as the driver takes them; each of a network's threads keeps one.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl End for Shared {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let reception = self.reception.load();
        let Some(buffer) = reception.buffer.as_ref() else { return Ok(()) };
        if !reception.wants(frame) {
            return Ok(());
        }
        let ports = self.ports.load();
        let mut done = 0;
        let deliver = &mut |frame: &Frame<'_>| {
            let (channel, hash) = reception.steering.channel(frame.head());
            let port = ports.get(usize::from(channel)).and_then(Option::as_ref);
            match port.or_else(|| ports.first().and_then(Option::as_ref)) {
                Some(port) => port.deliver(self, buffer, frame, infos(frame, hash)),
                None => Ok(()),
            }
        };
        // Links know what the driver takes, mostly.
        let ability = receive::ability_for(frame, reception.ability);
        let mut scratch = SCRATCH.take();
        let put = fit(frame, &ability, &mut done, &mut scratch, deliver);
        SCRATCH.set(scratch);
        match put {
            Err(Full) if done == 0 => Err(Full),
            _ => Ok(()),
        }
    }

    fn flush(&self) {
        self.ports.load().iter().flatten().for_each(|port| port.flush(self));
    }

    fn room(&self) {
        self.ports.load().iter().flatten().for_each(|port| port.channel().doorbell().ring());
    }
}

impl Adapter for Shared {
    fn set_carrier(&self, up: bool, speed: u64) {
        let before = std::mem::replace(&mut *lock(&self.carrier), (up, speed));
        if before.1 != speed {
            let units = u32::try_from(speed / 100).unwrap_or(u32::MAX);
            self.indicate(rndis::status::LINK_SPEED_CHANGE, &units.to_le_bytes());
        }
        if before.0 != up {
            let what = if up { rndis::status::MEDIA_CONNECT } else { rndis::status::MEDIA_DISCONNECT };
            self.indicate(what, &[]);
        }
    }
}

impl Surroundings for Shared {
    fn set_address(&self, address: Mac) -> bool {
        self.link.set_address(address).is_ok()
    }

    fn carrier(&self) -> (bool, u64) {
        *lock(&self.carrier)
    }

    fn mtu(&self) -> u32 {
        self.link.mtu()
    }

    fn subchannels(&self) -> u16 {
        self.settings.subchannels
    }

    fn counters(&self) -> [u64; 5] {
        let Counters { sent, received, bad, lost, .. } = self.counters.read();
        [sent, received, bad, 0, lost]
    }
}
