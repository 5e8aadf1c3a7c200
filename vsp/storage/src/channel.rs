//! A channel's thread, and what ends its requests.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use vireo_block::Buffer;
use vireo_scsi::{Command, Outcome, Sense, fill, opcode};
use vireo_vmbus::Channel;
use vireo_vmbus::ring::{Packet, RingReader, RingWriter, kind};

use crate::controller::{Batches, Controller};
use crate::protocol::{StorPacket, TRANSFER_MAX, operation};

/// Requests of a channel that may be under way. More than a driver sends, so that those which wait for one disk never keep
/// another's out.
const DEPTH: usize = 4096;
/// Requests that are taken before they are handed over: what a disk starts at once, and how many the first waits for.
const ROUND: usize = 64;

/// Pieces of memory of one request: a page each, and the first and last may be parts of one.
const PIECES_MAX: usize = TRANSFER_MAX as usize / 4096 + 1;

/// What the protocol's own requests (all but SCSI commands) are answered by.
pub trait Control: Send + Sync {
    /// The answer to a request that came by the device's first channel, or by another. Called on the channel's thread.
    fn serve(&self, packet: StorPacket, first: bool) -> StorPacket;
    /// Whether the driver is done with its introduction: SCSI commands are taken.
    fn ready(&self) -> bool;
}

/// The ring that the guest reads, and all that has to do with who may write it.
struct Outgoing {
    writer: RingWriter,
    /// What the guest has not got yet, for want of room or because the thread is busy: (kind, transaction, packet).
    backlog: VecDeque<(u16, u64, StorPacket)>,
    in_flight: usize,
    /// The thread left requests in the ring, since too many were under way.
    stalled: bool,
    /// The thread takes requests out now. When it is done with some, it sends what has ended meanwhile, all at once.
    busy: bool,
    /// It takes none, and comes to rest.
    paused: bool,
    /// It has come to rest.
    at_rest: bool,
    closed: bool,
}

impl Outgoing {
    /// Whether more requests may be taken. An answer that the guest does not read counts as one under way.
    fn has_room(&self) -> bool {
        self.in_flight + self.backlog.len() < DEPTH
    }
}

/// What a channel's thread and ends of requests share.
pub struct Port {
    channel: Arc<Channel>,
    outgoing: Mutex<Outgoing>,
    /// It is not busy, or a request has ended.
    rest: Condvar,
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a packet, now or later.
    fn send(&self, out: &mut Outgoing, kind: u16, transaction: u64, packet: StorPacket) {
        if out.closed {
            return;
        }
        out.backlog.push_back((kind, transaction, packet));
        if !out.busy {
            self.flush(out);
        }
    }

    /// Sends what there is room for. Nothing while the device is at rest: its rings are guest memory.
    fn flush(&self, out: &mut Outgoing) {
        if out.closed || out.at_rest {
            return;
        }
        while let Some((kind, transaction, packet)) = out.backlog.front() {
            // Without room, the guest rings when it has made some.
            if out.writer.push(*kind, *transaction, false, packet.bytes()).is_err() {
                break;
            }
            out.backlog.pop_front();
        }
        if out.writer.publish() {
            self.channel.signal();
        }
        if out.stalled && out.has_room() {
            out.stalled = false;
            self.channel.doorbell().ring();
        }
    }

    /// Tells the driver something that it did not ask for.
    pub fn announce(&self, operation: u32) {
        let mut out = self.lock();
        // One that the driver has not seen yet says it all.
        if !out.backlog.iter().any(|(k, ..)| *k == kind::IN_BAND) {
            self.send(&mut out, kind::IN_BAND, 0, StorPacket::of(operation));
        }
    }

    /// A request of the driver's has ended.
    fn complete(&self, transaction: u64, packet: StorPacket) {
        let mut out = self.lock();
        out.in_flight -= 1;
        self.send(&mut out, kind::COMPLETION, transaction, packet);
        let rest = out.paused || out.closed;
        drop(out);
        if rest {
            self.rest.notify_all();
        }
    }

    /// Waits until nothing is under way; `false`: something still was at `deadline`.
    pub fn rests(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let works = |out: &mut Outgoing| out.busy || out.in_flight > 0;
        let waited = self.rest.wait_timeout_while(self.lock(), left, works);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Whether nothing is under way now.
    pub fn is_idle(&self) -> bool {
        self.lock().in_flight == 0
    }
}

/// A channel's thread, in the provider's hands.
pub struct Worker {
    port: Arc<Port>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread of a channel whose rings are these.
    pub fn start(
        channel: Arc<Channel>,
        controller: Arc<Controller>,
        control: Arc<dyn Control>,
        first: bool,
    ) -> Result<Self, String> {
        let rings = channel.take_rings().ok_or("its rings are taken")?;
        let outgoing = Outgoing {
            writer: rings.outgoing,
            backlog: VecDeque::new(),
            in_flight: 0,
            stalled: false,
            busy: false,
            paused: false,
            at_rest: false,
            closed: false,
        };
        let port = Arc::new(Port { channel, outgoing: Mutex::new(outgoing), rest: Condvar::new() });
        let mut server = Server {
            port: Arc::clone(&port),
            reader: rings.incoming,
            controller,
            control,
            first,
            packet: Packet::default(),
            broken: false,
        };
        // What the guest sent before anybody listened rang nobody.
        port.channel.doorbell().ring();
        let thread = std::thread::Builder::new()
            .name("storvsp".into())
            .spawn(move || server.run())
            .map_err(|e| format!("the host refused a thread: {e}"))?;
        Ok(Self { port, thread: Some(thread) })
    }

    /// The channel's port.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Comes to rest, with nothing in flight, before `deadline`; `false`: it could not, and goes on.
    pub fn pause(&self, deadline: Instant) -> bool {
        self.port.lock().paused = true;
        let rests = self.port.rests(deadline);
        self.port.lock().at_rest = rests;
        if !rests {
            self.resume();
        }
        rests
    }

    /// Goes on.
    pub fn resume(&self) {
        let mut out = self.port.lock();
        (out.paused, out.at_rest) = (false, false);
        drop(out);
        self.port.channel.doorbell().ring();
    }
}

impl Drop for Worker {
    /// Ends the thread. Requests in flight end by themselves, and tell nobody.
    fn drop(&mut self) {
        self.port.lock().closed = true;
        self.port.channel.doorbell().ring();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            _ = thread.join();
        }
    }
}

/// What the thread owns.
struct Server {
    port: Arc<Port>,
    reader: RingReader,
    controller: Arc<Controller>,
    control: Arc<dyn Control>,
    /// The channel is the device's first.
    first: bool,
    packet: Packet,
    /// The guest broke its ring: nothing more can be read from it.
    broken: bool,
}

impl Server {
    fn run(&mut self) {
        let port = Arc::clone(&self.port);
        loop {
            port.channel.doorbell().wait();
            let mut out = port.lock();
            if out.closed {
                return;
            }
            if out.paused {
                continue;
            }
            out.busy = true;
            port.flush(&mut out);
            drop(out);
            if !self.broken {
                self.serve();
            }
            let mut out = port.lock();
            out.busy = false;
            port.flush(&mut out);
            let paused = out.paused;
            drop(out);
            if paused {
                port.rest.notify_all();
            }
        }
    }

    /// Takes requests out until there are none, or too many are under way.
    fn serve(&mut self) {
        let mut batches = Batches::default();
        self.reader.mask();
        loop {
            let room = self.begin_round();
            let (mut taken, mut empty) = (0, false);
            for _ in 0..room {
                match self.reader.next(&mut self.packet) {
                    Ok(true) => taken += usize::from(self.take(&mut batches)),
                    Ok(false) => empty = true,
                    Err(e) => {
                        // The guest can have it as often as it likes.
                        tracing::debug!("a storage channel is dead: {e}");
                        self.broken = true;
                    }
                }
                if empty || self.broken {
                    break;
                }
            }
            batches.submit();
            if self.reader.publish() {
                self.port.channel.signal();
            }
            let stop = self.end_round(room - taken) || self.broken;
            if stop || empty {
                // A round that is ended early is gone on with when the doorbell is rung for what ended it.
                if !self.reader.unmask() || stop {
                    return;
                }
                self.reader.mask();
            }
        }
    }

    /// How many requests may be taken in a round. They count as under way.
    fn begin_round(&self) -> usize {
        let mut out = self.port.lock();
        let room = DEPTH.saturating_sub(out.in_flight + out.backlog.len()).min(ROUND);
        out.in_flight += room;
        room
    }

    /// Ends a round in which so many of them were not taken; whether requests have to stay in the ring for now.
    fn end_round(&self, unused: usize) -> bool {
        let mut out = self.port.lock();
        out.in_flight -= unused;
        self.port.flush(&mut out);
        out.stalled = !out.has_room();
        out.stalled || out.paused || out.closed
    }

    /// Serves the packet that was read; whether it is a request.
    fn take(&mut self, batches: &mut Batches) -> bool {
        let transaction = self.packet.transaction;
        let Some(packet) = StorPacket::parse(self.packet.data()) else {
            tracing::debug!("a packet that is none of storvsc");
            return false;
        };
        if packet.operation() != operation::EXECUTE_SRB {
            let answer = self.control.serve(packet, self.first);
            self.port.complete(transaction, answer);
        } else if !self.control.ready() {
            self.port.complete(transaction, packet.failed(Sense::NOT_READY));
        } else {
            match self.buffers(&packet) {
                Some(data) => self.execute(packet, data, batches),
                // Drivers look at the block's status alone.
                None => self.port.complete(transaction, packet.failed(Sense::INVALID_FIELD)),
            }
        }
        true
    }

    /// The memory of a SCSI request, as much as it wants moved; `None`: it is not RAM, or more, or in more pieces, than drivers
    /// are told that it may be.
    fn buffers(&self, packet: &StorPacket) -> Option<Vec<Buffer>> {
        if self.packet.kind != kind::GPA_DIRECT {
            return Some(Vec::new());
        }
        let ranges = self.packet.gpa_ranges(self.port.channel.memory(), PIECES_MAX).ok()?;
        if packet.transfer() > TRANSFER_MAX {
            return None;
        }
        let mut left = packet.transfer() as usize;
        let mut buffers = Vec::with_capacity(ranges.len());
        for range in ranges.into_iter().filter(|r| !r.is_empty()) {
            if left == 0 {
                break;
            }
            let head = if range.len() > left { range.split_at(left).0 } else { range };
            left -= head.len();
            buffers.push(Buffer::Guest(head));
        }
        Some(buffers)
    }

    fn execute(&mut self, packet: StorPacket, data: Vec<Buffer>, batches: &mut Batches) {
        let (path, target, lun) = packet.unit();
        let present = (path, target) == (0, 0);
        let transaction = self.packet.transaction;
        let cdb = packet.cdb();
        let unit = self.controller.unit(lun).filter(|_| present);
        match (cdb[0], unit) {
            (opcode::REPORT_LUNS, _) => {
                let moved = fill(&data, &self.controller.list(present));
                self.port.complete(transaction, packet.good(moved as u32));
            }
            (_, Some(unit)) => {
                let port = Arc::clone(&self.port);
                let done = move |outcome: Outcome| {
                    let answer = match outcome.sense {
                        None => packet.good(outcome.moved),
                        Some(sense) => packet.failed(sense),
                    };
                    port.complete(transaction, answer);
                };
                unit.start(Command { cdb, data, done: Box::new(done) }, batches.of(&unit));
            }
            (opcode::INQUIRY, None) => {
                // Drivers take every INQUIRY for a success: qualifier 3 and type 31 say that there can be no unit here.
                let mut nobody = [0; 36];
                (nobody[0], nobody[2], nobody[3], nobody[4]) = (0x7f, 6, 2, 31);
                let moved = fill(&data, &nobody);
                self.port.complete(transaction, packet.good(moved as u32));
            }
            (_, None) => {
                if present {
                    self.controller.missed(lun);
                }
                self.port.complete(transaction, packet.no_unit());
            }
        }
    }
}
