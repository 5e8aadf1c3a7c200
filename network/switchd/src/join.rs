//! Two links, joined: what one gives, the other one takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vireo_frame::{Adapter, End, Frame, Full, Link};

/// Two links that give each other their frames, until this is dropped.
pub struct Joined(Arc<dyn Link>, Arc<dyn Link>);

/// What is plugged into one of them.
struct Patch {
    /// The other one.
    to: Arc<dyn Link>,
    /// Who wants to know of its carrier.
    carrier: Option<Arc<AtomicBool>>,
}

/// Joins two links. Each does to frames what the other one does not take. `carrier` says from now on whether `b` has one.
pub fn join(a: Arc<dyn Link>, b: Arc<dyn Link>, carrier: &Arc<AtomicBool>) -> Joined {
    a.set_adapter_ability(b.ability());
    b.set_adapter_ability(a.ability());
    a.plug(Some(Arc::new(Patch { to: Arc::clone(&b), carrier: None })));
    b.plug(Some(Arc::new(Patch { to: Arc::clone(&a), carrier: Some(Arc::clone(carrier)) })));
    Joined(a, b)
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.0.plug(None);
        self.1.plug(None);
    }
}

impl End for Patch {
    fn put(&self, frame: &Frame<'_>) -> Result<(), Full> {
        self.to.put(frame)
    }

    fn flush(&self) {
        self.to.flush();
    }

    fn room(&self) {
        self.to.room();
    }
}

impl Adapter for Patch {
    fn set_carrier(&self, up: bool, _speed: u64) {
        if let Some(carrier) = &self.carrier {
            carrier.store(up, Ordering::Relaxed);
        }
    }
}
