//! The worker's end of a port.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vireo_frame::{Ability, Adapter, End, Filter, Frame, Full, Link, Mac, NotAllowed};

use crate::wire::{self, Answer, Heard, Hello, PortRequest, VERSION, Welcome, Word};
use crate::{PortMemory, Refused, RingWriter, Way};

mod line;

/// How long the switch may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same while a guest's driver waits.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(2);

/// A port could not be had.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody is there.
    #[error("{}: {source}: is the switch running?", path.display())]
    NotThere {
        /// The socket.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It went, or said nothing that is understood.
    #[error("{}: no answer of the switch's that is understood: {why}", path.display())]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It refuses.
    #[error("the switch refuses port {port}: {why}")]
    Refused {
        /// Its name.
        port: String,
        /// Why.
        why: String,
    },
    /// The host has no thread or no file descriptor for it.
    #[error("the host refuses what a port of a switch needs: {0}")]
    Host(#[from] io::Error),
}

/// A port of a switch, in whose process it ends.
///
/// It connects again whenever the switch was started again; meanwhile the carrier is down and frames are lost. An adapter is called on
/// a thread of the port's, and must not plug another one meanwhile.
#[derive(Debug)]
pub struct SwitchPort {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the port's thread and its callers have in common.
struct Shared {
    /// `None`: the switch is in this process, and is not connected to again.
    path: Option<PathBuf>,
    request: PortRequest,
    /// `None`: the switch is not there.
    up: Mutex<Option<Up>>,
    adapter: Mutex<Option<Arc<dyn Adapter>>>,
    takes: Mutex<Ability>,
    wants: Mutex<Wants>,
    /// One asks for an address at a time, and waits here.
    asking: Mutex<()>,
    answer: Mutex<Option<(Mac, Sender<bool>)>>,
    /// Why the switch did not take us back, when it was asked last.
    refusal: Mutex<Option<String>>,
    mtu: AtomicU32,
    speed: AtomicU64,
    /// Wakes the port's thread.
    wake: OwnedFd,
    /// The adapter knows not yet whether the carrier is there.
    is_new: AtomicBool,
    /// The adapter has been told that there is no room.
    wants_room: AtomicBool,
    /// The adapter has said that it has room again.
    has_room: AtomicBool,
    ended: AtomicBool,
}

/// The way to the switch.
struct Up {
    writer: RingWriter,
    socket: Arc<OwnedFd>,
}

/// What the guest chose, to be told to a switch that was started again.
struct Wants {
    address: Mac,
    filter: Filter,
}

/// What a switch gave.
struct Given {
    socket: Arc<OwnedFd>,
    memory: Arc<PortMemory>,
    mtu: u32,
    speed: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No panic leaves anything half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SwitchPort").field("path", &self.path).field("request", &self.request).finish()
    }
}

impl SwitchPort {
    /// Has a switch give us a port, by the socket on which it listens for workers.
    ///
    /// # Errors
    /// It is not there, or refuses; or the host does.
    pub fn connect(socket: &Path, request: PortRequest) -> Result<Arc<Self>, ConnectError> {
        let given = ask(socket, &request)?;
        Self::start(Some(socket.into()), request, given)
    }

    /// A port of a switch in this process, which gives us the other end of it.
    ///
    /// # Errors
    /// The host has no thread for it.
    pub fn within(
        request: PortRequest,
        memory: PortMemory,
        socket: OwnedFd,
        mtu: u32,
        speed: u64,
    ) -> Result<Arc<Self>, ConnectError> {
        let given = Given { socket: Arc::new(socket), memory: Arc::new(memory), mtu, speed };
        Self::start(None, request, given)
    }

    fn start(path: Option<PathBuf>, request: PortRequest, given: Given) -> Result<Arc<Self>, ConnectError> {
        let wake = rustix::event::eventfd(
            0,
            rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK,
        )
        .map_err(io::Error::from)?;
        let wants = Wants { address: request.mac, filter: Filter::default() };
        let thread = format!("port {}", request.name);
        let shared = Arc::new(Shared {
            path,
            request,
            up: Mutex::new(None),
            adapter: Mutex::new(None),
            takes: Mutex::new(Ability::default()),
            wants: Mutex::new(wants),
            asking: Mutex::new(()),
            answer: Mutex::new(None),
            refusal: Mutex::new(None),
            mtu: AtomicU32::new(0),
            speed: AtomicU64::new(0),
            wake,
            is_new: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
            has_room: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        // Frames that are put from now on count.
        shared.take(&given);
        let its = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name(thread).spawn(move || line::run(&its, given))?;
        Ok(Arc::new(Self { shared, thread: Some(thread) }))
    }

    /// Whether the switch is there now.
    pub fn is_connected(&self) -> bool {
        lock(&self.shared.up).is_some()
    }

    /// Why the switch, which is there, does not have us now.
    pub fn refusal(&self) -> Option<String> {
        lock(&self.shared.refusal).clone()
    }
}

impl Drop for SwitchPort {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            _ = thread.join();
        }
    }
}

/// Asks for a port.
fn ask(path: &Path, request: &PortRequest) -> Result<Given, ConnectError> {
    let no_answer = |why: String| ConnectError::NoAnswer { path: path.into(), why };
    let socket =
        wire::connect(path).map_err(|source| ConnectError::NotThere { path: path.into(), source })?;
    wire::set_patience(&socket, PATIENCE)?;
    let hello = Hello { version: VERSION, port: request.clone() };
    wire::send(&socket, &hello, None, true).map_err(|e| no_answer(e.to_string()))?;
    let mut buffer = vec![0; wire::MESSAGE_MAX];
    let (welcome, file) = match wire::receive(&socket, true, &mut buffer) {
        Heard::Message(bytes, file) => (wire::parse(bytes).map_err(no_answer)?, file),
        Heard::Nothing => return Err(no_answer("it says nothing (it hangs, or is stopped)".into())),
        _ => return Err(no_answer("it closes (it has too much to do, or ends)".into())),
    };
    match (welcome, file) {
        (Welcome::Refused { why }, _) => Err(ConnectError::Refused { port: request.name.clone(), why }),
        (Welcome::Port { version: VERSION, ring, mtu, speed }, Some(file)) => {
            let memory = PortMemory::open(file, ring).map_err(|e| no_answer(e.to_string()))?;
            Ok(Given { socket: Arc::new(socket), memory: Arc::new(memory), mtu, speed })
        }
        (Welcome::Port { version, .. }, _) => {
            Err(no_answer(format!("it is of version {version}, this program speaks {VERSION}")))
        }
    }
}

impl Shared {
    /// From now on frames go to a switch.
    fn take(&self, given: &Given) {
        self.mtu.store(given.mtu, Ordering::Relaxed);
        self.speed.store(given.speed, Ordering::Relaxed);
        let writer = RingWriter::new(&given.memory, Way::Up);
        *lock(&self.up) = Some(Up { writer, socket: Arc::clone(&given.socket) });
    }

    /// Keeps in mind whether the switch refuses us, and why. It is asked often: whether that is news.
    fn refused(&self, why: Option<String>) -> bool {
        let mut refusal = lock(&self.refusal);
        let is_news = *refusal != why;
        *refusal = why;
        is_news
    }

    fn wake(&self) {
        // It is full only if there are more wake-ups in it than anybody counts.
        _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Tells the switch something, if it is there. It does not wait.
    fn tell(&self, word: &Word) -> bool {
        let up = lock(&self.up);
        up.as_ref().is_some_and(|up| wire::send(&up.socket, word, None, false).is_ok())
    }
}

impl End for SwitchPort {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let mut up = lock(&self.shared.up);
        let Some(Up { writer, socket }) = up.as_mut() else { return Ok(()) };
        match writer.put(frame) {
            Err(Refused::Full) => {}
            // Who breaks it is the switch, whose connection ends by that: the port's thread sees to it.
            Ok(()) | Err(Refused::Broken(_)) => return Ok(()),
        }
        if writer.publish() {
            wire::ring(&**socket);
        }
        match writer.wait() {
            Ok(false) => {
                self.shared.wants_room.store(true, Ordering::SeqCst);
                Err(Full)
            }
            // Half of the ring is free: any frame fits.
            Ok(true) => writer.put(frame).or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    fn flush(&self) {
        if let Some(Up { writer, socket }) = lock(&self.shared.up).as_mut()
            && writer.publish()
        {
            wire::ring(&**socket);
        }
    }

    fn room(&self) {
        self.shared.has_room.store(true, Ordering::SeqCst);
        self.shared.wake();
    }
}

impl Link for SwitchPort {
    fn plug(&self, adapter: Option<Arc<dyn Adapter>>) {
        let is_new = adapter.is_some();
        *lock(&self.shared.adapter) = adapter;
        if is_new {
            self.shared.is_new.store(true, Ordering::SeqCst);
            // It may have been full, the one before.
            self.room();
        }
    }

    fn ability(&self) -> Ability {
        // Nothing is done before a frame reaches who cannot take it.
        Ability::ALL
    }

    fn set_adapter_ability(&self, ability: Ability) {
        *lock(&self.shared.takes) = ability;
    }

    fn set_filter(&self, filter: &Filter) {
        lock(&self.shared.wants).filter = filter.clone();
        self.shared.tell(&Word::from(filter));
    }

    fn set_address(&self, mac: Mac) -> Result<(), NotAllowed> {
        let shared = &self.shared;
        let _one = lock(&shared.asking);
        if lock(&shared.wants).address == mac {
            return Ok(());
        }
        let (told, answer) = channel();
        *lock(&shared.answer) = Some((mac, told));
        let allowed =
            shared.tell(&Word::Address { mac }) && answer.recv_timeout(ADDRESS_PATIENCE) == Ok(true);
        *lock(&shared.answer) = None;
        if !allowed {
            return Err(NotAllowed);
        }
        lock(&shared.wants).address = mac;
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.shared.mtu.load(Ordering::Relaxed)
    }
}

/// What a switch answers.
fn answered(shared: &Shared, message: &[u8]) {
    let Ok(Answer { mac, allowed }) = wire::parse(message) else { return };
    match lock(&shared.answer).take_if(|(asked, _)| *asked == mac) {
        Some((_, told)) => _ = told.send(allowed),
        // The guest chose it before the switch was started again.
        None if !allowed => {
            tracing::warn!(port = shared.request.name, "the switch lets the guest have {mac} no more");
        }
        None => {}
    }
}
