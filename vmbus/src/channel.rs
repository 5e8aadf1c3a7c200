//! An open channel in its device's hands.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vireo_hyperv::EventPort;
use vireo_memory::GuestMemory;

use crate::protocol::UserData;
use crate::ring::RingPair;

/// Who hears a doorbell in place of the thread that waits for it. Called by whoever rings, at most once until
/// [`Doorbell::answer`].
pub type Listener = Box<dyn Fn() + Send + Sync>;

/// What the guest, or somebody of the host, rings when there is something to do for a device: a thread that waits for it hears
/// it, or a listener.
#[derive(Default)]
pub struct Doorbell {
    rung: AtomicBool,
    ears: Mutex<Ears>,
    wake: Condvar,
}

#[derive(Default)]
struct Ears {
    /// A thread sleeps.
    sleeps: bool,
    listener: Option<Listener>,
}

impl Doorbell {
    fn ears(&self) -> MutexGuard<'_, Ears> {
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rings, unless it has been rung and nobody has answered.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst) {
            self.tell(&self.ears());
        }
    }

    fn tell(&self, ears: &Ears) {
        match &ears.listener {
            Some(listener) => listener(),
            None if ears.sleeps => self.wake.notify_one(),
            None => {}
        }
    }

    /// Says who hears it from now on: a listener, or the thread that waits. Rings once for certain, as nobody knows whether the last
    /// one heard all.
    pub fn listen(&self, listener: Option<Listener>) {
        let mut ears = self.ears();
        let last = std::mem::replace(&mut ears.listener, listener);
        self.rung.store(true, Ordering::SeqCst);
        self.tell(&ears);
        drop(ears);
        drop(last);
    }

    /// For the listener, before it looks for what there is to do: the next ring is told again. One that does not listen any more, but
    /// was told before, takes no ring away from who listens now.
    pub fn answer(&self) {
        let ears = self.ears();
        if ears.listener.is_some() {
            // A swap, not a store: it sees what whoever rang wrote before.
            self.rung.swap(false, Ordering::SeqCst);
        }
    }

    /// Sleeps until it was rung since the last wait ended, and no listener is there.
    pub fn wait(&self) {
        let mut ears = self.ears();
        ears.sleeps = true;
        while ears.listener.is_some() || !self.rung.swap(false, Ordering::SeqCst) {
            ears = self.wake.wait(ears).unwrap_or_else(PoisonError::into_inner);
        }
        ears.sleeps = false;
    }
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doorbell").field("rung", &self.rung).finish_non_exhaustive()
    }
}

impl EventPort for Doorbell {
    fn signal(&self, _flag: u16) {
        self.ring();
    }
}

/// Interrupts a vCPU of the guest on behalf of a channel.
pub type Interrupt = Box<dyn Fn(u32) + Send + Sync>;

/// A channel that the guest has opened.
pub struct Channel {
    /// Its rings, until the device takes them.
    rings: Mutex<Option<RingPair>>,
    /// Rung by the guest.
    doorbell: Arc<Doorbell>,
    interrupt: Interrupt,
    memory: Arc<GuestMemory>,
    target: AtomicU32,
    user_data: UserData,
}

impl Channel {
    /// A channel with these rings, whose interrupts go to vCPU `vp`.
    pub fn new(
        memory: &Arc<GuestMemory>,
        rings: RingPair,
        user_data: UserData,
        vp: u32,
        interrupt: Interrupt,
    ) -> Arc<Self> {
        Arc::new(Self {
            rings: Mutex::new(Some(rings)),
            doorbell: Arc::default(),
            interrupt,
            memory: Arc::clone(memory),
            target: AtomicU32::new(vp),
            user_data,
        })
    }

    /// Its rings; once.
    pub fn take_rings(&self) -> Option<RingPair> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where to wait for the guest. Others may ring it too.
    pub fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    /// Interrupts the guest: there is something in the ring that it reads, or room in the one that it writes.
    pub fn signal(&self) {
        (self.interrupt)(self.target.load(Ordering::Relaxed));
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// What the guest passed with its opening.
    pub fn user_data(&self) -> &UserData {
        &self.user_data
    }

    pub(crate) fn retarget(&self, vp: u32) {
        self.target.store(vp, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_listener_of_before_takes_no_ring_away() {
        let bell = Arc::new(Doorbell::default());
        let told = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&told);
        bell.listen(Some(Box::new(move || _ = count.fetch_add(1, Ordering::SeqCst))));
        assert_eq!(told.load(Ordering::SeqCst), 1, "once for certain");
        bell.ring();
        assert_eq!(told.load(Ordering::SeqCst), 1, "nobody has answered");
        bell.answer();
        bell.ring();
        assert_eq!(told.load(Ordering::SeqCst), 2);
        // It has been told, and comes too late.
        bell.listen(None);
        bell.answer();
        let (done, waited) = channel();
        let waits = Arc::clone(&bell);
        std::thread::spawn(move || {
            waits.wait();
            _ = done.send(());
        });
        waited.recv_timeout(Duration::from_secs(20)).expect("the thread that waits hears the ring");
    }
}
