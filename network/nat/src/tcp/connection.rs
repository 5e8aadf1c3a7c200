//! A connection of a guest, which the host has as well.
//!
//! Between guest and NAT there is TCP of our own, as simple as both ends being on one host allow: what the host's socket has taken, or
//! what there is room for, is acknowledged; what the guest has not acknowledged is kept, and so is what came before
//! its turn.

use std::io;

use vireo_frame::Mac;
use vireo_frame::headers::protocol;

use super::buffer::{Buffer, Pool};
use super::pace::{Clock, Pace};
use crate::host::{Ready, Stream};
use crate::shared::Shared;
use crate::slots::{CALLERS, Nanos, SECOND, Timer};
use crate::wire::{Segment, TCP, Way, flag};

/// Bytes that each connection may hold, each way, whatever others do.
pub const BASE: usize = 64 << 10;
/// Bytes that it may hold at most, each way.
pub const MOST: usize = 4 << 20;
/// Bits by which windows are shifted that guests are told.
pub const SHIFT: u8 = 7;
/// The smallest segments that a guest may ask for.
const MSS_MIN: u16 = 64;
/// What a guest takes that does not say (RFC 9293, 3.7.1).
const MSS_SILENT: u16 = 536;
/// How long what both sides have ended is remembered, so that what comes late is answered well.
const LINGER: Nanos = 10 * SECOND;
/// A guest that answers nothing for so long is gone (as Linux has it).
const SILENCE: Nanos = 900 * SECOND;
/// A guest that does not take a connection for so long will not.
const CALLING: Nanos = 30 * SECOND;
/// A host that has not connected after so long is not waited for; a guest that still is asks again.
const CONNECTING: Nanos = 30 * SECOND;
/// A guest with nothing to say is asked whether it is there after so long, and then so often.
const IDLE: Nanos = 7200 * SECOND;
const ASKED: Nanos = 75 * SECOND;

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The host connects; the guest waits.
    Connecting,
    /// The host is connected; the guest is to say that it knows.
    Answering,
    /// Somebody has connected to the host; the guest is asked.
    Calling,
    /// Both ends are there.
    Open,
    /// Both have ended it.
    Lingering,
    /// It is to be forgotten.
    Over,
}

/// A connection.
#[derive(Debug)]
pub struct Connection<S> {
    pub state: State,
    pub way: Way,
    /// The station in whose share it is: the guest's as it was known when it began.
    pub owner: Mac,
    /// Ports: ours as the guest sees it, and the guest's.
    pub ports: (u16, u16),
    /// The host's end, until both have ended.
    pub stream: Option<S>,
    pub ready: Ready,
    /// It is in the queue of those who have something to do.
    pub queued: bool,
    pub timer: Timer,

    /// To the guest: the first number that it has not acknowledged, the next one to be sent, the next that never was.
    pub(super) una: u32,
    pub(super) next: u32,
    pub(super) high: u32,
    /// Bytes from `una` on.
    pub(super) out: Buffer,
    /// Bytes that may be in it.
    pub(super) limit: usize,
    /// No more come behind them.
    pub(super) host_ended: bool,
    pub(super) fin_acked: bool,
    /// What the guest takes: bytes from `una` on, by which segment it said so, shift, largest payload.
    pub(super) window: u32,
    pub(super) told_by: (u32, u32),
    pub(super) shift: Option<u8>,
    pub(super) mss: u32,
    pub(super) clock: Clock,
    pub(super) pace: Pace,
    /// The first bytes under way are to be sent again; a packet without bytes is to be sent that has to be answered.
    pub(super) again: bool,
    pub(super) probe: bool,
    /// When what is under way is late.
    pub(super) late: Option<Nanos>,

    /// From the guest: the next number; how far it was told that it may go; the next number when it was last let go further.
    pub(super) received: u32,
    pub(super) edge: u32,
    pub(super) grown: u32,
    /// What the host's socket had no room for.
    pub(super) held: Buffer,
    /// What came before its turn: from which number on.
    pub(super) later: Vec<(u32, Vec<u8>)>,
    /// Bytes that may be in it.
    pub(super) capacity: usize,
    pub(super) guest_ended: bool,
    /// The host's end knows that.
    pub(super) finished: bool,
    pub(super) ack_due: bool,
    /// Segments that came before their turn, each of which the guest is to be told of: by that it knows that one was lost.
    pub(super) early: u8,
    /// When the guest was heard last, and when it began.
    pub(super) heard: Nanos,
    started: Nanos,
}

impl<S: Stream> Connection<S> {
    fn new(state: State, way: Way, ports: (u16, u16), stream: S, first: u32, now: Nanos) -> Self {
        Self {
            state,
            owner: way.to,
            way,
            ports,
            stream: Some(stream),
            ready: Ready::default(),
            queued: false,
            timer: Timer::default(),
            una: first,
            next: first,
            high: first,
            out: Buffer::default(),
            limit: BASE,
            host_ended: false,
            fin_acked: false,
            window: 0,
            told_by: (0, 0),
            shift: None,
            mss: MSS_SILENT.into(),
            clock: Clock::new(),
            pace: Pace::new(),
            again: false,
            probe: false,
            late: None,
            received: 0,
            edge: 0,
            grown: 0,
            held: Buffer::default(),
            later: Vec::new(),
            capacity: BASE,
            guest_ended: false,
            finished: false,
            ack_due: false,
            early: 0,
            heard: now,
            started: now,
        }
    }

    /// A guest connects.
    pub fn from_guest(way: Way, segment: &Segment, stream: S, first: u32, mtu: u32, now: Nanos) -> Self {
        let ports = (segment.destination, segment.source);
        let mut this = Self::new(State::Connecting, way, ports, stream, first, now);
        this.learn(segment, mtu);
        this
    }

    /// Somebody connects to a guest.
    pub fn to_guest(way: Way, ports: (u16, u16), stream: S, first: u32, now: Nanos) -> Self {
        let mut this = Self::new(State::Calling, way, ports, stream, first, now);
        (this.owner, this.ready.write) = (CALLERS, true);
        this
    }

    /// Takes what a guest's first segment says.
    pub(super) fn learn(&mut self, segment: &Segment, mtu: u32) {
        let most = mtu - (self.way.headers() - vireo_frame::headers::HEADER + TCP) as u32;
        self.mss = u32::from(segment.mss.unwrap_or(MSS_SILENT).max(MSS_MIN)).min(most);
        self.shift = segment.scale;
        self.window = segment.window.into();
        self.received = segment.sequence.wrapping_add(1);
        (self.edge, self.grown) = (self.received, self.received);
        self.told_by = (segment.sequence, segment.ack);
    }

    /// Behind the last byte that there is.
    pub(super) fn end(&self) -> u32 {
        self.una.wrapping_add(self.out.len() as u32)
    }

    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        self.out.len() + self.held.len() + self.later_bytes()
    }

    /// Whether a number comes behind all that the guest has sent.
    pub fn is_after(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.received) as i32 >= 0
    }

    /// Numbers that are under way.
    pub(super) fn flight(&self) -> u32 {
        self.next.wrapping_sub(self.una)
    }

    /// The host's end has something to tell.
    pub fn event(&mut self, ready: Ready, shared: &mut Shared, pool: &mut Pool) {
        self.ready.read |= ready.read;
        self.ready.write |= ready.write;
        if self.state == State::Connecting && self.ready.write {
            match self.stream.as_mut().map_or(Ok(()), Stream::connected) {
                Ok(()) => self.state = State::Answering,
                Err(error) => self.refuse(&error, shared),
            }
        }
        self.drain(shared, pool);
    }

    /// Gives the host's end what it had no room for.
    pub(super) fn drain(&mut self, shared: &mut Shared, pool: &mut Pool) {
        while self.ready.write
            && self.state != State::Over
            && !self.held.is_empty()
            && let Some(stream) = &mut self.stream
        {
            match stream.send(self.held.first()) {
                Ok(count) => self.held.release(count, pool),
                Err(error) => self.failed(&error, true, shared),
            }
        }
        if self.guest_ended && self.held.is_empty() && !self.finished {
            self.finished = true;
            if let Some(stream) = &mut self.stream {
                stream.finish();
            }
        }
    }

    /// The host's end could not do something: it cannot now, or not any more.
    pub(super) fn failed(&mut self, error: &io::Error, sending: bool, shared: &mut Shared) {
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock if sending => self.ready.write = false,
            io::ErrorKind::WouldBlock => self.ready.read = false,
            _ => self.reset(shared),
        }
    }

    /// The host cannot connect.
    pub fn refuse(&mut self, error: &io::Error, shared: &mut Shared) {
        let first = self.received.wrapping_sub(1);
        refuse(error, &self.way, self.ports, first, shared);
        self.state = State::Over;
    }

    /// Both ends are told that it is over.
    pub(super) fn reset(&mut self, shared: &mut Shared) {
        let Self { way, ports, high, received, .. } = *self;
        let told = !matches!(self.state, State::Over | State::Lingering);
        if told && way.to.is_station() {
            let flags = if self.state == State::Calling { flag::RST } else { flag::RST | flag::ACK };
            reset(&way, ports, flags, high, received, shared);
        }
        self.abandon();
    }

    /// The host's end is told that it is over.
    pub(super) fn abandon(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.abort();
        }
        self.state = State::Over;
    }

    /// Looks whether both ends have ended.
    pub(super) fn settle(&mut self, now: Nanos, pool: &mut Pool) {
        if self.state == State::Open && self.guest_ended && self.finished && self.fin_acked {
            self.state = State::Lingering;
            self.stream = None;
            self.heard = now;
            self.give_back(pool);
        }
    }

    /// Gives all memory back.
    pub fn give_back(&mut self, pool: &mut Pool) {
        self.out.clear(pool);
        self.held.clear(pool);
        self.later = Vec::new();
        pool.release(self.limit - BASE + self.capacity - BASE);
        (self.limit, self.capacity) = (BASE, BASE);
    }

    /// It is time for what was to be done at a time.
    pub fn timeout(&mut self, now: Nanos, shared: &mut Shared) {
        let silence = now.saturating_sub(self.heard);
        match self.state {
            State::Lingering if silence >= LINGER => self.state = State::Over,
            State::Connecting if now.saturating_sub(self.started) >= CONNECTING => self.abandon(),
            State::Calling if now.saturating_sub(self.started) >= CALLING => self.abandon(),
            State::Answering if now.saturating_sub(self.started) >= 2 * CALLING => self.reset(shared),
            State::Open if self.late.is_some() && silence >= SILENCE => self.reset(shared),
            State::Open if silence >= IDLE + 10 * ASKED => self.reset(shared),
            State::Open if self.late.is_none() && silence >= IDLE => self.probe = true,
            _ => {}
        }
        if self.late.is_some_and(|late| late <= now) {
            self.late = None;
            self.clock.late();
            match self.flight() {
                0 => self.probe = true,
                flight => {
                    shared.stats.sent_again += 1;
                    self.pace.late(flight, self.mss);
                    self.next = self.una;
                    self.again = false;
                }
            }
        }
    }

    /// When it is to be looked at again, if nothing happens before.
    pub fn due(&self, now: Nanos) -> Option<Nanos> {
        let patience = match self.state {
            State::Over => return None,
            State::Connecting => self.started + CONNECTING,
            State::Lingering => self.heard + LINGER,
            State::Open => {
                let asked = now.saturating_sub(self.heard + IDLE) / ASKED + 1;
                let next = if now < self.heard + IDLE { 0 } else { asked };
                self.heard + IDLE + next * ASKED
            }
            State::Answering | State::Calling => Nanos::MAX,
        };
        Some(self.late.map_or(patience, |late| late.min(patience)))
    }
}

/// Tells a guest that the host cannot connect.
pub fn refuse(error: &io::Error, way: &Way, ports: (u16, u16), sequence: u32, shared: &mut Shared) {
    use crate::icmp::Unreachable;
    let why = match error.kind() {
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::AddrNotAvailable => Unreachable::Network,
        io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut => Unreachable::Host,
        io::ErrorKind::PermissionDenied => Unreachable::Forbidden,
        _ => return reset(way, ports, flag::RST | flag::ACK, 0, sequence.wrapping_add(1), shared),
    };
    let mut first = [0; 8];
    first[..2].copy_from_slice(&ports.1.to_be_bytes());
    first[2..4].copy_from_slice(&ports.0.to_be_bytes());
    first[4..].copy_from_slice(&sequence.to_be_bytes());
    shared.refuse(way, why, protocol::TCP, first, TCP);
}

/// Tells a guest that there is no such connection.
pub fn reset(way: &Way, ports: (u16, u16), flags: u8, sequence: u32, ack: u32, shared: &mut Shared) {
    let numbers = super::send::Numbers { ports, sequence, ack, flags, window: 0 };
    let (header, length) = super::send::header(way, &numbers, &[], 0);
    shared.outbox.add(header[..length].to_vec(), Some((way.headers(), 16)));
}
