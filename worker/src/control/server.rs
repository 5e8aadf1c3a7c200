//! The machine's side.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use vireo_control::Lines;
use vireo_screen::Station;
use vireo_services::Services;

use super::{Answer, REQUEST_MAX, Request, VERSION, disk, guest, info, nic, screen};
use crate::disks::Disks;
use crate::nics::Nics;
use crate::socket::Socket;

/// Who connects and says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A machine that has ended waits no longer for answers that are under way.
const FAREWELL: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(100);
/// Clients that are served at a time: what one asks for may wait for a disk that does not answer.
const CLIENTS_MAX: usize = 16;

/// What is wanted of a machine as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// It starts anew.
    Reset,
    /// Its first processor gets an NMI.
    Nmi,
}

/// A machine that runs.
pub struct Running {
    /// Which engine runs it.
    pub engine: String,
    /// Processors.
    pub cpus: u32,
    /// When it was started.
    pub started: Instant,
    /// How often it was reset since.
    pub resets: Arc<AtomicU32>,
    /// Has it do something, and waits until that is done; or says why not.
    pub wish: Box<dyn Fn(Wish) -> Result<(), String> + Send + Sync>,
}

impl Running {
    pub(super) fn resets(&self) -> u32 {
        self.resets.load(Ordering::Relaxed)
    }
}

/// What can be asked for by the socket.
pub struct Controlled {
    /// The machine.
    pub running: Running,
    /// Its disks.
    pub disks: Arc<Disks>,
    /// Its network adapters.
    pub nics: Arc<Nics>,
    /// Its screen, keyboard and mouse, if it has them; they do not keep it.
    pub station: Option<Station>,
    /// Its integration services, if its guest can have any.
    pub services: Option<Arc<Services>>,
}

/// Clients whose requests are being seen to.
#[derive(Default)]
struct Answering {
    clients: Mutex<usize>,
    answered: Condvar,
}

impl Answering {
    fn change(&self, by: impl Fn(usize) -> usize) {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        *clients = by(*clients);
        self.answered.notify_all();
    }

    /// Until the last of them has its answer, or that takes too long.
    fn finish(&self) {
        let clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.answered.wait_timeout_while(clients, FAREWELL, |clients| *clients > 0));
    }
}

/// The socket that a machine is changed by. Dropping it removes the socket, once those who asked have their answers: what they asked
/// for may be what ended the machine.
pub struct ControlServer {
    _socket: Socket,
    answering: Arc<Answering>,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.answering.finish();
    }
}

impl ControlServer {
    /// Makes the socket, for this user alone, and serves it. The error says what is in the way.
    pub fn start(path: &Path, controlled: &Arc<Controlled>) -> Result<Self, String> {
        let (socket, listener) = Socket::bind_private(path)?;
        let controlled = Arc::downgrade(controlled);
        let answering = Arc::<Answering>::default();
        let seen_to = Arc::clone(&answering);
        Builder::new()
            .name("control".into())
            .spawn(move || {
                let mut clients = Vec::new();
                for stream in listener.incoming() {
                    if controlled.strong_count() == 0 {
                        return;
                    }
                    match stream {
                        Ok(stream) => admit(stream, &controlled, &seen_to, &mut clients),
                        // The host has no file descriptor left, say: time for it to get some.
                        Err(_) => std::thread::sleep(RETRY),
                    }
                }
            })
            .map_err(|e| format!("{}: the host refuses a thread: {e}", path.display()))?;
        Ok(Self { _socket: socket, answering })
    }
}

/// Has a client served by a thread of its own, if there are not too many.
fn admit(
    stream: UnixStream,
    controlled: &Weak<Controlled>,
    answering: &Arc<Answering>,
    clients: &mut Vec<JoinHandle<()>>,
) {
    clients.retain(|c| !c.is_finished());
    let busy = |stream: &UnixStream, why: String| {
        _ = stream.set_write_timeout(Some(PATIENCE));
        _ = VERSION.send(stream, &Answer::refused(why));
    };
    if clients.len() >= CLIENTS_MAX {
        return busy(&stream, format!("{CLIENTS_MAX} others are being served: try again later"));
    }
    let (controlled, answering) = (Weak::clone(controlled), Arc::clone(answering));
    let refused = stream.try_clone();
    let client = move || serve(&stream, &controlled, &answering);
    match Builder::new().name("control-client".into()).spawn(client) {
        Ok(client) => clients.push(client),
        Err(e) => _ = refused.map(|stream| busy(&stream, format!("the host refuses a thread: {e}"))),
    }
}

/// Serves one client.
fn serve(stream: &UnixStream, controlled: &Weak<Controlled>, answering: &Answering) {
    _ = stream.set_write_timeout(Some(PATIENCE));
    let request = Lines::new(stream, VERSION, REQUEST_MAX).receive(PATIENCE);
    // The machine has ended.
    let Some(controlled) = controlled.upgrade() else { return };
    answering.change(|clients| clients + 1);
    let answer = match request {
        Ok(request) => {
            tracing::debug!(?request, "control");
            answer(&request, &controlled, &mut |said| VERSION.send(stream, &said).is_ok())
        }
        Err(why) => Answer::refused(format_args!("the request is not understood: {why}")),
    };
    // Who does not want the answer goes without.
    _ = VERSION.send(stream, &answer);
    answering.change(|clients| clients - 1);
}

fn answer(request: &Request, controlled: &Controlled, tell: guest::Tell) -> Answer {
    let wish = |wish| (controlled.running.wish)(wish).map(|()| Answer::Done);
    let done = match request {
        Request::DiskAdd { .. }
        | Request::DiskRemove { .. }
        | Request::DiskGrow { .. }
        | Request::DiskList => disk::answer(request, &controlled.disks),
        Request::NicAdd { .. } | Request::NicRemove { .. } | Request::NicList => {
            nic::answer(request, &controlled.nics)
        }
        Request::Screenshot | Request::Type { .. } | Request::Keys { .. } => {
            screen::answer(request, controlled.station.as_ref())
        }
        Request::Info => Ok(Answer::Info { info: Box::new(info::info(controlled)) }),
        Request::Reset => wish(Wish::Reset),
        Request::Nmi => wish(Wish::Nmi),
        _ => Ok(guest::answer(request, controlled.services.as_deref(), tell)),
    };
    done.unwrap_or_else(Answer::refused)
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read};

    use super::*;
    use crate::control::{ControlError, Reason, ask};

    /// A machine that has nothing but `wish`, and a path for its socket.
    fn machine(
        name: &str,
        wish: impl Fn(Wish) -> Result<(), String> + Send + Sync + 'static,
    ) -> (Arc<Controlled>, std::path::PathBuf) {
        let running = Running {
            engine: "none".into(),
            cpus: 1,
            started: Instant::now(),
            resets: Arc::default(),
            wish: Box::new(wish),
        };
        let disks = Disks::open(&[], true).unwrap();
        let nics = Nics::open(&[], &crate::vmbus::Bus::default(), true, 1).unwrap();
        let controlled = Arc::new(Controlled { running, disks, nics, station: None, services: None });
        (controlled, std::env::temp_dir().join(format!("vireo-{name}-{}", std::process::id())))
    }

    #[test]
    fn a_machine_that_ends_answers_who_had_asked() {
        let (asked, asks) = std::sync::mpsc::channel();
        let (controlled, path) = machine("farewell", move |_| {
            asked.send(()).unwrap();
            // The machine ends of it, and its process is quick.
            std::thread::sleep(Duration::from_millis(200));
            Err("it has ended".into())
        });
        let server = ControlServer::start(&path, &controlled).unwrap();
        let client = std::thread::spawn({
            let path = path.clone();
            move || ask(&path, &Request::Reset).unwrap_err().to_string()
        });
        asks.recv().unwrap();
        drop(server);
        // In a moment at most: nothing of the process would be left to answer later.
        std::thread::sleep(Duration::from_millis(50));
        assert!(client.is_finished());
        assert_eq!(client.join().unwrap(), "it has ended");
    }

    #[test]
    fn who_says_nothing_holds_up_nobody() {
        let (controlled, path) = machine("control", |_| Err("it does nothing".into()));
        let _server = ControlServer::start(&path, &controlled).unwrap();
        // Each that was answered may be seen off a moment later only.
        let silent: Vec<_> = (0..CLIENTS_MAX - 4).map(|_| UnixStream::connect(&path).unwrap()).collect();
        let answer = ask(&path, &Request::DiskList).unwrap();
        assert!(matches!(answer, Answer::Disks { disks } if disks.is_empty()));
        let refused = ask(&path, &Request::Thaw).unwrap_err();
        assert!(matches!(refused, ControlError::Refused { reason: Some(Reason::NoService), .. }));
        assert_eq!(ask(&path, &Request::Nmi).unwrap_err().to_string(), "it does nothing");
        for mut client in &silent {
            client.set_nonblocking(true).unwrap();
            let kind = client.read(&mut [0]).map_err(|e| e.kind());
            assert_eq!(kind, Err(ErrorKind::WouldBlock), "it is still listened to");
        }
    }
}
