//! A network that a test holds in its hands.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vireo_frame::{Ability, Adapter, End, Filter, Frame, Full, Intent, Link, Mac, NotAllowed};

pub struct Wire {
    adapter: Mutex<Option<Arc<dyn Adapter>>>,
    ability: Ability,
    /// Frames that it takes before it is full.
    pub room: AtomicUsize,
    pub got: Mutex<Vec<(Vec<u8>, Intent)>>,
    pub flushes: AtomicUsize,
    /// It was told of room.
    pub told: AtomicBool,
    pub adapter_ability: Mutex<Ability>,
    pub filter: Mutex<Filter>,
    /// An address that is not allowed.
    pub forbidden: Mac,
}

impl Wire {
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
        })
    }

    pub fn adapter(&self) -> Option<Arc<dyn Adapter>> {
        self.adapter.lock().unwrap().clone()
    }

    /// A frame for the guest.
    pub fn gives(&self, bytes: &[u8], intent: Intent) -> Result<(), Full> {
        let adapter = self.adapter().expect("an adapter");
        adapter.put(&Frame::new(bytes, &[], intent).expect("a frame"))
    }

    pub fn take(&self) -> Vec<(Vec<u8>, Intent)> {
        std::mem::take(&mut self.got.lock().unwrap())
    }

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
        frame.append_to(&mut bytes).unwrap();
        self.got.lock().unwrap().push((bytes, frame.intent()));
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
        *self.adapter.lock().unwrap() = adapter;
    }
    fn ability(&self) -> Ability {
        self.ability
    }
    fn set_adapter_ability(&self, ability: Ability) {
        *self.adapter_ability.lock().unwrap() = ability;
    }
    fn set_filter(&self, filter: &Filter) {
        *self.filter.lock().unwrap() = filter.clone();
    }
    fn set_address(&self, address: Mac) -> Result<(), NotAllowed> {
        if address == self.forbidden { Err(NotAllowed) } else { Ok(()) }
    }
    fn mtu(&self) -> u32 {
        9000
    }
}
