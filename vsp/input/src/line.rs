//! What both devices have: a driver that is there or not, and is ready or not.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vireo_vmbus::{Channel, OpenError, Pipe, PipeServer, Receiver};

/// The line to a driver.
#[derive(Default)]
pub struct Line {
    server: Mutex<Option<PipeServer>>,
    /// The way to a driver that is ready.
    ready: Mutex<Option<Arc<Pipe>>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Line {
    pub fn open(
        &self,
        name: &str,
        channel: Arc<Channel>,
        receiver: Arc<dyn Receiver>,
    ) -> Result<(), OpenError> {
        *lock(&self.server) = Some(PipeServer::start(name, channel, receiver).map_err(OpenError)?);
        Ok(())
    }

    pub fn close(&self) {
        let server = lock(&self.server).take();
        // Its thread may say that the driver is ready until it has ended.
        drop(server);
        *lock(&self.ready) = None;
    }

    pub fn pause(&self, deadline: Instant) -> bool {
        lock(&self.server).as_ref().is_none_or(|s| s.pause(deadline))
    }

    pub fn resume(&self) {
        if let Some(server) = &*lock(&self.server) {
            server.resume();
        }
    }

    /// The driver by this pipe takes input from now on, or takes none.
    pub fn set_ready(&self, pipe: &Arc<Pipe>, ready: bool) {
        *lock(&self.ready) = ready.then(|| Arc::clone(pipe));
    }

    /// Sends input; `false`: no driver takes it.
    pub fn send(&self, data: Vec<u8>) -> bool {
        lock(&self.ready).as_ref().is_some_and(|pipe| pipe.send(data))
    }
}
