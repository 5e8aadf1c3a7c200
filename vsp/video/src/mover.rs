//! The thread that moves the window.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use vireo_board::Window;

/// Called when the window is where it was wanted, or cannot be there.
pub type Then = Box<dyn FnOnce(bool) + Send>;

/// Moves a window for those who must not wait for it.
pub struct Mover {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    window: Window,
    wanted: Mutex<Wanted>,
    wake: Condvar,
    /// Held while the window moves.
    moving: Mutex<()>,
}

#[derive(Default)]
struct Wanted {
    /// Only the last wish counts.
    gpa: Option<(u64, Then)>,
    ends: bool,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Mover {
    /// Starts the thread.
    ///
    /// # Errors
    /// The host refuses it.
    pub fn start(window: Window) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            window,
            wanted: Mutex::default(),
            wake: Condvar::new(),
            moving: Mutex::default(),
        });
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("vram".into()).spawn(move || served.run())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Wants the window at `gpa`.
    pub fn want(&self, gpa: u64, then: Then) {
        lock(&self.shared.wanted).gpa = Some((gpa, then));
        self.shared.wake.notify_one();
    }

    /// Takes the window away and clears its memory; what was wanted is not. The vCPUs stand still.
    pub fn reset(&self) {
        lock(&self.shared.wanted).gpa = None;
        let _still = lock(&self.shared.moving);
        match self.shared.window.move_to(None) {
            Ok(()) => self.shared.window.memory().clear(),
            Err(e) => tracing::warn!("the frame buffer stays where it was: {e}"),
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let mut wanted = lock(&self.wanted);
            while wanted.gpa.is_none() && !wanted.ends {
                wanted = self.wake.wait(wanted).unwrap_or_else(PoisonError::into_inner);
            }
            if wanted.ends {
                return;
            }
            drop(wanted);
            let _moving = lock(&self.moving);
            // A reset may have come between.
            let Some((gpa, then)) = lock(&self.wanted).gpa.take() else { continue };
            let moved = self.window.move_to(Some(gpa));
            if let Err(e) = &moved {
                tracing::debug!("the frame buffer cannot be where the guest wants it: {e}");
            }
            then(moved.is_ok());
        }
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        lock(&self.shared.wanted).ends = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so itself.
            _ = thread.join();
        }
    }
}
