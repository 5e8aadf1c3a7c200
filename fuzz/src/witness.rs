//! Sees what the host writes to guest memory, and that it does so only where it may.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vireo_memory::{GuestMemory, WriteObserver};

const PAGE: u64 = 4096;

thread_local! {
    static GUEST: Cell<bool> = const { Cell::new(false) };
}

/// What a target does in here, the guest does: the host did not write it.
pub fn guest<T>(act: impl FnOnce() -> T) -> T {
    let before = GUEST.replace(true);
    let done = act();
    GUEST.set(before);
    done
}

/// See the [module](self).
#[derive(Default)]
pub struct Witness {
    /// Pages that may be written.
    pages: Mutex<HashSet<u64>>,
    /// No page may be.
    still: AtomicBool,
    /// Every page may be: the guest has named them in a way that was not followed.
    lost: AtomicBool,
}

struct Eye(Arc<Witness>);

impl Witness {
    /// Of all that is written to this memory from now on.
    ///
    /// # Panics
    /// Another observer is there.
    pub fn of(memory: &GuestMemory) -> Arc<Self> {
        let witness = Arc::<Self>::default();
        assert!(memory.set_observer(Box::new(Eye(Arc::clone(&witness)))), "there is no other observer");
        witness
    }

    fn pages(&self) -> MutexGuard<'_, HashSet<u64>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These may be written.
    pub fn allow(&self, pages: impl IntoIterator<Item = u64>) {
        self.pages().extend(pages);
    }

    /// These may not be written any more.
    pub fn forbid(&self, pages: impl IntoIterator<Item = u64>) {
        let mut known = self.pages();
        pages.into_iter().for_each(|page| _ = known.remove(&page));
    }

    /// Whether nothing may be written, for now.
    pub fn keep_still(&self, still: bool) {
        self.still.store(still, Ordering::SeqCst);
    }

    /// What may be written is not known any more.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }
}

impl WriteObserver for Eye {
    fn host_wrote(&self, gpa: u64, len: u64) {
        if GUEST.get() || len == 0 {
            return;
        }
        assert!(!self.0.still.load(Ordering::SeqCst), "{len} bytes at {gpa:#x} were written at rest");
        if self.0.lost.load(Ordering::SeqCst) {
            return;
        }
        let known = self.0.pages();
        for page in gpa / PAGE..=(gpa + len - 1) / PAGE {
            assert!(known.contains(&page), "{len} bytes at {gpa:#x} were written, which nobody asked for");
        }
    }
}
