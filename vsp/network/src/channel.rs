//! A channel: the thread that serves what the driver sends by it, and the way of frames and answers to the driver.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use vireo_frame::{Frame, Full};
use vireo_vmbus::Channel;
use vireo_vmbus::ring::{Packet, RingReader, RingWriter, TransferRange, kind};

use crate::buffer::ReceiveBuffer;
use crate::protocol::{SEND_TABLE, ToDriver, rndis_channel, status};
use crate::provider::Shared;
use crate::receive::{self, InFlight, Sections};
use crate::rndis::Infos;
use crate::transmit::{Sending, Transmitter};

/// Packets that are taken before the driver is told of those that are done.
const ROUND: usize = 64;
/// Ranges of one packet to the driver, as versions of NDIS before 6.0 have it.
const RANGES_MAX: usize = 64;
/// Answers that the driver has not read, before no more of its packets are taken.
const BACKLOG_MAX: usize = 2 * ROUND;
/// Messages of RNDIS that wait for room and a section; more are lost. Drivers have one question at a time.
const ANSWERS_MAX: usize = 2 * ROUND;

/// A message of NVSP that waits for room in the ring.
struct Message {
    kind: u16,
    transaction: u64,
    data: Vec<u8>,
}

/// The ring that the driver reads, and all that has to do with who may write it.
struct Outgoing {
    writer: RingWriter,
    backlog: VecDeque<Message>,
    /// Messages of RNDIS that are no frames, and wait for a section, too. Nothing else waits for them: sections that are free again
    /// may be behind packets whose completions are in the backlog.
    answers: VecDeque<Vec<u8>>,
    /// Frames in their sections, of which the driver is to be told with the next packet.
    pending: Vec<TransferRange>,
    sections: Vec<u32>,
    in_flight: InFlight,
    scratch: Vec<u8>,
    /// Packets are taken out of the other ring now.
    busy: bool,
    paused: bool,
    closed: bool,
}

impl Outgoing {
    /// Something waits that goes before frames.
    fn waits(&self) -> bool {
        !self.backlog.is_empty() || !self.answers.is_empty()
    }
}

/// What the channel's thread and those who have frames for the driver share.
pub struct Port {
    channel: Arc<Channel>,
    outgoing: Mutex<Outgoing>,
    rest: Condvar,
    /// There are frames of which the driver has not been told.
    dirty: AtomicBool,
    /// The thread is to rest, or to end: it takes no further packet.
    stops: AtomicBool,
}

impl Port {
    fn new(channel: Arc<Channel>, writer: RingWriter) -> Arc<Self> {
        let outgoing = Outgoing {
            writer,
            backlog: VecDeque::new(),
            answers: VecDeque::new(),
            pending: Vec::new(),
            sections: Vec::new(),
            in_flight: InFlight::default(),
            scratch: Vec::new(),
            busy: false,
            paused: false,
            closed: false,
        };
        Arc::new(Self {
            channel,
            outgoing: Mutex::new(outgoing),
            rest: Condvar::new(),
            dirty: AtomicBool::new(false),
            stops: AtomicBool::new(false),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The channel's memory and doorbell.
    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    /// Puts a frame into the driver's buffer; it is told of it by [`Self::flush`], or when many have come together.
    ///
    /// # Errors
    /// There is no room now: `shared` is to say when there is.
    pub fn deliver(
        &self,
        shared: &Shared,
        buffer: &Arc<ReceiveBuffer>,
        frame: &Frame<'_>,
        infos: Infos,
    ) -> Result<(), Full> {
        let count = receive::sections_of(frame, buffer.section());
        let mut out = self.lock();
        // The driver may have taken its buffer back since.
        if out.closed || count > RANGES_MAX.min(buffer.count() as usize) || !shared.has(buffer) {
            shared.counters.lost();
            return Ok(());
        }
        if out.waits() || out.pending.len() + count > RANGES_MAX {
            self.flush_locked(shared, &mut out);
        }
        if out.paused || out.waits() || out.pending.len() + count > RANGES_MAX {
            shared.full();
            return Err(Full);
        }
        let Some(sections) = shared.sections.take(count, || shared.full()) else {
            self.flush_locked(shared, &mut out);
            return Err(Full);
        };
        let out = &mut *out;
        out.pending.extend(receive::write(frame, infos, buffer, &sections, &mut out.scratch));
        out.sections.extend(sections);
        self.dirty.store(true, Ordering::Relaxed);
        shared.counters.received(frame.len());
        Ok(())
    }

    /// Tells the driver of its frames.
    pub fn flush(&self, shared: &Shared) {
        if self.dirty.swap(false, Ordering::Relaxed) {
            self.flush_locked(shared, &mut self.lock());
        }
    }

    /// Sends the driver a message of RNDIS that is no frame.
    pub fn send_control(&self, shared: &Shared, message: Vec<u8>) {
        let mut out = self.lock();
        if out.answers.len() < ANSWERS_MAX {
            out.answers.push_back(message);
            self.flush_locked(shared, &mut out);
        }
    }

    /// Tells the driver by which channels to send, in place of what it was told and has not read.
    pub fn send_table(&self, shared: &Shared, table: [u32; SEND_TABLE]) {
        let data = ToDriver::SendTable(table).bytes(shared.version());
        let mut out = self.lock();
        out.backlog.retain(|message| message.kind != kind::IN_BAND);
        out.backlog.push_back(Message { kind: kind::IN_BAND, transaction: 0, data });
        self.flush_locked(shared, &mut out);
    }

    fn complete(&self, out: &mut Outgoing, transaction: u64, data: Vec<u8>) {
        if !out.closed {
            out.backlog.push_back(Message { kind: kind::COMPLETION, transaction, data });
        }
    }

    /// Sends what there is room for. Nothing while the adapter is at rest: its rings are guest memory.
    fn flush_locked(&self, shared: &Shared, out: &mut Outgoing) {
        if out.closed || (out.paused && !out.busy) {
            return;
        }
        while let Some(Message { kind, transaction, data }) = out.backlog.front()
            && out.writer.push(*kind, *transaction, false, data).is_ok()
        {
            out.backlog.pop_front();
        }
        while out.backlog.is_empty()
            && let Some(message) = out.answers.front()
            && send_rndis(shared, &mut out.writer, &mut out.in_flight, message)
        {
            out.answers.pop_front();
        }
        if out.backlog.is_empty() && !out.pending.is_empty() && send_pending(shared, out) {
            out.pending.clear();
        }
        if out.writer.publish() {
            self.channel.signal();
        }
    }

    /// The driver has given a packet's sections back.
    fn give_back(&self, sections: &Sections, transaction: u64) {
        let mut out = self.lock();
        if let Some(taken) = out.in_flight.take(transaction) {
            // With the lock held: the buffer that they are of may be taken back at any time.
            sections.give(&taken);
        }
    }

    /// Whether the driver has read all, and given back all that it got.
    pub fn is_quiet(&self) -> bool {
        let out = self.lock();
        let quiet = !out.waits() && out.pending.is_empty() && out.writer.is_read();
        out.closed || (quiet && out.in_flight.is_empty())
    }

    /// Gives all sections back, of a channel that is closed.
    pub fn give_all(&self, sections: &Sections) {
        let mut out = self.lock();
        sections.give(&std::mem::take(&mut out.sections));
        out.in_flight.take_all().for_each(|taken| sections.give(&taken));
    }

    /// Forgets all that is in the driver's buffer.
    pub fn forget_buffer(&self) {
        let mut out = self.lock();
        out.pending.clear();
        out.sections.clear();
        out.in_flight = InFlight::default();
        out.answers.clear();
    }
}

/// Sends frames that are in their sections; whether there was room.
fn send_pending(shared: &Shared, out: &mut Outgoing) -> bool {
    let Some(buffer) = shared.buffer() else { return true };
    let transaction = out.in_flight.next();
    let data = ToDriver::Rndis { channel: rndis_channel::DATA }.bytes(shared.version());
    let sent = out.writer.push_transfer(transaction, buffer.id(), &out.pending, &data).is_ok();
    if sent {
        out.in_flight.add(std::mem::take(&mut out.sections));
    }
    sent
}

/// Sends a message of RNDIS in a section; whether there was one, and room. One that is too long is lost: there is none.
fn send_rndis(shared: &Shared, writer: &mut RingWriter, in_flight: &mut InFlight, message: &[u8]) -> bool {
    let Some(buffer) = shared.buffer().filter(|b| message.len() <= b.section() as usize) else { return true };
    let Some(section) = shared.sections.take_for_answer() else { return false };
    buffer.write(section, 0, message);
    let range = TransferRange { bytes: message.len() as u32, offset: buffer.offset(section) };
    let transaction = in_flight.next();
    let data = ToDriver::Rndis { channel: rndis_channel::CONTROL }.bytes(shared.version());
    let sent = writer.push_transfer(transaction, buffer.id(), &[range], &data).is_ok();
    match sent {
        true => in_flight.add(vec![section]),
        false => shared.sections.give(&[section]),
    }
    sent
}

/// A channel that is served, in the provider's hands.
pub struct Worker {
    port: Arc<Port>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Serves a channel by a thread of its own.
    pub fn start(channel: Arc<Channel>, shared: &Arc<Shared>, subchannel: u16) -> Result<Self, String> {
        let rings = channel.take_rings().ok_or("its rings are taken")?;
        let port = Port::new(channel, rings.outgoing);
        let mut server = Server {
            port: Arc::clone(&port),
            shared: Arc::clone(shared),
            first: subchannel == 0,
            reader: rings.incoming,
            packet: Packet::default(),
            held: None,
            transmitter: Transmitter::default(),
            broken: false,
        };
        // Before it has sections: who takes the buffer back has to find it.
        shared.set_port(subchannel, Some(Arc::clone(&port)));
        // What the guest sent before anybody listened rang nobody.
        port.channel.doorbell().ring();
        let thread = std::thread::Builder::new()
            .name("netvsp".into())
            .spawn(move || {
                while !server.port.lock().closed {
                    server.port.channel.doorbell().wait();
                    server.turn();
                }
            })
            .map_err(|e| {
                shared.set_port(subchannel, None);
                format!("the host refused a thread: {e}")
            })?;
        Ok(Self { port, thread: Some(thread) })
    }

    /// The channel's port.
    pub fn port(&self) -> &Arc<Port> {
        &self.port
    }

    /// Comes to rest before `deadline`; `false`: it could not, and goes on.
    pub fn pause(&self, deadline: Instant) -> bool {
        let mut out = self.port.lock();
        out.paused = true;
        self.port.stops.store(true, Ordering::Relaxed);
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.port.rest.wait_timeout_while(out, left, |out| out.busy);
        let rests = !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        if !rests {
            self.resume();
        }
        rests
    }

    /// Goes on.
    pub fn resume(&self) {
        let mut out = self.port.lock();
        out.paused = false;
        self.port.stops.store(false, Ordering::Relaxed);
        drop(out);
        self.port.channel.doorbell().ring();
    }
}

impl Drop for Worker {
    /// Nobody touches the rings afterwards.
    fn drop(&mut self) {
        self.port.lock().closed = true;
        self.port.stops.store(true, Ordering::Relaxed);
        self.port.channel.doorbell().ring();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            _ = thread.join();
        }
    }
}

/// What serves a channel.
struct Server {
    port: Arc<Port>,
    shared: Arc<Shared>,
    first: bool,
    reader: RingReader,
    packet: Packet,
    /// What the link had no room for.
    held: Option<Sending>,
    transmitter: Transmitter,
    /// The guest broke its ring: nothing more can be read from it.
    broken: bool,
}

impl Server {
    /// Has a turn: takes packets out and serves them, until there are none or the link is full.
    fn turn(&mut self) {
        let port = Arc::clone(&self.port);
        let mut out = port.lock();
        if out.closed || out.paused {
            return;
        }
        out.busy = true;
        port.flush_locked(&self.shared, &mut out);
        drop(out);
        if !self.broken {
            self.serve();
        }
        let mut out = port.lock();
        port.flush_locked(&self.shared, &mut out);
        out.busy = false;
        let paused = out.paused;
        drop(out);
        if paused {
            port.rest.notify_all();
        } else {
            // Sections have come back, or the driver has read.
            self.shared.tell_room();
        }
    }

    fn serve(&mut self) {
        self.reader.mask();
        loop {
            // Answers that the driver does not read are not added to without end.
            let mut stop = self.port.lock().backlog.len() >= BACKLOG_MAX || !self.send_held();
            let mut taken = 0;
            while !stop && taken < ROUND && !self.port.stops.load(Ordering::Relaxed) {
                match self.reader.next(&mut self.packet) {
                    Ok(true) => stop = !self.take(),
                    Ok(false) => break,
                    Err(e) => {
                        // The guest can have it as often as it likes.
                        tracing::debug!("a network channel is dead: {e}");
                        (self.broken, stop) = (true, true);
                    }
                }
                taken += 1;
            }
            self.shared.link.flush();
            if self.reader.publish() {
                self.port.channel.signal();
            }
            let mut out = self.port.lock();
            self.port.flush_locked(&self.shared, &mut out);
            stop |= out.paused || out.closed || out.backlog.len() >= BACKLOG_MAX;
            drop(out);
            self.shared.tell_room();
            // What stops it rings the doorbell when it does not any more.
            if stop || (taken < ROUND && !self.reader.unmask()) {
                return;
            }
            self.reader.mask();
        }
    }

    /// Sends the frames of the packet that is under way; whether the link took them all.
    fn send_held(&mut self) -> bool {
        let Some(held) = &mut self.held else { return true };
        let mut sent = crate::transmit::Sent::default();
        let full = self.transmitter.send(held, &*self.shared.link, &mut sent).is_err();
        self.shared.counters.sent(&sent);
        if full {
            return false;
        }
        let outcome = if sent.bad > 0 { status::INVALID_RNDIS_PACKET } else { status::SUCCESS };
        let answer = ToDriver::RndisComplete { status: outcome }.bytes(self.shared.version());
        let transaction = held.transaction;
        self.held = None;
        self.port.complete(&mut self.port.lock(), transaction, answer);
        true
    }

    /// Serves the packet that was read; `false`: no more of them now.
    fn take(&mut self) -> bool {
        let transaction = self.packet.transaction;
        if self.packet.kind == kind::COMPLETION {
            self.port.give_back(&self.shared.sections, transaction);
            return true;
        }
        let taken = self.shared.take(&self.packet, &self.port, self.first);
        match taken {
            Taken::Nothing => true,
            Taken::Answer(answer) => {
                if self.packet.wants_completion {
                    let answer = answer.bytes(self.shared.version());
                    self.port.complete(&mut self.port.lock(), transaction, answer);
                }
                true
            }
            Taken::Frames(memory) => {
                self.held = Some(Sending::new(transaction, memory));
                self.send_held()
            }
        }
    }
}

/// What a packet of the driver's comes to.
pub enum Taken {
    /// Nothing that is to be answered.
    Nothing,
    /// An answer.
    Answer(ToDriver),
    /// Data messages in this memory.
    Frames(Vec<vireo_memory::GuestSlice>),
}
