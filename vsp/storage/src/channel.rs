//! How a channel is served, and what ends its requests.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use vireo_block::{Buffer, Executor, Task};
use vireo_scsi::{Command, Outcome, Sense, fill, opcode};
use vireo_vmbus::ring::{Packet, RingReader, RingWriter, kind};
use vireo_vmbus::{Channel, Listener};

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
    /// What the guest has not got yet, for want of room or because a turn will send it: (kind, transaction, packet).
    backlog: VecDeque<(u16, u64, StorPacket)>,
    in_flight: usize,
    /// Requests were left in the ring, since too many were under way.
    stalled: bool,
    /// Requests are taken out now. Who does it sends what has ended meanwhile, all at once.
    busy: bool,
    /// Turns are a disk's thread's, which most ends are told on: each has a turn follow that sends them all.
    hosted: bool,
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

/// What turns of a channel and ends of requests share.
pub struct Port {
    channel: Arc<Channel>,
    outgoing: Mutex<Outgoing>,
    /// It is not busy, or a request has ended.
    rest: Condvar,
}

impl Port {
    fn new(channel: Arc<Channel>, writer: RingWriter) -> Arc<Self> {
        let outgoing = Outgoing {
            writer,
            backlog: VecDeque::new(),
            in_flight: 0,
            stalled: false,
            busy: false,
            hosted: false,
            paused: false,
            at_rest: false,
            closed: false,
        };
        Arc::new(Self { channel, outgoing: Mutex::new(outgoing), rest: Condvar::new() })
    }

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
        if out.hosted && !out.busy && !out.paused && !out.closed {
            out.backlog.push_back((kind::COMPLETION, transaction, packet));
            self.channel.doorbell().ring();
        } else {
            self.send(&mut out, kind::COMPLETION, transaction, packet);
        }
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

/// A channel that is served, in the provider's hands.
pub struct Worker {
    port: Arc<Port>,
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Serves a channel whose rings are these, by a thread of its own until [`Self::settle`] says otherwise.
    pub fn start(
        channel: Arc<Channel>,
        controller: Arc<Controller>,
        control: Arc<dyn Control>,
        first: bool,
    ) -> Result<Self, String> {
        let rings = channel.take_rings().ok_or("its rings are taken")?;
        let port = Port::new(channel, rings.outgoing);
        let server = Arc::new(Server {
            port: Arc::clone(&port),
            controller,
            control,
            first,
            incoming: Mutex::new(Incoming {
                reader: rings.incoming,
                packet: Packet::default(),
                broken: false,
            }),
        });
        // What the guest sent before anybody listened rang nobody.
        port.channel.doorbell().ring();
        let served = Arc::clone(&server);
        let thread = std::thread::Builder::new()
            .name("storvsp".into())
            .spawn(move || {
                while !served.port.lock().closed {
                    served.port.channel.doorbell().wait();
                    served.turn(false);
                }
            })
            .map_err(|e| format!("the host refused a thread: {e}"))?;
        Ok(Self { port, server, thread: Some(thread) })
    }

    /// The channel's port.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Who serves the channel from now on: a disk's thread, or `None`: its own.
    pub fn settle(&self, executor: Option<Arc<dyn Executor>>) {
        self.port.lock().hosted = executor.is_some();
        let listener = executor.map(|executor| -> Listener {
            let server = Arc::downgrade(&self.server);
            Box::new(move || {
                if let Some(server) = server.upgrade() {
                    executor.execute(server);
                }
            })
        });
        self.port.channel.doorbell().listen(listener);
    }

    /// Comes to rest, with nothing in flight, before `deadline`; `false`: it could not, and goes on.
    pub fn pause(&self, deadline: Instant) -> bool {
        self.port.lock().paused = true;
        let rests = self.port.rests(deadline);
        if rests {
            let mut out = self.port.lock();
            // The turn that was to send these comes too late.
            self.port.flush(&mut out);
            out.at_rest = true;
        } else {
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
    /// Nobody touches the rings afterwards. Requests in flight end by themselves, and tell nobody.
    fn drop(&mut self) {
        self.port.lock().closed = true;
        self.port.channel.doorbell().listen(None);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            _ = thread.join();
        }
        // A disk's thread may have a turn still.
        drop(self.server.incoming());
    }
}

/// What serves a channel: one turn of it is a task.
struct Server {
    port: Arc<Port>,
    controller: Arc<Controller>,
    control: Arc<dyn Control>,
    /// The channel is the device's first.
    first: bool,
    /// Locked by who has a turn.
    incoming: Mutex<Incoming>,
}

/// The ring that the guest writes.
struct Incoming {
    reader: RingReader,
    packet: Packet,
    /// The guest broke its ring: nothing more can be read from it.
    broken: bool,
}

impl Task for Server {
    /// A turn on a disk's thread, which has its own to do, too: one round.
    fn run(&self) {
        self.turn(true);
    }
}

impl Server {
    fn incoming(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a turn: takes requests out and starts them, and sends what has ended. `once`: one round of it.
    fn turn(&self, once: bool) {
        let port = &self.port;
        port.channel.doorbell().answer();
        let mut incoming = self.incoming();
        let mut out = port.lock();
        if out.closed || out.paused {
            return;
        }
        out.busy = true;
        port.flush(&mut out);
        drop(out);
        if !incoming.broken {
            self.serve(&mut incoming, once);
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

    /// Takes requests out until there are none, or too many are under way.
    fn serve(&self, from: &mut Incoming, once: bool) {
        let mut batches = Batches::default();
        from.reader.mask();
        loop {
            let room = self.begin_round();
            let (mut taken, mut empty) = (0, false);
            for _ in 0..room {
                match from.reader.next(&mut from.packet) {
                    Ok(true) => taken += usize::from(self.take(&from.packet, &mut batches)),
                    Ok(false) => empty = true,
                    Err(e) => {
                        // The guest can have it as often as it likes.
                        tracing::debug!("a storage channel is dead: {e}");
                        from.broken = true;
                    }
                }
                if empty || from.broken {
                    break;
                }
            }
            batches.submit();
            if from.reader.publish() {
                self.port.channel.signal();
            }
            let stop = self.end_round(room - taken) || from.broken;
            if stop || empty {
                // A round that is ended early is gone on with when the doorbell is rung for what ended it.
                if !from.reader.unmask() || stop {
                    return;
                }
                from.reader.mask();
            }
            if once {
                return self.port.channel.doorbell().ring();
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
    fn take(&self, from: &Packet, batches: &mut Batches) -> bool {
        let transaction = from.transaction;
        let Some(packet) = StorPacket::parse(from.data()) else {
            tracing::debug!("a packet that is none of storvsc");
            return false;
        };
        if packet.operation() != operation::EXECUTE_SRB {
            let answer = self.control.serve(packet, self.first);
            self.port.complete(transaction, answer);
        } else if !self.control.ready() {
            self.port.complete(transaction, packet.failed(Sense::NOT_READY));
        } else {
            match self.buffers(from, &packet) {
                Some(data) => self.execute(transaction, packet, data, batches),
                // Drivers look at the block's status alone.
                None => self.port.complete(transaction, packet.failed(Sense::INVALID_FIELD)),
            }
        }
        true
    }

    /// The memory of a SCSI request, as much as it wants moved; `None`: it is not RAM, or more, or in more pieces, than drivers
    /// are told that it may be.
    fn buffers(&self, from: &Packet, packet: &StorPacket) -> Option<Vec<Buffer>> {
        if from.kind != kind::GPA_DIRECT {
            return Some(Vec::new());
        }
        let ranges = from.gpa_ranges(self.port.channel.memory(), PIECES_MAX).ok()?;
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

    fn execute(&self, transaction: u64, packet: StorPacket, data: Vec<Buffer>, batches: &mut Batches) {
        let (path, target, lun) = packet.unit();
        let present = (path, target) == (0, 0);
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
