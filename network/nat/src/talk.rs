//! Flows of datagrams: UDP, and echo requests to the outside.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;

use ahash::AHashMap as HashMap;
use vireo_frame::headers::protocol;
use vireo_frame::{Frame, Full, Mac};

use crate::host::{Datagrams, Host, Kind, Ready, Token};
use crate::icmp::{self, Unreachable};
use crate::outbox::Output;
use crate::shared::{Shared, Target};
use crate::slots::{CALLERS, Nanos, SECOND, Shares, Slots, Table, Timer};
use crate::wire::{self, Packet, UDP, Way, be16};

/// How long a flow is remembered of which nothing is heard (RFC 4787, REQ-5: two minutes at least), if it is DNS, or an echo.
const IDLE: Nanos = 180 * SECOND;
const IDLE_DNS: Nanos = 15 * SECOND;
const IDLE_PING: Nanos = 15 * SECOND;
/// A resolver that says nothing for so long is asked no more, until all others were.
const PATIENCE: Nanos = 2 * SECOND;
/// Datagrams that a flow receives before others have their turn.
const TURN: usize = 32;
/// Bytes of the longest datagram.
const DATAGRAM_MAX: usize = 65_535;

/// Both ends of a flow, as the guest sees them. Echo requests have their identifier as the guest's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    kind: Kind,
    guest: SocketAddr,
    other: SocketAddr,
}

/// By which socket of the host a flow goes.
enum By<H: Host> {
    /// By one of its own.
    Own(H::Datagrams),
    /// By that of a forwarded port, to this peer.
    Forward(Token, SocketAddr),
}

/// Sends by the socket of a forwarded port.
pub type ByForward<'a> = dyn FnMut(Token, &[u8], SocketAddr) -> io::Result<()> + 'a;

struct Talk<H: Host> {
    key: Key,
    way: Way,
    /// The station in whose share it is.
    owner: Mac,
    by: By<H>,
    /// It asks a resolver, at this port of it.
    dns: Option<u16>,
    /// When the oldest question was asked that has no answer.
    asked: Option<Nanos>,
    /// When something was heard of it last.
    heard: Nanos,
    readable: bool,
    queued: bool,
    timer: Timer,
}

impl<H: Host> Talk<H> {
    fn idle(&self) -> Nanos {
        match (self.key.kind, self.dns) {
            (Kind::Ping, _) => IDLE_PING,
            (Kind::Udp, Some(_)) => IDLE_DNS,
            (Kind::Udp, None) => IDLE,
        }
    }
}

/// All flows of datagrams.
pub struct Talks<H: Host> {
    slots: Slots<Talk<H>>,
    names: HashMap<Key, Token>,
    /// How many each station has.
    shares: Shares,
    queue: VecDeque<Token>,
    buffer: Vec<u8>,
    /// Which resolver is asked.
    resolver: usize,
    /// Number of the next packet that is sent in fragments.
    number: u16,
}

impl<H: Host> Talks<H> {
    /// At most so many.
    pub fn new(most: usize) -> Self {
        Self {
            slots: Slots::new(Table::Talk, most),
            names: HashMap::new(),
            shares: Shares::default(),
            queue: VecDeque::new(),
            buffer: vec![0; DATAGRAM_MAX],
            resolver: 0,
            number: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Where a resolver is, for the next question.
    pub fn resolver(&self, port: u16, host: &mut H) -> Option<SocketAddr> {
        let all = host.resolvers();
        all.get(self.resolver % all.len().max(1)).map(|a| SocketAddr::new(*a, port))
    }

    /// The resolver that was asked does not answer: the next one is asked.
    pub fn resolver_failed(&mut self) {
        self.resolver = self.resolver.wrapping_add(1);
    }

    /// A datagram of UDP from a guest. `forward`: sends by the socket of a forwarded port.
    pub fn input(
        &mut self,
        now: Nanos,
        frame: &Frame<'_>,
        packet: &Packet,
        host: &mut H,
        shared: &mut Shared,
        forward: &mut ByForward<'_>,
    ) {
        let head = frame.head();
        let ports = (be16(head, packet.at), be16(head, packet.at + 2), be16(head, packet.at + 4));
        let (Some(source), Some(destination), Some(length)) = ports else {
            shared.stats.malformed += 1;
            return;
        };
        let whole = packet.end - packet.at;
        let segment = frame.intent().segmentation.map(|s| usize::from(s.size));
        // Of one that is to be cut, the length is that of each piece, or nothing.
        let length = if segment.is_some() { whole } else { length.into() };
        if length < UDP || length > whole {
            shared.stats.malformed += 1;
            return;
        }
        let key = Key {
            kind: Kind::Udp,
            guest: SocketAddr::new(packet.source, source),
            other: SocketAddr::new(packet.destination, destination),
        };
        let Some(token) = self.find(now, key, packet, host, shared) else { return };
        let mut payload = vec![0; length - UDP];
        if frame.read(packet.at + UDP, &mut payload).is_err() {
            return;
        }
        let pieces = payload.chunks(segment.unwrap_or(DATAGRAM_MAX).max(1));
        // None at all is a datagram as well.
        let empty: &[&[u8]] = if payload.is_empty() { &[&[]] } else { &[] };
        for datagram in empty.iter().copied().chain(pieces) {
            self.send(now, token, datagram, host, shared, forward);
        }
    }

    /// An echo request from a guest.
    pub fn ping(&mut self, now: Nanos, body: &[u8], packet: &Packet, host: &mut H, shared: &mut Shared) {
        let Some(id) = be16(body, 4) else { return };
        let key = Key {
            kind: Kind::Ping,
            guest: SocketAddr::new(packet.source, id),
            other: SocketAddr::new(packet.destination, 0),
        };
        let Some(token) = self.find(now, key, packet, host, shared) else { return };
        self.send(now, token, body, host, shared, &mut |_, _, _| Ok(()));
    }

    /// The flow of a guest's packet, which may be a new one.
    fn find(
        &mut self,
        now: Nanos,
        key: Key,
        packet: &Packet,
        host: &mut H,
        shared: &mut Shared,
    ) -> Option<Token> {
        if let Some(token) = self.names.get(&key).copied() {
            let talk = self.slots.get_mut(token)?;
            talk.way.to = packet.from;
            talk.heard = now;
            return Some(token);
        }
        shared.learn(packet.source, packet.from);
        let way = shared.way_back(packet);
        let (to, dns) = match shared.target(key.other.ip(), key.other.port()) {
            Some(Target::Host(to)) => (Some(to), None),
            Some(Target::Dns(port)) => (self.resolver(port, host), Some(port)),
            None => (None, None),
        };
        let token = self.place(way.to, shared)?;
        let made = match to {
            Some(to) => host.talk(key.kind, to, token),
            None => Err(io::ErrorKind::ConnectionRefused.into()),
        };
        match made {
            Ok(socket) => {
                self.insert(now, token, key, way, By::Own(socket), shared);
                if let Some(talk) = self.slots.get_mut(token) {
                    talk.dns = dns;
                }
                Some(token)
            }
            Err(error) if crate::tcp::is_exhausted(&error) => {
                shared.stats.too_many += 1;
                None
            }
            Err(error) => {
                shared.stats.forbidden += u64::from(to.is_none());
                unreachable(&key, &way, &error, shared);
                None
            }
        }
    }

    /// A place for a flow of a station: if there is none, that of the one that has been silent for longest, of the station that has
    /// most.
    fn place(&mut self, station: Mac, shared: &mut Shared) -> Option<Token> {
        if self.slots.is_full() {
            shared.stats.too_many += 1;
            let from = self.shares.gives_way(station).unwrap_or(station);
            // Where all have one, whoever has been silent for longest has none.
            let rank = |talk: &Talk<H>| (talk.owner != from, talk.heard);
            let oldest = self.slots.iter().min_by_key(|(_, talk)| rank(talk)).map(|(token, _)| token)?;
            self.remove(oldest, shared);
        }
        self.slots.next()
    }

    fn insert(&mut self, now: Nanos, token: Token, key: Key, way: Way, by: By<H>, shared: &mut Shared) {
        let (timer, dns, asked) = (Timer::default(), None, None);
        let owner = if matches!(by, By::Forward(..)) { CALLERS } else { way.to };
        let (heard, readable, queued) = (now, false, false);
        let mut talk = Talk { key, way, owner, by, dns, asked, heard, readable, queued, timer };
        self.shares.add(owner);
        shared.timers.set(token, &mut talk.timer, Some(now + IDLE_DNS.min(IDLE_PING)));
        self.names.insert(key, token);
        self.slots.insert(token, talk);
    }

    fn remove(&mut self, token: Token, shared: &mut Shared) {
        if let Some(mut talk) = self.slots.remove(token) {
            shared.timers.forget(token, &mut talk.timer);
            self.shares.remove(talk.owner);
            self.names.remove(&talk.key);
        }
    }

    fn send(
        &mut self,
        now: Nanos,
        token: Token,
        bytes: &[u8],
        host: &mut H,
        shared: &mut Shared,
        forward: &mut ByForward<'_>,
    ) {
        self.ask_another(now, token, host);
        let Some(talk) = self.slots.get_mut(token) else { return };
        let sent = match &mut talk.by {
            // An error may be of an earlier one: that is told, and this one goes.
            By::Own(socket) => match socket.send(bytes, None) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    unreachable(&talk.key, &talk.way, &error, shared);
                    socket.send(bytes, None)
                }
                result => result,
            },
            By::Forward(listener, peer) => forward(*listener, bytes, *peer),
        };
        match sent {
            Ok(()) if talk.dns.is_some() => _ = talk.asked.get_or_insert(now),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => shared.stats.lost += 1,
            Err(error) => unreachable(&talk.key, &talk.way, &error, shared),
        }
    }

    /// Where a resolver has not answered for a while, the guest's next question goes to another.
    fn ask_another(&mut self, now: Nanos, token: Token, host: &mut H) {
        let Some(Talk { dns: Some(port), asked: Some(asked), .. }) = self.slots.get_mut(token) else {
            return;
        };
        let port = *port;
        if now.saturating_sub(*asked) < PATIENCE {
            return;
        }
        self.resolver_failed();
        let made = self.resolver(port, host).map(|to| host.talk(Kind::Udp, to, token));
        if let (Some(talk), Some(Ok(socket))) = (self.slots.get_mut(token), made) {
            talk.by = By::Own(socket);
            talk.asked = None;
        }
    }

    /// A datagram has come to a forwarded port.
    pub fn forwarded(
        &mut self,
        now: Nanos,
        listener: Token,
        guest: SocketAddr,
        peer: SocketAddr,
        bytes: &[u8],
        shared: &mut Shared,
    ) {
        let source = shared.seen_from(peer.ip(), guest.ip());
        let key = Key { kind: Kind::Udp, guest, other: SocketAddr::new(source, peer.port()) };
        let token = match self.names.get(&key) {
            Some(token) => *token,
            None => {
                let to = shared.known_station(guest.ip()).unwrap_or_default();
                let Some(token) = self.place(CALLERS, shared) else { return };
                let way = Way { to, from: shared.network.mac(), source, destination: guest.ip() };
                self.insert(now, token, key, way, By::Forward(listener, peer), shared);
                token
            }
        };
        let Some(talk) = self.slots.get_mut(token) else { return };
        // Who has these ends already by another way keeps them.
        if !matches!(talk.by, By::Forward(by, to) if (by, to) == (listener, peer)) {
            shared.stats.lost += 1;
            return;
        }
        talk.heard = now;
        if !talk.way.to.is_station() {
            talk.way.to = shared.station(guest.ip()).unwrap_or_default();
        }
        if talk.way.to.is_station() {
            deliver(&mut self.number, &talk.key, &talk.way, bytes, shared);
        } else {
            // The guest is asked for; who sent this sends again.
            shared.stats.lost += 1;
        }
    }

    /// A port is not forwarded any more.
    pub fn forward_removed(&mut self, listener: Token, shared: &mut Shared) {
        let by_it = |talk: &Talk<H>| matches!(talk.by, By::Forward(by, _) if by == listener);
        let gone: Vec<Token> = self.slots.iter().filter(|(_, t)| by_it(t)).map(|(token, _)| token).collect();
        for token in gone {
            self.remove(token, shared);
        }
    }

    /// Something has become of a flow's socket.
    pub fn event(&mut self, token: Token, ready: Ready) {
        if let Some(talk) = self.slots.get_mut(token) {
            talk.readable |= ready.read;
            if talk.readable && !talk.queued {
                talk.queued = true;
                self.queue.push_back(token);
            }
        }
    }

    /// It is time to look whether a flow is still in use.
    pub fn timeout(&mut self, now: Nanos, token: Token, shared: &mut Shared) {
        let Some(talk) = self.slots.get_mut(token) else { return };
        let end = talk.heard + talk.idle();
        let due = shared.timers.is_due(token, &mut talk.timer, now);
        if end > now {
            shared.timers.set(token, &mut talk.timer, Some(end));
        } else if due {
            self.remove(token, shared);
        }
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
        let Self { queue, slots, buffer, number, resolver, .. } = self;
        let Some(token) = queue.front().copied() else { return Ok(()) };
        let Some(talk) = slots.get_mut(token) else {
            queue.pop_front();
            return Ok(());
        };
        for _ in 0..TURN {
            // What waits already goes first, and nothing is received that there is no room for.
            shared.outbox.put(out, &mut shared.stats.received)?;
            let By::Own(socket) = &mut talk.by else { break };
            match socket.receive(buffer) {
                Ok((length, _)) => {
                    talk.heard = now;
                    talk.asked = None;
                    deliver(number, &talk.key, &talk.way, &buffer[..length.min(DATAGRAM_MAX)], shared);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    talk.readable = false;
                    break;
                }
                Err(error) => {
                    if talk.dns.is_some() {
                        *resolver = resolver.wrapping_add(1);
                    }
                    unreachable(&talk.key, &talk.way, &error, shared);
                }
            }
        }
        queue.pop_front();
        talk.queued = talk.readable;
        if talk.readable {
            queue.push_back(token);
        }
        shared.outbox.put(out, &mut shared.stats.received)
    }
}

/// Gives a guest a datagram, or the answer to its echo request.
fn deliver(number: &mut u16, key: &Key, way: &Way, bytes: &[u8], shared: &mut Shared) {
    *number = number.wrapping_add(1);
    match key.kind {
        Kind::Udp => {
            let ports = (key.other.port(), key.guest.port());
            wire::datagrams(way, ports, bytes, shared.mtu, *number, &mut shared.outbox);
        }
        Kind::Ping if bytes.len() >= 8 && is_reply(way, bytes[0]) => {
            // The kernel has given it an identifier of its own.
            let mut body = bytes.to_vec();
            body[4..6].copy_from_slice(&key.guest.port().to_be_bytes());
            shared.message(way, &body, *number);
        }
        Kind::Ping => {}
    }
}

fn is_reply(way: &Way, kind: u8) -> bool {
    kind == if way.destination.is_ipv6() { icmp::ECHO6_REPLY } else { icmp::ECHO_REPLY }
}

/// Tells a guest that its datagrams do not arrive.
fn unreachable(key: &Key, way: &Way, error: &io::Error, shared: &mut Shared) {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => Unreachable::Port,
        io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut => Unreachable::Host,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => Unreachable::Network,
        io::ErrorKind::PermissionDenied => Unreachable::Forbidden,
        _ => return,
    };
    let mut first = [0; 8];
    let protocol = match (key.kind, way.destination.is_ipv6()) {
        (Kind::Udp, _) => {
            first[..2].copy_from_slice(&key.guest.port().to_be_bytes());
            first[2..4].copy_from_slice(&key.other.port().to_be_bytes());
            first[5] = UDP as u8;
            protocol::UDP
        }
        (Kind::Ping, v6) => {
            first[0] = if v6 { icmp::ECHO6 } else { icmp::ECHO };
            first[4..6].copy_from_slice(&key.guest.port().to_be_bytes());
            if v6 { protocol::ICMP6 } else { protocol::ICMP }
        }
    };
    shared.refuse(way, why, protocol, first, UDP);
}
