//! Counts what passes between an adapter and its network.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vireo_frame::{Ability, Adapter, End, Filter, Frame, Full, Link, Mac, NotAllowed};

/// Frames and bytes of one direction.
#[derive(Default)]
struct Meter {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Meter {
    fn count(&self, frame: &Frame<'_>) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
    }

    fn read(&self) -> [u64; 2] {
        [&self.frames, &self.bytes].map(|n| n.load(Ordering::Relaxed))
    }
}

#[derive(Default)]
struct Meters {
    sent: Meter,
    received: Meter,
    /// The network is there, as the adapter was told.
    carrier: AtomicBool,
}

/// A network, with what passed it.
pub struct Metered {
    link: Arc<dyn Link>,
    meters: Arc<Meters>,
}

impl Metered {
    /// Counts what passes a network.
    pub fn new(link: Arc<dyn Link>) -> Arc<Self> {
        Arc::new(Self { link, meters: Arc::default() })
    }

    /// Frames and bytes that the network took from the guest.
    pub fn sent(&self) -> [u64; 2] {
        self.meters.sent.read()
    }

    /// Frames and bytes that the adapter took for the guest; some it may not have wanted.
    pub fn received(&self) -> [u64; 2] {
        self.meters.received.read()
    }

    /// Whether the adapter was told that the network is there.
    pub fn has_carrier(&self) -> bool {
        self.meters.carrier.load(Ordering::Relaxed)
    }
}

impl End for Metered {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        self.link.put(frame)?;
        self.meters.sent.count(frame);
        Ok(())
    }

    fn flush(&self) {
        self.link.flush();
    }

    fn room(&self) {
        self.link.room();
    }
}

impl Link for Metered {
    fn plug(&self, adapter: Option<Arc<dyn Adapter>>) {
        let meters = &self.meters;
        self.link.plug(adapter.map(|adapter| Arc::new(Counted { adapter, meters: Arc::clone(meters) }) as _));
    }

    fn ability(&self) -> Ability {
        self.link.ability()
    }

    fn set_adapter_ability(&self, ability: Ability) {
        self.link.set_adapter_ability(ability);
    }

    fn set_filter(&self, filter: &Filter) {
        self.link.set_filter(filter);
    }

    fn set_address(&self, address: Mac) -> Result<(), NotAllowed> {
        self.link.set_address(address)
    }

    fn mtu(&self) -> u32 {
        self.link.mtu()
    }
}

/// The adapter, as its network sees it.
struct Counted {
    adapter: Arc<dyn Adapter>,
    meters: Arc<Meters>,
}

impl End for Counted {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        self.adapter.put(frame)?;
        self.meters.received.count(frame);
        Ok(())
    }

    fn flush(&self) {
        self.adapter.flush();
    }

    fn room(&self) {
        self.adapter.room();
    }
}

impl Adapter for Counted {
    fn set_carrier(&self, up: bool, speed: u64) {
        self.meters.carrier.store(up, Ordering::Relaxed);
        self.adapter.set_carrier(up, speed);
    }
}
