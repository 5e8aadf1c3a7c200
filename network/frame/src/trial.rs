//! For tests of this room and of higher ones: a network that a test holds in its hands, and packets.

mod packets;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Ability, Adapter, End, Filter, Frame, Full, Intent, Link, Mac, NotAllowed};

pub use packets::{any_packet, packet};

/// The network of one adapter: it keeps what it gets, and gives what the test has.
pub struct Wire {
    adapter: Mutex<Option<Arc<dyn Adapter>>>,
    ability: Ability,
    /// Frames that it takes before it is full.
    pub room: AtomicUsize,
    /// What came, with all bytes.
    pub got: Mutex<Vec<(Vec<u8>, Intent)>>,
    /// How often it was told that no more come for a moment.
    pub flushes: AtomicUsize,
    /// It was told of room.
    pub told: AtomicBool,
    /// What the adapter said that it takes.
    pub adapter_ability: Mutex<Ability>,
    /// What it wants to get.
    pub filter: Mutex<Filter>,
    /// An address that is not allowed.
    pub forbidden: Mac,
    /// The address that it has.
    pub address: Mutex<Option<Mac>>,
}

impl Wire {
    /// One that takes this.
    pub fn new(ability: Ability) -> Arc<Self> {
        Arc::new(Self {
            adapter: Mutex::default(),
            ability,
            room: AtomicUsize::new(usize::MAX),
            got: Mutex::default(),
            flushes: AtomicUsize::new(0),
            told: AtomicBool::new(false),
            adapter_ability: Mutex::default(),
            filter: Mutex::default(),
            forbidden: Mac([2, 0, 0, 0, 0, 0x66]),
            address: Mutex::default(),
        })
    }

    /// Who is plugged in.
    pub fn adapter(&self) -> Option<Arc<dyn Adapter>> {
        self.adapter.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives the adapter a frame.
    ///
    /// # Errors
    /// Those of the adapter.
    ///
    /// # Panics
    /// There is no adapter, or the bytes make no frame.
    pub fn gives(&self, bytes: &[u8], intent: Intent) -> Result<(), Full> {
        let adapter = self.adapter().expect("an adapter");
        adapter.put(&Frame::new(bytes, &[], intent).expect("a frame"))
    }

    /// What came since the last call.
    pub fn take(&self) -> Vec<(Vec<u8>, Intent)> {
        std::mem::take(&mut self.got.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it was told of room since the last call.
    pub fn is_told(&self) -> bool {
        self.told.swap(false, Ordering::AcqRel)
    }
}

impl End for Wire {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        let less = |room: usize| room.checked_sub(1);
        if self.room.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_err() {
            return Err(Full);
        }
        assert!(self.ability.takes(&frame.intent()), "{:?} for {:?}", frame.intent(), self.ability);
        let mut bytes = Vec::new();
        frame.append_to(&mut bytes).expect("guest memory");
        self.got.lock().unwrap_or_else(PoisonError::into_inner).push((bytes, frame.intent()));
        Ok(())
    }

    fn flush(&self) {
        self.flushes.fetch_add(1, Ordering::AcqRel);
    }

    fn room(&self) {
        self.told.store(true, Ordering::Release);
    }
}

impl Link for Wire {
    fn plug(&self, adapter: Option<Arc<dyn Adapter>>) {
        *self.adapter.lock().unwrap_or_else(PoisonError::into_inner) = adapter;
    }
    fn ability(&self) -> Ability {
        self.ability
    }
    fn set_adapter_ability(&self, ability: Ability) {
        *self.adapter_ability.lock().unwrap_or_else(PoisonError::into_inner) = ability;
    }
    fn set_filter(&self, filter: &Filter) {
        *self.filter.lock().unwrap_or_else(PoisonError::into_inner) = filter.clone();
    }
    fn set_address(&self, address: Mac) -> Result<(), NotAllowed> {
        if address == self.forbidden {
            return Err(NotAllowed);
        }
        *self.address.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
        Ok(())
    }
    fn mtu(&self) -> u32 {
        9000
    }
}
