//! Connections: those that guests make, and those to ports that are forwarded to them.

mod buffer;
mod connection;
mod pace;
mod receive;
mod send;

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use ahash::{AHashMap as HashMap, RandomState};
use vireo_frame::{Frame, Full, Mac};

use self::buffer::Pool;
use self::connection::{Connection, State, refuse, reset};
use self::send::Turn;
use crate::host::{Host, Ready, Stream, Token};
use crate::outbox::Output;
use crate::shared::Shared;
use crate::slots::{CALLERS, Nanos, SECOND, Shares, Slots, Table};
use crate::wire::{Packet, Segment, Way, flag};

/// The first of the ports that are nobody's own (RFC 6335), and how many are tried.
const PORTS: u16 = 49_152;
const TRIES: u16 = 256;

/// Both ends of a connection, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    guest: SocketAddr,
    other: SocketAddr,
}

/// All connections.
pub struct Connections<H: Host> {
    slots: Slots<Connection<H::Stream>>,
    names: HashMap<Key, Token>,
    /// Those that have something to do, in turn.
    queue: VecDeque<Token>,
    /// Those that both ends have ended, the oldest first.
    lingering: VecDeque<Token>,
    /// How many each station has; and of them, those that wait for the host.
    shares: Shares,
    connecting: Shares,
    connecting_most: usize,
    pool: Pool,
    secret: RandomState,
}

impl<H: Host> Connections<H> {
    /// At most so many; a quarter of them may wait for the host.
    pub fn new(most: usize, secret: RandomState) -> Self {
        Self {
            slots: Slots::new(Table::Tcp, most),
            names: HashMap::new(),
            queue: VecDeque::new(),
            lingering: VecDeque::new(),
            shares: Shares::default(),
            connecting: Shares::default(),
            connecting_most: most.div_ceil(4),
            pool: Pool::default(),
            secret,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Bytes that they hold.
    pub fn held(&self) -> usize {
        self.slots.iter().map(|(_, c)| c.held()).sum()
    }

    /// A segment from a guest. `connect` connects the host to where it goes, if that is anywhere.
    pub fn input(
        &mut self,
        now: Nanos,
        frame: &Frame<'_>,
        packet: &Packet,
        shared: &mut Shared,
        connect: impl FnOnce(&Shared, u16, Token) -> Option<io::Result<H::Stream>>,
    ) {
        let Some(segment) = Segment::read(frame.head(), packet) else {
            shared.stats.malformed += 1;
            return;
        };
        let key = Key {
            guest: SocketAddr::new(packet.source, segment.source),
            other: SocketAddr::new(packet.destination, segment.destination),
        };
        if let Some(token) = self.names.get(&key).copied() {
            if !self.is_left_by(token, &segment) {
                self.touch(now, token, shared, |connection, shared, pool| {
                    connection.way.to = packet.from;
                    connection.input(now, frame, &segment, shared, pool);
                });
                return;
            }
            self.remove(token, shared);
        }
        shared.learn(packet.source, packet.from);
        let way = shared.way_back(packet);
        match segment.flags & (flag::SYN | flag::ACK | flag::RST) {
            flag::SYN => self.open(now, way, key, &segment, shared, connect),
            flags if flags & flag::RST != 0 => {}
            flags => {
                let ports = (segment.destination, segment.source);
                let next = segment.sequence.wrapping_add(segment.length());
                match flags & flag::ACK {
                    0 => reset(&way, ports, flag::RST | flag::ACK, 0, next, shared),
                    _ => reset(&way, ports, flag::RST, segment.ack, 0, shared),
                }
            }
        }
    }

    /// Whether a guest uses the ports of a connection that has ended for another one.
    fn is_left_by(&mut self, token: Token, segment: &Segment) -> bool {
        let new = segment.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN;
        new && self
            .slots
            .get_mut(token)
            .is_some_and(|c| c.state == State::Lingering && c.is_after(segment.sequence))
    }

    fn open(
        &mut self,
        now: Nanos,
        way: Way,
        key: Key,
        segment: &Segment,
        shared: &mut Shared,
        connect: impl FnOnce(&Shared, u16, Token) -> Option<io::Result<H::Stream>>,
    ) {
        let ports = (segment.destination, segment.source);
        let place = self.may_connect(now, way.to, shared).then(|| self.place(now, way.to, shared));
        let Some(token) = place.flatten() else {
            // It asks again.
            shared.stats.too_many += 1;
            return;
        };
        match connect(shared, segment.destination, token) {
            Some(Ok(stream)) => {
                let first = self.first_number(&key, now);
                let connection = Connection::from_guest(way, segment, stream, first, shared.mtu, now);
                self.insert(token, key, connection, shared);
                self.touch(now, token, shared, |_, _, _| {});
            }
            Some(Err(error)) if is_exhausted(&error) => shared.stats.too_many += 1,
            Some(Err(error)) => refuse(&error, &way, ports, segment.sequence, shared),
            None => {
                shared.stats.forbidden += 1;
                reset(&way, ports, flag::RST | flag::ACK, 0, segment.sequence.wrapping_add(1), shared);
            }
        }
    }

    /// A place for a connection of a station: a free one, or that of the one that has ended first, or of a station that has more.
    fn place(&mut self, now: Nanos, station: Mac, shared: &mut Shared) -> Option<Token> {
        while self.slots.is_full() {
            match self.lingering.front().copied() {
                Some(token) => self.remove(token, shared),
                None => self.crowd_out(now, self.shares.gives_way(station)?, |_| true, shared)?,
            }
        }
        self.slots.next()
    }

    /// Whether one more connection of a station may wait for the host: others have to give way if they have more.
    fn may_connect(&mut self, now: Nanos, station: Mac, shared: &mut Shared) -> bool {
        let full = self.connecting.len() >= self.connecting_most;
        !full
            || self.connecting.gives_way(station).is_some_and(|from| {
                self.crowd_out(now, from, |c| c.state == State::Connecting, shared).is_some()
            })
    }

    /// Ends that connection of a station of which nothing has been heard for longest.
    fn crowd_out(
        &mut self,
        now: Nanos,
        from: Mac,
        which: impl Fn(&Connection<H::Stream>) -> bool,
        shared: &mut Shared,
    ) -> Option<()> {
        let its = self.slots.iter().filter(|(_, c)| c.owner == from && which(c));
        let (token, _) = its.min_by_key(|(_, c)| c.heard)?;
        shared.stats.too_many += 1;
        self.touch(now, token, shared, |connection, shared, _| match connection.state {
            // Its guest asks again.
            State::Connecting => connection.abandon(),
            _ => connection.reset(shared),
        });
        Some(())
    }

    fn insert(&mut self, token: Token, key: Key, connection: Connection<H::Stream>, shared: &mut Shared) {
        shared.stats.connections_made += 1;
        self.shares.add(connection.owner);
        if connection.state == State::Connecting {
            self.connecting.add(connection.owner);
        }
        self.names.insert(key, token);
        self.slots.insert(token, connection);
    }

    fn remove(&mut self, token: Token, shared: &mut Shared) {
        if let Some(mut connection) = self.slots.remove(token) {
            connection.give_back(&mut self.pool);
            shared.timers.forget(token, &mut connection.timer);
            self.shares.remove(connection.owner);
            self.names.remove(&key_of(&connection));
        }
        let slots = &mut self.slots;
        while self.lingering.pop_front_if(|token| slots.get_mut(*token).is_none()).is_some() {}
    }

    /// The first number of a connection: one that the last one with the same ends did not have (RFC 6528).
    fn first_number(&self, key: &Key, now: Nanos) -> u32 {
        (self.secret.hash_one(key) as u32).wrapping_add((now / 4000) as u32)
    }

    /// Somebody has connected to a port that is forwarded to a guest.
    pub fn accept(
        &mut self,
        now: Nanos,
        guest: SocketAddr,
        peer: SocketAddr,
        mut stream: H::Stream,
        host: &mut H,
        shared: &mut Shared,
    ) {
        let source = shared.seen_from(peer.ip(), guest.ip());
        let to = shared.known_station(guest.ip()).unwrap_or_default();
        let key =
            self.free_key(guest, SocketAddr::new(source, peer.port()), shared.gateway_for(guest.ip()), now);
        let (Some(key), Some(token)) = (key, self.place(now, CALLERS, shared)) else {
            shared.stats.too_many += 1;
            stream.abort();
            return;
        };
        if host.watch(&stream, token).is_err() {
            stream.abort();
            return;
        }
        let way = Way { to, from: shared.network.mac(), source: key.other.ip(), destination: guest.ip() };
        let first = self.first_number(&key, now);
        let ports = (key.other.port(), guest.port());
        self.insert(token, key, Connection::to_guest(way, ports, stream, first, now), shared);
        self.touch(now, token, shared, |_, _, _| {});
    }

    /// A name that no connection has: as the peer is seen, or else with another port of ours.
    fn free_key(
        &self,
        guest: SocketAddr,
        other: SocketAddr,
        gateway: Option<IpAddr>,
        now: Nanos,
    ) -> Option<Key> {
        let key = Key { guest, other };
        if other.port() != 0 && !self.names.contains_key(&key) {
            return Some(key);
        }
        let gateway = gateway?;
        let from = self.secret.hash_one((other, now)) as u16;
        let port = |n: u16| PORTS | from.wrapping_add(n);
        let key = |n| Key { guest, other: SocketAddr::new(gateway, port(n)) };
        (0..TRIES).map(key).find(|key| !self.names.contains_key(key))
    }

    /// Something has become of a connection's socket.
    pub fn event(&mut self, now: Nanos, token: Token, ready: Ready, shared: &mut Shared) {
        self.touch(now, token, shared, |connection, shared, pool| connection.event(ready, shared, pool));
    }

    /// It is time for something.
    pub fn timeout(&mut self, now: Nanos, token: Token, shared: &mut Shared) {
        let Some(connection) = self.slots.get_mut(token) else { return };
        if shared.timers.is_due(token, &mut connection.timer, now) {
            self.touch(now, token, shared, |connection, shared, _| connection.timeout(now, shared));
        }
    }

    /// A guest's station is known now: who waits for it goes on.
    pub fn station_known(&mut self, now: Nanos, token: Token, shared: &mut Shared) {
        self.touch(now, token, shared, |_, _, _| {});
    }

    /// Does something with a connection, and looks what is to be done then.
    fn touch(
        &mut self,
        now: Nanos,
        token: Token,
        shared: &mut Shared,
        do_it: impl FnOnce(&mut Connection<H::Stream>, &mut Shared, &mut Pool),
    ) {
        let Some(connection) = self.slots.get_mut(token) else { return };
        let before = connection.state;
        do_it(connection, shared, &mut self.pool);
        connection.wait(now);
        let state = connection.state;
        if state != before {
            if before == State::Connecting {
                self.connecting.remove(connection.owner);
            }
            if state == State::Lingering {
                self.lingering.push_back(token);
            }
        }
        if state == State::Over {
            return self.remove(token, shared);
        }
        if connection.wants_turn() && !connection.queued {
            connection.queued = true;
            self.queue.push_back(token);
        }
        let due = connection.due(now);
        shared.timers.set(token, &mut connection.timer, due);
    }

    /// Whether somebody has something to do.
    pub fn has_work(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The next one has its turn.
    ///
    /// # Errors
    /// There is no room for frames: it has its turn when there is.
    pub fn turn(&mut self, now: Nanos, shared: &mut Shared, out: &mut dyn Output) -> Result<(), Full> {
        let Some(token) = self.queue.pop_front() else { return Ok(()) };
        let mut result = Ok(Turn::Done);
        self.touch(now, token, shared, |connection, shared, pool| {
            result = connection.turn(now, shared, pool, out);
            // Whether it has another turn is said by this one.
            connection.queued = true;
        });
        let Some(connection) = self.slots.get_mut(token) else { return result.map(|_| ()) };
        match result {
            Ok(Turn::Done) => connection.queued = false,
            Ok(Turn::More) => self.queue.push_back(token),
            Ok(Turn::NoStation) => {
                connection.queued = false;
                shared.wait_for_station(connection.way.destination, token);
                shared.timers.set(token, &mut connection.timer, Some(now + SECOND));
            }
            Err(Full) => {
                self.queue.push_front(token);
                return Err(Full);
            }
        }
        Ok(())
    }
}

fn key_of<S: Stream>(connection: &Connection<S>) -> Key {
    let (other, guest) = connection.ports;
    Key {
        guest: SocketAddr::new(connection.way.destination, guest),
        other: SocketAddr::new(connection.way.source, other),
    }
}

/// Whether the host has no more of what sockets take, for now.
pub fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
