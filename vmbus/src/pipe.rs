//! A channel of messages, for devices that move nothing but these: a thread takes them one by one, answers wait for room.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::Channel;
use crate::ring::{Packet, RingReader, RingWriter, kind};

/// Messages that wait for a guest that does not read them. More are lost.
const BACKLOG: usize = 1024;

/// What a device makes of the messages that come by a pipe.
pub trait Receiver: Send + Sync {
    /// The guest sent this. Called on the pipe's thread, never while the device is paused.
    fn message(&self, pipe: &Arc<Pipe>, data: &[u8]);
}

/// The way to the guest.
pub struct Pipe {
    channel: Arc<Channel>,
    state: Mutex<State>,
    /// The thread is not at work any more.
    rest: Condvar,
}

struct State {
    writer: RingWriter,
    /// Kind, transaction, data.
    backlog: VecDeque<(u16, u64, Vec<u8>)>,
    busy: bool,
    paused: bool,
    /// The rings are left alone.
    at_rest: bool,
    closed: bool,
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message, now or when there is room. `false`: the pipe is closed, or the guest has too many unread: it is lost.
    pub fn send(&self, data: Vec<u8>) -> bool {
        self.push(kind::IN_BAND, 0, data)
    }

    fn push(&self, kind: u16, transaction: u64, data: Vec<u8>) -> bool {
        let mut state = self.lock();
        if state.closed || state.backlog.len() >= BACKLOG {
            return false;
        }
        state.backlog.push_back((kind, transaction, data));
        self.flush(&mut state);
        true
    }

    fn flush(&self, state: &mut State) {
        if state.closed || state.at_rest {
            return;
        }
        while let Some((kind, transaction, data)) = state.backlog.front() {
            // Without room, the guest rings when it has made some.
            if state.writer.push(*kind, *transaction, false, data).is_err() {
                break;
            }
            state.backlog.pop_front();
        }
        if state.writer.publish() {
            self.channel.signal();
        }
    }
}

/// A channel's thread, and its pipe. Dropping it closes both: nobody touches the rings afterwards.
pub struct PipeServer {
    pipe: Arc<Pipe>,
    thread: Option<JoinHandle<()>>,
}

impl PipeServer {
    /// Serves a channel.
    ///
    /// # Errors
    /// It is served already, or the host refuses a thread.
    pub fn start(name: &str, channel: Arc<Channel>, receiver: Arc<dyn Receiver>) -> Result<Self, String> {
        let rings = channel.take_rings().ok_or("its rings are taken")?;
        let state = State {
            writer: rings.outgoing,
            backlog: VecDeque::new(),
            busy: false,
            paused: false,
            at_rest: false,
            closed: false,
        };
        let pipe = Arc::new(Pipe { channel, state: Mutex::new(state), rest: Condvar::new() });
        // What the guest sent before anybody listened rang nobody.
        pipe.channel.doorbell().ring();
        let mut incoming = Incoming {
            pipe: Arc::clone(&pipe),
            receiver,
            reader: rings.incoming,
            packet: Packet::default(),
            broken: false,
        };
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || incoming.run())
            .map_err(|e| format!("the host refused a thread: {e}"))?;
        Ok(Self { pipe, thread: Some(thread) })
    }

    /// The way to the guest.
    pub fn pipe(&self) -> &Arc<Pipe> {
        &self.pipe
    }

    /// Comes to rest before `deadline`; `false`: it could not, and goes on.
    pub fn pause(&self, deadline: Instant) -> bool {
        let mut state = self.pipe.lock();
        state.paused = true;
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.pipe.rest.wait_timeout_while(state, left, |s| s.busy);
        let (mut state, late) = waited.unwrap_or_else(PoisonError::into_inner);
        if late.timed_out() {
            drop(state);
            self.resume();
            return false;
        }
        state.at_rest = true;
        true
    }

    /// Goes on.
    pub fn resume(&self) {
        let mut state = self.pipe.lock();
        (state.paused, state.at_rest) = (false, false);
        drop(state);
        self.pipe.channel.doorbell().ring();
    }
}

impl Drop for PipeServer {
    fn drop(&mut self) {
        self.pipe.lock().closed = true;
        self.pipe.channel.doorbell().ring();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            _ = thread.join();
        }
    }
}

/// The thread's side.
struct Incoming {
    pipe: Arc<Pipe>,
    receiver: Arc<dyn Receiver>,
    reader: RingReader,
    packet: Packet,
    /// The guest broke its ring: nothing more can be read from it.
    broken: bool,
}

impl Incoming {
    fn run(&mut self) {
        loop {
            self.pipe.channel.doorbell().wait();
            let mut state = self.pipe.lock();
            if state.closed {
                return;
            }
            if state.paused {
                continue;
            }
            state.busy = true;
            self.pipe.flush(&mut state);
            drop(state);
            self.take_all();
            self.pipe.lock().busy = false;
            self.pipe.rest.notify_all();
        }
    }

    /// Takes messages until there are none, or the thread has to do something else.
    fn take_all(&mut self) {
        while !self.broken {
            {
                let state = self.pipe.lock();
                if state.paused || state.closed {
                    return;
                }
            }
            match self.reader.next(&mut self.packet) {
                Ok(true) => self.take(),
                Ok(false) => return,
                Err(e) => {
                    // The guest can have it as often as it likes.
                    tracing::debug!("a channel of messages is dead: {e}");
                    self.broken = true;
                }
            }
            if self.reader.publish() {
                self.pipe.channel.signal();
            }
        }
    }

    fn take(&mut self) {
        if self.packet.kind == kind::IN_BAND {
            self.receiver.message(&self.pipe, self.packet.data());
        }
        if self.packet.wants_completion {
            self.pipe.push(kind::COMPLETION, self.packet.transaction, Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vireo_memory::{GuestMemory, Holes, RamLayout};

    use super::*;
    use crate::driver::{Driver, Received};
    use crate::ring::RingPair;

    /// Sends each message back.
    struct Echo;
    impl Receiver for Echo {
        fn message(&self, pipe: &Arc<Pipe>, data: &[u8]) {
            pipe.send(data.to_vec());
        }
    }

    struct Rig {
        driver: Driver,
        channel: Arc<Channel>,
        server: PipeServer,
    }

    fn rig() -> Rig {
        let holes = Holes { legacy: 0xa_0000..0xc_0000, pci: 0xc000_0000..0x1_0000_0000 };
        let memory = GuestMemory::new(RamLayout::new(16 << 20, &holes).unwrap()).unwrap();
        let driver = Driver::new(&memory, 0x10_0000, 1, 1);
        let rings = RingPair::new(&memory, &driver.pages(), driver.split()).unwrap();
        let channel = Channel::new(&memory, rings, [0; 120], 0, Box::new(|_| ()));
        let server = PipeServer::start("echo", Arc::clone(&channel), Arc::new(Echo)).unwrap();
        Rig { driver, channel, server }
    }

    impl Rig {
        fn send(&self, data: &[u8]) -> bool {
            let sent = self.driver.send(kind::IN_BAND, 7, &[], data).is_some();
            self.channel.doorbell().ring();
            sent
        }
        fn receive(&self) -> Received {
            for _ in 0..2000 {
                if let Some(packet) = self.driver.receive() {
                    self.channel.doorbell().ring();
                    return packet;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            panic!("no answer");
        }
    }

    #[test]
    fn messages_are_taken_answered_and_completed() {
        let rig = rig();
        assert!(rig.send(b"12345678"));
        assert_eq!(rig.receive().data, b"12345678");
        let completion = rig.receive();
        assert_eq!(
            (completion.kind, completion.transaction, completion.data.len()),
            (kind::COMPLETION, 7, 0)
        );
    }

    #[test]
    fn answers_wait_for_room_and_are_bounded() {
        let rig = rig();
        let taken = (0..9999).take_while(|n: &u64| rig.server.pipe().send(n.to_le_bytes().to_vec())).count();
        assert!((BACKLOG..BACKLOG + 200).contains(&taken), "{taken}");
        for n in 0..taken as u64 {
            assert_eq!(rig.receive().data, n.to_le_bytes());
        }
        assert!(rig.driver.is_empty());
    }

    #[test]
    fn at_rest_nothing_is_taken_or_sent() {
        let rig = rig();
        assert!(rig.server.pause(Instant::now() + Duration::from_secs(20)));
        assert!(rig.send(b"12345678") && rig.server.pipe().send(b"abcdefgh".to_vec()));
        std::thread::sleep(Duration::from_millis(50));
        assert!(rig.driver.is_empty(), "a paused device wrote");
        rig.server.resume();
        assert_eq!(rig.receive().data, b"abcdefgh");
        assert_eq!(rig.receive().data, b"12345678");
    }

    #[test]
    fn a_broken_ring_ends_nothing_but_the_messages() {
        let rig = rig();
        rig.driver.break_ring();
        rig.channel.doorbell().ring();
        std::thread::sleep(Duration::from_millis(20));
        assert!(rig.server.pipe().send(b"abcdefgh".to_vec()));
        assert_eq!(rig.receive().data, b"abcdefgh");
        assert!(rig.server.pause(Instant::now() + Duration::from_secs(20)));
        let pipe = Arc::clone(rig.server.pipe());
        drop(rig.server);
        assert!(!pipe.send(vec![1]));
    }
}
