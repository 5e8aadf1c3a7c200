//! A network whose host and guest are simulated: for tests and fuzzing. No socket, no thread, no clock.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;

use ahash::RandomState;
use vireo_frame::{Ability, Frame, Full, Intent, fit};

use crate::config::{NatConfig, NatError};
use crate::engine::Engine;
use crate::forward::Forward;
use crate::host::{Datagrams, Host, Kind, Ready, Stream, Token};
use crate::outbox::Output;
use crate::stats::Stats;

/// A connection of the simulated host, as its other end sees it.
#[derive(Debug, Default)]
pub struct Peer {
    /// To whom.
    pub to: Option<SocketAddr>,
    token: Option<Token>,
    connected: Option<io::ErrorKind>,
    waits: bool,
    incoming: VecDeque<u8>,
    ended: bool,
    broken: bool,
    /// What has come from the guest.
    pub got: Vec<u8>,
    /// Bytes that it takes yet.
    pub room: usize,
    /// The guest has ended.
    pub finished: bool,
    /// It was torn down.
    pub aborted: bool,
    /// Nobody has it any more.
    pub closed: bool,
}

/// A socket for datagrams of the simulated host.
#[derive(Debug)]
pub struct Far {
    /// To whom; `None`: to anybody.
    pub to: Option<SocketAddr>,
    /// Whether echo requests go by it.
    pub ping: bool,
    token: Token,
    incoming: VecDeque<(io::Result<Vec<u8>>, Option<SocketAddr>)>,
    /// What has come from the guest, and to whom.
    pub got: Vec<(Vec<u8>, Option<SocketAddr>)>,
    /// Nobody has it any more.
    pub closed: bool,
}

#[derive(Debug, Default)]
struct World {
    peers: Vec<Peer>,
    far: Vec<Far>,
    listeners: Vec<(Token, VecDeque<(usize, SocketAddr)>)>,
    events: VecDeque<(Token, Ready)>,
    resolvers: Vec<IpAddr>,
    /// Connections fail at once like this.
    refuses: Option<io::ErrorKind>,
    /// It has no descriptors for who calls.
    exhausted: bool,
}

impl World {
    fn tell(&mut self, token: Option<Token>, read: bool, write: bool) {
        self.events.extend(token.map(|token| (token, Ready { read, write })));
    }
}

/// The host.
struct Sim(Rc<RefCell<World>>);

/// One end of what a [`World`] has at a place.
struct End(Rc<RefCell<World>>, usize);
/// As [`End`], of datagrams.
struct Socket(Rc<RefCell<World>>, usize);

impl Drop for End {
    fn drop(&mut self) {
        self.0.borrow_mut().peers[self.1].closed = true;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.0.borrow_mut().far[self.1].closed = true;
    }
}

impl Stream for End {
    fn connected(&mut self) -> io::Result<()> {
        self.0.borrow().peers[self.1].connected.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn receive(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let peer = &mut self.0.borrow_mut().peers[self.1];
        assert!(!to.is_empty(), "an end would be heard that is none");
        match () {
            () if peer.broken => Err(io::ErrorKind::ConnectionReset.into()),
            () if !peer.incoming.is_empty() => {
                let count = to.len().min(peer.incoming.len());
                for (byte, from) in to.iter_mut().zip(peer.incoming.drain(..count)) {
                    *byte = from;
                }
                Ok(count)
            }
            () if peer.ended => Ok(0),
            () => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let peer = &mut self.0.borrow_mut().peers[self.1];
        assert!(!peer.finished, "it had ended");
        match () {
            () if peer.broken => Err(io::ErrorKind::ConnectionReset.into()),
            () if peer.room == 0 => Err(io::ErrorKind::WouldBlock.into()),
            () => {
                let count = bytes.len().min(peer.room);
                peer.got.extend_from_slice(&bytes[..count]);
                peer.room -= count;
                Ok(count)
            }
        }
    }

    fn send_frame(&mut self, frame: &Frame<'_>, part: Range<usize>) -> io::Result<usize> {
        let mut bytes = vec![0; part.len()];
        frame.read(part.start, &mut bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        self.send(&bytes)
    }

    fn finish(&mut self) {
        self.0.borrow_mut().peers[self.1].finished = true;
    }

    fn abort(&mut self) {
        self.0.borrow_mut().peers[self.1].aborted = true;
    }
}

impl Datagrams for Socket {
    fn send(&mut self, bytes: &[u8], to: Option<SocketAddr>) -> io::Result<()> {
        self.0.borrow_mut().far[self.1].got.push((bytes.to_vec(), to));
        Ok(())
    }

    fn receive(&mut self, to: &mut [u8]) -> io::Result<(usize, Option<SocketAddr>)> {
        match self.0.borrow_mut().far[self.1].incoming.pop_front() {
            Some((Ok(bytes), from)) => {
                let count = bytes.len().min(to.len());
                to[..count].copy_from_slice(&bytes[..count]);
                Ok((count, from))
            }
            Some((Err(error), _)) => Err(error),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Sim {
    fn socket(&self, to: Option<SocketAddr>, ping: bool, token: Token) -> Socket {
        let world = &mut *self.0.borrow_mut();
        let (incoming, got) = (VecDeque::new(), Vec::new());
        world.far.push(Far { to, ping, token, incoming, got, closed: false });
        Socket(self.0.clone(), world.far.len() - 1)
    }
}

impl Host for Sim {
    type Stream = End;
    type Listener = usize;
    type Datagrams = Socket;

    fn connect(&mut self, to: SocketAddr, token: Token) -> io::Result<End> {
        let world = &mut *self.0.borrow_mut();
        if let Some(kind) = world.refuses {
            return Err(kind.into());
        }
        let (to, token) = (Some(to), Some(token));
        world.peers.push(Peer { to, token, waits: true, room: usize::MAX, ..Peer::default() });
        Ok(End(self.0.clone(), world.peers.len() - 1))
    }

    fn listen(&mut self, at: SocketAddr, token: Token) -> io::Result<(usize, SocketAddr)> {
        let world = &mut *self.0.borrow_mut();
        world.listeners.push((token, VecDeque::new()));
        Ok((world.listeners.len() - 1, at))
    }

    fn accept(&mut self, listener: &usize) -> io::Result<(End, SocketAddr)> {
        if self.0.borrow().exhausted {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let call = self.0.borrow_mut().listeners[*listener].1.pop_front();
        let (peer, from) = call.ok_or(io::ErrorKind::WouldBlock)?;
        Ok((End(self.0.clone(), peer), from))
    }

    fn watch(&mut self, stream: &End, token: Token) -> io::Result<()> {
        let world = &mut *self.0.borrow_mut();
        world.peers[stream.1].token = Some(token);
        world.tell(Some(token), true, true);
        Ok(())
    }

    fn talk(&mut self, kind: Kind, to: SocketAddr, token: Token) -> io::Result<Socket> {
        let refuses = self.0.borrow().refuses;
        match refuses {
            Some(kind) => Err(kind.into()),
            None => Ok(self.socket(Some(to), kind == Kind::Ping, token)),
        }
    }

    fn bind(&mut self, at: SocketAddr, token: Token) -> io::Result<(Socket, SocketAddr)> {
        Ok((self.socket(None, false, token), at))
    }

    fn resolvers(&mut self) -> Vec<IpAddr> {
        self.0.borrow().resolvers.clone()
    }

    fn has_ipv6(&mut self) -> bool {
        false
    }
}

/// Frames that guests got.
struct Tray {
    frames: Vec<(Vec<u8>, Intent)>,
    ability: Ability,
    room: usize,
}

impl Output for Tray {
    fn ability(&self) -> Ability {
        self.ability
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<(), Full> {
        assert!(self.ability.takes(&frame.intent()), "{:?}", frame.intent());
        self.room = self.room.checked_sub(1).ok_or(Full)?;
        let mut bytes = Vec::new();
        frame.append_to(&mut bytes).expect("private");
        self.frames.push((bytes, frame.intent()));
        Ok(())
    }
}

/// Turns after which there is to be nothing more to do at once.
const TURNS: usize = 100_000;

/// A network, its host, and its guests.
pub struct Bench {
    engine: Engine<Sim>,
    world: Rc<RefCell<World>>,
    tray: Tray,
    now: u64,
}

impl Bench {
    /// One whose resolvers are these.
    ///
    /// # Errors
    /// There can be no such network.
    pub fn new(config: NatConfig, resolvers: &[IpAddr]) -> Result<Self, NatError> {
        let world = Rc::new(RefCell::new(World { resolvers: resolvers.to_vec(), ..World::default() }));
        let secret = RandomState::with_seeds(1, 2, 3, 4);
        let engine = Engine::new(config, Sim(world.clone()), secret, 0)?;
        let tray = Tray { frames: Vec::new(), ability: Ability::ALL, room: usize::MAX };
        Ok(Self { engine, world, tray, now: 0 })
    }

    /// What the guest takes, and how many frames it has room for.
    pub fn set_guest(&mut self, ability: Ability, room: usize) {
        (self.tray.ability, self.tray.room) = (ability, room);
    }

    /// A guest sends a frame.
    pub fn put(&mut self, frame: &Frame<'_>) {
        self.engine.input(self.now, frame);
    }

    /// All is done that can be done now.
    ///
    /// # Panics
    /// It does not come to an end.
    pub fn run(&mut self) {
        for _ in 0..TURNS {
            while let Some((token, ready)) = self.events() {
                self.engine.event(self.now, token, ready);
            }
            let more = self.engine.run(self.now, &mut self.tray);
            if more != Ok(true) && self.world.borrow().events.is_empty() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn events(&mut self) -> Option<(Token, Ready)> {
        self.world.borrow_mut().events.pop_front()
    }

    /// Time passes, in nanoseconds.
    pub fn pass(&mut self, time: u64) {
        self.now = self.now.saturating_add(time);
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// When something is to be done, though nothing happens.
    pub fn deadline(&self) -> u64 {
        self.engine.deadline()
    }

    /// Flows that wait for a time.
    pub fn timers(&self) -> usize {
        self.engine.timers()
    }

    /// Frames that the guest got since this was last called.
    pub fn frames(&mut self) -> Vec<(Vec<u8>, Intent)> {
        std::mem::take(&mut self.tray.frames)
    }

    /// The same, with all that is to be done to them done.
    pub fn packets(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        for (bytes, intent) in self.frames() {
            let (mut done, mut scratch) = (0, Vec::new());
            if let Ok(frame) = Frame::new(&bytes, &[], intent) {
                _ = fit(&frame, &Ability::default(), &mut done, &mut scratch, &mut |f: &Frame<'_>| {
                    let mut packet = Vec::new();
                    _ = f.append_to(&mut packet);
                    packets.push(packet);
                    Ok(())
                });
            }
        }
        packets
    }

    /// What came of it.
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Bytes that connections hold.
    pub fn held(&self) -> usize {
        self.engine.held()
    }

    /// Forwards a port.
    ///
    /// # Errors
    /// As of the network itself.
    pub fn add_forward(&mut self, forward: Forward) -> Result<Forward, NatError> {
        self.engine.add_forward(forward)
    }

    /// Forwards it no more.
    ///
    /// # Errors
    /// As of the network itself.
    pub fn remove_forward(&mut self, forward: &Forward) -> Result<(), NatError> {
        self.engine.remove_forward(forward)
    }

    /// Connections that the host was asked for or had.
    pub fn peers(&self) -> usize {
        self.world.borrow().peers.len()
    }

    /// Looks at a connection, and changes it.
    pub fn peer<R>(&mut self, n: usize, look: impl FnOnce(&mut Peer) -> R) -> R {
        look(&mut self.world.borrow_mut().peers[n])
    }

    /// Whether there are descriptors for who calls.
    pub fn set_exhausted(&mut self, exhausted: bool) {
        self.world.borrow_mut().exhausted = exhausted;
    }

    /// Connections fail at once from now on, or not.
    pub fn set_refuses(&mut self, kind: Option<io::ErrorKind>) {
        self.world.borrow_mut().refuses = kind;
    }

    /// A connection is there now, or has failed.
    pub fn connect(&mut self, n: usize, result: Result<(), io::ErrorKind>) {
        let world = &mut *self.world.borrow_mut();
        let peer = &mut world.peers[n];
        if std::mem::take(&mut peer.waits) {
            peer.connected = result.err();
            let token = peer.token.filter(|_| !peer.closed);
            world.tell(token, result.is_err(), true);
        }
    }

    /// The other end sends.
    pub fn send(&mut self, n: usize, bytes: &[u8]) {
        self.change(n, |peer| peer.incoming.extend(bytes));
    }

    /// The other end ends.
    pub fn end(&mut self, n: usize) {
        self.change(n, |peer| peer.ended = true);
    }

    /// The other end breaks off.
    pub fn break_off(&mut self, n: usize) {
        self.change(n, |peer| peer.broken = true);
    }

    /// The other end takes so many bytes more.
    pub fn make_room(&mut self, n: usize, bytes: usize) {
        self.change(n, |peer| peer.room = peer.room.saturating_add(bytes));
    }

    fn change(&mut self, n: usize, change: impl FnOnce(&mut Peer)) {
        let world = &mut *self.world.borrow_mut();
        let peer = &mut world.peers[n];
        change(peer);
        let token = peer.token.filter(|_| !peer.closed && !peer.waits);
        world.tell(token, true, true);
    }

    /// Somebody connects to a forwarded port, the nth of those for connections; says which connection it is.
    pub fn call(&mut self, listener: usize, from: SocketAddr) -> Option<usize> {
        let world = &mut *self.world.borrow_mut();
        let peer = world.peers.len();
        let (token, calls) = world.listeners.get_mut(listener)?;
        calls.push_back((peer, from));
        let token = *token;
        world.peers.push(Peer { room: usize::MAX, ..Peer::default() });
        world.tell(Some(token), true, false);
        Some(peer)
    }

    /// Sockets for datagrams that the host was asked for.
    pub fn talks(&self) -> usize {
        self.world.borrow().far.len()
    }

    /// Looks at one of them, and changes it.
    pub fn talk<R>(&mut self, n: usize, look: impl FnOnce(&mut Far) -> R) -> R {
        look(&mut self.world.borrow_mut().far[n])
    }

    /// A datagram comes, or an error.
    pub fn say(&mut self, n: usize, what: Result<&[u8], io::ErrorKind>, from: Option<SocketAddr>) {
        let world = &mut *self.world.borrow_mut();
        let far = &mut world.far[n];
        if !far.closed {
            far.incoming.push_back((what.map(<[u8]>::to_vec).map_err(Into::into), from));
            let token = far.token;
            world.tell(Some(token), true, false);
        }
    }
}
