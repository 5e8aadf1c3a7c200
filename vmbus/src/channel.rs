//! An open channel in its device's hands.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use vireo_hyperv::EventPort;
use vireo_memory::GuestMemory;

use crate::protocol::UserData;
use crate::ring::RingPair;

/// Where a device's thread sleeps until the guest, or somebody of the host, rings.
#[derive(Debug, Default)]
pub struct Doorbell {
    rung: AtomicBool,
    /// Somebody sleeps.
    sleeps: Mutex<bool>,
    wake: Condvar,
}

impl Doorbell {
    /// Rings: the next wait ends, or the one that goes on.
    pub fn ring(&self) {
        if !self.rung.swap(true, Ordering::SeqCst)
            && *self.sleeps.lock().unwrap_or_else(PoisonError::into_inner)
        {
            self.wake.notify_one();
        }
    }

    /// Sleeps until it was rung since the last wait ended.
    pub fn wait(&self) {
        let mut sleeps = self.sleeps.lock().unwrap_or_else(PoisonError::into_inner);
        *sleeps = true;
        while !self.rung.swap(false, Ordering::SeqCst) {
            sleeps = self.wake.wait(sleeps).unwrap_or_else(PoisonError::into_inner);
        }
        *sleeps = false;
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
