//! The process of a switch: the data plane, and the sockets where workers and users come.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use vireo_frame::{Link, Mac};
use vireo_port::wire::{self, Heard, Hello, Welcome, is_name};
use vireo_port::{ConnectError, PortMemory, PortRequest, SwitchPort};
use vireo_switch::vlan::VlanMode;
use vireo_switch::{Kind, Settings};

use crate::config::{Config, ConfigError, UPLINK, Uplink};
use crate::control::{self, Answer, Member, PortStatus, Request, Station, Status};
use crate::folders::{Folders, Lock, Sockets};
use crate::join::{Joined, join};
use crate::plane::{Handle, Plane};

/// Bytes of each ring: a window of some dozen connections, whose frames are of 64 KiB, comes at once, and what has no room is lost.
const RING: u32 = 4 << 20;
/// Who connects and says nothing is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Who is served at a time, of each kind.
const CLIENTS_MAX: usize = 64;
const RETRY: Duration = Duration::from_millis(100);

/// A switch cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its settings.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Another process does.
    #[error("the switch is running already")]
    Running,
    /// A file or a socket.
    #[error("{path}: {source}")]
    File {
        /// Where.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The host.
    #[error("the host refuses what a switch needs: {0}")]
    Host(#[from] io::Error),
    /// The data plane is no more, which nobody asked for.
    #[error("the switch failed: the thread that moves frames has ended")]
    Failed,
    /// Its uplink.
    #[error("the uplink {uplink}: {why}")]
    Uplink {
        /// What it is.
        uplink: String,
        /// Why.
        why: String,
    },
}

/// A switch that is being served. Dropping it ends it.
pub struct Service {
    shared: Arc<Shared>,
    sockets: Sockets,
    listeners: Vec<(OwnedFd, JoinHandle<()>)>,
    plane: Option<JoinHandle<()>>,
    ended: Receiver<Ending>,
    /// Taken away before the data plane is.
    uplink: Option<Joined>,
    /// Locked while we are.
    _lock: Lock,
}

struct Shared {
    config: Mutex<Config>,
    path: PathBuf,
    plane: Handle,
    end: Sender<Ending>,
    /// The uplink has one.
    carrier: Arc<AtomicBool>,
}

/// Why a switch ends.
enum Ending {
    /// It was told to.
    Told,
    /// Its data plane has ended.
    Failed,
}

/// Says so when the data plane ends, however it does.
struct OfPlane(Sender<Ending>);

impl Drop for OfPlane {
    fn drop(&mut self) {
        _ = self.0.send(Ending::Failed);
    }
}

impl Service {
    /// Serves a switch by its settings.
    ///
    /// # Errors
    /// See [`ServeError`]; nothing is left running then.
    pub fn start(folders: &Folders, name: &str) -> Result<Self, ServeError> {
        if !is_name(name) {
            return Err(ConfigError::Name(name.into()).into());
        }
        // Without settings there is no folder to be made for a lock.
        let path = folders.config(name);
        Config::load(&path)?;
        let sockets = folders.sockets(name);
        let lock = sockets.lock().map_err(at(sockets.control()))?.ok_or(ServeError::Running)?;
        Self::start_locked(folders, name, lock)
    }

    /// As [`Self::start`], with the lock taken.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn start_locked(folders: &Folders, name: &str, lock: Lock) -> Result<Self, ServeError> {
        let path = folders.config(name);
        let config = Config::load(&path).inspect_err(|_| {
            // Deleted while it was looked for: nothing is left of it.
            if !path.exists() {
                _ = lock.remove();
            }
        })?;
        let sockets = folders.sockets(name);
        let (mut plane, handle) = Plane::new()?;
        plane.switch().set_snooping(config.snooping);
        plane.switch().set_querier(config.querier);
        let (end, ended) = channel();
        let ending = OfPlane(end.clone());
        let run = move || {
            let _ending = ending;
            plane.run();
        };
        let thread = Builder::new().name("switch".into()).spawn(run)?;
        let shared = Arc::new(Shared {
            config: Mutex::new(config),
            path,
            plane: handle,
            end,
            carrier: Arc::default(),
        });
        let mut service = Self {
            shared: Arc::clone(&shared),
            sockets: sockets.clone(),
            listeners: Vec::new(),
            plane: Some(thread),
            ended,
            uplink: None,
            _lock: lock,
        };
        service.uplink = shared.connect_uplink()?;
        // What a killed process left: the lock is ours, so nobody uses it.
        _ = std::fs::remove_file(sockets.ports());
        _ = std::fs::remove_file(sockets.control());
        let ports = wire::listen(&sockets.ports(), SocketType::SEQPACKET);
        let its = Arc::clone(&shared);
        service
            .listen(ports.map_err(at(sockets.ports()))?, "ports", move |socket| its.serve_worker(socket))?;
        let control = wire::listen(&sockets.control(), SocketType::STREAM);
        let control = control.map_err(at(sockets.control()))?;
        service.listen(control, "control", move |socket| shared.serve_user(&socket.into()))?;
        Ok(service)
    }

    /// Has each who connects served on a thread of its own.
    fn listen(
        &mut self,
        socket: OwnedFd,
        name: &str,
        serve: impl Fn(OwnedFd) + Clone + Send + 'static,
    ) -> Result<(), ServeError> {
        let listener = UnixListener::from(socket.try_clone()?);
        let run = move || {
            let mut clients: Vec<JoinHandle<()>> = Vec::new();
            loop {
                let socket = match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
                    Ok(socket) => socket,
                    // It was shut down.
                    Err(rustix::io::Errno::INVAL) => return,
                    // The host has no file descriptor left, say: time for it to get some.
                    Err(_) => {
                        std::thread::sleep(RETRY);
                        continue;
                    }
                };
                clients.retain(|c| !c.is_finished());
                if clients.len() < CLIENTS_MAX {
                    let serve = serve.clone();
                    let client = Builder::new().name("client".into()).spawn(move || serve(socket));
                    clients.extend(client);
                }
            }
        };
        let thread = Builder::new().name(name.into()).spawn(run)?;
        self.listeners.push((socket, thread));
        Ok(())
    }

    /// Makes this process one of its own, which does not end with the terminal that it was started from.
    pub fn leave_terminal() {
        // It fails for who is a leader already, and has no terminal to leave then.
        _ = rustix::process::setsid();
    }

    #[cfg(test)]
    pub(crate) fn break_plane(&self) {
        let called: Option<()> = self.shared.plane.call(|_| panic!("as if there were a fault in it"));
        assert_eq!(called, None);
    }

    /// What ends [`Self::wait`], from any thread.
    pub fn ender(&self) -> impl Fn() + Send + use<> {
        let end = self.shared.end.clone();
        move || _ = end.send(Ending::Told)
    }

    /// Waits until a user, or [`Self::ender`], ends the switch.
    ///
    /// # Errors
    /// It does not move frames any more: whoever supervises it is to start another one.
    pub fn wait(&self) -> Result<(), ServeError> {
        match self.ended.recv() {
            Ok(Ending::Failed) => Err(ServeError::Failed),
            Ok(Ending::Told) | Err(_) => Ok(()),
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for (socket, thread) in self.listeners.drain(..) {
            _ = rustix::net::shutdown(&socket, rustix::net::Shutdown::Both);
            _ = thread.join();
        }
        _ = std::fs::remove_file(self.sockets.ports());
        _ = std::fs::remove_file(self.sockets.control());
        self.uplink = None;
        self.shared.plane.call(Plane::end);
        if let Some(thread) = self.plane.take() {
            _ = thread.join();
        }
    }
}

fn at(path: PathBuf) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::File { path: path.display().to_string(), source }
}

/// Why the data plane does not answer.
fn ended() -> String {
    "the switch is ending".into()
}

impl Shared {
    fn config(&self) -> MutexGuard<'_, Config> {
        // A panic leaves no settings half changed.
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a port of what is behind the uplink.
    fn connect_uplink(&self) -> Result<Option<Joined>, ServeError> {
        let config = self.config().clone();
        let Some(uplink) = &config.uplink else { return Ok(None) };
        let refuse = |why: String| ServeError::Uplink { uplink: uplink.to_string(), why };
        let link: Arc<dyn Link> = match uplink {
            Uplink::Tap(name) => vireo_tap::Tap::open(name).map_err(|e| refuse(e.to_string()))?,
            Uplink::Nat(network) => {
                let network = network.as_deref().map(str::parse::<vireo_nat::Network>).transpose();
                let nat = vireo_nat::NatConfig {
                    network: network.map_err(|e| refuse(e.to_string()))?.unwrap_or_default(),
                    mtu: config.mtu,
                    // A switch has many machines: what listens on the host's loopback is not for them.
                    host_loopback: false,
                    ..vireo_nat::NatConfig::default()
                };
                vireo_nat::Nat::start(nat).map_err(|e| refuse(e.to_string()))?
            }
        };
        let settings = config.policy(UPLINK).settings(Kind::Uplink, None);
        let memory = PortMemory::create(RING)?;
        let theirs = PortMemory::open(memory.file().try_clone_to_owned()?, RING)?;
        let (ours, socket) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(io::Error::from)?;
        let added = self.plane.call(move |plane| plane.add(UPLINK.into(), settings, memory, ours));
        added.ok_or_else(|| refuse(ended()))?.map_err(|e| refuse(e.to_string()))?;
        let request = PortRequest { name: UPLINK.into(), mac: Mac::default(), vlan: None };
        let port = SwitchPort::within(request, theirs, socket, config.mtu, config.speed);
        let port = port.map_err(|e: ConnectError| refuse(e.to_string()))?;
        Ok(Some(join(port, link, &self.carrier)))
    }

    /// Serves a worker that has connected: until it has its port, which is the data plane's then.
    fn serve_worker(&self, socket: OwnedFd) {
        _ = wire::set_patience(&socket, PATIENCE);
        let mut buffer = vec![0; wire::MESSAGE_MAX];
        let hello = match wire::receive(&socket, true, &mut buffer) {
            Heard::Message(message, _) => Hello::read(message),
            _ => return,
        };
        let admitted = hello.and_then(|hello| self.admit(&hello.port, &socket));
        let (welcome, file) = match admitted {
            Ok((welcome, file)) => (welcome, Some(file)),
            Err(why) => (Welcome::Refused { why }, None),
        };
        // Who is gone by now closes its port as well.
        _ = wire::send(&socket, &welcome, file.as_ref().map(std::os::fd::AsFd::as_fd), true);
    }

    /// Adds a worker's port, if it may have one like that.
    fn admit(&self, request: &PortRequest, socket: &OwnedFd) -> Result<(Welcome, OwnedFd), String> {
        let name = request.name.as_str();
        if !is_name(name) || name == UPLINK {
            return Err(format!("'{name}' can be no port's name"));
        }
        let config = self.config();
        let policy = config.policy(name);
        if !config.strangers && !config.ports.contains_key(name) {
            return Err("the switch takes only ports that it has settings for (vireo switch set)".into());
        }
        policy.fits(request)?;
        let settings = policy.settings(Kind::Guest(request.mac), request.vlan.map(VlanMode::Access));
        let is_claim = policy.mac.is_none();
        let host = |e: io::Error| format!("the host refuses a port's memory: {e}");
        let memory = PortMemory::create(RING).map_err(host)?;
        let file = memory.file().try_clone_to_owned().map_err(host)?;
        let (its, asked) = (socket.try_clone().map_err(host)?, request.clone());
        let added = self.plane.call(move |plane| {
            let now = plane.now();
            if is_claim {
                plane.switch().check_claim(&settings, now)?;
            }
            plane.add_worker(asked, settings, memory, its)
        });
        added.ok_or_else(ended)?.map_err(|e| e.to_string())?;
        tracing::info!(port = request.name, mac = %request.mac, "has come");
        let (mtu, speed) = (config.mtu, config.speed);
        Ok((Welcome::Port { version: wire::VERSION, ring: RING, mtu, speed }, file))
    }

    /// Serves a user.
    fn serve_user(&self, stream: &UnixStream) {
        let heard = control::hear(stream);
        if !control::is_there(stream) {
            // It has said that nothing came of it, perhaps long ago.
            tracing::warn!("a request is not served: who made it has gone");
            return;
        }
        let answered = match heard {
            Ok(Request::Show) => self.status().map(|status| Answer::Status(Box::new(status))),
            Ok(Request::Set { port, changes }) => {
                self.change(|config| config.change(port.as_deref(), &changes)).map(|()| Answer::Done)
            }
            Ok(Request::Forget { port }) => self.change(|config| config.forget(&port)).map(|()| Answer::Done),
            Ok(Request::Capture { port }) => match self.capture(stream, port) {
                Ok(()) => return,
                Err(why) => Err(why),
            },
            Ok(Request::End) => {
                _ = self.end.send(Ending::Told);
                Ok(Answer::Done)
            }
            Err(why) => Err(format!("the request is not understood: {why}")),
        };
        // Who does not want the answer goes without.
        _ = control::send(stream, &answered.unwrap_or_else(|why| Answer::Refused { why }));
    }

    /// Changes the settings: of the switch, in the file, or neither.
    fn change(&self, change: impl FnOnce(&mut Config) -> Result<(), ConfigError>) -> Result<(), String> {
        let mut config = self.config();
        let mut new = config.clone();
        change(&mut new).map_err(|e| e.to_string())?;
        new.save(&self.path).map_err(|e| e.to_string())?;
        if let Err(why) = self.put_in_place(&config, &new) {
            // As it was: the file system took this before.
            config.save(&self.path).map_err(|e| format!("{why}; and {e}"))?;
            return Err(why);
        }
        *config = new;
        Ok(())
    }

    fn put_in_place(&self, old: &Config, new: &Config) -> Result<(), String> {
        let (old, new) = (old.clone(), new.clone());
        let set = move |plane: &mut Plane| {
            plane.set_all(|name, asked, now: &Settings| {
                let (old, new) = (old.policy(name), new.policy(name));
                let stays = old != new && asked.is_none_or(|asked| new.fits(asked).is_ok());
                let vlan = asked.and_then(|asked| asked.vlan).map(VlanMode::Access);
                stays.then(|| new.settings(now.kind, vlan))
            })?;
            plane.close_unless(|asked| new.policy(&asked.name).fits(asked));
            plane.switch().set_snooping(new.snooping);
            plane.switch().set_querier(new.querier);
            Ok(())
        };
        let done = self.plane.call(set).ok_or_else(ended)?;
        done.map_err(|(port, e): (String, vireo_switch::SwitchError)| format!("port {port}: {e}"))
    }

    fn capture(&self, stream: &UnixStream, port: Option<String>) -> Result<(), String> {
        let id = match port {
            Some(name) => {
                let found = self.plane.call({
                    let name = name.clone();
                    move |plane| plane.find(&name)
                });
                let id = found.ok_or_else(ended)?;
                Some(id.ok_or_else(|| format!("port {name} is not connected"))?)
            }
            None => None,
        };
        control::send(stream, &Answer::Done).map_err(|e| e.to_string())?;
        // It ends when the client goes, by an error mostly.
        _ = crate::capture::serve(&self.plane, id, stream);
        Ok(())
    }

    fn status(&self) -> Result<Status, String> {
        let config = self.config().clone();
        let seen = self.plane.call(|plane| {
            let now = plane.now();
            let reports = plane.report();
            let name = |plane: &Plane, id| plane.name_of(id).unwrap_or_default().to_string();
            let stations: Vec<_> = plane.switch().stations().collect();
            let members: Vec<_> = plane.switch().members().collect();
            let stations = stations.into_iter().map(|(vlan, mac, port, seen)| Station {
                vlan,
                mac: mac.to_string(),
                port: name(plane, port),
                age: now.saturating_sub(seen) / 1_000_000_000,
            });
            let stations: Vec<_> = stations.collect();
            let members = members.into_iter().map(|(vlan, group, port)| Member {
                vlan,
                group: group.to_string(),
                port: name(plane, port),
            });
            (reports, stations, members.collect::<Vec<_>>())
        });
        let (reports, mut stations, mut members) = seen.ok_or_else(ended)?;
        stations.sort_by(|a, b| (a.vlan, &a.mac).cmp(&(b.vlan, &b.mac)));
        members.sort_by(|a, b| (a.vlan, &a.group, &a.port).cmp(&(b.vlan, &b.group, &b.port)));
        let mut absent = config.ports.clone();
        absent.retain(|name, _| !reports.iter().any(|r| r.name == *name));
        let port = |report: crate::PortReport| {
            let settings = config.policy(&report.name).clone();
            PortStatus { report, settings }
        };
        Ok(Status {
            name: config.name.clone(),
            kind: config.kind,
            uplink: config.uplink.as_ref().map(ToString::to_string),
            carrier: config.uplink.as_ref().map(|_| self.carrier.load(Ordering::Relaxed)),
            mtu: config.mtu,
            snooping: config.snooping,
            querier: config.querier,
            strangers: config.strangers,
            ports: reports.into_iter().map(port).collect(),
            absent,
            default: config.default.clone(),
            stations,
            members,
        })
    }
}
