//! Who gets what guests post and signal.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::{Message, Status};

/// Takes messages (HvCallPostMessage) that guests post to a connection.
pub trait MessagePort: Send + Sync {
    /// A message of the guest's, posted by vCPU `vp`. Called on its thread: it may not wait for another vCPU.
    fn post(&self, vp: u32, message: &Message) -> Status;
}

/// Takes events (HvCallSignalEvent) that guests signal to a connection.
pub trait EventPort: Send + Sync {
    /// An event with this number. Called on a vCPU's thread, often: it only notes and wakes.
    fn signal(&self, flag: u16);
}

/// Ports by connection id.
#[derive(Default)]
pub struct Ports {
    messages: RwLock<HashMap<u32, Arc<dyn MessagePort>>>,
    events: RwLock<HashMap<u32, Arc<dyn EventPort>>>,
}

impl Ports {
    pub fn connect_messages(&self, connection: u32, port: Arc<dyn MessagePort>) {
        self.messages.write().unwrap_or_else(PoisonError::into_inner).insert(connection, port);
    }

    pub fn connect_events(&self, connection: u32, port: Arc<dyn EventPort>) {
        self.events.write().unwrap_or_else(PoisonError::into_inner).insert(connection, port);
    }

    pub fn disconnect_events(&self, connection: u32) {
        self.events.write().unwrap_or_else(PoisonError::into_inner).remove(&connection);
    }

    pub fn messages(&self, connection: u32) -> Option<Arc<dyn MessagePort>> {
        self.messages.read().unwrap_or_else(PoisonError::into_inner).get(&connection).cloned()
    }

    pub fn events(&self, connection: u32) -> Option<Arc<dyn EventPort>> {
        self.events.read().unwrap_or_else(PoisonError::into_inner).get(&connection).cloned()
    }
}
