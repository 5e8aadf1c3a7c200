//! The card's thread: it sends, and tells the network what it is to know. The network is never called with the lock held.

use std::io;
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;

use vireo_frame::{Frame, Link, Mac, fit};

use crate::card::{Shared, State};
use crate::transmit::Outgoing;

/// Descriptors that are looked at before the guest is interrupted, and others get the lock.
const TURN: u32 = 256;

/// Starts it.
pub(crate) fn start(name: &str, shared: &Arc<Shared>, link: &Arc<dyn Link>) -> io::Result<JoinHandle<()>> {
    let sender = Sender {
        shared: Arc::clone(shared),
        link: Arc::clone(link),
        buffer: Vec::new(),
        scratch: Vec::new(),
        waiting: None,
        done: 0,
        budget: TURN,
        unflushed: false,
        address: None,
    };
    std::thread::Builder::new().name(name.into()).spawn(move || sender.run())
}

struct Sender {
    shared: Arc<Shared>,
    link: Arc<dyn Link>,
    /// The card's FIFO: one frame.
    buffer: Vec<u8>,
    scratch: Vec<u8>,
    /// What is in it, and before how many resets it came there.
    waiting: Option<(Outgoing, u64)>,
    /// How many pieces of it are gone ([`fit`]).
    done: usize,
    budget: u32,
    /// Frames were put, and the network may keep them for a moment.
    unflushed: bool,
    /// The address that the network was told.
    address: Option<Mac>,
}

impl Sender {
    fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        while !state.ended {
            state = self.step(&shared, state);
        }
    }

    /// Does one thing, or waits.
    fn step<'a>(&mut self, shared: &'a Shared, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if std::mem::take(&mut state.tell_room) {
            drop(state);
            self.link.room();
        } else if std::mem::take(&mut state.tell_wishes) {
            let (filter, address) = (state.registers.filter(), state.registers.address());
            drop(state);
            self.link.set_filter(&filter);
            if address != self.address {
                self.address = address;
                // A card's driver cannot be told that it may not: its frames are the network's to refuse.
                _ = address.filter(|a| a.is_station()).map(|address| self.link.set_address(address));
            }
        } else if self.waiting.is_some_and(|(_, epoch)| epoch != state.epoch) {
            self.waiting = None;
            return state;
        } else if let Some((frame, _)) = self.waiting.filter(|_| !state.full) {
            // Before it is put: there may be room at once.
            state.full = true;
            drop(state);
            if self.put(frame) {
                self.waiting = None;
                state = shared.lock();
                state.full = false;
                return state;
            }
            // What went before it is the guest's again.
            state = shared.lock();
            shared.drive(&mut state);
            return state;
        } else if self.waiting.is_none() && state.transmit && state.pauses == 0 {
            self.fetch(shared, &mut state);
            return state;
        } else if std::mem::take(&mut self.unflushed) {
            drop(state);
            self.link.flush();
        } else {
            return shared.wait(state);
        }
        shared.lock()
    }

    /// Takes the next frame from the guest.
    fn fetch(&mut self, shared: &Shared, state: &mut State) {
        let frame = state.registers.transmit(&shared.memory, &mut self.buffer, &mut self.budget);
        (self.waiting, self.done) = (frame.map(|frame| (frame, state.epoch)), 0);
        if frame.is_none() || self.budget == 0 {
            // It is drained, or there is more in the next turn.
            state.transmit = self.budget == 0;
            self.budget = TURN;
            shared.drive(state);
        }
    }

    /// Puts it to the network, if that has room.
    fn put(&mut self, frame: Outgoing) -> bool {
        // What makes no frame was not taken from the guest.
        let Ok(frame) = Frame::new(&self.buffer, &[], frame.0) else { return true };
        let link = &*self.link;
        let put = fit(&frame, &link.ability(), &mut self.done, &mut self.scratch, &mut |f| link.put(f));
        self.unflushed = true;
        put.is_ok()
    }
}
