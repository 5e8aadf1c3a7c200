//! The side of the network: frames come in, on threads of the network, and go straight into the driver's buffers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vireo_frame::{Adapter, Checksum, End, Frame, Full, Intent, Mac};
use virtio_bindings::virtio_net as spec;
use virtio_queue::QueueT;

use super::settings::Settings;
use super::{HEADER, receive_queue};
use crate::device::{Kicker, Visit};
use crate::queue::{Broken, Gathered, Room};
use crate::run::Rests;

/// Most buffers of the driver that a frame is put into (the number has 16 bits; a driver whose buffers are that small has
/// other troubles).
const BUFFERS_MAX: usize = 1024;

/// A receive queue, while frames are put into it.
#[derive(Default)]
struct Receive {
    gathered: Gathered,
    /// Frames were put, and the driver not told.
    untold: bool,
}

/// See the module.
pub(crate) struct Port {
    kicker: OnceLock<Kicker>,
    settings: RwLock<Settings>,
    receive: Vec<Mutex<Receive>>,
    /// The network has a frame that there was no room for, and waits.
    starved: AtomicBool,
    /// Transmit queues that wait for the network, a bit for each pair.
    pub(super) stalled: AtomicU64,
    carrier: AtomicBool,
    /// In bits a second; 0: not known.
    speed: AtomicU64,
    lost: AtomicU64,
}

impl Port {
    pub(super) fn new(settings: Settings, pairs: u16) -> Self {
        Self {
            kicker: OnceLock::new(),
            settings: RwLock::new(settings),
            receive: (0..pairs).map(|_| Mutex::default()).collect(),
            starved: AtomicBool::new(false),
            stalled: AtomicU64::new(0),
            carrier: AtomicBool::new(false),
            speed: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    pub(super) fn connect(&self, kicker: Kicker) {
        _ = self.kicker.set(kicker);
    }

    pub(super) fn settings(&self) -> RwLockReadGuard<'_, Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change(&self) -> RwLockWriteGuard<'_, Settings> {
        self.settings.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn config_changed(&self) {
        self.kicker.get().inspect(|k| k.config_changed());
    }

    pub(super) fn has_carrier(&self) -> bool {
        self.carrier.load(Ordering::Relaxed)
    }

    pub(super) fn speed(&self) -> u64 {
        self.speed.load(Ordering::Relaxed)
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// The driver has given buffers, perhaps: whether the network waits for that.
    pub(super) fn take_starved(&self) -> bool {
        self.starved.swap(false, Ordering::AcqRel)
    }

    fn queue(&self, pair: u16) -> Option<MutexGuard<'_, Receive>> {
        self.receive.get(usize::from(pair)).map(|q| q.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn lose(&self) -> Result<(), Full> {
        self.lost.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether queues may be used now. Where they may not for a while, whoever asks is told of room later.
    fn visit(&self) -> Result<Option<Visit>, Full> {
        let Some(kicker) = self.kicker.get() else { return Ok(None) };
        match kicker.visit() {
            Ok(visit) => Ok(Some(visit)),
            Err(Rests::NoDriver) => Ok(None),
            Err(Rests::Paused) => {
                // It may go on before this is seen; so it is asked once more.
                self.starved.store(true, Ordering::SeqCst);
                match kicker.visit() {
                    Ok(visit) => Ok(Some(visit)),
                    Err(Rests::NoDriver) => Ok(None),
                    Err(Rests::Paused) => Err(Full),
                }
            }
        }
    }

    fn write(&self, visit: &Visit, frame: &Frame<'_>, pair: u16, merge: bool) -> Result<Room, Broken> {
        let Some(mut queue) = self.queue(pair) else { return Ok(Room::Never) };
        let index = receive_queue(pair);
        let (length, most) = (HEADER + frame.len(), if merge { BUFFERS_MAX } else { 1 });
        let mut slot = visit.slot(index);
        if !slot.queue.ready() {
            return Ok(Room::Never);
        }
        let gathered = &mut queue.gathered;
        // Before the driver is asked to tell: it may do so at once.
        let room = match slot.gather(&visit.queue_memory, &visit.memory, length, most, gathered)? {
            Room::NotYet => {
                self.starved.store(true, Ordering::SeqCst);
                slot.gather(&visit.queue_memory, &visit.memory, length, most, gathered)?
            }
            room => room,
        };
        if room != Room::Enough {
            return Ok(room);
        }
        let mut header = [0; HEADER];
        header[..10].copy_from_slice(&frame.offload_header());
        header[10..].copy_from_slice(&(gathered.count() as u16).to_le_bytes());
        let copied = gathered
            .write(&header)
            .and_then(|()| gathered.write(frame.head()))
            .and_then(|()| frame.tail().iter().try_for_each(|piece| gathered.copy(piece)));
        copied.map_err(|e| Broken::new(format!("a buffer: {e}")))?;
        slot.publish_gathered(&visit.queue_memory, gathered, length)?;
        queue.untold = true;
        Ok(room)
    }
}

impl End for Port {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let settings = self.settings();
        let to = Mac::first_of(frame.head()).unwrap_or_default();
        if !settings.wants(to) {
            return Ok(());
        }
        let ability = settings.ability();
        let merge = settings.has(spec::VIRTIO_NET_F_MRG_RXBUF);
        let pair = settings.pair(frame.head());
        drop(settings);
        let intent = frame.intent();
        if !ability.takes(&intent) {
            return self.lose();
        }
        // That its checksum is good is said to those alone who look at it (§5.1.6.4.1).
        let unsaid = (intent.checksum == Checksum::Good && !ability.checksum)
            .then(|| Frame::new(frame.head(), frame.tail(), Intent::default()).ok())
            .flatten();
        let frame = unsaid.as_ref().unwrap_or(frame);
        let Some(visit) = self.visit()? else { return self.lose() };
        match self.write(&visit, frame, pair, merge) {
            Ok(Room::Enough) => Ok(()),
            Ok(Room::NotYet) => Err(Full),
            Ok(Room::Never) => self.lose(),
            Err(broken) => {
                visit.broken(&broken);
                self.lose()
            }
        }
    }

    fn flush(&self) {
        // A device that rests tells when it goes on.
        let Ok(visit) = self.kicker.get().ok_or(Rests::NoDriver).and_then(Kicker::visit) else { return };
        for (pair, queue) in (0..).zip(&self.receive) {
            let untold = &mut queue.lock().unwrap_or_else(PoisonError::into_inner).untold;
            if std::mem::take(untold) {
                visit.tell(receive_queue(pair));
            }
        }
    }

    fn room(&self) {
        let stalled = self.stalled.swap(0, Ordering::AcqRel);
        let Some(kicker) = self.kicker.get() else { return };
        for pair in (0..self.receive.len()).filter(|pair| stalled & 1 << pair != 0) {
            kicker.kick(2 * pair + 1);
        }
    }
}

impl Adapter for Port {
    fn set_carrier(&self, up: bool, speed: u64) {
        let before = (self.carrier.swap(up, Ordering::Relaxed), self.speed.swap(speed, Ordering::Relaxed));
        if before != (up, speed) {
            self.config_changed();
        }
    }
}
