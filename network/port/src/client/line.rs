//! The thread of a port: what the switch gives goes to the adapter, and the connection is made again when it was lost.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vireo_frame::{Ability, Adapter, Filter, Frame, fit};

use super::{ConnectError, Given, Shared, Wants, answered, ask, lock};
use crate::wire::{self, Heard, Word};
use crate::{RingBroken, RingReader, Way};

/// How often a switch that is not there is looked for.
const RETRY: Duration = Duration::from_millis(200);
/// Frames that an adapter gets before its lock is let go.
const BATCH: usize = 256;

/// A connection, from the side of who receives.
struct Line<'a> {
    shared: &'a Shared,
    socket: Arc<OwnedFd>,
    reader: RingReader,
    /// The next frame's bytes, if it was begun: what of it was put already, and what the adapter took then.
    begun: Option<(usize, Ability)>,
    bytes: Vec<u8>,
    scratch: Vec<u8>,
    messages: Vec<u8>,
}

/// How far an adapter took frames.
enum Pumped {
    /// There is no more.
    All,
    /// There may be more.
    Some,
    /// The adapter is full.
    Full,
}

/// Serves a port until it ends.
pub(super) fn run(shared: &Shared, given: Given) {
    serve(shared, given);
    while !shared.ended.load(Ordering::SeqCst) {
        match shared.path.as_deref().map(|path| ask(path, &shared.request)) {
            Some(Ok(given)) => {
                _ = shared.refused(None);
                shared.take(&given);
                serve(shared, given);
            }
            failed => {
                if let Some(Err(e @ ConnectError::Refused { .. })) = failed
                    && shared.refused(Some(e.to_string()))
                {
                    tracing::warn!("no carrier: {e}");
                }
                // One that was plugged in meanwhile.
                if shared.is_new.swap(false, Ordering::SeqCst)
                    && let Some(adapter) = &*lock(&shared.adapter)
                {
                    adapter.set_carrier(false, 0);
                }
                sleep(shared, None, Some(RETRY));
            }
        }
    }
}

/// Serves a connection until it is lost.
fn serve(shared: &Shared, given: Given) {
    tell_wishes(shared);
    shared.is_new.store(true, Ordering::SeqCst);
    let mut line = Line {
        shared,
        socket: Arc::clone(&given.socket),
        reader: RingReader::new(&given.memory, Way::Down),
        begun: None,
        bytes: Vec::new(),
        scratch: Vec::new(),
        messages: vec![0; wire::MESSAGE_MAX],
    };
    if let Err(e) = line.serve() {
        tracing::warn!(port = shared.request.name, "the switch is not served any more: {e}");
    }
    *lock(&shared.up) = None;
    if let Some(adapter) = &*lock(&shared.adapter) {
        adapter.set_carrier(false, 0);
        if shared.wants_room.swap(false, Ordering::SeqCst) {
            // Frames are lost now, but nobody waits.
            adapter.room();
        }
    }
}

/// Tells a switch that may have been started again what the guest chose before.
fn tell_wishes(shared: &Shared) {
    let Wants { address, filter } = &*lock(&shared.wants);
    if *address != shared.request.mac {
        shared.tell(&Word::Address { mac: *address });
    }
    if *filter != Filter::default() {
        shared.tell(&Word::from(filter));
    }
}

/// Waits for the switch, a call, or a moment.
fn sleep(shared: &Shared, socket: Option<&OwnedFd>, most: Option<Duration>) {
    let mut fds = vec![PollFd::new(&shared.wake, PollFlags::IN)];
    fds.extend(socket.map(|s| PollFd::new(s, PollFlags::IN)));
    let most = most.map(|d| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: d.subsec_nanos().into() });
    _ = poll(&mut fds, most.as_ref());
    if fds[0].revents().contains(PollFlags::IN) {
        _ = rustix::io::read(&shared.wake, &mut [0; 8]);
    }
}

impl Line<'_> {
    fn serve(&mut self) -> Result<(), RingBroken> {
        while !self.shared.ended.load(Ordering::SeqCst) {
            if !self.listen() {
                return Ok(());
            }
            match self.pump()? {
                Pumped::Some => continue,
                Pumped::All if self.reader.wait()? => continue,
                Pumped::All => {}
                // It says so when it is not any more.
                Pumped::Full if self.shared.has_room.load(Ordering::SeqCst) => continue,
                Pumped::Full => {}
            }
            sleep(self.shared, Some(&self.socket), None);
        }
        Ok(())
    }

    /// Hears what the switch says, until there is nothing; whether it is still there.
    fn listen(&mut self) -> bool {
        loop {
            match wire::receive(&*self.socket, false, &mut self.messages) {
                Heard::Bell => self.look_for_room(),
                Heard::Message(message, _) => answered(self.shared, message),
                // Whose files they are is the switch's, which is trusted with that much.
                Heard::Files(_) => {}
                Heard::Nothing => return true,
                Heard::Gone => return false,
            }
        }
    }

    /// Tells an adapter that waits for it of room.
    fn look_for_room(&self) {
        let waits = lock(&self.shared.up).as_ref().is_some_and(|up| up.writer.is_waiting());
        if !waits
            && self.shared.wants_room.swap(false, Ordering::SeqCst)
            && let Some(adapter) = &*lock(&self.shared.adapter)
        {
            adapter.room();
        }
    }

    /// Gives an adapter what is there. Without one, frames are lost.
    fn pump(&mut self) -> Result<Pumped, RingBroken> {
        self.shared.has_room.store(false, Ordering::SeqCst);
        let shared = self.shared;
        let adapter = lock(&shared.adapter);
        if shared.is_new.swap(false, Ordering::SeqCst)
            && let Some(adapter) = &*adapter
        {
            adapter.set_carrier(true, shared.speed.load(Ordering::Relaxed));
            self.begun = None;
        }
        let mut pumped = Pumped::Some;
        for _ in 0..BATCH {
            let Some(record) = self.reader.peek()? else {
                pumped = Pumped::All;
                break;
            };
            if let Some(adapter) = &*adapter
                && !self.give(adapter.as_ref(), record)
            {
                pumped = Pumped::Full;
                break;
            }
            self.begun = None;
            self.reader.consume(record);
        }
        if let Some(adapter) = &*adapter {
            adapter.flush();
        }
        if self.reader.publish() {
            wire::ring(&*self.socket);
        }
        Ok(pumped)
    }

    /// Gives a frame to an adapter in a form that it takes; whether all of it was taken.
    fn give(&mut self, adapter: &dyn Adapter, record: crate::Record) -> bool {
        let (done, takes) = self.begun.get_or_insert_with(|| {
            // Once: what comes in pieces is to be of one frame.
            self.bytes.resize(record.length, 0);
            self.reader.read(&record, 0, &mut self.bytes);
            (0, *lock(&self.shared.takes))
        });
        // What is no frame is lost.
        let Ok(frame) = Frame::new(&self.bytes, &[], record.intent) else { return true };
        fit(&frame, takes, done, &mut self.scratch, &mut |frame| adapter.put(frame)).is_ok()
    }
}
