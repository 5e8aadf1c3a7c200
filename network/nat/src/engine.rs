//! What becomes of packets: pure, told the time, with the host behind a trait.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ahash::RandomState;
use vireo_frame::headers::protocol;
use vireo_frame::{Frame, Full, Mac};

use crate::config::{NatConfig, NatError, Network};
use crate::dhcp;
use crate::forward::Forward;
use crate::fragments::Fragments;
use crate::host::{Datagrams, Host, Listening, Ready, Token};
use crate::icmp::{self, Unreachable};
use crate::outbox::Output;
use crate::shared::{Shared, Target};
use crate::slots::{Nanos, SECOND, Slots, Table};
use crate::stats::Stats;
use crate::talk::Talks;
use crate::tcp::Connections;
use crate::wire::{Arp, Content, Packet, UDP, Way, be16};

/// Turns in a moment, and what is taken from a forwarded port in one.
const TURNS: usize = 8;
const CALLS: usize = 32;
/// Ports that may be forwarded.
const FORWARDS: usize = 256;
/// How often all guests are told of the router.
const ADVERTISED: Nanos = 600 * SECOND;

/// What a message of ICMPv6 between neighbours or to routers says (RFC 4861), if a packet is a whole one.
fn neighbours_message<'a>(frame: &'a Frame<'_>, packet: &Packet) -> Option<&'a [u8]> {
    let whole = packet.protocol == protocol::ICMP6 && packet.fragment.is_none();
    let body = frame.head().get(packet.at..packet.end).filter(|_| whole)?;
    matches!(body.first(), Some(133..=137)).then_some(body)
}

/// A port that is forwarded.
struct Listener<H: Host> {
    forward: Forward,
    by: Listening<H>,
    queued: bool,
}

/// A private network with its way out.
pub struct Engine<H: Host> {
    pub shared: Shared,
    pub host: H,
    dhcp: dhcp::Server,
    connections: Connections<H>,
    talks: Talks<H>,
    forwards: Slots<Listener<H>>,
    /// Those that somebody has come to.
    called: VecDeque<Token>,
    /// Those for whose callers the host had no descriptors.
    put_off: Vec<Token>,
    /// When these are tried again: nobody tells when the host has some.
    again: Nanos,
    fragments: Fragments,
    buffer: Vec<u8>,
    /// When all guests are told of the router next.
    advertise: Nanos,
}

impl<H: Host> Engine<H> {
    /// One without guests.
    ///
    /// # Errors
    /// It cannot be, or what is to be forwarded cannot.
    pub fn new(config: NatConfig, host: H, secret: RandomState, now: Nanos) -> Result<Self, NatError> {
        config.check()?;
        let NatConfig { network, mtu, forwards, host_loopback, host_name, flows } = config;
        let mut engine = Self {
            shared: Shared::new(network, mtu, host_loopback, now),
            host,
            dhcp: dhcp::Server::new(network, mtu, host_name),
            connections: Connections::new(flows, secret),
            talks: Talks::new(flows),
            forwards: Slots::new(Table::Forward, FORWARDS),
            called: VecDeque::new(),
            put_off: Vec::new(),
            again: Nanos::MAX,
            fragments: Fragments::default(),
            buffer: vec![0; 65_536],
            advertise: now + ADVERTISED,
        };
        for forward in forwards {
            engine.add_forward(forward)?;
        }
        Ok(engine)
    }

    /// Forwards a port from now on; says what is forwarded, which has a port where any would do.
    ///
    /// # Errors
    /// The host does not give that port, or there is no such guest.
    pub fn add_forward(&mut self, forward: Forward) -> Result<Forward, NatError> {
        if !self.shared.network.may_be_guest(self.guest_of(&forward).into()) {
            return Err(NatError::NoGuest(forward, self.shared.network));
        }
        let token = self.forwards.next().ok_or(NatError::TooMany(FORWARDS))?;
        match Listening::start(&mut self.host, forward.protocol, forward.host, token) {
            Ok((by, host)) => {
                let forward = Forward { host, ..forward };
                self.forwards.insert(token, Listener { forward, by, queued: false });
                Ok(forward)
            }
            Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                Err(NatError::InUse(forward, forward.host))
            }
            Err(source) => Err(NatError::Bind { forward, source }),
        }
    }

    /// Forwards no more of a port. Connections that there are go on.
    ///
    /// # Errors
    /// It is not forwarded.
    pub fn remove_forward(&mut self, forward: &Forward) -> Result<(), NatError> {
        let found = self.forwards.iter().find(|(_, l)| l.forward == *forward).map(|(token, _)| token);
        let token = found.ok_or(NatError::NotForwarded(*forward))?;
        self.forwards.remove(token);
        self.talks.forward_removed(token, &mut self.shared);
        Ok(())
    }

    /// What is forwarded.
    pub fn forwards(&self) -> Vec<Forward> {
        self.forwards.iter().map(|(_, l)| l.forward).collect()
    }

    fn guest_of(&self, forward: &Forward) -> Ipv4Addr {
        forward.guest.unwrap_or(self.shared.network.guest)
    }

    /// Stations and the addresses that they were given.
    pub fn leases(&self) -> Vec<(Mac, Ipv4Addr)> {
        self.dhcp.leases()
    }

    /// Another adapter is plugged in, or it has another address: what is known of stations is of the one before.
    pub fn replugged(&mut self) {
        self.shared.forget_stations();
        self.shared.outbox.clear();
        self.dhcp.forget();
    }

    /// A frame from a guest.
    pub fn input(&mut self, now: Nanos, frame: &Frame<'_>) {
        self.shared.stats.sent.add(frame.len());
        self.shared.now = now;
        match Content::read(frame) {
            Some(Content::Ip(packet)) => self.packet(now, frame, &packet),
            Some(Content::Arp(arp)) => self.arp(&arp),
            Some(Content::Other) => {}
            None => self.shared.stats.malformed += 1,
        }
    }

    fn arp(&mut self, arp: &Arp) {
        let net = self.shared.network;
        if net.may_be_guest(arp.source.into()) {
            self.shared.learn(arp.source.into(), arp.sender);
        }
        // Also who has no address yet and looks whether one is free (RFC 5227).
        if arp.request && (arp.target == net.gateway || arp.target == net.dns) && arp.sender.is_station() {
            let answer = Arp { request: false, sender: net.mac(), source: arp.target, target: arp.source };
            self.shared.outbox.add(answer.frame(arp.sender), None);
        }
    }

    fn packet(&mut self, now: Nanos, frame: &Frame<'_>, packet: &Packet) {
        if self.is_dhcp(frame, packet) {
            return self.dhcp(now, frame, packet);
        }
        if let Some(body) = neighbours_message(frame, packet) {
            return self.neighbour(packet, body);
        }
        let shared = &mut self.shared;
        // On the link alone the router answers echo requests, and nothing else.
        let near = packet.destination == IpAddr::from(shared.network.link_local());
        if !(near || shared.network.may_be_guest(packet.source))
            || !packet.from.is_station()
            || packet.hops == 0
        {
            shared.stats.forbidden += 1;
            return;
        }
        // Between guests, or to several: no business of ours.
        if !is_for_us(&shared.network, packet.destination) {
            return;
        }
        match packet.protocol {
            _ if packet.fragment.is_some() => self.fragment(now, frame, packet),
            protocol::ICMP | protocol::ICMP6 => self.ping(now, frame, packet),
            _ if near => {}
            protocol::TCP => self.segment(now, frame, packet),
            protocol::UDP => self.datagram(now, frame, packet),
            other => {
                shared.learn(packet.source, packet.from);
                let way = shared.way_back(packet);
                if let Some(first) = frame.head().get(packet.at..).and_then(|b| b.first_chunk()) {
                    shared.refuse(&way, Unreachable::Protocol, other, *first, packet.end - packet.at);
                }
            }
        }
    }

    /// A part of a packet, which is looked at when all of it is there.
    fn fragment(&mut self, now: Nanos, frame: &Frame<'_>, packet: &Packet) {
        let to = self.shared.network.mac();
        let whole = packet.fragment.and_then(|part| self.fragments.add(now, frame, packet, part, to));
        let Some(bytes) = whole else { return };
        let Ok(frame) = Frame::whole(&bytes) else { return };
        match Content::read(&frame) {
            // These do not come in fragments (RFC 6980).
            Some(Content::Ip(packet)) if neighbours_message(&frame, &packet).is_some() => {
                self.shared.stats.forbidden += 1;
            }
            Some(Content::Ip(packet)) if packet.fragment.is_none() => self.packet(now, &frame, &packet),
            _ => self.shared.stats.malformed += 1,
        }
    }

    fn segment(&mut self, now: Nanos, frame: &Frame<'_>, packet: &Packet) {
        let Self { connections, talks, host, shared, .. } = self;
        connections.input(now, frame, packet, shared, |shared, port, token| {
            match shared.target(packet.destination, port)? {
                Target::Host(to) => Some(host.connect(to, token)),
                Target::Dns(port) => talks.resolver(port, host).map(|to| host.connect(to, token)),
            }
        });
    }

    fn datagram(&mut self, now: Nanos, frame: &Frame<'_>, packet: &Packet) {
        let Self { talks, host, shared, forwards, .. } = self;
        talks.input(now, frame, packet, host, shared, &mut |listener, bytes, peer| match forwards
            .get_mut(listener)
            .map(|l| &mut l.by)
        {
            Some(Listening::Udp(socket)) => socket.send(bytes, Some(peer)),
            _ => Ok(()),
        });
    }

    fn is_dhcp(&self, frame: &Frame<'_>, packet: &Packet) -> bool {
        let here = match packet.destination {
            IpAddr::V4(a) => a.is_broadcast() || a == self.shared.network.gateway,
            IpAddr::V6(_) => false,
        };
        let port = be16(frame.head(), packet.at + 2);
        here && packet.fragment.is_none() && packet.protocol == protocol::UDP && port == Some(dhcp::SERVER)
    }

    fn dhcp(&mut self, now: Nanos, frame: &Frame<'_>, packet: &Packet) {
        let mut request = vec![0; packet.end.saturating_sub(packet.at + UDP)];
        if frame.read(packet.at + UDP, &mut request).is_err() {
            return;
        }
        let forwarded =
            self.forwards.iter().any(|(_, l)| self.guest_of(&l.forward) == self.shared.network.guest);
        let know = dhcp::Knowledge { now, heard: self.shared.heard(), forwarded };
        let Some(answer) = self.dhcp.answer(&request, packet.from, &know) else { return };
        let net = &self.shared.network;
        let way = Way {
            to: answer.station,
            from: net.mac(),
            source: net.gateway.into(),
            destination: answer.address.into(),
        };
        let (bytes, sum) = crate::wire::datagram(&way, dhcp::SERVER, dhcp::CLIENT, &answer.bytes);
        if let Some(address) = answer.probe {
            self.shared.ask_for(address.into());
        }
        self.shared.outbox.add(bytes, Some(sum));
    }

    /// A message between neighbours or to routers.
    fn neighbour(&mut self, packet: &Packet, body: &[u8]) {
        // From over a router they are forged (RFC 4861, 6.1.1).
        if packet.hops != 255 {
            self.shared.stats.forbidden += 1;
            return;
        }
        // The host is asked for those alone that are told so.
        let router = body.first() == Some(&icmp::ROUTER_SOLICITATION) && self.host.has_ipv6();
        let shared = &mut self.shared;
        if let Some(address) = icmp::advertised(body)
            && shared.network.may_be_guest(address.into())
        {
            shared.learn(address.into(), packet.from);
        }
        if shared.network.may_be_guest(packet.source) {
            shared.learn(packet.source, packet.from);
        }
        let (net, mtu) = (&shared.network, shared.mtu);
        if let Some(answer) = icmp::neighbour(net, mtu, router, packet.from, packet.source, body)
            && packet.from.is_station()
        {
            shared.outbox.add(answer, None);
        }
    }

    fn ping(&mut self, now: Nanos, frame: &Frame<'_>, packet: &Packet) {
        let shared = &mut self.shared;
        let reply = match frame.head().get(packet.at) {
            Some(&icmp::ECHO) if packet.destination.is_ipv4() => icmp::ECHO_REPLY,
            Some(&icmp::ECHO6) if packet.destination.is_ipv6() => icmp::ECHO6_REPLY,
            _ => return,
        };
        let mut body = vec![0; packet.end - packet.at];
        if body.len() < 8 || frame.read(packet.at, &mut body).is_err() {
            return;
        }
        let near = packet.destination == IpAddr::from(shared.network.link_local());
        if near || shared.network.has(packet.destination) {
            if !near {
                shared.learn(packet.source, packet.from);
            }
            body[0] = reply;
            let way = shared.way_back(packet);
            let number = u16::from_be_bytes([body[6], body[7]]);
            shared.message(&way, &body, number);
        } else {
            self.talks.ping(now, &body, packet, &mut self.host, shared);
        }
    }

    /// Something has become of a socket.
    pub fn event(&mut self, now: Nanos, token: Token, ready: Ready) {
        match token.table() {
            Some(Table::Tcp) => self.connections.event(now, token, ready, &mut self.shared),
            Some(Table::Talk) => self.talks.event(token, ready),
            Some(Table::Forward) => {
                if let Some(listener) = self.forwards.get_mut(token)
                    && !std::mem::replace(&mut listener.queued, true)
                {
                    self.called.push_back(token);
                }
            }
            None => {}
        }
    }

    /// Does what is due, and gives guests what there is for them, for a moment. Says whether there is more to be done at once.
    ///
    /// # Errors
    /// There is no room for more now.
    pub fn run(&mut self, now: Nanos, out: &mut dyn Output) -> Result<bool, Full> {
        self.tick(now);
        for _ in 0..TURNS {
            self.shared.outbox.put(out, &mut self.shared.stats.received)?;
            for token in std::mem::take(&mut self.shared.known) {
                self.connections.station_known(now, token, &mut self.shared);
            }
            self.take_calls(now);
            self.talks.turn(now, &mut self.shared, out)?;
            self.connections.turn(now, &mut self.shared, out)?;
            if !self.has_work() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_work(&self) -> bool {
        let waits =
            !self.shared.outbox.is_empty() || !self.shared.known.is_empty() || !self.called.is_empty();
        waits || self.talks.has_work() || self.connections.has_work()
    }

    /// Does what is due by now.
    fn tick(&mut self, now: Nanos) {
        while let Some(token) = self.shared.timers.pop(now) {
            match token.table() {
                Some(Table::Tcp) => self.connections.timeout(now, token, &mut self.shared),
                Some(Table::Talk) => self.talks.timeout(now, token, &mut self.shared),
                _ => {}
            }
        }
        if now >= self.again {
            self.called.extend(self.put_off.drain(..));
            self.again = Nanos::MAX;
        }
        if now >= self.advertise {
            self.advertise = now + ADVERTISED;
            let router = self.host.has_ipv6();
            if let Some(frame) = icmp::advertisement(&self.shared.network, self.shared.mtu, router, None) {
                self.shared.outbox.add(frame, None);
            }
        }
    }

    /// Takes from a forwarded port what has come to it, for a moment.
    fn take_calls(&mut self, now: Nanos) {
        let Self { connections, talks, host, shared, forwards, called, put_off, again, buffer, .. } = self;
        let Some(token) = called.pop_front() else { return };
        let Some(listener) = forwards.get_mut(token) else { return };
        let forward = listener.forward;
        let guest = SocketAddr::new(forward.guest.unwrap_or(shared.network.guest).into(), forward.port);
        for _ in 0..CALLS {
            let taken = match &mut listener.by {
                Listening::Tcp(socket) => host.accept(socket).map(|(stream, peer)| {
                    connections.accept(now, guest, peer, stream, host, shared);
                }),
                Listening::Udp(socket) => socket.receive(buffer).map(|(length, peer)| {
                    if let Some(peer) = peer {
                        talks.forwarded(now, token, guest, peer, &buffer[..length], shared);
                    }
                }),
            };
            match taken {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    listener.queued = false;
                    return;
                }
                Err(error) if crate::tcp::is_exhausted(&error) => {
                    put_off.push(token);
                    *again = (*again).min(now + SECOND);
                    return;
                }
                // Of one that has gone again, or of a datagram that was sent before.
                Err(_) | Ok(()) => {}
            }
        }
        called.push_back(token);
    }

    /// When it is to be run again, even if nothing happens.
    pub fn deadline(&self) -> Nanos {
        self.shared.timers.first().unwrap_or(Nanos::MAX).min(self.advertise).min(self.again)
    }

    /// Flows that wait for a time.
    pub fn timers(&self) -> usize {
        self.shared.timers.len()
    }

    /// Bytes that connections hold.
    pub fn held(&self) -> usize {
        self.connections.held()
    }

    /// What came of it so far.
    pub fn stats(&self) -> Stats {
        Stats {
            lost: self.shared.stats.lost + self.shared.outbox.lost,
            connections: self.connections.len(),
            talks: self.talks.len(),
            ..self.shared.stats
        }
    }
}

/// Whether a packet is for this end of the link: for one of our addresses, or for one beyond.
fn is_for_us(network: &Network, destination: IpAddr) -> bool {
    let several = match destination {
        IpAddr::V4(a) => {
            a.is_multicast() || a.is_broadcast() || a == network.broadcast() || a == network.base
        }
        IpAddr::V6(a) => a.is_multicast() || a.is_unicast_link_local() && a != network.link_local(),
    };
    !several && !network.may_be_guest(destination)
}
