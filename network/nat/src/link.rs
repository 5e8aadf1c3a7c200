//! The thread of a network, and the link that guests' adapters are plugged into.
//!
//! Frames from guests are looked at on the thread that puts them, under a lock, so that payload goes from guest memory to the
//! host's socket without a copy. Frames for guests are put by the network's own thread alone.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use ahash::RandomState;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::process::{Resource, getrlimit};
use vireo_frame::{Ability, Adapter, End, Filter, Frame, Full, Link, Mac, NotAllowed};

use crate::config::{NatConfig, NatError};
use crate::engine::Engine;
use crate::forward::Forward;
use crate::host::{Ready, Token};
use crate::outbox::Output;
use crate::slots::Nanos;
use crate::sockets::Sockets;
use crate::stats::Stats;

/// The bell's token, which is none of a flow.
const BELL: Token = Token(u64::MAX);
/// Changes of sockets that are taken at a time.
const EVENTS: usize = 128;
/// What adapters are told that the link carries, in bits a second.
const SPEED: u64 = 10_000_000_000;

/// A private network for guests.
///
/// An adapter must not hold a lock while it puts frames that it needs to take frames: both happen at once.
pub struct Nat {
    inner: Arc<Inner>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    engine: Mutex<Engine<Sockets>>,
    /// Who is plugged in. Locked while frames are put, so that nobody is unplugged meanwhile.
    adapter: Mutex<Option<Arc<dyn Adapter>>>,
    /// What it takes, as bits.
    ability: AtomicU8,
    /// It has said that it has room, since it was last put a frame.
    room: AtomicBool,
    epoll: Arc<OwnedFd>,
    bell: OwnedFd,
    /// The thread has been told to look again, and has not yet.
    rung: AtomicBool,
    over: AtomicBool,
    start: Instant,
    mtu: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn host(what: &'static str) -> impl Fn(std::io::Error) -> NatError {
    move |source| NatError::Host { what, source }
}

/// Flows of each kind that there may be in a process with so many file descriptors: half of these are for others.
fn flows_most(descriptors: Option<u64>) -> usize {
    descriptors.and_then(|n| usize::try_from(n / 4).ok()).unwrap_or(usize::MAX)
}

impl Nat {
    /// Starts one; it ends when it is dropped.
    ///
    /// # Errors
    /// It cannot be, or a port cannot be forwarded.
    pub fn start(mut config: NatConfig) -> Result<Arc<Self>, NatError> {
        config.flows = config.flows.min(flows_most(getrlimit(Resource::Nofile).current));
        let (flags, event) = (CreateFlags::CLOEXEC, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let epoll = epoll::create(flags).map_err(|e| host("epoll instance")(e.into()))?;
        let bell = eventfd(0, event).map_err(|e| host("event")(e.into()))?;
        epoll::add(&epoll, &bell, EventData::new_u64(BELL.0), EventFlags::IN)
            .map_err(|e| host("epoll instance")(e.into()))?;
        let epoll = Arc::new(epoll);
        let mtu = config.mtu;
        let engine = Engine::new(config, Sockets::new(epoll.clone()), RandomState::new(), 0)?;
        let inner = Arc::new(Inner {
            engine: Mutex::new(engine),
            adapter: Mutex::default(),
            ability: AtomicU8::new(0),
            room: AtomicBool::new(true),
            epoll,
            bell,
            rung: AtomicBool::new(false),
            over: AtomicBool::new(false),
            start: Instant::now(),
            mtu,
        });
        let runs = inner.clone();
        let thread = std::thread::Builder::new()
            .name("nat".into())
            .spawn(move || runs.run())
            .map_err(host("thread"))?;
        Ok(Arc::new(Self { inner, thread: Mutex::new(Some(thread)) }))
    }

    /// Forwards a port of the host to a guest from now on. Says what is forwarded: with port 0, the host has chosen one.
    ///
    /// # Errors
    /// The host does not give that port, or there can be no such guest.
    pub fn add_forward(&self, forward: Forward) -> Result<Forward, NatError> {
        lock(&self.inner.engine).add_forward(forward)
    }

    /// Forwards a port no more. Connections that there are go on.
    ///
    /// # Errors
    /// It is not forwarded.
    pub fn remove_forward(&self, forward: &Forward) -> Result<(), NatError> {
        lock(&self.inner.engine).remove_forward(forward)
    }

    /// What is forwarded.
    pub fn forwards(&self) -> Vec<Forward> {
        lock(&self.inner.engine).forwards()
    }

    /// Guests that were given an address.
    pub fn leases(&self) -> Vec<(Mac, std::net::Ipv4Addr)> {
        lock(&self.inner.engine).leases()
    }

    /// What came of it so far.
    pub fn stats(&self) -> Stats {
        lock(&self.inner.engine).stats()
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.inner.over.store(true, Ordering::Release);
        self.inner.ring();
        if let Some(thread) = lock(&self.thread).take()
            && thread.thread().id() != std::thread::current().id()
        {
            // It has panicked, or has ended.
            _ = thread.join();
        }
    }
}

impl End for Nat {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let now = self.inner.now();
        lock(&self.inner.engine).input(now, frame);
        Ok(())
    }

    fn flush(&self) {
        self.inner.wake();
    }

    fn room(&self) {
        self.inner.room.store(true, Ordering::Release);
        self.inner.wake();
    }
}

impl Link for Nat {
    fn plug(&self, adapter: Option<Arc<dyn Adapter>>) {
        if adapter.is_none() {
            self.set_adapter_ability(Ability::default());
        }
        let before = std::mem::replace(&mut *lock(&self.inner.adapter), adapter.clone());
        drop(before);
        lock(&self.inner.engine).replugged();
        if let Some(adapter) = adapter {
            adapter.set_carrier(true, SPEED);
        }
        self.room();
    }

    fn ability(&self) -> Ability {
        Ability { tag: false, ..Ability::ALL }
    }

    fn set_adapter_ability(&self, ability: Ability) {
        let Ability { checksum, tcp4, tcp6, udp, tag: _ } = ability;
        let bits = [checksum, tcp4, tcp6, udp].iter().rev().fold(0, |bits, b| bits << 1 | u8::from(*b));
        self.inner.ability.store(bits, Ordering::Release);
    }

    fn set_filter(&self, _: &Filter) {}

    fn set_address(&self, _: Mac) -> Result<(), NotAllowed> {
        // The guest is the same, and is to have the address that it had, to which ports are forwarded.
        lock(&self.inner.engine).replugged();
        Ok(())
    }

    fn mtu(&self) -> u32 {
        self.inner.mtu
    }
}

/// Gives frames to the adapter.
struct ToAdapter<'a> {
    adapter: &'a dyn Adapter,
    ability: Ability,
    put: bool,
}

impl Output for ToAdapter<'_> {
    fn ability(&self) -> Ability {
        self.ability
    }

    fn put(&mut self, frame: &Frame<'_>) -> Result<(), Full> {
        self.put = true;
        self.adapter.put(frame)
    }
}

/// What is left to be done after a turn.
enum Next {
    /// More at once.
    Again,
    /// Nothing before this moment.
    At(Nanos),
}

impl Inner {
    fn now(&self) -> Nanos {
        self.start.elapsed().as_nanos() as Nanos
    }

    fn adapter_ability(&self) -> Ability {
        let bits = self.ability.load(Ordering::Acquire);
        let has = |n: u8| bits >> n & 1 != 0;
        Ability { checksum: has(0), tcp4: has(1), tcp6: has(2), udp: has(3), tag: false }
    }

    /// Has the thread look again.
    fn wake(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.ring();
        }
    }

    fn ring(&self) {
        // It fails only when the count is full, and then the bell has been ringing.
        _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS);
        let (mut next, mut full) = (Next::Again, false);
        while !self.over.load(Ordering::Acquire) {
            let timeout = match next {
                Next::Again => Some(Timespec::default()),
                Next::At(at) => Some((at.saturating_sub(self.now())).min(i64::MAX as u64)).map(|n| {
                    Timespec { tv_sec: (n / 1_000_000_000) as _, tv_nsec: (n % 1_000_000_000) as _ }
                }),
            };
            events.clear();
            match epoll::wait(&*self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "a network cannot wait for its sockets: it ends");
                    return;
                }
            }
            if events.iter().any(|e| e.data.u64() == BELL.0) {
                let mut count = [0; 8];
                _ = rustix::io::read(&self.bell, &mut count);
            }
            self.rung.store(false, Ordering::Release);
            self.tell(&events);
            next = self.turn(&mut full);
        }
    }

    /// Tells flows what has become of their sockets.
    fn tell(&self, events: &[epoll::Event]) {
        let now = self.now();
        let mut engine = lock(&self.engine);
        for event in events {
            let (token, flags) = (event.data.u64(), event.flags);
            if token != BELL.0 {
                let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
                let read = broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
                let write = broken || flags.contains(EventFlags::OUT);
                engine.event(now, Token(token), Ready { read, write });
            }
        }
    }

    /// Has the engine do what there is to do, for a moment.
    fn turn(&self, full: &mut bool) -> Next {
        let adapter = lock(&self.adapter);
        let Some(adapter) = adapter.as_deref().filter(|_| !*full || self.room.load(Ordering::Acquire)) else {
            return Next::At(Nanos::MAX);
        };
        // Before anything is put: it may have room again before we know that it had none.
        self.room.store(false, Ordering::Release);
        let mut out = ToAdapter { adapter, ability: self.adapter_ability(), put: false };
        let mut engine = lock(&self.engine);
        let more = engine.run(self.now(), &mut out);
        let deadline = engine.deadline();
        drop(engine);
        if out.put {
            adapter.flush();
        }
        *full = more.is_err();
        match more {
            Ok(true) => Next::Again,
            Ok(false) => Next::At(deadline),
            Err(Full) => Next::At(Nanos::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_leave_half_of_the_descriptors_to_others() {
        assert_eq!([Some(1024), Some(3), None].map(flows_most), [256, 0, usize::MAX]);
    }
}
